"""How much Slurm takes from this user at once: the longest array, and the slots that are free."""

from __future__ import annotations

import getpass
from collections import Counter
from collections.abc import Iterable

from jobs.batches import Room
from jobs.resources import CLASSES, ResourceClass
from jobs.sites import Site
from jobs.slurm import NoAnswer, Slurm

_DEFAULT_ARRAY = 1001  # MaxArraySize where nobody has changed it


def room(site: Site, slurm: Slurm) -> tuple[Room, tuple[str, ...]]:
    """What may be submitted now, and what could not be asked, in words.

    Limits are those of the QoS and of the account, where there is an accounting, and the site's own `max-submit`. Each
    element of an array counts. Classes with the same account and QoS share their slots.
    """
    notes: list[str] = []
    longest = _longest_array(slurm, notes)
    qos_limits, accounts = _limits(slurm, notes)
    by_account, by_qos = _queued(slurm, notes)
    purses: dict[ResourceClass, str] = {}
    slots: dict[str, int] = {}
    for name in CLASSES:
        account, qos = _account_and_qos(site, name, accounts)
        purse = purses[name] = f"{account}/{qos}"
        free = [
            limit - queued
            for limit, queued in (
                (site[name].caps.max_submit, by_qos[qos]),
                (qos_limits.get(qos), by_qos[qos]),
                (accounts.get(account, (None, ""))[0], by_account[account]),
            )
            if limit is not None
        ]
        if free:
            slots[purse] = max(0, min([*free, *([slots[purse]] if purse in slots else [])]))
    return Room(longest, purses, slots), tuple(notes)


def _longest_array(slurm: Slurm, notes: list[str]) -> int:
    try:
        return max(1, int(slurm.config()["MaxArraySize"]))
    except (NoAnswer, KeyError, ValueError) as problem:
        notes.append(f"the longest array is unknown ({problem}); {_DEFAULT_ARRAY} is taken")
        return _DEFAULT_ARRAY


def _limits(slurm: Slurm, notes: list[str]) -> tuple[dict[str, int], dict[str, tuple[int | None, str]]]:
    """Limit of each QoS; limit and default QoS of each account."""
    ask = "sacctmgr", "--noheader", "--parsable2", "show"
    try:
        of_qos = slurm.call(*ask, "qos", "format=Name,MaxSubmitJobsPerUser")
        mine = slurm.call(*ask, "assoc", f"user={getpass.getuser()}", "format=Account,MaxSubmitJobs,DefaultQOS")
    except NoAnswer as problem:
        notes.append(f"limits of accounts are unknown: {problem}")
        return {}, {}
    qos = {name: number for name, limit in _rows(of_qos, 2) if (number := _whole(limit)) is not None}
    return qos, {account: (_whole(limit), default) for account, limit, default in _rows(mine, 3)}


def _rows(text: str, columns: int) -> Iterable[list[str]]:
    return [cells for line in text.splitlines() if len(cells := line.split("|")) == columns]


def _whole(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _queued(slurm: Slurm, notes: list[str]) -> tuple[Counter[str], Counter[str]]:
    """This user's queued and running jobs, by account and by QoS."""
    try:
        text = slurm.call("squeue", "--array", "--noheader", f"--user={getpass.getuser()}", "--format=%a|%q")
    except NoAnswer as problem:
        notes.append(f"the queue cannot be seen: {problem}")
        text = ""
    rows = list(_rows(text, 2))
    return Counter(account for account, _ in rows), Counter(qos for _, qos in rows)


def _account_and_qos(site: Site, name: ResourceClass, accounts: dict[str, tuple[int | None, str]]) -> tuple[str, str]:
    directives = site[name].directives
    account = directives.get("account") or next(iter(accounts), "")
    qos = directives.get("qos") or accounts.get(account, (None, ""))[1] or "normal"
    return account, qos
