"""The report stage: one HTML page that opens offline, with its figures beside it as PNG and PDF."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from analysis.report import findings, record
from analysis.report.budget import within_budget
from analysis.report.caveats import caveats
from analysis.report.comparisons import comparisons
from analysis.report.diagnostics import diagnostics
from analysis.report.evidence import Evidence, gather
from analysis.report.groups import groups
from analysis.report.modelpage import model_page
from analysis.report.models import models
from analysis.report.page import Page, render
from analysis.report.summary import models_in_full, summarise
from analysis.report.verdict import verdict
from analysis.report.workers import Part, make_parts
from fluence import __version__
from fluence.layout import Layout, RunRow
from fluence.store.files import write_text
from fluence.store.outcome import code_commit
from fluence.study import Study

__all__ = ["write_report"]

CHAPTERS: tuple[Part, ...] = (
    findings.metrics,
    findings.regression,
    groups,
    models,
    comparisons,
    diagnostics,
    record.rated_images_section,
    record.failures,
    record.methods,
    record.provenance,
    record.dictionary,
)
"""The chapters of the report, from the top. Each is made by itself, and may be left out by returning None."""


def write_report(
    study: Study, layout: Layout, runs: list[RunRow], *, num_workers: int | None = None, all_figures: bool = False
) -> None:
    """Writes the report of a study from whatever lies in its folder; what is missing is named in it.

    Args:
        study: the study.
        layout: its folder.
        runs: every run of the grid, also those that failed.
        all_figures: draw every figure of every model; by default only those of many models have all that the chapters
            show (`models_in_full`).
        num_workers: processes that draw; as many as there are cores by default, if there is enough to draw.

    Raises:
        ArtifactError: the disk is full or the folder is not writable.
    """
    started = time.time()
    page = _page(gather(study, layout, runs), num_workers, all_figures)
    write_text(layout.report_page, render(within_budget(page)))
    layout.report_pdf.unlink(missing_ok=True)  # it shows an earlier report
    _remove_older(layout.figures, started)


def _page(evidence: Evidence, num_workers: int | None, all_figures: bool) -> Page:
    study, summary = evidence.study, summarise(evidence)
    in_full = set(study.model_names if all_figures else models_in_full(evidence, summary))
    pages: list[Part] = [partial(model_page, model=name, in_full=name in in_full) for name in study.model_names]
    parts = make_parts([findings.key_items, *CHAPTERS, *pages], evidence, summary, num_workers=num_workers)
    key_items, sections, model_pages = parts[0], parts[1 : 1 + len(CHAPTERS)], parts[1 + len(CHAPTERS) :]
    made = f"Made on {time.strftime('%Y-%m-%d at %H:%M')} by fluence {__version__} (commit {code_commit()})."
    return Page(
        title=study.name,
        description=study.description,
        made=made,
        verdict=verdict(evidence, summary),
        key_items=key_items,
        caveats=caveats(evidence),
        sections=[section for section in sections if section is not None],
        model_pages=model_pages,
    )


def _remove_older(folder: Path, started: float) -> None:
    """Removes figures of an earlier report that this one no longer shows."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.suffix in (".png", ".pdf") and path.stat().st_mtime < started - 1:
                path.unlink()
