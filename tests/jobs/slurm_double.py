"""Slurm in memory: squeue, sacct, scancel and scontrol that print what Slurm 22.05 prints, as recorded on one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from jobs.slurm import Answer, NoAnswer

NOW = 1_795_197_169


def queue_line(
    element: str, state: str, reason: str = "None", *, node: str = "", start: int | None = None, limit_s: int = 7200,
    used: str = "0:00", restarts: int = 0, user: int = 0, comment: str = "(null)", name: str = "job",
) -> str:  # fmt: skip
    """One line of `squeue --array --noheader --Format=…`, its columns filled with blanks."""
    begin, end = ("N/A", "N/A") if start is None else (str(start), str(start + limit_s))
    cells = (
        (element, 40), (state, 20), (reason, 100), (node, 80), (begin, 20), (end, 20), (used, 20), (str(restarts), 10),
        (str(user), 12), (comment, 64), (name, 64),
    )  # fmt: skip
    return "|".join(f"{text:<{width}}"[:width] for text, width in cells)


def account_line(
    element: str, state: str, *, elapsed_s: int = 0, start: int | None = None, exit_: str = "0:0", cpus: int = 1,
    gpus: int = 0, limit_min: int = 120, comment: str = "", name: str = "job",
) -> str:  # fmt: skip
    """One line of `sacct --duplicates --allocations --parsable2 --noheader --format=…`."""
    gres = f"gres/gpu={gpus}," if gpus else ""
    asked = f"billing={cpus},cpu={cpus},{gres}node=1"
    if start is None:
        times, node, allocated = "Unknown|Unknown", "None assigned", ""
    else:
        end = "Unknown" if state == "RUNNING" else str(start + elapsed_s)
        times, node, allocated = f"{start}|{end}", "v100n1", asked
    return (
        f"{element}|{state}|{exit_}|{elapsed_s}|{times}|{node}|{cpus}|{allocated}|{asked}|{limit_min}|{comment}|{name}"
    )


@dataclass
class SlurmDouble:
    """Answers as Slurm would, from lines that a test has written; keeps every call.

    Attributes:
        queue: lines of squeue.
        accounts: lines of sacct; None where accounting is switched off.
        is_reachable: whether slurmctld answers.
        is_installed: whether there are such commands at all.
        refusals: what scancel or scontrol complain about.
        calls: every call.
    """

    queue: list[str] = field(default_factory=list)
    accounts: list[str] | None = field(default_factory=list)
    is_reachable: bool = True
    is_installed: bool = True
    refusals: str = ""
    calls: list[list[str]] = field(default_factory=list)

    def __call__(self, arguments: Sequence[str], timeout_s: float) -> Answer:
        """Runs one command."""
        program, *options = arguments
        self.calls.append([program, *options])
        if not self.is_installed:
            raise NoAnswer(f"there is no {program} here")
        if program == "sacct":
            return self._sacct(options)
        if not self.is_reachable:
            return Answer(1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
        if program == "squeue":
            return Answer(0, "".join(f"{line}\n" for line in self.queue))
        return Answer(1, "", self.refusals) if self.refusals else Answer(0, "")

    def _sacct(self, options: Sequence[str]) -> Answer:
        if self.accounts is None:
            return Answer(1, "", "Slurm accounting storage is disabled\n")
        jobs = next((option.partition("=")[2].split(",") for option in options if option.startswith("--jobs=")), None)
        lines = [line for line in self.accounts if jobs is None or re.split(r"[_|]", line)[0] in jobs]
        return Answer(0, "".join(f"{line}\n" for line in lines))

    def programs(self) -> list[str]:
        """Names of the commands that were called, in order."""
        return [call[0] for call in self.calls]
