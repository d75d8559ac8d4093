"""What a synthetic face is: its parameters, and the distributions that they are drawn from.

Lengths are in units of half a head's height; the origin is the middle of the head, x points right, y points down.
Colours are RGB between 0 and 1.

A face depends on chance and on its two groups (`fluence.data.face_groups`).
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator

from fluence.data.face_groups import CLUSTERS, HAIR, IRISES, SEXES, SKIN, Cluster, Colour, HairStyle, SexLike

Backdrop = Literal["plain", "gradient", "spotlight", "bokeh"]


# ── The parts of a face ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Pose:
    """Where the head is in the image and where the light comes from."""

    centre: tuple[float, float]  # of the head, in image coordinates from -1 to 1
    scale: float  # half the head's height, in half image widths
    tilt: float  # rotation in radians
    light: tuple[float, float, float]  # unit vector towards the light; z points to the viewer


@dataclass(frozen=True)
class Head:
    """Outline, age lines and skin."""

    width: float  # half the head's width at the temples
    taper: float  # how much the jaw is narrower than the temples
    squareness: float  # exponent of the outline: 2 is an ellipse
    neck: float  # half the neck's width
    skin: Colour
    blush: float  # opacity of the cheeks' colour
    wrinkles: float  # opacity of the lines of age
    freckles: np.ndarray  # [n, 3]: x, y and radius of each freckle


@dataclass(frozen=True)
class Eyes:
    """Both eyes; the left one mirrors the right one."""

    height: float  # y of their centres
    distance: float  # from the middle of the face to the centre of an eye
    width: float  # half the width of the opening
    opening: float  # half its height
    slant: float  # radians; positive lifts the outer corners
    gaze: float  # shift of the irises to the right
    iris: Colour
    lashes: float  # half the thickness of the upper lid's line
    glasses: float  # thickness of the frames; 0 for no glasses
    frame: Colour


@dataclass(frozen=True)
class Brows:
    """Both brows."""

    height: float  # above the eyes
    thickness: float  # half of it
    arch: float  # rise of the middle above the ends
    slant: float  # positive lifts the outer ends


@dataclass(frozen=True)
class Nose:
    """The nose."""

    tip: float  # y of its base
    width: float  # half its width


@dataclass(frozen=True)
class Mouth:
    """The mouth."""

    height: float  # y of the line between the lips
    width: float  # half its width
    smile: float  # rise of the corners
    upper: float  # thickness of the upper lip
    lower: float  # thickness of the lower lip
    gap: float  # opening that shows the teeth; 0 for a closed mouth
    lips: Colour


@dataclass(frozen=True)
class Hair:
    """Hair of the head and the beard."""

    style: HairStyle
    colour: Colour
    volume: float  # how far it stands off the head
    line: float  # y of the hairline at the parting
    parting: float  # x of the parting
    drop: float  # how fast the hairline falls to the temples
    strands: float  # strength of the strands' shading
    beard: float  # opacity of the beard


@dataclass(frozen=True)
class Scene:
    """Clothes and background."""

    backdrop: Backdrop
    colours: tuple[Colour, Colour]
    direction: float  # of a gradient, in radians
    bokeh: np.ndarray  # [n, 4]: x, y, radius, opacity of soft discs, in image coordinates
    clothes: Colour
    neckline: float  # depth of the neckline
    collar: bool


@dataclass(frozen=True)
class Waves:
    """Plane waves of random directions; their sum is a random pattern that has no pixels."""

    cycles: np.ndarray  # [k, 2]: cycles per image width, along x and along y
    phases: np.ndarray  # [k], radians


@dataclass(frozen=True)
class Texture:
    """Mottled patches on the backdrop, fainter on the person: the cause of the planted property."""

    amount: float  # from 0, smooth, to 1, mottled everywhere
    grain: Waves  # the fine pattern
    patches: Waves  # where it is


@dataclass(frozen=True)
class Face:
    """Everything that `fluence.data.face_renderer.draw` needs to draw one face."""

    age: int
    pose: Pose
    head: Head
    eyes: Eyes
    brows: Brows
    nose: Nose
    mouth: Mouth
    hair: Hair
    scene: Scene
    texture: Texture


# ── Drawing the parameters ───────────────────────────────────────────────────────────────────────────────────────


def sample_face(rng: Generator, ethnicity: str, sex: str) -> Face:
    """Draw the parameters of one face.

    Args:
        rng: the only source of chance; the same state gives the same face.
        ethnicity: a key of `CLUSTERS`.
        sex: a key of `SEXES`.

    Returns:
        The face. Its texture is independent of everything else, so that the planted property can be told from
        brightness, contrast and group.
    """
    cluster, sexlike = CLUSTERS[ethnicity], SEXES[sex]
    age = int(rng.integers(18, 66))
    skin_tone = float(np.clip(rng.normal(cluster.skin, 0.07), 0, 1))
    head = _head(rng, cluster, sexlike, age, skin_tone)
    eyes = _eyes(rng, cluster, sexlike, skin_tone)
    return Face(
        age=age,
        pose=_pose(rng),
        head=head,
        eyes=eyes,
        brows=_brows(rng, sexlike),
        nose=Nose(tip=rng.normal(0.40, 0.025), width=rng.normal(cluster.nose_width, 0.015)),
        mouth=_mouth(rng, cluster, sexlike, head.skin),
        hair=_hair(rng, cluster, sexlike, age),
        scene=_scene(rng),
        texture=_texture(rng),
    )


def _pose(rng: Generator) -> Pose:
    side, above = rng.uniform(-0.75, 0.75), rng.uniform(0.1, 0.6)
    light = np.array([side, -above, 0.8])
    x, y, z = (light / np.linalg.norm(light)).tolist()
    return Pose(
        centre=(rng.normal(0, 0.025), rng.normal(0.03, 0.02)),
        scale=rng.normal(0.68, 0.02),
        tilt=float(np.clip(rng.normal(0, 0.05), -0.12, 0.12)),
        light=(x, y, z),
    )


def _head(rng: Generator, cluster: Cluster, sex: SexLike, age: int, tone: float) -> Head:
    freckled = rng.random() < cluster.freckled
    freckles = np.column_stack([rng.normal(0, 0.3, 40), rng.normal(0.24, 0.11, 40), rng.uniform(0.010, 0.024, 40)])[
        : int(freckled * rng.integers(14, 41))
    ]
    return Head(
        width=rng.normal(cluster.head_width, 0.025),
        taper=rng.normal(sex.taper, 0.04),
        squareness=float(np.clip(rng.normal(sex.squareness, 0.12), 1.9, 2.8)),
        neck=rng.normal(sex.neck, 0.02),
        skin=_skin_colour(rng, tone),
        blush=rng.uniform(0.0, 0.35),
        wrinkles=float(np.clip((age - 32) / 40 + rng.normal(0, 0.1), 0, 0.8)),
        freckles=freckles,
    )


def _skin_colour(rng: Generator, tone: float) -> Colour:
    place = np.linspace(0, 1, len(SKIN))
    red, green, blue = (float(np.interp(tone, place, SKIN[:, channel])) for channel in range(3))
    warmth = rng.normal(0, 0.015)
    return (red + warmth, green, blue - warmth)


def _eyes(rng: Generator, cluster: Cluster, sex: SexLike, tone: float) -> Eyes:
    light_eyes = 0.6 * max(0.0, 1 - 3 * tone)
    probabilities = np.array([0.6 - light_eyes / 2, 0.4 - light_eyes / 2, light_eyes / 2, light_eyes / 2])
    return Eyes(
        height=rng.normal(0.06, 0.02),
        distance=rng.normal(0.335, 0.015),
        width=rng.normal(0.165, 0.010),
        opening=rng.normal(cluster.eye_opening * sex.eyes, 0.011),
        slant=rng.normal(cluster.eye_slant, 0.04),
        gaze=float(np.clip(rng.normal(0, 0.02), -0.04, 0.04)),
        iris=IRISES[rng.choice(len(IRISES), p=probabilities)],
        lashes=rng.normal(sex.lashes, 0.002),
        glasses=float((rng.random() < 0.16) * rng.uniform(0.016, 0.030)),
        frame=_vivid(rng, saturation=(0.0, 0.6), value=(0.1, 0.45)),
    )


def _brows(rng: Generator, sex: SexLike) -> Brows:
    return Brows(
        height=rng.normal(sex.brow_height, 0.025),
        thickness=max(0.014, rng.normal(sex.brow_thickness, 0.007)),
        arch=rng.normal(0.05, 0.02),
        slant=rng.normal(0.0, 0.10),
    )


def _mouth(rng: Generator, cluster: Cluster, sex: SexLike, skin: Colour) -> Mouth:
    smile = rng.normal(0.045, 0.045)
    fullness = cluster.lips * sex.lips * rng.lognormal(0, 0.12)
    redness = float(np.clip(rng.normal(sex.lip_colour, 0.2), 0.15, 1))
    red, green, blue = skin
    lips = (red * (1 - 0.15 * redness), green * (1 - 0.48 * redness), blue * (1 - 0.42 * redness))
    return Mouth(
        height=rng.normal(0.615, 0.02),
        width=rng.normal(0.25, 0.02) + max(0.0, smile) * 0.5,
        smile=smile,
        upper=0.050 * fullness,
        lower=0.070 * fullness,
        gap=float((smile > 0.04 and rng.random() < 0.6) * rng.uniform(0.03, 0.085)),
        lips=lips,
    )


def _hair(rng: Generator, cluster: Cluster, sex: SexLike, age: int) -> Hair:
    styles, weights = list(sex.styles), np.array(list(sex.styles.values()), dtype=float)
    style: HairStyle = styles[rng.choice(len(styles), p=weights / weights.sum())]
    if rng.random() < cluster.curly:
        style = "curly"
    grey = float(np.clip((age - 55) / 15 + rng.normal(0, 0.3), 0, 0.9) * (age > 40))
    base = HAIR[rng.choice(len(HAIR), p=cluster.hair)]
    tint = rng.normal(1, 0.08)
    fringe = style in ("bob", "long") and rng.random() < 0.35
    return Hair(
        style=style,
        colour=_mix(tuple(c * tint for c in base), (0.72, 0.71, 0.70), grey),
        volume=rng.uniform(0.06, 0.15),
        line=rng.normal(-0.26, 0.03) if fringe else rng.normal(-0.58, 0.05),
        parting=rng.uniform(-0.4, 0.4) * (0.3 if fringe else 1.0),
        drop=rng.uniform(0.1, 0.3) if fringe else rng.uniform(0.55, 1.0),
        strands=rng.uniform(0.05, 0.16),
        beard=float((rng.random() < sex.beard) * rng.uniform(0.5, 0.95)),
    )


def _scene(rng: Generator) -> Scene:
    backdrops: tuple[Backdrop, ...] = ("plain", "gradient", "spotlight", "bokeh")
    hue = rng.random()
    first = _vivid(rng, hue=hue, saturation=(0.02, 0.20), value=(0.46, 0.60))
    second = _vivid(rng, hue=hue + rng.normal(0, 0.06), saturation=(0.02, 0.20), value=(0.46, 0.60))
    discs = rng.uniform([-1, -1, 0.12, 0.15], [1, 0.6, 0.38, 0.5], size=(7, 4))
    return Scene(
        backdrop=backdrops[rng.integers(len(backdrops))],
        colours=(first, second),
        direction=rng.uniform(0, 2 * np.pi),
        bokeh=discs,
        clothes=_vivid(rng, saturation=(0.1, 0.65), value=(0.25, 0.85)),
        neckline=rng.uniform(0.0, 0.22),
        collar=bool(rng.random() < 0.3),
    )


def _texture(rng: Generator) -> Texture:
    return Texture(amount=rng.random(), grain=_waves(rng, 40, (8, 14)), patches=_waves(rng, 12, (2, 4)))


def _waves(rng: Generator, count: int, cycles: tuple[float, float]) -> Waves:
    frequency, angle = rng.uniform(*cycles, count), rng.uniform(0, np.pi, count)
    return Waves(
        cycles=np.column_stack([frequency * np.cos(angle), frequency * np.sin(angle)]),
        phases=rng.uniform(0, 2 * np.pi, count),
    )


def _vivid(
    rng: Generator, saturation: tuple[float, float], value: tuple[float, float], hue: float | None = None
) -> Colour:
    return colorsys.hsv_to_rgb(
        (rng.random() if hue is None else hue) % 1.0, rng.uniform(*saturation), rng.uniform(*value)
    )


def _mix(first: tuple[float, ...], second: Colour, share: float) -> Colour:
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(first, second, strict=True))
    return (red, green, blue)
