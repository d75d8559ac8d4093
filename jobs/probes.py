"""The jobs of `fluence doctor`: one for each class of nodes, and what their answers mean."""

from __future__ import annotations

import os
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path

from fluence.layout import Layout
from fluence.store.files import write_text
from jobs.check import kernels_fit
from jobs.clocks import Ahead, between, clock_finding
from jobs.code import freeze_code
from jobs.findings import Finding, Findings
from jobs.jobscript import with_gpus
from jobs.nodeprobe import NodeView, read_view
from jobs.resources import CLASSES, ResourceClass, Resources
from jobs.sites import Site, directive_lines
from jobs.slurm import NoAnswer, Slurm

_PROBE_MIN = 10
_POLL_S, _ASK_S, _SHOWS_WITHIN_S = 1.0, 15.0, 75.0
_ANOTHER_DISK = "choose a folder on another file system with --output"
_LOCKS_OFF = "write `export HDF5_USE_FILE_LOCKING=FALSE` below the directives of the site's files"


class Probes:
    """The jobs of one examination.

    Args:
        site: the cluster.
        slurm: how Slurm is reached.
        folder: where scripts and answers go.
    """

    def __init__(self, site: Site, slurm: Slurm, folder: Path) -> None:
        self._site, self._slurm, self._folder = site, slurm, folder
        self._copy = freeze_code(Layout(folder))
        self._sent_at = time.time()
        self._waiting: dict[ResourceClass, str] = {}
        self._gone: dict[ResourceClass, float] = {}

    def send(self) -> Findings:
        """Submits one job for each class."""
        self._sent_at = time.time()
        for name in CLASSES:
            path = self._folder / f"{name}.sh"
            write_text(path, self._script(name))
            try:
                self._waiting[name] = self._slurm.sbatch(path)
            except NoAnswer as problem:
                hint = f"edit {self._site[name].file.path}"
                yield Finding("error", f"{name} node", f"no job can be sent there: {problem}", hint)

    def _script(self, name: ResourceClass) -> str:
        """A job with the site's options and prologue, cut to one process and a few minutes."""
        resources = self._site[name]
        own = {
            "time": str(min(_PROBE_MIN, resources.time_min)),
            "job-name": "fluence-doctor",
            "output": str(self._folder / f"{name}.out"),
            "error": str(self._folder / f"{name}.err"),
            "nodes": "1",
            "ntasks-per-node": "1",
        }
        left_out = {"time-min", "signal", "exclusive"}
        options = {key: value for key, value in resources.directives.items() if key not in left_out} | own
        options |= with_gpus(options, resources.gpus_per_node)
        if "no-requeue" not in options:
            options["requeue" if resources.caps.requeue else "no-requeue"] = None
        lines = [
            *directive_lines(options),
            *self._site.setup(name),
            f"export PYTHONPATH={shlex.quote(str(self._copy))}${{PYTHONPATH:+:$PYTHONPATH}}",
            "export PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1",
            f"cd {shlex.quote(str(self._folder))}",
            shlex.join([sys.executable, "-m", "jobs.nodeprobe", str(self._folder), name]),
        ]
        return "\n".join(["#!/bin/bash", *lines, ""])

    def answers(self, wait_s: float) -> Findings:
        """What the nodes say, in the order in which they say it."""
        deadline, asked = time.monotonic() + wait_s, time.monotonic()
        while self._waiting and time.monotonic() < deadline:
            yield from self._read()
            if self._waiting and time.monotonic() - asked > _ASK_S:
                asked = time.monotonic()
                yield from self._ended_without_a_word()
            time.sleep(_POLL_S if self._waiting else 0)
        states = self._queued()
        yield from self._read()
        for name in self._waiting:
            began = "is not done" if states[name].startswith(("RUNNING", "COMPLETING")) else "did not start"
            why = states[name] or "it is gone"
            found = f"the job {began} within {wait_s / 60:.2g} minutes ({why}), and was ended"
            yield Finding("warning", f"{name} node", found, "type the same with --wait MINUTES when it is quieter")

    def withdraw(self) -> None:
        """Ends the jobs that have not answered."""
        with suppress(NoAnswer):
            self._slurm.cancel(list(self._waiting.values()))

    def _read(self) -> Findings:
        """The answers that have come. A listing makes a file server show what is new in the folder."""
        os.listdir(self._folder)
        for name in list(self._waiting):
            seen = read_view(self._folder / f"{name}.json")
            if seen is not None:
                del self._waiting[name]
                window = between(seen.time, seen.time, self._sent_at, time.time())
                yield from node_findings(name, self._site[name], seen, self._copy, window)

    def _ended_without_a_word(self) -> Findings:
        """Jobs that have been gone for a while: what a node has written may take a minute to show here."""
        now = time.monotonic()
        for name, state in self._queued().items():
            since = self._gone.setdefault(name, now)
            if state:
                del self._gone[name]
            if state or now - since < _SHOWS_WITHIN_S:
                continue
            del self._waiting[name]
            outputs = [path for ending in ("out", "err") if (path := self._folder / f"{name}.{ending}").exists()]
            words = "\n".join(path.read_text(errors="replace") for path in outputs).strip().splitlines()
            found = f"the job has failed: {words[-1]}" if words else "the job has failed without a word"
            file = self._site[name].file.path
            hint = f"look at the prologue of {file}" if words else f"do the nodes see {self._folder.parent}?"
            yield Finding("error", f"{name} node", found, hint)

    def _queued(self) -> dict[ResourceClass, str]:
        """What Slurm says of the jobs: their state and why they wait; empty if it knows them no more."""
        if not self._waiting:
            return {}
        try:
            jobs = ",".join(self._waiting.values())
            said = self._slurm.call("squeue", "--noheader", f"--jobs={jobs}", "--format=%i %T %r")
        except NoAnswer as problem:
            said = "" if "Invalid job id" in str(problem) else None
            if said is None:
                return dict.fromkeys(self._waiting, str(problem))
        states = {job: state for job, _, state in (line.strip().partition(" ") for line in said.splitlines())}
        return {name: states.get(job, "") for name, job in self._waiting.items()}


def node_findings(name: ResourceClass, resources: Resources, seen: NodeView, copy: Path, window: Ahead) -> Findings:
    """What one node's view means.

    Args:
        name: the class of the node.
        resources: what its file asks for.
        seen: the view.
        copy: the copy of the code.
        window: the node's clock against this machine's, by when the job was sent and answered.
    """
    key, file = f"{name} node", resources.file.path
    yield Finding("ok", key, f"{seen.host} can write to the folder; Python {seen.python}")
    if seen.prologue:
        hint = f"look at the prologue of {file}; a line that may complain can end with 2>/dev/null"
        yield Finding("warning", key, f"the prologue complains: {' / '.join(seen.prologue)}", hint)
    if not Path(seen.fluence).is_relative_to(copy.resolve()):
        hint = f"no line of {file} may change PYTHONPATH after all"
        yield Finding("error", key, f"imports {seen.fluence}, not the copy of the code", hint)
    if seen.home and resources.caps.home_writable:
        hint = (
            f"write `#FLUENCE home=read-only` into {file}, and keep caches elsewhere: export XDG_CACHE_HOME, TORCH_HOME"
        )
        yield Finding("warning", key, f"cannot write to {seen.home}", hint)
    yield from hdf5_finding(seen.hdf5, key)
    if seen.lock:
        found = f"file locks do not reach {seen.host}: {seen.lock}; two who submit a study at once may send it twice"
        hint = f"only one of you types `fluence submit`, and on one machine; or {_ANOTHER_DISK}"
        yield Finding("warning", key, found, hint)
    if seen.clock:
        yield clock_finding(Ahead(*seen.clock), key, seen.host, "Slurm's")
    else:
        yield clock_finding(window, key, seen.host, "this machine's")
    yield from _requeue(key, resources, seen)
    yield from _torch(key, resources, seen)
    for problem in seen.missing:
        hint = "put it where the nodes see it, and name that place: --data NAME=DIR, or `weights:` in the study"
        yield Finding("error", key, problem, hint)
    if resources.caps.internet and not seen.internet:
        yield Finding("warning", key, "cannot reach the internet", f"write `#FLUENCE internet=no` into {file}")


def _requeue(key: str, resources: Resources, seen: NodeView) -> Findings:
    says = resources.caps.requeue and "no-requeue" not in resources.directives
    if seen.requeue not in ("0", "1"):
        found = f"Slurm does not answer there ({seen.requeue}); a job cannot ask to start again"
        yield Finding("error", key, found, f"load Slurm's commands in the prologue of {resources.file.path}")
    elif says and seen.requeue == "0":
        hint = f"write `#FLUENCE requeue=no` into {resources.file.path}: a successor then goes on"
        yield Finding("error", key, "Slurm has turned --requeue off", hint)
    if seen.requeue == "0":
        yield _successor(key, resources, seen)


def _successor(key: str, resources: Resources, seen: NodeView) -> Finding:
    """Where jobs are not requeued, each one submits the next from its node."""
    if not seen.sbatch:
        return Finding("ok", key, "sbatch answers there; a job can submit its successor")
    found = f"a job cannot submit its successor there, and ends for good at its time limit: {seen.sbatch}"
    hint = f"make sbatch work in the prologue of {resources.file.path}, or type `fluence submit` again after each end"
    return Finding("error", key, found, hint)


def _torch(key: str, resources: Resources, seen: NodeView) -> Findings:
    if not seen.torch[:1].isdigit():
        yield Finding("error", key, f"torch cannot be imported: {seen.torch}", reinstall())
        return
    if not resources.gpus_per_node:
        return
    if seen.cuda:
        yield Finding("error", key, f"its GPU does not work with torch {seen.torch}: {seen.cuda}", reinstall())
    elif len(seen.gpus) < resources.gpus_per_node:
        found = f"torch {seen.torch} sees {len(seen.gpus)} of {resources.gpus_per_node} GPUs"
        yield Finding("error", key, found, "training would run on the CPU; look at --gres and at torch's build")
    for capability in dict.fromkeys(seen.gpus):
        major, minor = map(int, capability.split("."))
        finding = kernels_fit((major, minor), seen.built_for, seen.torch)
        yield Finding(finding.level, key, f"torch {finding.message}", finding.hint)


def hdf5_finding(trouble: str, key: str) -> Findings:
    """Whether HDF5 works in the folder.

    Args:
        trouble: why not; empty if it does.
        key: who has tried.
    """
    if not trouble:
        yield Finding("ok", key, "HDF5 files can be written, locked and read")
    else:
        yield Finding("error", key, f"HDF5: {trouble}", _LOCKS_OFF if "lock" in trouble else _ANOTHER_DISK)


def reinstall() -> str:
    """What to do about a Python that lacks something."""
    return f"install fluence for {sys.executable} again, on a file system that the nodes see"
