"""Every verb of the command line as Markdown: what it does, how it is typed, and its options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from jobs.parser import command_line


def commands() -> str:
    """A chapter for each verb, in the order of `fluence --help`."""
    parser = command_line()
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in verbs._choices_actions}
    return "\n".join(line for name, verb in verbs.choices.items() for line in _verb(name, verb, helps[name]))


def _verb(name: str, parser: argparse.ArgumentParser, help_text: str) -> Iterator[str]:
    yield from ("", f"## `fluence {name}`", "", f"{help_text[0].upper()}{help_text[1:]}.", "")
    yield from ("```text", _usage(parser), "```", "", "| | |", "|---|---|")
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            yield f"| `{_typed(action)}` | {action.help or ''} |"


def _usage(parser: argparse.ArgumentParser) -> str:
    """How the verb is typed, on one line, whatever the width of the terminal."""
    parser.formatter_class = _wide
    return parser.format_usage().removeprefix("usage: ").strip()


def _wide(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, width=10_000)


def _typed(action: argparse.Action) -> str:
    value = str(action.metavar or action.dest.upper()) if action.nargs != 0 else ""
    return ", ".join(f"{option} {value}".strip() for option in action.option_strings) or value
