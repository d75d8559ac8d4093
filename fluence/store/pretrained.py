"""Where published weights lie on disk. Nothing is downloaded, and torch is not imported."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from fluence.errors import ArtifactError, StudyError

RANDOM = "random"
"""The word by which a study asks for a trunk with random weights."""

IMAGENET_FILES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""torchvision's names of its ImageNet weights; the end of a name is the beginning of the file's SHA-256."""

_URL = "https://download.pytorch.org/models"
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.pth$")


def hub_folder() -> Path:
    """Where torchvision keeps weights: `$TORCH_HOME/hub/checkpoints`, by default in `~/.cache/torch`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return Path(os.environ.get("TORCH_HOME", cache / "torch")).expanduser() / "hub" / "checkpoints"


def find_weights(net: str, weights: str) -> Path | None:
    """The file with the trunk weights of an LPIPS network, checked; None if the study asks for `random`.

    Args:
        net: `alex`, `vgg` or `squeeze`.
        weights: `imagenet`, `random`, or the path of a file; `~` and environment variables are expanded.

    Raises:
        StudyError: the file is missing; says where it was looked for and how to fetch it.
        ArtifactError: the file's SHA-256 does not begin as its name says.
    """
    if weights == RANDOM:
        return None
    if weights == "imagenet":
        path = hub_folder() / IMAGENET_FILES[net]
    else:
        path = Path(os.path.expandvars(weights)).expanduser()
    if not path.is_file():
        raise StudyError(_how_to_fetch(net, path) if weights == "imagenet" else _no_such_file(net, path))
    _check_hash(path)
    return path


def _how_to_fetch(net: str, path: Path) -> str:
    return (
        f"LPIPS ({net}) needs the ImageNet weights {path.name}, and they are not in {path.parent}. On a machine "
        f"with internet: curl --create-dirs -L -o {path} {_URL}/{path.name} . Or give the path of the file as "
        f"`weights:`; or write `weights: random`, which is no perceptual distance and is called random in every "
        f"output"
    )


def _no_such_file(net: str, path: Path) -> str:
    return (
        f"LPIPS ({net}): there is no weights file {path}; allowed are `imagenet`, `random`, or the path of a "
        f"file with torchvision's state dict"
    )


def _check_hash(path: Path) -> None:
    named = _HASH_IN_NAME.search(path.name)
    if not named:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(named[1]):
        raise ArtifactError(
            f"{path} is damaged or not what its name says: its SHA-256 begins with {found[: len(named[1])]}, "
            f"its name says {named[1]}; fetch it again"
        )
