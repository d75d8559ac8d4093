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


def find_weights(network: str, setting: str, who: str, *, key: str = "weights") -> Path | None:
    """The file with the weights of a network, checked; None if the study asks for `random`.

    Args:
        network: whose weights they are: a name in `IMAGENET_FILES`.
        setting: `imagenet`, `random`, or the path of a file; `~` and environment variables are expanded.
        who: what needs them, in words: `LPIPS (vgg)`.
        key: name of the setting: `weights`, or `pretrained`.

    Raises:
        StudyError: the file is missing; says where it was looked for and how to fetch it.
        ArtifactError: the file's SHA-256 does not begin as its name says.
    """
    if setting == RANDOM:
        return None
    if setting == "imagenet":
        path = hub_folder() / IMAGENET_FILES[network]
    else:
        path = Path(os.path.expandvars(setting)).expanduser()
    if not path.is_file():
        raise StudyError(_how_to_fetch(who, path, key) if setting == "imagenet" else _no_such_file(who, path, key))
    _check_hash(path)
    return path


def _how_to_fetch(who: str, path: Path, key: str) -> str:
    return (
        f"{who} needs the ImageNet weights {path.name}, and they are not in {path.parent}. On a machine "
        f"with internet: curl --create-dirs -L -o {path} {_URL}/{path.name} . Or give the path of the file as "
        f"`{key}:`; {_OTHERWISE[key]}"
    )


def _no_such_file(who: str, path: Path, key: str) -> str:
    word = {"weights": "`random`", "pretrained": "`null`"}[key]
    return (
        f"{who}: there is no weights file {path}; allowed are `imagenet`, {word}, or the path of a "
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
