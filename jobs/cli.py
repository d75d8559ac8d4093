"""The command line: what each verb does, and what is said about it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fluence.errors import FluenceError, StudyError, UnwritableError
from fluence.layout import Layout
from jobs.parser import parse

if TYPE_CHECKING:
    from fluence.study import Study
    from jobs.pipeline import Task
    from jobs.plan import Planned
    from jobs.snapshot import Snapshot

_WATCH_S = 5.0


def _load(given: argparse.Namespace) -> tuple[Study, Layout]:
    from fluence.studyfile import load_study

    roots = {}
    for pair in given.data:
        name, equals, folder = pair.partition("=")
        if not equals or not folder:
            raise StudyError(f"--data {pair}: write NAME=FOLDER, for example --data faces=/data/faces")
        roots[name] = folder
    study = load_study(given.study, roots)
    return study, Layout((given.output or _base() / study.name).absolute())


def _base() -> Path:
    """Where the folders of studies are, unless --output says otherwise."""
    return Path(os.environ.get("FLUENCE_OUTPUT", "results"))


def _new(given: argparse.Namespace) -> int:
    from jobs.starter import write_starter

    path = write_starter(given.name, Path.cwd())
    print(f"wrote {path.name}; edit it, then type: fluence check {path.name}")
    return 0


def _check(given: argparse.Namespace) -> int:
    if given.explain:
        from jobs.explain import explain

        print(explain())
        return 0
    if given.study is None:
        raise StudyError("which study? type: fluence check STUDY.yaml, or: fluence check --explain")
    from jobs.check import check

    report = check(*_load(given))
    print(report)
    return 2 if report.has_errors else 0


def _weights(given: argparse.Namespace) -> int:
    from jobs.weights import fetch_weights, weights_rows, weights_table

    study, _ = _load(given)
    if given.fetch:
        fetch_weights(weights_rows(study), _say)
    rows = weights_rows(study)
    print(weights_table(rows))
    return 0 if all(row.is_there for row in rows) else 1


def _run(given: argparse.Namespace) -> int:
    from jobs.bodies import Execution
    from jobs.plan import plan
    from jobs.pool import Machine, Pool
    from jobs.snapshot import take_snapshot
    from jobs.status import locked
    from jobs.weights import refuse_to_run_without_weights

    study, layout = _load(given)
    snapshot = take_snapshot(study, layout)
    _read_manifests(snapshot, layout)
    with locked(layout):
        machine = Machine.detect(given.processes, given.jobs)
        planned = plan(snapshot.tasks, layout, retry=True)
        refuse_to_run_without_weights(study, planned)
        _keep_study(given.study, layout)
        _say_plan(planned)
        _forget_failures(snapshot, layout)
        execution = Execution(given.checkpoint_interval, machine.cores, given.strict)
        try:
            planned = Pool(snapshot, layout, machine, execution, say=_say).run()
        except KeyboardInterrupt:
            _say("stopped; what is done is kept, and the same command continues")
            return 130
    return _say_end(planned, layout)


def _submit(given: argparse.Namespace) -> int:
    from jobs.status import locked
    from jobs.submitverb import run_submit

    study, layout = _load(given)
    if given.dry_run:
        for line in run_submit(given, study, layout):
            print(line)
        return 0
    with locked(layout):
        _keep_study(given.study, layout)
        for line in run_submit(given, study, layout):
            _say(line)
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from jobs.doctor import examine
    from jobs.findings import Finding, Report
    from jobs.sites import load_site, placeholders

    site = load_site(given.site, placeholders(given.set))
    study, layout = _load(given) if given.study else (None, Layout((given.output or _base()).absolute()))
    findings: list[Finding] = []
    for finding in examine(site, layout, study, None if given.no_jobs else given.wait * 60, _say):
        print(finding, flush=True)
        findings.append(finding)
    report = Report(tuple(findings))
    print(report.count)
    return 2 if report.has_errors else 0


def _read_manifests(snapshot: Snapshot, layout: Layout) -> None:
    """Finds what is wrong with the tables of images that are still to be packed, before anything is written."""
    from fluence.data.readers import read_manifest
    from jobs.plan import plan

    data = snapshot.study.data
    for entry in plan(snapshot.tasks, layout, retry=True):
        if entry.task.stage == "pack" and entry.to_do and data.datasets[entry.task.name].kind != "synthetic":
            read_manifest(data.datasets[entry.task.name], data)


def _keep_study(path: Path, layout: Layout) -> None:
    from fluence.store.files import write_text

    write_text(layout.study, path.read_text(encoding="utf-8"))


def _forget_failures(snapshot: Snapshot, layout: Layout) -> None:
    from jobs.plan import plan

    for entry in plan(snapshot.tasks, layout):
        if entry.state == "failed":
            layout.outcome(entry.task.stage, entry.task.name).unlink()


def _say(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def _say_plan(planned: tuple[Planned, ...]) -> None:
    """Says of each task whether it runs, and why or why not; what is done is summed up if anything is left to do."""
    to_do = [entry for entry in planned if entry.to_do]
    for entry in planned:
        if entry.to_do or not to_do:
            word = "to do" if entry.to_do else entry.state
            _say(f"{word:<8} {entry.task.label}: {entry.reason.splitlines()[0]}")
    _say(f"{len(to_do)} of {len(planned)} tasks to do" if to_do else "nothing to do")


def _say_end(planned: tuple[Planned, ...], layout: Layout) -> int:
    failed = [entry for entry in planned if entry.state in ("failed", "blocked", "ready", "waiting")]
    causes = [entry for entry in failed if entry.state == "failed"]
    for entry in causes:
        _say(f"failed   {entry.task.label}: {entry.reason}")
        _say(f"         log: {layout.log(entry.task.stage, entry.task.name)}")
    if layout.report_page.exists():
        _say(f"report   {layout.report_page}")
    return 1 if causes else 0


def _status(given: argparse.Namespace) -> int:
    from jobs.snapshot import take_snapshot

    study, layout = _load(given)
    tasks = take_snapshot(study, layout).tasks
    while _show_status(tasks, study, layout, given) and given.watch:
        time.sleep(_WATCH_S)
    return 0


def _show_status(tasks: tuple[Task, ...], study: Study, layout: Layout, given: argparse.Namespace) -> bool:
    """Prints how everything stands; True if there is anything to wait for."""
    from jobs.plan import plan
    from jobs.standing import standings
    from jobs.status import state_rows
    from jobs.statustable import status_table

    planned = plan(tasks, layout, trust_listing=True)
    at_slurm = standings(tasks, layout) if layout.lock.parent.exists() else None
    rows = state_rows(planned, layout, at_slurm)
    if given.watch and sys.stdout.isatty():
        print("\x1b[2J\x1b[H", end="")
    as_text = json.dumps([asdict(row) for row in rows], indent=1) if given.json else None
    print(as_text or status_table(rows, study.name, layout.root, at_slurm), flush=True)
    return any(entry.to_do for entry in planned)


def _logs(given: argparse.Namespace) -> int:
    from jobs.logs import find_logs, follow, show, studies_in

    studies = [Layout(given.output.absolute())] if given.output else studies_in(_base())
    if given.follow:
        follow(studies, given.run, given.stage, sys.stdout.buffer)
    show(find_logs(studies, given.run, given.stage), sys.stdout.buffer)
    return 0


def _cancel(given: argparse.Namespace) -> int:
    from jobs.snapshot import take_snapshot
    from jobs.undo import cancel

    study, layout = _load(given)
    cancelled = cancel(take_snapshot(study, layout).tasks, layout, given.runs)
    print(f"cancelled: {len(cancelled)}" if cancelled else "nothing is queued or running")
    return 0


def _retry(given: argparse.Namespace) -> int:
    from jobs.plan import plan
    from jobs.snapshot import take_snapshot
    from jobs.undo import retry

    study, layout = _load(given)
    chosen = retry(plan(take_snapshot(study, layout).tasks, layout), layout, given.runs)
    for task in chosen:
        print(f"to do    {task.label}")
    again = f"they run again with: fluence submit {given.study} --site SITE, or: fluence run {given.study}"
    print(again if chosen else "nothing has failed")
    return 0


def _cost(given: argparse.Namespace) -> int:
    from jobs.cost import cost, cost_table
    from jobs.snapshot import take_snapshot

    study, layout = _load(given)
    bill = cost(study, take_snapshot(study, layout).tasks, layout)
    print(json.dumps(asdict(bill), indent=1) if given.json else cost_table(bill, study.name))
    return 0


def _report(given: argparse.Namespace) -> int:
    from jobs.bodies import Execution
    from jobs.snapshot import take_snapshot
    from jobs.status import locked
    from jobs.tasks import task_command

    study, layout = _load(given)
    print_to_pdf = None
    if given.pdf:
        from analysis.report.printing import printer

        print_to_pdf = printer()
    execution = Execution(all_figures=given.all_figures)
    with locked(layout):
        snapshot = take_snapshot(study, layout).save(layout)
        for stage in ("analyse", "report"):
            code = subprocess.run(task_command(snapshot, stage, "study", execution), check=False).returncode
            if code:
                return code
        if print_to_pdf:
            print_to_pdf(layout.report_page, layout.report_pdf)
    print(f"report   {layout.report_page}")
    if print_to_pdf:
        print(f"pdf      {layout.report_pdf}")
    return 0


def _compare(given: argparse.Namespace) -> int:
    from analysis.report.across import compare
    from fluence.studyfile import load_study

    layouts = [Layout(path if path.is_dir() else _base() / load_study(path).name) for path in given.studies]
    target = Layout((given.to or _base() / "comparison").absolute())
    for line in compare([Layout(layout.root.absolute()) for layout in layouts], target):
        print(line)
    return 0


def _export(given: argparse.Namespace) -> int:
    from analysis.export import export
    from jobs.plan import plan, run_rows
    from jobs.snapshot import take_snapshot

    study, layout = _load(given)
    tasks = take_snapshot(study, layout).tasks
    folder = given.to or layout.root.with_name(f"{layout.root.name}-export")
    planned = plan(tasks, layout)
    try:
        done = export(study, layout, run_rows(planned), [(task.stage, task.name) for task in tasks], folder)
    except UnwritableError as error:
        raise UnwritableError(str(error).replace("--output", "--to")) from error
    if any(entry.to_do for entry in planned if entry.task.stage == "analyse"):
        print(f"note     the statistics are older than the results; newer ones: fluence report {given.study}")
    print(f"export   {done.folder}: {done.num_files} files")
    for what in done.left_out:
        print(f"left out {what}")
    return 0


_ACTS: dict[str, Callable[[argparse.Namespace], int]] = {
    "new": _new,
    "check": _check,
    "weights": _weights,
    "run": _run,
    "submit": _submit,
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "retry": _retry,
    "cost": _cost,
    "doctor": _doctor,
    "report": _report,
    "compare": _compare,
    "export": _export,
}


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `fluence`.

    Returns:
        0 done, 1 a task failed or weights are missing, 2 wrong usage or study, 130 stopped by Ctrl-C.
    """
    given = parse(arguments)
    try:
        return _ACTS[given.verb](given)
    except FluenceError as error:
        print(f"fluence: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fluence: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
