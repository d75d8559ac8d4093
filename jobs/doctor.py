"""What would go wrong tonight: everything between a study and a cluster, looked at before anything waits in a queue.

First from this machine, in seconds; then, with a job of a few minutes for each class of nodes, from the nodes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from fluence.errors import UnwritableError
from fluence.layout import Layout
from fluence.store.files import explained, write_text
from fluence.store.trial import hdf5_trouble
from fluence.study import Study
from jobs.check import kernels_fit, look_for_weights, nearest_existing
from jobs.code import freeze_code
from jobs.findings import Finding, Findings
from jobs.jobscript import refuse_strange_folder
from jobs.limits import room
from jobs.nodeprobe import STUDY, clock_ahead_s
from jobs.probes import Probes, clock_finding, hdf5_finding, reinstall
from jobs.resources import CLASSES
from jobs.sites import Site
from jobs.slurm import NoAnswer, Slurm

_FEW_BYTES, _FEW_INODES = 20e9, 10_000
_FILES_PER_RUN = 12
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
            yield from self._requeue()
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
            yield Finding("warning", "accounting", found)

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
        for note in notes:
            yield Finding("warning", "limits", note)
        if not notes:
            yield Finding("ok", "limits", f"arrays of up to {free.longest_array} jobs (MaxArraySize)")
        for name in CLASSES:
            slots = free.slots.get(free.purses[name])
            if slots is None:
                continue
            found = f"{slots} more jobs may be submitted for {free.purses[name]} now"
            hint = "wait, or end some; `fluence submit` sends what fits and the rest when it is typed again"
            yield Finding("warning", f"{name} jobs", found, hint) if not slots else Finding("ok", f"{name} jobs", found)

    def _requeue(self) -> Findings:
        """How a job that is preempted, or out of time, goes on."""
        with suppress(NoAnswer):
            config = self._slurm.config()
            modes = config.get("PreemptMode", "")
            warned = "preempt_send_user_signal" in config.get("SlurmctldParameters", "")
            if "OFF" not in modes and not warned:
                found = "a job that is preempted may not be warned, and loses what it did since its last checkpoint"
                hint = "give `fluence submit` a --checkpoint-interval that you can afford to lose"
                yield Finding("warning", "preemption", found, hint)
            for name in CLASSES:
                if not self._site[name].caps.requeue:
                    yield Finding("ok", f"{name} jobs", "this site does not requeue: a successor goes on instead")

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
                yield from clock_finding(clock_ahead_s(folder), "clock", "this machine")
                yield from self._code(folder)
        except UnwritableError as problem:
            yield Finding("error", "folder", str(problem), "" if "--output" in str(problem) else "choose another one")

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
        quota = "a quota of your project is not in this figure: ask your site's quota command, too"
        level = "warning" if num_bytes < _FEW_BYTES else "ok"
        yield Finding(level, "disk", f"{num_bytes / 1e9:,.0f} GB free", quota)
        if not status.f_files:
            return
        needed = self._num_runs * _FILES_PER_RUN
        said = f"{num_files:,} inodes free" + (f"; the study needs about {needed:,}" if needed else "")
        level = "error" if needed > num_files else "warning" if num_files < _FEW_INODES else "ok"
        yield Finding(level, "inodes", said, quota)

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
            yield Finding("warning", "torch", f"{torch.__version__} tells its GPUs only to nodes that have one")
            return
        yield kernels_fit(divmod(capability, 10), built_for, torch.__version__)

    # ── The nodes ────────────────────────────────────────────────────────────────────────────────────────────────

    def from_nodes(self, wait_s: float) -> Findings:
        """What the nodes see: sends a job to each class, waits for the answers, and withdraws what has not started.

        Args:
            wait_s: how long to wait for all of them.
        """
        try:
            with probe_folder(self._layout) as folder:
                if self._study:
                    write_text(folder / STUDY, self._study.model_dump_json())
                probes = Probes(self._site, self._slurm, folder)
                try:
                    yield from probes.send()
                    yield from probes.answers(wait_s)
                finally:
                    probes.withdraw()
        except UnwritableError as problem:
            yield Finding("error", "folder", str(problem))


def _from_here(finding: Finding) -> Finding:
    """The prologue of a job may say where weights are; so what is not found here may be found there."""
    if finding.level != "error":
        return finding
    return replace(finding, level="warning", message=f"{finding.message}; seen from here, without the site's prologue")


def _locks(folder: Path) -> Finding:
    """Whether two people who submit the same study at once would notice."""
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            found = f"the file system has none ({error.strerror}); two who submit the same study at once send it twice"
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
