"""How a job goes on after others went first: what Slurm's settings promise, and what they do not."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.findings import Finding, Findings
from jobs.resources import CLASSES, Resources
from jobs.sites import Site
from jobs.slurm import NoAnswer, Slurm

_CANCELS = "CANCEL"


def preemption(site: Site, slurm: Slurm) -> Findings:
    """What becomes of a preempted job of each class; nothing where Slurm does not tell its settings.

    Args:
        site: the cluster.
        slurm: how Slurm is reached.
    """
    try:
        config = slurm.config()
        partitions = _partitions(slurm.call("scontrol", "show", "partition", "--oneliner"))
    except NoAnswer:
        return
    modes = config.get("PreemptMode", "")
    if "OFF" not in modes and "preempt_send_user_signal" not in config.get("SlurmctldParameters", ""):
        found = "a job that is preempted may not be warned, and loses what it did since its last checkpoint"
        hint = "give `fluence submit` a --checkpoint-interval that you can afford to lose"
        yield Finding("warning", "preemption", found, hint)
    for name in CLASSES:
        if not site[name].caps.requeue:
            yield Finding("ok", f"{name} jobs", "this site does not requeue: a successor goes on instead")
        yield from _cancelled(f"{name} jobs", site[name], modes, partitions)


def _partitions(said: str) -> dict[str, dict[str, str]]:
    """Each partition's settings by its name; the default one also under the empty name."""
    found = {}
    for line in said.splitlines():
        pairs = (word.partition("=") for word in line.split())
        settings = {name: value for name, equals, value in pairs if equals}
        found[settings.get("PartitionName", "")] = settings
        if settings.get("Default") == "YES":
            found[""] = settings
    return found


def _cancelled(key: str, resources: Resources, modes: str, partitions: Mapping[str, Mapping[str, str]]) -> Findings:
    """Under CANCEL a job that Slurm has told to end may not ask to start again; one that has time before that does.

    A partition's mode goes before the cluster's.
    """
    for name in (resources.directives.get("partition") or "").split(","):
        partition = partitions.get(name, {})
        if _CANCELS not in partition.get("PreemptMode", modes):
            continue
        grace_s = int(found) if (found := partition.get("GraceTime", "")).isdigit() else 0
        where = f"PreemptMode=CANCEL{f' of partition {name}' if name else ''}, GraceTime={grace_s}"
        ends = (
            f"has {grace_s} s to save and to ask for another start, or is ended and does not come back"
            if grace_s
            else "is ended and does not come back; what it did since its last checkpoint may be lost"
        )
        hint = "then type `fluence submit` again, which goes on from the last checkpoint; or choose another partition "
        yield Finding("warning", key, f"a preempted job {ends} ({where})", f"{hint}in {resources.file.path}")
