"""What would go wrong tonight: everything between a study and a cluster, looked at before anything waits in a queue.

First from this machine, in seconds; then, with a job of a few minutes for each class of nodes, from the nodes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from fluence.errors import FluenceError, UnwritableError
from fluence.layout import Layout
from fluence.store.files import explained, write_text
from fluence.store.trial import hdf5_trouble, held_lock
from fluence.study import Study
from jobs.check import disk_finding, kernels_fit, look_for_weights, nearest_existing
from jobs.clocks import ahead_of_slurm, clock_finding
from jobs.code import freeze_code
from jobs.estimate import estimate_study
from jobs.findings import Finding, Findings, Level
from jobs.jobscript import refuse_strange_folder
from jobs.limits import room
from jobs.nodeprobe import LOCK, STUDY
from jobs.preemption import preemption
from jobs.probes import Probes, hdf5_finding, reinstall
from jobs.resources import CLASSES
from jobs.sites import Site
from jobs.slurm import NoAnswer, Slurm

_FEW_BYTES, _FEW_INODES = 20e9, 10_000
_FILES_PER_RUN = 12
_ELSEWHERE = "type --output DIR with another folder, or set FLUENCE_OUTPUT"
_QUOTA = "a quota of your project is not in this figure: ask your site's quota command, too"
_MODULES = "analysis.analyse, fluence.training, jobs.tasks"


def examine(
    site: Site, layout: Layout, study: Study | None, wait_s: float | None, say: Callable[[str], None]
) -> Findings:
    """A whole examination, finding by finding.

    Args:
        site: the cluster.
        layout: the folder that results would go to.
        study: what would run there, if that is known.
        wait_s: how long to wait for the nodes' answers; None to send them no job.
        say: called with one line when it takes long from here on.

    Raises:
        StudyError: the folder's path is not for Slurm.
    """
    doctor = Doctor(site, layout, study)
    yield from doctor.from_here()
    if wait_s is not None and doctor.reaches_slurm:
        say(f"asking the nodes, with a job for each class; this takes up to {wait_s / 60:g} minutes")
        yield from doctor.from_nodes(wait_s)


class Doctor:
    """One examination.

    Args:
        site: the cluster.
        layout: the folder that results would go to.
        study: what would run there, if that is known.
        slurm: how Slurm is reached.
    """

    def __init__(self, site: Site, layout: Layout, study: Study | None = None, slurm: Slurm | None = None) -> None:
        self._site, self._layout, self._study = site, layout, study
        self._slurm = slurm or Slurm()
        self.reaches_slurm = False

    def from_here(self) -> Findings:
        """What can be seen from this machine.

        Raises:
            StudyError: the folder's path is not for Slurm.
        """
        refuse_strange_folder(self._layout)
        yield from self._reach()
        if self.reaches_slurm:
            yield from self._test_scripts()
            yield from self._limits()
            yield from preemption(self._site, self._slurm)
            yield from self._clock()
        yield from self._folder()
        yield from self._torch()
        if self._study:
            yield from map(_from_here, look_for_weights(self._study))

    # ── Slurm ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _reach(self) -> Findings:
        try:
            config = self._slurm.config()
            self.reaches_slurm = True
        except NoAnswer as problem:
            hint = "log in to the cluster's front end, or load its Slurm module"
            yield Finding("error", "slurm", f"cannot be reached: {problem}", hint)
            return
        yield Finding("ok", "slurm", f"{config.get('ClusterName', 'cluster')}, version {config.get('SLURM_VERSION')}")
        try:
            self._slurm.call("sacct", "--noheader", "--starttime=now", "--format=JobID")
            yield Finding("ok", "accounting", "sacct answers")
        except NoAnswer as problem:
            found = f"{problem}; status then knows ended jobs by their files alone, and `fluence cost` knows nothing"
            hint = "type `fluence status` often, or ask the administrators for accounting"
            yield Finding("warning", "accounting", found, hint)

    def _test_scripts(self) -> Findings:
        """Slurm's own opinion of the account, QoS, partition, time and size of a job of each class."""
        for name in CLASSES:
            path = self._site[name].file.path
            try:
                said = self._slurm.would_start(self._site.script(name))
            except NoAnswer as problem:
                yield Finding("error", f"{name} jobs", f"{problem}", f"edit {path}, or --set what it leaves open")
            else:
                yield Finding("ok", f"{name} jobs", f"sbatch takes them; {said}")

    def _limits(self) -> Findings:
        free, notes = room(self._site, self._slurm)
        hint = "write `#FLUENCE max-submit=N` into the site's files if there is a limit, or type the same again later"
        for note in notes:
            yield Finding("warning", "limits", note, hint)
        if not notes:
            yield Finding("ok", "limits", f"arrays of up to {free.longest_array} jobs (MaxArraySize)")
        for name in CLASSES:
            slots = free.slots.get(free.purses[name])
            if slots is None:
                continue
            found = f"{slots} more jobs may be submitted for {free.purses[name]} now"
            hint = "wait, or end some; `fluence submit` sends what fits and the rest when it is typed again"
            yield Finding("warning", f"{name} jobs", found, hint) if not slots else Finding("ok", f"{name} jobs", found)

    def _clock(self) -> Findings:
        ahead = ahead_of_slurm(self._slurm)
        if ahead is not None:
            yield clock_finding(ahead, "clock", "this machine", "Slurm's")

    # ── The folder ───────────────────────────────────────────────────────────────────────────────────────────────

    def _folder(self) -> Findings:
        root = self._layout.root
        try:
            with probe_folder(self._layout) as folder:
                yield Finding("ok", "folder", f"{root} can be written to from here")
                yield from self._home(root)
                yield from self._space(root)
                yield from hdf5_finding(hdf5_trouble(folder), "hdf5")
                yield _locks(folder)
                yield from self._code(folder)
        except UnwritableError as problem:
            yield Finding("error", "folder", str(problem), _ELSEWHERE)

    def _home(self, root: Path) -> Findings:
        if not root.resolve().is_relative_to(Path.home().resolve()):
            return
        read_only = [name for name in CLASSES if not self._site[name].caps.home_writable]
        hint = "choose a folder on the work or scratch file system with --output, or set FLUENCE_OUTPUT"
        if read_only:
            found = f"{root} is below $HOME, which nodes for {' and '.join(read_only)} cannot write to"
            yield Finding("error", "folder", found, hint)
        else:
            yield Finding("warning", "folder", f"{root} is below $HOME, where quotas are small", hint)

    def _space(self, root: Path) -> Findings:
        status = os.statvfs(nearest_existing(root))
        num_bytes, num_files = status.f_bavail * status.f_frsize, status.f_favail
        yield self._disk(num_bytes)
        if not status.f_files:
            return
        needed = self._num_runs * _FILES_PER_RUN
        said = f"{num_files:,} inodes free" + (f"; the study needs about {needed:,}" if needed else "")
        level: Level = "error" if needed > num_files else "warning" if num_files < _FEW_INODES else "ok"
        yield Finding(level, "inodes", said, _QUOTA if level == "ok" else f"delete files, or {_ELSEWHERE}; {_QUOTA}")

    def _disk(self, num_bytes: int) -> Finding:
        """Bytes free against what `fluence check` expects of the study; without one, against what is never enough."""
        found = f"{num_bytes / 1e9:,.0f} GB free"
        if self._study is None:
            few = num_bytes < _FEW_BYTES
            return Finding("warning" if few else "ok", "disk", found, f"free some space; {_QUOTA}" if few else _QUOTA)
        try:
            finding = disk_finding(estimate_study(self._study, self._layout, gflops_per_s=1.0), self._layout)
        except FluenceError as problem:
            found = f"{found}; what the study needs is unknown: {str(problem).splitlines()[0]}"
            return Finding("warning", "disk", found, f"type `fluence check` with this study; {_QUOTA}")
        return replace(finding, hint=f"{finding.hint}; {_QUOTA}" if finding.hint else _QUOTA)

    @property
    def _num_runs(self) -> int:
        return len(self._study.trainings) if self._study else 0

    def _code(self, folder: Path) -> Findings:
        """Whether the copy of the code that jobs would run is what they would import."""
        copy = freeze_code(Layout(folder))
        command = [sys.executable, "-c", f"import {_MODULES}; print(fluence.__file__)"]
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            words = done.stderr.strip().splitlines() or ["no word why"]
            yield Finding("error", "code", f"the copy for jobs cannot be imported: {words[-1]}", reinstall())
        elif not done.stdout.startswith(str(copy)):
            hint = "unset PYTHONPATH, and look for *.pth files in site-packages"
            yield Finding("error", "code", f"jobs would import {done.stdout.strip()}, not their own copy", hint)
        else:
            yield Finding("ok", "code", "the copy that jobs run can be imported")

    # ── Torch ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _torch(self) -> Findings:
        """This Python's torch against the GPUs of the site; jobs run the same Python, after the prologue."""
        capability = self._site["gpu"].caps.gpu_sm
        if capability is None:
            hint = "write `#FLUENCE gpu-sm=70` (for V100) into gpu.sbatch"
            yield Finding("warning", "torch", "the site does not say which GPUs it has", hint)
            return
        import torch

        # `torch.cuda.get_arch_list` is empty on a login node without a GPU in every torch up to 2.10.
        built_for = (torch._C._cuda_getArchFlags() or "").split() if torch.version.cuda else []
        if not torch.version.cuda:
            yield Finding("error", "torch", f"{torch.__version__} is built without CUDA", reinstall())
            return
        if not built_for:
            found = f"{torch.__version__} tells its GPUs only to nodes that have one"
            yield Finding("warning", "torch", found, "leave out --no-jobs: a job on such a node looks")
            return
        yield kernels_fit(divmod(capability, 10), built_for, torch.__version__)

    # ── The nodes ────────────────────────────────────────────────────────────────────────────────────────────────

    def from_nodes(self, wait_s: float) -> Findings:
        """What the nodes see: sends a job to each class, waits for the answers, and withdraws what has not started.

        Args:
            wait_s: how long to wait for all of them.
        """
        try:
            with probe_folder(self._layout) as folder, held_lock(folder / LOCK):
                if self._study:
                    write_text(folder / STUDY, self._study.model_dump_json())
                probes = Probes(self._site, self._slurm, folder)
                try:
                    yield from probes.send()
                    yield from probes.answers(wait_s)
                finally:
                    probes.withdraw()
        except UnwritableError as problem:
            yield Finding("error", "folder", str(problem), _ELSEWHERE)


def _from_here(finding: Finding) -> Finding:
    """The prologue of a job may say where weights are; so what is not found here may be found there."""
    if finding.level != "error":
        return finding
    return replace(finding, level="warning", message=f"{finding.message}; seen from here, without the site's prologue")


def _locks(folder: Path) -> Finding:
    """Whether two people who submit the same study at once would notice."""
    with held_lock(folder / LOCK) as trouble:
        if trouble:
            found = f"the file system has none ({trouble}); two who submit the same study at once send it twice"
            return Finding("warning", "locks", found, "one of you submits, or --output is on another file system")
    return Finding("ok", "locks", "two who submit the same study at once would notice")


@contextmanager
def probe_folder(layout: Layout) -> Iterator[Path]:
    """A folder of its own below the study's, gone afterwards; folders made for it go, too.

    Raises:
        UnwritableError: the study's folder is not writable.
    """
    above = [place for place in layout.root.parents if not place.exists()]
    made_root = not layout.root.exists()
    with explained(layout.root):
        layout.root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="doctor-", dir=layout.root))
        folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for place in [*([layout.root] if made_root else []), *above]:
            with suppress(OSError):
                place.rmdir()
