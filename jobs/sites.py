"""Clusters: a site is a folder of three real sbatch files, and this hands what they say to submitit.

`sbatch_templates/README.md` tells how to make one.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluence.errors import Mistake, StudyError
from jobs.resources import CLASSES, Finder, ResourceClass, Resources, unset_placeholders
from jobs.sbatchfile import SbatchFile, read_sbatch
from jobs.settings import placeholders_for, settings_path

TEMPLATES = Path(__file__).resolve().parent.parent / "sbatch_templates"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_TO_SUBMITIT = {"nodes", "ntasks-per-node", "cpus-per-task", "time", "signal"}
"""Options that submitit must know itself; all others are passed on as they stand."""


@dataclass(frozen=True)
class Site:
    """A cluster.

    Attributes:
        name: name of its folder.
        folder: where its files are.
        resources: what jobs of each class get.
    """

    name: str
    folder: Path
    resources: Mapping[ResourceClass, Resources]

    def __getitem__(self, name: ResourceClass) -> Resources:
        return self.resources[name]

    def submitit_parameters(self, name: ResourceClass) -> dict[str, Any]:
        """Parameters for submitit's `AutoExecutor.update_parameters`, for jobs of one class.

        The time is a whole number of minutes, or submitit's clock would be wrong. wckey is empty, since submitit
        sends one that strict sites refuse. srun does not inherit --cpus-per-task from Slurm 22.05 on, and kills the
        other ranks of a dead one only when told so. --requeue is not submitit's habit, and by default a job whose
        dependency failed waits for ever.
        """
        found = self.resources[name]
        others: dict[str, str | bool] = {
            option: True if value is None else value
            for option, value in found.directives.items()
            if option not in _TO_SUBMITIT
        }
        if found.caps.requeue and "no-requeue" not in others:
            others["requeue"] = True
        elif not found.caps.requeue:
            others["no-requeue"] = True
        others |= {"kill-on-invalid-dep": "yes", "open-mode": "append"}
        return {
            "timeout_min": found.time_min,
            "nodes": found.nodes,
            "tasks_per_node": found.tasks_per_node,
            "cpus_per_task": found.cpus_per_task,
            "slurm_signal_delay_s": found.signal_s,
            "slurm_wckey": "",
            "slurm_setup": self.setup(name),
            "slurm_srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={found.cpus_per_task}"],
            "slurm_additional_parameters": others,
        }

    def setup(self, name: ResourceClass) -> list[str]:
        """Lines of shell before the command. submitit's scripts are no login shells: `module` may be unknown there."""
        file = self.resources[name].file
        return [*(["source /etc/profile"] if file.is_login_shell else []), *file.prologue]

    def script(self, name: ResourceClass, command: str = "true") -> str:
        """The file as an sbatch script of its own, placeholders filled in; what `sbatch --test-only` may judge."""
        file = self.resources[name].file
        options = directive_lines(self.resources[name].directives)
        shebang = "#!/bin/bash -l" if file.is_login_shell else "#!/bin/bash"
        return "\n".join([shebang, *options, "", *file.prologue, command, ""])


def directive_lines(options: Mapping[str, str | None]) -> list[str]:
    """Options of sbatch as lines of a script; None stands for a flag."""
    return [
        f"#SBATCH --{option}" + ("" if value is None else f"={shlex.quote(value)}") for option, value in options.items()
    ]


def site_names() -> list[str]:
    """Names of the sites that come with fluence."""
    return sorted(path.name for path in TEMPLATES.iterdir() if path.is_dir())


def load_site(name_or_path: str, values: Mapping[str, str] | None = None) -> Site:
    """Reads a site and finds everything that contradicts itself in it.

    Args:
        name_or_path: one of `site_names`, or the path of a folder (with a `/` in it).
        values: what stands for `{name}` in the files; they go before those of the user's settings.

    Raises:
        StudyError: there is no such site, a file is missing or not readable, a placeholder is unset, or the files
            contradict themselves; all of it at once, each with its file and line.
    """
    folder = _folder(name_or_path)
    files, mistakes = _read_files(folder, placeholders_for(folder.name, values or {}))
    resources = {}
    for name, file in files.items():
        finder = Finder(name, file)
        resources[name] = finder.resources()
        mistakes += finder.mistakes
    mistakes += _unset(files, folder.name)
    if mistakes:
        count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
        raise StudyError(f"site {folder.name}: {count} in {folder}", tuple(mistakes))
    return Site(folder.name, folder, resources)


def placeholders(pairs: Iterable[str]) -> dict[str, str]:
    """Values of placeholders as the command line gives them, `NAME=VALUE`.

    Raises:
        StudyError: a pair is none.
    """
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not value or not name.isidentifier():
            raise StudyError(f"--set {pair}: write NAME=VALUE, for example --set account=my_group")
        values[name] = value
    return values


def _folder(name_or_path: str) -> Path:
    if "/" in name_or_path:
        folder = Path(name_or_path).expanduser().absolute()
        if not folder.is_dir():
            raise StudyError(f"--site {name_or_path}: there is no such folder")
        return folder
    if not _NAME.fullmatch(name_or_path) or name_or_path not in site_names():
        near = difflib.get_close_matches(name_or_path, site_names(), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise StudyError(
            f"--site {name_or_path!r}: there is no such site{hint}; there are: {', '.join(site_names())}. "
            f"A folder of your own needs a / in it, such as ./{name_or_path.strip('.') or 'my-cluster'}"
        )
    return TEMPLATES / name_or_path


def _read_files(folder: Path, values: Mapping[str, str]) -> tuple[dict[ResourceClass, SbatchFile], list[Mistake]]:
    files: dict[ResourceClass, SbatchFile] = {}
    mistakes = []
    for name in CLASSES:
        path = folder / f"{name}.sbatch"
        try:
            files[name] = read_sbatch(path, values)
        except FileNotFoundError:
            hint = f"copy {TEMPLATES / 'generic' / path.name} and edit it"
            mistakes.append(Mistake(f"{folder.name}/{path.name}", "is missing", None, hint))
        except (OSError, UnicodeDecodeError) as error:
            mistakes.append(Mistake(f"{folder.name}/{path.name}", f"cannot be read: {error}"))
    return files, mistakes


def _unset(files: Mapping[ResourceClass, SbatchFile], site: str) -> list[Mistake]:
    return [
        Mistake(
            f"{use.name} {{{name}}}",
            "has no value",
            use.line,
            f"write `{name}: VALUE` under `placeholders:` or `sites: {site}:` in {settings_path()}, "
            f"or type --set {name}=VALUE",
        )
        for name, use in unset_placeholders(files)
    ]
