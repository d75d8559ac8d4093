"""Where published weights lie on disk, and which of them a study needs. Nothing is downloaded, torch not imported."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fluence.errors import ArtifactError, StudyError
from fluence.study import DfcLoss, LpipsLoss, Model, ModelFeatures, PixelsModel, Study

RANDOM = "random"
"""The word by which a study asks for a network with random weights."""
IMAGENET = "imagenet"
"""The word by which a study asks for torchvision's ImageNet weights."""

IMAGENET_FILES = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
    "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
}
"""torchvision's names of its ImageNet weights; the end of a name is the beginning of the file's SHA-256."""

LPIPS_TRUNKS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
"""The network that is the trunk of each LPIPS."""

_OTHERWISE = {
    "weights": "or write `weights: random`, which is no perceptual distance and is called random in every output",
    "pretrained": "or write `pretrained: null`, which starts from random numbers",
}
"""What else a study can do, by the name of the setting that asks for weights."""

_URL = "https://download.pytorch.org/models"
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.pth$")


def hub_folder() -> Path:
    """Where torchvision keeps weights: `$TORCH_HOME/hub/checkpoints`, by default in `~/.cache/torch`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return Path(os.environ.get("TORCH_HOME", cache / "torch")).expanduser() / "hub" / "checkpoints"


@dataclass(frozen=True)
class Weights:
    """The weights that one setting of a study asks for.

    Attributes:
        key: the setting, such as `models.small.reconstruction`.
        who: what needs them, in words: `LPIPS (vgg)`.
        network: whose weights they are: a name in `IMAGENET_FILES`, or another word for a network.
        setting: `imagenet`, `random`, or the path of a file; `~` and environment variables are expanded.
    """

    key: str
    who: str
    network: str
    setting: str

    @property
    def path(self) -> Path | None:
        """The file that is looked for; None for random weights, and where nothing of that name is published."""
        if self.setting == RANDOM:
            return None
        if self.setting == IMAGENET:
            return hub_folder() / IMAGENET_FILES[self.network] if self.network in IMAGENET_FILES else None
        return Path(os.path.expandvars(self.setting)).expanduser()

    @property
    def url(self) -> str | None:
        """Where anybody can download the file; None if it is the user's own."""
        name = IMAGENET_FILES.get(self.network)
        return f"{_URL}/{name}" if name and self.setting == IMAGENET else None

    def find(self) -> Path | None:
        """The file, checked; None for random weights.

        Raises:
            StudyError: the file is missing; says where it was looked for and how to get it.
            ArtifactError: the file's SHA-256 does not begin as its name says.
        """
        path = self.path
        if path is None and self.setting != RANDOM:
            raise StudyError(f"{self.who}: there are no ImageNet weights of it; give the path of its weights file")
        if path is None:
            return None
        if not path.is_file():
            raise StudyError(self._how_to_fetch(path) if self.url else self._no_such_file(path))
        check_hash(path)
        return path

    def _how_to_fetch(self, path: Path) -> str:
        return (
            f"{self.who} needs the ImageNet weights {path.name}, and they are not in {path.parent}. On a machine "
            f"with internet: fluence weights STUDY --fetch, or: curl --create-dirs -L -o {path} {self.url} . Or give "
            f"the path of the file as `{self._word}:`; {_OTHERWISE[self._word]}"
        )

    def _no_such_file(self, path: Path) -> str:
        published = "`imagenet`, " if self.network in IMAGENET_FILES else ""
        none = {"weights": "`random`", "pretrained": "`null`"}[self._word]
        return (
            f"{self.who}: there is no weights file {path}; allowed are {published}{none}, or the path of a file with "
            f"a state dict"
        )

    @property
    def _word(self) -> str:
        """The last word of the setting's name: `pretrained` of an encoder, else `weights`."""
        return "pretrained" if self.key.endswith("pretrained") else "weights"


def find_weights(network: str, setting: str, who: str, *, key: str = "weights") -> Path | None:
    """The weights file of a network, checked; None for random weights. The arguments are those of `Weights`."""
    return Weights(key, who, network, setting).find()


def check_hash(path: Path, name: str | None = None) -> None:
    """Compares a file with the beginning of its SHA-256 in its name, if there is one.

    Args:
        path: the file.
        name: its name, if it has another one for now.

    Raises:
        ArtifactError: they differ.
    """
    shown = path.with_name(name or path.name)
    named = _HASH_IN_NAME.search(shown.name)
    if not named:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(named[1]):
        raise ArtifactError(
            f"{shown} is damaged or not what its name says: its SHA-256 begins with {found[: len(named[1])]}, "
            f"its name says {named[1]}; fetch it again"
        )


# ── What a study needs ───────────────────────────────────────────────────────────────────────────────────────────


def needs_of(study: Study) -> tuple[Weights, ...]:
    """Every weights file that the runs of a study need, also those of random weights, which need none."""
    needs = [need for name in study.model_names for need in _of_model(f"models.{name}", study.models[name])]
    if study.record.lpips:
        needs.append(_lpips("record.lpips", study.record.lpips.net, study.record.lpips.weights))
    return tuple(dict.fromkeys(needs))


def _of_model(key: str, model: Model) -> Iterator[Weights]:
    for term in model.reconstruction:
        if isinstance(term, LpipsLoss):
            yield _lpips(f"{key}.reconstruction", term.net, term.weights)
        if isinstance(term, DfcLoss) and not isinstance(term.network, ModelFeatures):
            features = term.network
            yield Weights(f"{key}.reconstruction", f"DFC ({features.kind})", features.kind, features.weights)
    network = "" if isinstance(model, PixelsModel) else model.architecture.partition("-")[0]
    if model.pretrained is not None and network in IMAGENET_FILES:
        yield Weights(f"{key}.pretrained", f"the encoder ({network})", network, model.pretrained)


def _lpips(key: str, net: str, setting: str) -> Weights:
    return Weights(key, f"LPIPS ({net})", LPIPS_TRUNKS[net], setting)
