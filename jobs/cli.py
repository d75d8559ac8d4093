"""The command line: few verbs and few flags, because settings live in the study."""

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

from fluence import __version__
from fluence.errors import FluenceError, StudyError
from fluence.layout import Layout

if TYPE_CHECKING:
    from fluence.study import Study
    from jobs.pipeline import Task
    from jobs.plan import Planned
    from jobs.snapshot import Snapshot

_WATCH_S = 5.0
_EPILOG = """\
a first study:
  fluence new animals             write animals.yaml, a commented starter study
  fluence check animals.yaml      see what is wrong with it, all at once
  fluence run animals.yaml        run it here; run it again after any interruption
  fluence status animals.yaml     see how far it is

on a cluster, in place of run:
  fluence doctor animals.yaml --site jean-zay-v100    find what would go wrong
  fluence submit animals.yaml --site jean-zay-v100    hand it to Slurm; again after anything went wrong
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fluence",
        description="Does a face look beautiful because it is easy to see? Trains autoencoders, records their "
        "activations, and relates how sparse they are to beauty ratings.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fluence {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    new = verbs.add_parser("new", help="write a commented starter study")
    new.add_argument("name", metavar="NAME", help="name of the study; NAME.yaml is written here")
    new.set_defaults(act=_new)
    check = verbs.add_parser("check", help="find every mistake in a study without running it")
    check.add_argument("--explain", action="store_true", help="print every setting with its meaning, and stop")
    _add_study(check, optional=True)
    check.set_defaults(act=_check)
    run = verbs.add_parser("run", help="run, or continue, a study on this machine")
    _add_study(run)
    run.add_argument("--processes", type=_count, metavar="N", help="processes of each training (default: 1)")
    run.add_argument("--jobs", type=_count, metavar="N", help="processes at once (default: as cores or GPUs allow)")
    run.add_argument("--strict", action="store_true", help="take any unusable or duplicate image for an error")
    run.add_argument("--checkpoint-interval", type=_seconds, default=300.0, metavar="SECONDS", help="default: 300")
    run.set_defaults(act=_run)
    submit = verbs.add_parser("submit", help="hand a study, or what is left of it, to Slurm")
    _add_study(submit)
    _add_submit_options(submit)
    submit.set_defaults(act=_submit)
    status = verbs.add_parser("status", help="show how far each task is, and why")
    _add_study(status)
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--watch", action="store_true", help="again and again, until all is done or Ctrl-C")
    status.set_defaults(act=_status)
    logs = verbs.add_parser("logs", help="show what a run has printed")
    logs.add_argument("run", metavar="RUN", help="a run such as small-all-s0, a data set, analyse or report")
    logs.add_argument("--stage", help="of this stage only")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with whatever comes, until Ctrl-C")
    logs.add_argument("--output", type=Path, metavar="DIR", help="the study's results (default: any below results)")
    logs.set_defaults(act=_logs)
    cancel = verbs.add_parser("cancel", help="end what is queued or running on a cluster; what was saved stays")
    _add_study(cancel)
    cancel.set_defaults(act=_cancel)
    retry = verbs.add_parser("retry", help="let what failed run again with the next submit or run")
    _add_study(retry)
    retry.set_defaults(act=_retry)
    for parser_of_some in (cancel, retry):
        parser_of_some.add_argument("runs", metavar="RUN", nargs="*", help="only these runs, such as small-all-s0")
    cost = verbs.add_parser("cost", help="show the hours used on a cluster, over all restarts")
    _add_study(cost)
    cost.add_argument("--json", action="store_true", help="for programs")
    cost.set_defaults(act=_cost)
    doctor = verbs.add_parser("doctor", help="find what would go wrong on a cluster tonight")
    _add_study(doctor, optional=True)
    _add_site(doctor)
    doctor.add_argument("--no-jobs", action="store_true", help="look from here only, send no job to the nodes")
    doctor.add_argument("--wait", type=_seconds, default=5.0, metavar="MINUTES", help="for these jobs (default: 5)")
    doctor.set_defaults(act=_doctor)
    report = verbs.add_parser("report", help="analyse and report whatever is done, and name what is missing")
    _add_study(report)
    report.set_defaults(act=_report)
    return parser


def _add_study(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    parser.add_argument("study", metavar="STUDY", type=Path, nargs="?" if optional else None, help="the study file")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where results go (default: results/NAME)")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR", help="where a data set lies instead")


def _add_site(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--site", required=True, metavar="SITE", help="a name in sbatch_templates, or a folder")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="fill in {NAME} of the site")


def _add_submit_options(submit: argparse.ArgumentParser) -> None:
    _add_site(submit)
    submit.add_argument("--stage", action="append", default=[], metavar="STAGE", help="only this one; may be repeated")
    submit.add_argument("--only", nargs="+", action="extend", default=[], metavar="RUN", help="only these runs")
    submit.add_argument("--dry-run", action="store_true", help="print scripts, tasks, hours and disk; send nothing")
    submit.add_argument("--strict", action="store_true", help="take any unusable or duplicate image for an error")
    submit.add_argument("--checkpoint-interval", type=_seconds, default=600.0, metavar="SECONDS", help="default: 600")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if number <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


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


def _run(given: argparse.Namespace) -> int:
    from jobs.plan import plan
    from jobs.pool import Machine, Pool
    from jobs.snapshot import take_snapshot
    from jobs.status import locked
    from jobs.tasks import Execution

    study, layout = _load(given)
    snapshot = take_snapshot(study, layout)
    _read_manifests(snapshot, layout)
    with locked(layout):
        machine = Machine.detect(given.processes, given.jobs)
        _keep_study(given.study, layout)
        _say_plan(plan(snapshot.tasks, layout, retry=True))
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
    from jobs.snapshot import take_snapshot
    from jobs.status import locked
    from jobs.tasks import Execution, task_command

    study, layout = _load(given)
    with locked(layout):
        snapshot = take_snapshot(study, layout).save(layout)
        for stage in ("analyse", "report"):
            code = subprocess.run(task_command(snapshot, stage, "study", Execution()), check=False).returncode
            if code:
                return code
    print(f"report   {layout.report_page}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `fluence`.

    Returns:
        0 done, 1 a task failed, 2 wrong usage or study, 130 stopped by Ctrl-C.
    """
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    if rest and ("runs" not in given or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    given.runs = [*getattr(given, "runs", []), *rest]  # argparse takes no runs that come after an option
    act: Callable[[argparse.Namespace], int] = given.act
    try:
        return act(given)
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
