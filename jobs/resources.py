"""What one sbatch file of a site asks for, and every contradiction in it that Slurm would notice too late or never."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from fluence.errors import Mistake
from jobs.pipeline import STAGES
from jobs.sbatchfile import Directive, SbatchFile, minutes

ResourceClass = Literal["gpu", "cpu", "bigmem"]
CLASSES: tuple[ResourceClass, ...] = ("gpu", "cpu", "bigmem")

_DEFAULT_SIGNAL_S = 360
_UNKNOWN_MIN = 1_000_000  # a time that cannot be read is one mistake, and not another one for each comparison
_OURS = {
    "array": "tasks become arrays by themselves",
    "comment": "the launcher knows its jobs by it",
    "dependency": "stages are chained by themselves",
    "error": "logs lie in the study's folder",
    "job-name": "jobs are named after the study and the stage",
    "ntasks": "write --ntasks-per-node and --nodes",
    "output": "logs lie in the study's folder",
    "parsable": "the launcher reads sbatch's answer itself",
    "test-only": "nothing would ever run",
    "wait": "the launcher waits for nothing",
    "wckey": "the launcher sends an empty one",
    "wrap": "the launcher brings the command",
}
_SHARED = tuple(stage.name for stage in STAGES if stage.shared)
_GPU_OPTIONS = ("gres", "gpus", "gpus-per-node", "gpus-per-task")
_MEMORY_OPTIONS = ("mem", "mem-per-cpu", "mem-per-gpu")


@dataclass(frozen=True)
class Caps:
    """What Slurm cannot tell about a site; the `#FLUENCE` lines of one file.

    Attributes:
        max_submit: jobs of one user that the QoS takes, each array task counted; None if unlimited.
        max_time_min: longest time limit.
        cores_per_node: cores of one node.
        gpus_per_node: GPUs of one node.
        memory: `ignored` where memory comes with the cores and --mem means nothing.
        requeue: whether Slurm may start a job again under its id.
        internet: whether the compute nodes reach the network.
        home_writable: whether the compute nodes may write to $HOME.
        gpu_sm: compute capability of the GPUs, 70 for V100; None on nodes without.
        parallel: stages of which one task uses all the processes of the file; tasks of the others use one.
        billing: what is counted: `gpu`, `core` or `nothing`.
        billing_factor: units for one hour of it.
        billing_unit: name of the unit.
    """

    max_submit: int | None = None
    max_time_min: int | None = None
    cores_per_node: int | None = None
    gpus_per_node: int | None = None
    memory: Literal["used", "ignored"] = "used"
    requeue: bool = True
    internet: bool = False
    home_writable: bool = True
    gpu_sm: int | None = None
    parallel: tuple[str, ...] = ("train", "measure")
    billing: Literal["gpu", "core", "nothing"] = "nothing"
    billing_factor: float = 1.0
    billing_unit: str = "hours"


def _yes(text: str) -> bool:
    return {"yes": True, "no": False}[text]


def _writable(text: str) -> bool:
    return {"writable": True, "read-only": False}[text]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _factor(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise ValueError
    return number


def _stages(text: str) -> tuple[str, ...]:
    words = tuple(word for word in text.split(",") if word != "none")
    if not set(words) <= set(_SHARED):
        raise ValueError
    return words


def _one_of(*words: str) -> Callable[[str], str]:
    return lambda text: {word: word for word in words}[text]


_CAPS: dict[str, tuple[str, Callable[[str], object], str]] = {
    "max-submit": ("max_submit", _positive, "a whole number"),
    "max-time": ("max_time_min", minutes, "a time such as 20:00:00"),
    "cores-per-node": ("cores_per_node", _positive, "a whole number"),
    "gpus-per-node": ("gpus_per_node", _positive, "a whole number"),
    "memory": ("memory", _one_of("used", "ignored"), "`used` or `ignored`"),
    "requeue": ("requeue", _yes, "`yes` or `no`"),
    "internet": ("internet", _yes, "`yes` or `no`"),
    "home": ("home_writable", _writable, "`writable` or `read-only`"),
    "gpu-sm": ("gpu_sm", _positive, "a compute capability such as 70"),
    "parallel": ("parallel", _stages, f"stages with commas between them ({', '.join(_SHARED)}), or `none`"),
    "billing": ("billing", _one_of("gpu", "core", "nothing"), "`gpu`, `core` or `nothing`"),
    "billing-factor": ("billing_factor", _factor, "a number above 0"),
    "billing-unit": ("billing_unit", str, "words"),
}


@dataclass(frozen=True)
class Resources:
    """What a job of one class gets.

    Attributes:
        name: the class.
        file: the sbatch file.
        caps: what Slurm cannot tell.
        time_min: time limit in minutes.
        nodes: number of nodes.
        tasks_per_node: processes on each.
        cpus_per_task: cores of each process.
        gpus_per_node: GPUs on each node; 0 on a class without.
        signal_s: seconds before the end, or before preemption, at which USR2 arrives.
    """

    name: ResourceClass
    file: SbatchFile
    caps: Caps
    time_min: int
    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    gpus_per_node: int
    signal_s: int

    @property
    def directives(self) -> dict[str, str | None]:
        """Every option of the file by its long name, in their order; None for a flag."""
        return {name: directive.value for name, directive in self.file.directives.items()}

    def billed_hours(self, hours: float) -> float:
        """What a job of so many hours costs, in the site's unit.

        Cores above a GPU's share count as GPUs: half of a node's cores are half of its GPUs. With --exclusive the
        whole node counts.

        **Source:** IDRIS, "Monitoring of computing hours".
        """
        caps = self.caps
        cores, gpus = self.tasks_per_node * self.cpus_per_task, self.gpus_per_node
        if "exclusive" in self.file.directives:
            cores, gpus = max(cores, caps.cores_per_node or 0), max(gpus, caps.gpus_per_node or 0)
        if caps.cores_per_node and caps.gpus_per_node:
            gpus = max(gpus, -(-cores * caps.gpus_per_node // caps.cores_per_node))
        counted = {"gpu": gpus, "core": cores, "nothing": 0}[caps.billing]
        return hours * self.nodes * counted * caps.billing_factor


class Finder:
    """Reads numbers out of one file and collects what is wrong on the way."""

    def __init__(self, name: ResourceClass, file: SbatchFile) -> None:
        self.name, self.file = name, file
        self.mistakes = list(file.mistakes)

    def resources(self) -> Resources:
        """What the file asks for; only of use if there are no mistakes."""
        caps = self._caps()
        found = Resources(
            name=self.name,
            file=self.file,
            caps=caps,
            time_min=self._time("time", caps),
            nodes=self._whole("nodes"),
            tasks_per_node=self._whole("ntasks-per-node"),
            cpus_per_task=self._whole("cpus-per-task"),
            gpus_per_node=self._gpus_per_node(),
            signal_s=self._signal(),
        )
        self._options_of_ours()
        self._memory_and_requeue(caps)
        self._sizes(found)
        return found

    def _report(self, option: str, message: str, hint: str = "", dash: str = "--") -> None:
        given = self.file.directives.get(option) or self.file.caps.get(option)
        line = given.line if given else None
        self.mistakes.append(Mistake(f"{self.file.label} {dash}{option}", message, line, hint))

    def _caps(self) -> Caps:
        values: dict[str, object] = {}
        for name, given in self.file.caps.items():
            if name not in _CAPS:
                near = difflib.get_close_matches(name, _CAPS, n=1)
                hint = f"did you mean {near[0]}?" if near else ""
                self._report(name, f"is no cap; there are: {', '.join(_CAPS)}", hint, dash="")
                continue
            attribute, read, allowed = _CAPS[name]
            try:
                values[attribute] = read(given.value or "")
            except (ValueError, KeyError):
                self._report(name, f"must be {allowed}; found {given.value}", dash="")
        return Caps(**values)  # type: ignore[arg-type]

    def _time(self, option: str, caps: Caps) -> int:
        given = self.file.directives.get(option)
        if given is None:
            self._report(option, "is missing; Slurm's own limit may be ten minutes", "for example: --time=19:50:00")
            return _UNKNOWN_MIN
        try:
            time_min = minutes(given.value or "")
        except ValueError as error:
            self._report(option, f"{error}", "for example 90 (minutes), 19:50:00 or 1-12")
            return _UNKNOWN_MIN
        if caps.max_time_min and time_min > caps.max_time_min:
            longest = f"{caps.max_time_min // 60}:{caps.max_time_min % 60:02}:00"
            self._report(option, f"{given.value} is above the cap of {longest} (max-time)")
        return time_min

    def _whole(self, option: str) -> int:
        given = self.file.directives.get(option)
        if given is None:
            return 1
        if not re.fullmatch(r"[0-9]{1,6}", given.value or "") or int(given.value or 0) < 1:
            self._report(option, f"must be a whole number; found {given.value or 'nothing'}")
            return 1
        return int(given.value or 1)

    def _gpus_per_node(self) -> int:
        counts = {option: self._gpus(option) for option in _GPU_OPTIONS if option in self.file.directives}
        if "gpus-per-task" in counts:
            counts["gpus-per-task"] *= self._whole("ntasks-per-node")
        if "gpus" in counts:
            counts["gpus"] //= self._whole("nodes")
        found = {option: count for option, count in counts.items() if count}
        if len(set(found.values())) > 1:
            said = " and ".join(f"--{option} {count}" for option, count in found.items())
            self._report(list(found)[-1], f"GPUs on each node: {said}", "keep one of the options")
        return max(found.values(), default=0)

    def _gpus(self, option: str) -> int:
        """GPUs of one option: `gpu:2`, `gpu:v100:2`, `gpu` for --gres; `2` or `v100:2` for the others."""
        value = self.file.directives[option].value or ""
        parts = [part for part in value.split(",") if option != "gres" or part.split(":")[0].startswith("gpu")]
        total = 0
        for part in parts:
            words = part.partition("(")[0].removeprefix("gres/").split(":")[option == "gres" :]
            number = words[-1] if words and words[-1].isdigit() else "1" if option == "gres" else ""
            if not number or len(words) > 2:
                self._report(option, f"{value} tells no number of GPUs", f"for example --{option}={_EXAMPLE[option]}")
                return 0
            total += int(number)
        return total

    def _signal(self) -> int:
        given = self.file.directives.get("signal")
        if given is None:
            return _DEFAULT_SIGNAL_S
        match = re.fullmatch(r"(?:SIG)?USR2@([0-9]{1,5})", given.value or "")
        if match is None:
            why = "with B: it reaches the shell and not the program" if "B" in (given.value or "").split(":")[0] else ""
            self._report("signal", f"must be USR2@SECONDS; found {given.value}", why)
            return _DEFAULT_SIGNAL_S
        return int(match[1])

    def _options_of_ours(self) -> None:
        for option, why in _OURS.items():
            if option in self.file.directives:
                self._report(option, "is set by the launcher", why)

    def _memory_and_requeue(self, caps: Caps) -> None:
        for option in _MEMORY_OPTIONS:
            if option in self.file.directives and caps.memory == "ignored":
                self._report(
                    option, "memory comes with the cores here (memory=ignored)", "ask for more --cpus-per-task"
                )
        if "requeue" in self.file.directives and not caps.requeue:
            self._report("requeue", "this site does not requeue (requeue=no)", "keep one of the two")
        if "requeue" in self.file.directives and "no-requeue" in self.file.directives:
            self._report("no-requeue", "and --requeue exclude each other", "keep one of the two")

    def _sizes(self, found: Resources) -> None:
        """Numbers that do not fit each other."""
        caps = found.caps
        if self.name == "gpu" and not found.gpus_per_node:
            self._report("gres", "a GPU file must ask for GPUs", "for example --gres=gpu:1")
        if self.name != "gpu" and found.gpus_per_node:
            option = next(option for option in _GPU_OPTIONS if option in self.file.directives)
            self._report(option, f"{self.file.path.name} is for jobs without GPUs", "leave it out")
        if self.name == "gpu" and found.gpus_per_node not in (0, found.tasks_per_node):
            counts = f"{found.tasks_per_node} processes for {found.gpus_per_node} GPUs on each node"
            self._report("ntasks-per-node", counts, f"write --ntasks-per-node={found.gpus_per_node}")
        if caps.gpus_per_node and found.gpus_per_node > caps.gpus_per_node:
            option = next(option for option in _GPU_OPTIONS if option in self.file.directives)
            self._report(option, f"{found.gpus_per_node} GPUs, but a node has {caps.gpus_per_node} (gpus-per-node)")
        cores = found.tasks_per_node * found.cpus_per_task
        if caps.cores_per_node and cores > caps.cores_per_node:
            product = f"{found.tasks_per_node} processes × {found.cpus_per_task} cores"
            self._report("cpus-per-task", f"{product} are more than the {caps.cores_per_node} cores of a node")
        if found.signal_s >= found.time_min * 60:
            self._report("signal", f"{found.signal_s} s before the end is before the start", "a longer --time")


_EXAMPLE = {"gres": "gpu:1", "gpus": "1", "gpus-per-node": "1", "gpus-per-task": "1"}


def unset_placeholders(files: Mapping[ResourceClass, SbatchFile]) -> Iterator[tuple[str, Directive]]:
    """Each placeholder without a value, with the place of its first use."""
    seen = set()
    for file in files.values():
        for name, line in file.unset:
            if name not in seen:
                seen.add(name)
                yield name, Directive(file.label, None, line)
