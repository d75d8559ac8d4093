"""The report stage: one HTML page that opens offline, with its figures beside it as PNG and PDF."""

from __future__ import annotations

import time
from pathlib import Path

from analysis.report import findings, record
from analysis.report.caveats import caveats
from analysis.report.comparisons import comparisons
from analysis.report.diagnostics import diagnostics
from analysis.report.evidence import Evidence, gather
from analysis.report.groups import groups
from analysis.report.models import models
from analysis.report.page import Page, render
from analysis.report.summary import summarise
from analysis.report.verdict import verdict
from fluence import __version__
from fluence.layout import Layout, RunRow
from fluence.store.files import write_text
from fluence.store.outcome import code_commit
from fluence.study import Study

__all__ = ["write_report"]


def write_report(study: Study, layout: Layout, runs: list[RunRow]) -> None:
    """Writes the report of a study from whatever lies in its folder; what is missing is named in it.

    Args:
        study: the study.
        layout: its folder.
        runs: every run of the grid, also those that failed.

    Raises:
        ArtifactError: the disk is full or the folder is not writable.
    """
    started = time.time()
    page = _page(gather(study, layout, runs))
    write_text(layout.report_page, render(page))
    _remove_older(layout.figures, started)


def _page(evidence: Evidence) -> Page:
    study, summary = evidence.study, summarise(evidence)
    key_items = findings.key_items(evidence, summary)
    sections = (
        findings.metrics(evidence, summary),
        findings.regression(evidence, summary),
        groups(evidence, summary),
        models(evidence),
        *comparisons(evidence, summary),
        diagnostics(evidence, summary),
        record.rated_images_section(evidence),
        record.failures(evidence),
        record.methods(evidence),
        record.provenance(evidence),
        record.dictionary(evidence),
    )
    made = f"Made on {time.strftime('%Y-%m-%d at %H:%M')} by fluence {__version__} (commit {code_commit()})."
    return Page(
        title=study.name,
        description=study.description,
        made=made,
        verdict=verdict(evidence, summary),
        key_items=key_items,
        caveats=caveats(evidence),
        sections=sections,
    )


def _remove_older(folder: Path, started: float) -> None:
    """Removes figures of an earlier report that this one no longer shows."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.suffix in (".png", ".pdf") and path.stat().st_mtime < started - 1:
                path.unlink()
