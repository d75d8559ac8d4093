"""Which tasks go to Slurm together, and what each batch waits for. Pure: no file is read and nobody is asked.

Runs that need the same stages form arrays of the same length, in the same order: `aftercorr` then chains the stages of
each run for itself. Packing comes before all of it; analysis and report come after any end of everything.

A training that compares the features of others stands in a later array than they. It waits for any end of all of their
array, since `aftercorr` pairs equal indices only and `afterok` would hold back every run for one that failed; whether
its own ones came through, the task itself looks when it starts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jobs.pipeline import STAGE, STAGES, Task
from jobs.plan import Planned
from jobs.resources import ResourceClass

CLASS_OF: Mapping[str, ResourceClass] = {
    "pack": "cpu",
    "train": "gpu",
    "extract": "gpu",
    "measure": "bigmem",
    "analyse": "bigmem",
    "report": "bigmem",
}
STAGE_NAMES = tuple(stage.name for stage in STAGES)
_OF_RUNS = tuple(stage.name for stage in STAGES if stage.each == "run")

Kind = Literal["afterok", "aftercorr", "afterany"]


@dataclass(frozen=True)
class Draft:
    """A batch to be: tasks of one stage, and what they wait for.

    Attributes:
        stage: name of the stage.
        tasks: the tasks, in the order of the array.
        after: drafts (by their place in the list) or jobs (by their id) that have to end before, and how.
    """

    stage: str
    tasks: tuple[Task, ...]
    after: tuple[tuple[Kind, int | str], ...] = ()

    @property
    def resource_class(self) -> ResourceClass:
        """The kind of node that the stage wants."""
        return CLASS_OF[self.stage]


@dataclass(frozen=True)
class Room:
    """What Slurm takes.

    Attributes:
        longest_array: elements of one array.
        purses: what the tasks of each resource class are counted against; several may share one.
        slots: tasks that each purse still pays for; those without a limit are absent.
    """

    longest_array: int = 1001
    purses: Mapping[ResourceClass, str] = field(default_factory=dict)
    slots: Mapping[str, int] = field(default_factory=dict)

    def purse(self, stage: str) -> str:
        """What tasks of a stage are counted against."""
        return self.purses.get(CLASS_OF[stage], "")


@dataclass(frozen=True)
class Choice:
    """What of a study is wanted now.

    Attributes:
        stages: names of stages.
        runs: ids or labels of runs; empty for all.
    """

    stages: Collection[str] = STAGE_NAMES
    runs: Collection[str] = ()

    def takes(self, task: Task) -> bool:
        """Whether a task is wanted. With some runs alone, analysis and report have to be asked for by name."""
        if task.stage not in self.stages:
            return False
        if not self.runs or STAGE[task.stage].each == "dataset":
            return True
        if task.run is None:
            return set(self.stages) != set(STAGE_NAMES)
        return task.run.id in self.runs or task.run.label in self.runs


@dataclass(frozen=True)
class Drafts:
    """All that is to be submitted.

    Attributes:
        drafts: the batches, each after those it waits for.
        left_out: tasks that there is no room for now.
        in_vain: tasks that need others that are neither done nor under way nor wanted.
    """

    drafts: tuple[Draft, ...]
    left_out: tuple[Task, ...] = ()
    in_vain: tuple[Task, ...] = ()


def draft(
    planned: Sequence[Planned],
    in_flight: Mapping[str, tuple[str, str]],
    room: Room,
    choice: Choice = Choice(),
) -> Drafts:
    """Cuts what is neither done nor in flight into batches.

    Args:
        planned: every task of the study with its state; each key is that of the settings alone.
        in_flight: for tasks that are queued or running, by their id: their key, and the id of the job or array.
        room: what Slurm takes.
        choice: what is wanted.
    """
    return _Drawing(planned, in_flight, room, choice).all()


class _Drawing:
    """The batches while they are put together."""

    def __init__(
        self, planned: Sequence[Planned], in_flight: Mapping[str, tuple[str, str]], room: Room, choice: Choice
    ) -> None:
        self._planned = {entry.task.id: entry for entry in planned}
        self._in_flight, self._room = in_flight, room
        self._slots = dict(room.slots)
        self._wanted = [entry.task for entry in planned if entry.to_do and choice.takes(entry.task)]
        self._drafts: list[Draft] = []
        self._place: dict[str, int] = {}
        self._left_out: list[Task] = []

    def all(self) -> Drafts:
        """Packing, then the stages of each run, then what is for the whole study."""
        wanted, in_vain = self._sorted_out()
        of_study = [task for task in self._wanted if STAGE[task.stage].each == "study"]
        for task in of_study:
            self._take(task.stage, 1)
        self._add_each("pack", [task for task in wanted if task.stage == "pack"])
        for stages, runs in _alike([task for task in wanted if task.run]):
            self._add_chains(stages, runs)
        self._add_study(of_study if self._drafts else [task for task in of_study if task in wanted])
        return Drafts(tuple(self._drafts), tuple(self._left_out), tuple(in_vain))

    def _sorted_out(self) -> tuple[list[Task], list[Task]]:
        """What is to be submitted, and what would find nothing to work on."""
        wanted: dict[str, Task] = {}
        in_vain: list[Task] = []
        for task in self._wanted:
            missing = [n for n in task.needs if self._planned[n].to_do and n not in wanted and n not in self._in_flight]
            if missing and STAGE[task.stage].each != "study":
                in_vain.append(task)
            elif not self._flies(task):
                wanted[task.id] = task
        return list(wanted.values()), in_vain

    def _flies(self, task: Task) -> bool:
        return self._in_flight.get(task.id, ("", ""))[0] == task.key

    # ── Room ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, stage: str, number: int) -> None:
        purse = self._room.purse(stage)
        if purse in self._slots:
            self._slots[purse] -= number

    def _fitting(self, stages: Sequence[str], number: int) -> int:
        """How many chains of these stages there is room for."""
        purses = [self._room.purse(stage) for stage in stages]
        fits = [self._slots[purse] // purses.count(purse) for purse in set(purses) if purse in self._slots]
        return max(0, min([number, *fits]))

    def _cut(self, number: int) -> Iterator[slice]:
        for start in range(0, number, self._room.longest_array):
            yield slice(start, min(start + self._room.longest_array, number))

    # ── Batches ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _add_each(self, stage: str, tasks: list[Task]) -> None:
        number = self._fitting([stage], len(tasks))
        self._left_out += tasks[number:]
        for part in self._cut(number):
            chosen = tuple(tasks[part])
            self._add(Draft(stage, chosen, tuple(self._older(chosen))))

    def _add_chains(self, stages: tuple[str, ...], runs: list[dict[str, Task]]) -> None:
        late = {task.id for task in self._left_out}
        waiting = [run for run in runs if any(need in late for task in run.values() for need in task.needs)]
        runs = [run for run in runs if run not in waiting] if waiting else runs
        number = self._fitting(stages, len(runs))
        self._left_out += [task for run in [*runs[number:], *waiting] for task in run.values()]
        for part in self._cut(number):
            chosen = runs[part]
            for stage in stages:
                tasks = tuple(run[stage] for run in chosen)
                after = dict.fromkeys([*self._needs(tasks), *self._older(tasks)])
                self._add(Draft(stage, tasks, tuple(after)))

    def _add_study(self, tasks: list[Task]) -> None:
        """Analysis and report see every run's end, so new runs want new ones; without room for all runs, they wait."""
        if self._left_out:
            self._left_out += tasks
            return
        for task in tasks:
            drafts: list[tuple[Kind, int | str]] = [("afterany", place) for place in range(len(self._drafts))]
            jobs: list[tuple[Kind, int | str]] = [("afterany", job) for _, job in self._in_flight.values()]
            self._add(Draft(task.stage, (task,), tuple(dict.fromkeys([*drafts, *jobs]))))

    def _add(self, new: Draft) -> None:
        if STAGE[new.stage].each != "study":
            self._take(new.stage, len(new.tasks))
        self._place |= {task.id: len(self._drafts) for task in new.tasks}
        self._drafts.append(new)

    def _needs(self, tasks: Sequence[Task]) -> Iterator[tuple[Kind, int | str]]:
        """What the tasks of a batch wait for: in the same chain one by one, else as a whole."""
        for task in tasks:
            for need in task.needs:
                run = self._planned[need].task.run
                if need in self._place and run in (None, task.run):
                    yield ("aftercorr" if run and len(tasks) > 1 else "afterok"), self._place[need]
                elif need in self._place:
                    yield "afterany", self._place[need]
                elif need in self._in_flight:
                    yield ("afterany" if run else "afterok"), self._in_flight[need][1]

    def _older(self, tasks: Sequence[Task]) -> Iterator[tuple[Kind, int | str]]:
        """Jobs that still write the same files, from an older state of the study."""
        for task in tasks:
            if task.id in self._in_flight:
                yield "afterany", self._in_flight[task.id][1]


def _alike(tasks: list[Task]) -> list[tuple[tuple[str, ...], list[dict[str, Task]]]]:
    """The runs by the stages they need, each as its tasks by stage; after those whose training theirs waits for."""
    runs: dict[str, dict[str, Task]] = {}
    waves: dict[str, int] = {}
    run_of = {task.id: task.name for task in tasks}
    for task in tasks:  # each stands after those it needs
        runs.setdefault(task.name, {})[task.stage] = task
        others = [run_of[need] for need in task.needs if run_of.get(need, task.name) != task.name]
        waves[task.name] = max([waves.get(task.name, 0), *(waves[other] + 1 for other in others)])
    groups: dict[tuple[int, tuple[str, ...]], list[dict[str, Task]]] = {}
    for name, run in runs.items():
        groups.setdefault((waves[name], tuple(stage for stage in _OF_RUNS if stage in run)), []).append(run)
    return [(stages, groups[wave, stages]) for wave, stages in sorted(groups, key=lambda group: group[0])]
