"""Draws a synthetic face of any size, antialiased, from its parameters.

Every shape is a signed distance (negative inside) or a stroke along a curve, evaluated at the pixels' centres; a pixel
is covered by the share that lies inside (Source: Quilez, "2D distance functions"). A picture is painted from the back
to the front, so `draw` reads like a painter's list.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import ndtr

from fluence.data.face_canvas import Array, Canvas, box, ellipse, glow
from fluence.data.face_groups import Colour
from fluence.data.face_parameters import Face, Head, Texture, Waves

LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # ITU-R BT.709
DARK: Colour = (0.09, 0.07, 0.08)
WHITE: Colour = (0.97, 0.96, 0.94)

# The texture's looks. With these the planted property can be read from the sparseness of convolutional layers, also
# untrained ones, and hardly from brightness and contrast: see `fluence.data.synthetic`.
GRAIN_STRENGTH = 1.8  # standard deviation of the grain at amount 1, in units of the picture's contrast
CALM = 0.75  # share of it that the person is spared
PATCH_EDGE = 0.2  # softness of the patches' borders


def draw(face: Face, size_px: int) -> Array:
    """Draw a face.

    Args:
        face: its parameters.
        size_px: side of the square image.

    Returns:
        uint8 [size_px, size_px, 3], RGB. Another size shows the same face at another resolution.
    """
    canvas = Canvas(size_px, face.pose)
    outline = head_outline(canvas, face.head)
    _background(canvas, face)
    _hair_behind(canvas, face)
    _body(canvas, face, outline)
    _ears(canvas, face)
    _skin(canvas, face, outline)
    _beard(canvas, face, outline)
    _nose(canvas, face)
    _mouth(canvas, face)
    _eyes(canvas, face)
    _age_lines(canvas, face)
    _hair_in_front(canvas, face, outline)
    _brows(canvas, face)
    _glasses(canvas, face)
    return to_uint8(textured(canvas.image, canvas.figure, face.texture))


# ── From the back to the front ───────────────────────────────────────────────────────────────────────────────────


def _background(canvas: Canvas, face: Face) -> None:
    scene = face.scene
    first, second = (np.array(c, dtype=np.float32)[:, None, None] for c in scene.colours)
    x, y = canvas.frame_x, canvas.frame_y
    match scene.backdrop:
        case "plain" | "bokeh":
            share = 0.12 * y
        case "gradient":
            share = 0.5 + 0.45 * (x * np.cos(scene.direction) + y * np.sin(scene.direction))
        case "spotlight":
            share = 1 - glow(x - 0.4 * np.cos(scene.direction), y + 0.2, 0.9, 0.9)
    canvas.image[:] = first + np.clip(share, 0, 1) * (second - first)
    if scene.backdrop == "bokeh":
        for disc_x, disc_y, radius, opacity in scene.bokeh:
            disc = np.clip(0.5 - (np.hypot(x - disc_x, y - disc_y) - radius) / 0.1, 0, 1)
            canvas.paint(disc * np.float32(opacity), second)
    canvas.figure[:] = 0


def _hair_behind(canvas: Canvas, face: Face) -> None:
    x, y, width, volume = canvas.x, canvas.y, face.head.width, face.hair.volume
    match face.hair.style:
        case "long":
            shape = box(x, y - 0.3, width + volume + 0.10, 1.35 + volume, 0.75)
        case "bob":
            shape = box(x, y + 0.15, width + volume + 0.12, 0.95 + volume, 0.62)
        case "bun":
            shape = ellipse(x, y + 1.15 + volume, 0.36, 0.30)
        case "curly":
            shape = _curls(canvas, face)
        case _:
            return
    canvas.paint(canvas.inside(shape), _hair_colour(canvas, face, depth=0.78))


def _curls(canvas: Canvas, face: Face) -> Array:
    """Signed distance from a cloud of curls round the head."""
    x, y = canvas.x, canvas.y + 0.2
    bumps = 0.045 * np.cos(15 * np.arctan2(x, y) + 40 * face.hair.parting)
    return ellipse(x, y, face.head.width + 0.16 + face.hair.volume, 0.95 + face.hair.volume) - bumps


def _hair_colour(canvas: Canvas, face: Face, depth: float = 1.0) -> Array:
    """[3, size, size]: strands that fall from the parting, and a sheen towards the light."""
    x, y = canvas.x - face.hair.parting, canvas.y
    angle = np.arctan2(x, y + 1.25)
    strands = np.cos(23 * angle) + np.cos(37 * angle + 1)
    sheen = glow(canvas.x - 0.7 * face.pose.light[0], y + 0.72, 0.55, 0.22)
    tone = depth * (1 + face.hair.strands * strands) + 0.35 * sheen
    return np.array(face.hair.colour, dtype=np.float32)[:, None, None] * tone + 0.05 * sheen


def _body(canvas: Canvas, face: Face, outline: Array) -> None:
    x, y, skin = canvas.x, canvas.y, np.array(face.head.skin)
    neck = box(x, y - 1.2, face.head.neck, 0.75, 0.12)
    canvas.paint(canvas.inside(neck), 0.88 * skin)
    chin_shadow = np.clip(1 - (outline / 0.22), 0, 1) * canvas.inside(neck)
    canvas.paint(0.5 * chin_shadow, 0.55 * skin)
    shoulders = ellipse(x, y - 2.1, 0.85 + 1.2 * face.head.neck, 0.78)
    opening = ellipse(x, y - 1.30, face.head.neck + 0.08, 0.12 + face.scene.neckline)
    canvas.paint(canvas.inside(shoulders), 0.9 * skin)
    cloth = np.maximum(shoulders - 0.02, -opening)
    fold = 1 + 0.12 * canvas.x * face.pose.light[0] - 0.10 * glow(x, y - 1.3, 0.6, 0.25)
    colour = np.array(face.scene.clothes, dtype=np.float32)[:, None, None]
    canvas.paint(canvas.inside(cloth), colour * fold)
    if face.scene.collar:
        canvas.paint(
            canvas.along(opening - 0.035, 0.035) * canvas.inside(shoulders), np.clip(1.35 * colour, 0, 1) * fold
        )


def _ears(canvas: Canvas, face: Face) -> None:
    if face.hair.style in ("bob", "long", "curly"):
        return
    x, y = np.abs(canvas.x) - face.head.width - 0.01, canvas.y - 0.14
    canvas.paint(canvas.inside(ellipse(x, y, 0.10, 0.19)), 0.93 * np.array(face.head.skin))
    canvas.paint(0.5 * canvas.along(ellipse(x, y, 0.055, 0.12), 0.012), 0.65 * np.array(face.head.skin))


def _skin(canvas: Canvas, face: Face, outline: Array) -> None:
    x, y, head = canvas.x, canvas.y, face.head
    normal_x, normal_y = x / (head.width * 1.08), y / 1.08
    normal_z = np.sqrt(np.maximum(1 - normal_x**2 - normal_y**2, 0.04))
    light = normal_x * face.pose.light[0] + normal_y * face.pose.light[1] + normal_z * face.pose.light[2]
    tone = 0.78 + 0.30 * light
    colour = np.array(head.skin, dtype=np.float32)[:, None, None] * tone
    blush = head.blush * (glow(np.abs(x) - 0.42, y - 0.34, 0.19, 0.14))
    redder = colour * np.array([1.02, 0.72, 0.72], dtype=np.float32)[:, None, None]
    canvas.paint(canvas.inside(outline), colour + blush * (redder - colour))
    for freckle_x, freckle_y, radius in head.freckles:
        spot = canvas.inside(ellipse(x - freckle_x, y - freckle_y, radius, radius))
        canvas.paint(0.45 * spot * canvas.inside(outline), np.array(head.skin) * (0.72, 0.55, 0.45))


def _beard(canvas: Canvas, face: Face, outline: Array) -> None:
    if face.hair.beard == 0:
        return
    x, y = canvas.x, canvas.y
    jaw = np.maximum(outline - 0.015, 0.50 - 0.62 * np.abs(x) ** 1.5 - y)
    lips = ellipse(x, y - face.mouth.height - 0.01, face.mouth.width + 0.03, 0.11)
    cover = canvas.inside(np.maximum(jaw, -lips), 0.06) * face.hair.beard
    canvas.paint(cover, _hair_colour(canvas, face, depth=0.85))


def _nose(canvas: Canvas, face: Face) -> None:
    x, y, width, tip = canvas.x, canvas.y, face.nose.width, face.nose.tip
    skin = np.array(face.head.skin)
    side = -np.sign(face.pose.light[0])
    canvas.shade(-0.13 * glow(x - side * width * 0.55, y - tip + 0.18, 0.07, 0.26))
    canvas.shade(0.10 * glow(x + side * 0.02, y - tip + 0.08, 0.06, 0.16))
    across = x / width
    wings = y - tip + 0.035 * across**2 + 0.015 * np.cos(2.6 * across)
    canvas.paint(0.75 * canvas.along(wings, 0.022 * (1.15 - across**2)), 0.55 * skin)
    nostrils = ellipse(np.abs(x) - 0.5 * width, y - tip + 0.012, 0.26 * width, 0.020)
    canvas.paint(0.7 * canvas.inside(nostrils), 0.33 * skin)


def _mouth(canvas: Canvas, face: Face) -> None:
    mouth = face.mouth
    across = np.clip(canvas.x / mouth.width, -1.4, 1.4)
    arc = 1 - across**2
    line = canvas.y - mouth.height - mouth.smile * (arc - 0.6)
    bow = 1 - 0.28 * np.exp(-((canvas.x / 0.055) ** 2)) + 0.10 * arc
    gap = mouth.gap * arc
    upper, lower = -mouth.upper * arc * bow, gap + mouth.lower * arc
    lips = np.array(mouth.lips, dtype=np.float32)[:, None, None]
    volume = 1 + 0.22 * glow(across, (line - 0.55 * lower), 0.4, 0.03) - 0.12 * (line < 0)
    canvas.shade(-0.12 * glow(canvas.x, line - lower - 0.07, 0.16, 0.045))
    canvas.paint(canvas.inside(np.maximum(upper - line, line - lower)), lips * volume)
    if mouth.gap:
        canvas.paint(canvas.inside(np.maximum(-line, line - gap)), (0.30, 0.10, 0.10))
        canvas.paint(canvas.inside(np.maximum(0.004 - line, line - 0.62 * gap)), WHITE)
    else:
        canvas.paint(0.8 * canvas.along(line, 0.016 * (1.25 - across**2)), 0.42 * np.array(mouth.lips))


def _eye_frames(canvas: Canvas, face: Face) -> Iterator[tuple[float, Array, Array]]:
    """For each eye its side (-1 left, 1 right) and coordinates with x towards the outer corner."""
    cos, sin = np.cos(face.eyes.slant), np.sin(face.eyes.slant)
    for side in (-1.0, 1.0):
        x, y = side * canvas.x - face.eyes.distance, canvas.y - face.eyes.height
        yield side, cos * x - sin * y, cos * y + sin * x


def _eyes(canvas: Canvas, face: Face) -> None:
    eyes, skin = face.eyes, np.array(face.head.skin)
    for side, x, y in _eye_frames(canvas, face):
        across = x / eyes.width
        arc = 1 - across**2
        steep = np.sqrt(1 + (2 * eyes.opening * across / eyes.width) ** 2)
        upper, lower = (y + 1.05 * eyes.opening * arc) / steep, (y - 0.8 * eyes.opening * arc) / steep
        almond = np.maximum(-upper, lower)
        canvas.shade(-0.16 * glow(x, y + 0.05, 0.24, 0.14))
        canvas.paint(canvas.inside(almond), WHITE)
        _iris(canvas, face, almond, x - side * eyes.gaze, y)
        canvas.paint(0.35 * canvas.along(lower, 0.008 * (1 - across**2)), 0.5 * skin)
        lid = eyes.lashes * np.clip(1.15 - across**2, 0, 1) * (1 + 0.5 * across)
        canvas.paint(canvas.along(upper, lid + 0.006 * (np.abs(across) < 1)), DARK)
        crease = y + 1.05 * eyes.opening * arc + 0.055
        canvas.paint(0.4 * canvas.along(crease, 0.010 * np.clip(1 - across**2, 0, 1)), 0.55 * skin)


def _iris(canvas: Canvas, face: Face, almond: Array, x: Array, y: Array) -> None:
    radius = np.hypot(x, y + 0.01)
    canvas.paint(canvas.inside(np.maximum(radius - 0.094, almond)), 0.45 * np.array(face.eyes.iris))
    canvas.paint(canvas.inside(np.maximum(radius - 0.078, almond)), face.eyes.iris)
    canvas.paint(canvas.inside(np.maximum(radius - 0.040, almond)), DARK)
    glint = np.hypot(x - 0.035 * np.sign(face.pose.light[0]), y + 0.04) - 0.024
    canvas.paint(canvas.inside(np.maximum(glint, almond)), WHITE)
    canvas.paint(0.25 * canvas.inside(almond) * np.clip(-y / 0.1, 0, 1), DARK)


def _brows(canvas: Canvas, face: Face) -> None:
    brows = face.brows
    colour = 0.35 * np.array(face.head.skin) * 0.5 + 0.70 * np.array(face.hair.colour)
    for side in (-1.0, 1.0):
        across = (side * canvas.x - face.eyes.distance - 0.01) / (face.eyes.width + 0.05)
        middle = canvas.y - face.eyes.height + brows.height + brows.arch * (1 - across**2)
        half = brows.thickness * np.clip(1 - across**4, 0, 1) * (1 - 0.35 * across)
        canvas.paint(0.9 * canvas.along(middle + brows.slant * across * 0.22, half), colour)


def _age_lines(canvas: Canvas, face: Face) -> None:
    strength, x, y = face.head.wrinkles, canvas.x, canvas.y
    if strength == 0:
        return
    colour = 0.55 * np.array(face.head.skin)
    for height in (-0.42, -0.34):
        line = y - height + 0.03 * np.cos(3 * x)
        canvas.paint(0.45 * strength * canvas.along(line, 0.011 * np.clip(1 - (x / 0.36) ** 2, 0, 1)), colour)
    side = np.abs(x)
    fold = side - 0.21 - 0.30 * (y - face.nose.tip + 0.03)
    reach = np.clip(1 - ((y - 0.5) / 0.15) ** 2, 0, 1)
    canvas.paint(0.8 * strength * canvas.along(fold, 0.012 * reach), colour)
    bag = y - face.eyes.height - 0.16 + 1.2 * (side - face.eyes.distance) ** 2
    inside = np.clip(1 - ((side - face.eyes.distance) / 0.14) ** 2, 0, 1)
    canvas.paint(0.5 * strength * canvas.along(bag, 0.012 * inside), colour)


def _hair_in_front(canvas: Canvas, face: Face, outline: Array) -> None:
    hair, x, y = face.hair, canvas.x, canvas.y
    if hair.style == "bald":
        return
    stand_off = {"buzz": 0.025, "bun": 0.06, "curly": 0.10 + hair.volume}.get(hair.style, hair.volume)
    reach = face.head.width - hair.parting * np.sign(x - hair.parting)
    away = np.abs(x - hair.parting) / reach
    line = hair.line + hair.drop * away**2.2 + 0.015 * np.cos(19 * x) * (hair.drop < 0.4)
    slope = np.sqrt(1 + (2.2 * hair.drop / reach * away**1.2) ** 2)
    temples = {"short": 0.12, "buzz": 0.08, "bun": 0.02}.get(hair.style, 0.6)
    below = np.maximum((y - line) / slope, y - temples)
    shape = np.maximum(outline - stand_off, below)
    shadow = np.clip(1 - below / 0.16, 0, 1) * canvas.inside(outline) * (outline < 0)
    canvas.shade(-0.16 * shadow)
    opacity = 0.72 if hair.style == "buzz" else 1.0
    canvas.paint(opacity * canvas.inside(shape), _hair_colour(canvas, face))


def _glasses(canvas: Canvas, face: Face) -> None:
    frame = face.eyes.glasses
    if frame == 0:
        return
    x, y = np.abs(canvas.x), canvas.y - face.eyes.height - 0.02
    glass = box(x - face.eyes.distance, y, 0.245, 0.20, 0.15)
    canvas.paint(0.10 * canvas.inside(glass), WHITE)
    canvas.paint(canvas.along(glass, frame), face.eyes.frame)
    bridge = canvas.along(y + 0.05 - 0.5 * x**2, frame) * (x < face.eyes.distance - 0.23)
    canvas.paint(bridge, face.eyes.frame)
    arm = canvas.along(y + 0.06, frame) * (x > face.eyes.distance + 0.23) * (x < face.head.width)
    canvas.paint(arm, face.eyes.frame)


def head_outline(canvas: Canvas, head: Head) -> Array:
    """Signed distance from the head: a superellipse whose lower half narrows to the jaw."""
    x, y = np.abs(canvas.x), np.abs(canvas.y)
    width = head.width * (1 - head.taper * np.clip(canvas.y, 0, 1.1) ** 2)
    power = head.squareness
    level = ((x / width) ** power + y**power) ** (1 / power)
    down, across = np.gradient(level, canvas.pixel)
    return (level - 1) / np.maximum(np.hypot(down, across), 0.3)


# ── Texture ──────────────────────────────────────────────────────────────────────────────────────────────────────


def textured(image: Array, figure: Array, texture: Texture) -> Array:
    """Lay the texture over a picture without changing the mean and the contrast of its luminance.

    Args:
        image: float32 [3, size, size], RGB between 0 and 1.
        figure: float32 [size, size], the share of each pixel that the person covers; the texture is faint there.
        texture: how much of it, and its waves.

    Returns:
        float32 [3, size, size]. Colours are pulled together around the mean by as much as the texture spreads them.
    """
    grain = plane_waves(texture.grain, image.shape[-1]) * covered(texture, image.shape[-1])
    grain *= GRAIN_STRENGTH * (0.4 + 0.6 * texture.amount) * (1 - CALM * figure)
    contrast = np.tensordot(LUMINANCE, image, 1).std()
    mean = image.mean()
    return mean + (image - mean + contrast * grain) / np.hypot(1, grain.std())


def covered(texture: Texture, size_px: int) -> Array:
    """Where the texture is: float [size, size], 0 to 1, with a mean near the texture's amount."""
    rank = ndtr(plane_waves(texture.patches, size_px))
    return np.clip((texture.amount * (1 + PATCH_EDGE) - rank) / PATCH_EDGE, 0, 1).astype(np.float32)


def plane_waves(waves: Waves, size_px: int) -> Array:
    """Sum of plane waves, averaged over each pixel: float32 [size, size], nearly normal with standard deviation 1.

    Waves that the pixels are too coarse for are left out.
    """
    place = (np.arange(size_px) + 0.5) / size_px
    visible = np.abs(waves.cycles).max(axis=1) <= size_px / 2
    strength = np.prod(np.sinc(waves.cycles / size_px), axis=1) * visible * np.sqrt(2 / len(waves.cycles))
    across = 2 * np.pi * np.outer(waves.cycles[:, 0], place)
    down = 2 * np.pi * np.outer(waves.cycles[:, 1], place) + waves.phases[:, None]
    weight = strength[:, None]
    return ((weight * np.cos(down)).T @ np.cos(across) - (weight * np.sin(down)).T @ np.sin(across)).astype(np.float32)


def to_uint8(image: Array) -> Array:
    """float [3, size, size] between 0 and 1 → uint8 [size, size, 3]; what lies outside is clipped."""
    return np.ascontiguousarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
