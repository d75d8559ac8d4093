"""What can be typed after `fluence`: few verbs and few flags, because settings live in the study."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fluence import __version__

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


def command_line() -> argparse.ArgumentParser:
    """Every verb with its options."""
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
    check = verbs.add_parser("check", help="find every mistake in a study without running it")
    check.add_argument("--explain", action="store_true", help="print every setting with its meaning, and stop")
    _add_study(check, optional=True)
    weights = verbs.add_parser("weights", help="show which weights files a study needs, and whether they are there")
    _add_study(weights)
    weights.add_argument("--fetch", action="store_true", help="download those that are published and not there")
    run = verbs.add_parser("run", help="run, or continue, a study on this machine")
    _add_study(run)
    run.add_argument(
        "--processes",
        type=_count,
        metavar="N",
        help="processes that share a training, extraction or measuring (default: 1)",
    )
    run.add_argument("--jobs", type=_count, metavar="N", help="processes at once (default: as cores or GPUs allow)")
    run.add_argument("--strict", action="store_true", help="take any unusable or duplicate image for an error")
    run.add_argument("--checkpoint-interval", type=_seconds, default=300.0, metavar="SECONDS", help="default: 300")
    submit = verbs.add_parser("submit", help="hand a study, or what is left of it, to Slurm")
    _add_study(submit)
    _add_submit_options(submit)
    status = verbs.add_parser("status", help="show how far each task is, and why")
    _add_study(status)
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--watch", action="store_true", help="again and again, until all is done or Ctrl-C")
    logs = verbs.add_parser("logs", help="show what a run has printed")
    logs.add_argument("run", metavar="RUN", help="a run such as small-all-s0, a data set, analyse or report")
    logs.add_argument("--stage", help="of this stage only")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with whatever comes, until Ctrl-C")
    logs.add_argument("--output", type=Path, metavar="DIR", help="the study's results (default: any below results)")
    cancel = verbs.add_parser("cancel", help="end what is queued or running on a cluster; what was saved stays")
    _add_study(cancel)
    retry = verbs.add_parser("retry", help="let what failed run again with the next submit or run")
    _add_study(retry)
    for parser_of_some in (cancel, retry):
        parser_of_some.add_argument("runs", metavar="RUN", nargs="*", help="only these runs, such as small-all-s0")
    cost = verbs.add_parser("cost", help="show the hours used on a cluster, over all restarts")
    _add_study(cost)
    cost.add_argument("--json", action="store_true", help="for programs")
    doctor = verbs.add_parser("doctor", help="find what would go wrong on a cluster tonight")
    _add_doctor_options(doctor)
    report = verbs.add_parser("report", help="analyse and report whatever is done, and name what is missing")
    _add_study(report)
    report.add_argument(
        "--all-figures", action="store_true", help="every figure of every model, however many there are"
    )
    report.add_argument("--pdf", action="store_true", help="also as PDF, which needs WeasyPrint or Chromium")
    compare = verbs.add_parser("compare", help="set finished studies side by side")
    compare.add_argument("studies", metavar="STUDY", type=Path, nargs="+", help="study files, or folders of results")
    compare.add_argument("--to", type=Path, metavar="DIR", help="where the page goes (default: results/comparison)")
    export = verbs.add_parser("export", help="write a folder that another lab can analyse without this software")
    _add_study(export)
    export.add_argument("--to", type=Path, metavar="DIR", help="a new folder (default: results/NAME-export)")
    return parser


def _add_study(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    parser.add_argument("study", metavar="STUDY", type=Path, nargs="?" if optional else None, help="the study file")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where results go (default: results/NAME)")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR", help="where a data set lies instead")


def _add_site(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--site", required=True, metavar="SITE", help="a name in sbatch_templates, or a folder")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="fill in {NAME} of the site")


def _add_doctor_options(doctor: argparse.ArgumentParser) -> None:
    _add_study(doctor, optional=True)
    _add_site(doctor)
    doctor.add_argument("--no-jobs", action="store_true", help="look from here only, send no job to the nodes")
    doctor.add_argument("--wait", type=_seconds, default=5.0, metavar="MINUTES", help="for these jobs (default: 5)")


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


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads a command line: the process' own, if none is given.

    Raises:
        SystemExit: it is wrong (2), or only help or the version was asked for (0).
    """
    parser = command_line()
    given, rest = parser.parse_known_args(arguments)
    if rest and ("runs" not in given or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    given.runs = [*getattr(given, "runs", []), *rest]  # argparse takes no runs that come after an option
    return given
