"""The page of one model: its settings, its runs, what it learned, and its own part of the statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd
import yaml

from analysis import figures
from analysis.kinds import has_prior, is_tilted, name_of_kind
from analysis.methods import describe_model
from analysis.report.compared import compared_terms
from analysis.report.evidence import Evidence, Which, sample_strips
from analysis.report.findings import by_layer, correlation_table, ridge_table
from analysis.report.groups import forest
from analysis.report.inside import inside
from analysis.report.models import loss_terms
from analysis.report.page import Cell, Code, Heading, Item, ModelPage, Table, Text, cell, drawn
from analysis.report.plates import plates_of
from analysis.report.record import facts_of
from analysis.report.settings import of_model
from analysis.report.summary import PREDICTOR_NAMES, Summary, controls, shown_models
from fluence.layout import RunRow
from fluence.store.outcome import read_progress
from fluence.study import ArVaeModel, Model, PixelsModel, VqVaeModel

_MOST_ROWS = 20
_CAPTIONS: dict[Which, str] = {
    "rated": "Rated images above what the network makes of them{how}. First by the model of all groups, then by the "
    "models of single groups, each on faces of its own group.",
    "training": "The same for images of the training set; held-out ones where there are any.",
}


def model_page(evidence: Evidence, summary: Summary, model: str, *, in_full: bool = True) -> ModelPage:
    """Everything about one model, in the order of `MAKERS`.

    Args:
        evidence: of the study.
        summary: of its statistics.
        model: name of the model.
        in_full: with all figures; without, those are left out that show the inside of a model and its metrics among
            themselves, and the page says so.
    """
    settings = evidence.study.models[model]
    if isinstance(settings, PixelsModel):
        lead, makers = "the pixels themselves, without any network", OF_PIXELS
    else:
        lead, makers = name_of_kind(settings), MAKERS
    made = [make for make in makers if in_full or make not in DETAILS]
    control = "; a negative control" if model in controls(evidence) else ""
    items = [item for make in made for item in make(evidence, summary, model)]
    if not in_full:
        items.append(_left_out(evidence))
    return ModelPage(model, f"{lead[0].upper()}{lead[1:]}{control}.", items)


def _settings(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    yield Text(describe_model(evidence.study, model, facts_of(evidence)))
    settings = of_model(evidence.study, model)
    lines: dict[str, object] = {"models": {model: settings}}
    lines |= {"training": training} if (training := settings.pop("training", None)) else {}
    yield Code("All of its settings, as a study file says them", yaml.safe_dump(lines, sort_keys=False))


def _runs(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    """Each run with how long it took and how it ended."""
    yield Heading("Runs")
    rows = [row for row in evidence.runs if row.run.model == model]
    lines = tuple(
        (cell(row.run.group), cell(row.run.seed), cell(row.status), *_figures_of(evidence, row), cell(row.reason))
        for row in rows
    )
    columns = ("group", "seed", "end", "epochs", "images", "training, s", "images/s", "extraction, s", "measuring, s")
    yield Table("Every run", (*columns, "device", "remark"), lines, folded=len(lines) > 12)


def _figures_of(evidence: Evidence, row: RunRow) -> tuple[Cell, ...]:
    """Epochs, training images, seconds of each stage, speed and device of a run; seconds are of its last start."""
    ends = {stage: outcome for stage, name, outcome in evidence.outcomes if name == row.run.id}
    train = ends.get("train")
    facts = train.provenance.get("facts", {}) if train else {}
    progress = read_progress(evidence.layout.progress("train", row.run.id), train.key) if train else None
    stages = ("train", "extract", "measure")
    seconds = [ends[stage].provenance.get("seconds") if stage in ends else None for stage in stages]
    return (
        cell(facts.get("epochs")),
        cell(facts.get("num_training_images")),
        cell(seconds[0], 1),
        cell(progress.facts.get("images_per_s") if progress else None, 0),
        *(cell(value, 1) for value in seconds[1:]),
        cell(facts.get("device")),
    )


def _curves(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    yield Heading("Training")
    curves = compared_terms(evidence.curves[evidence.curves["model"] == model])
    if model in controls(evidence):
        yield Text("Left untrained: the negative control, whose reconstructions mean nothing.")
    elif curves.empty:
        yield Text("No run has written a training log, so there are no loss curves.", missing=True)
    else:
        yield drawn(
            evidence.layout,
            f"loss-{model}",
            f"Training of {model}.",
            _of_curves(evidence.study.models[model]),
            figures.loss_curves,
            curves,
            evidence.study.group_names,
        )
    yield from _losses(evidence, model)


def _of_curves(model: Model) -> str:
    """What the curves of a kind of model show."""
    chance = " with z drawn at random," if has_prior(model) else ","
    words = [
        f"The loss and its terms (without their weights) by epoch, a line per seed; dotted: training images{chance} "
        "averaged while the weights change; solid: held-out images at the end of the epoch. Where solid lines rise "
        "while dotted ones fall, the model learns its images by heart."
    ]
    if is_tilted(model):
        words.append("The KL divergence is its quadratic approximation, less its least value.")
    if isinstance(model, VqVaeModel):
        words.append("Perplexity, no part of the loss, tells how many entries of the codebook are in use.")
    if isinstance(model, ArVaeModel):
        words.append(
            "Disorder is 0 where a latent unit rises with its attribute, and about 1 where it knows nothing of it."
        )
    return " ".join(words)


def _losses(evidence: Evidence, model: str) -> Iterator[Item]:
    """Loss terms at the end of training, mean over the seeds, for each group."""
    done = {run.id for run in evidence.done if run.model == model}
    terms = loss_terms(evidence.curves[evidence.curves["run_id"].isin(done)])
    if terms.empty:
        return
    by_group = terms.groupby("group", sort=False)
    counts, means = by_group.size(), by_group.mean()
    rows = tuple(
        (cell(group), cell(int(counts[group])), *(cell(float(value), 2) for value in means.loc[group]))
        for group in evidence.study.group_names
        if group in means.index
    )
    names = (figures.term_name(str(term)) for term in terms)
    caption = "Loss terms at the end of training, of held-out images where there are any, mean over the seeds"
    yield Table(caption, ("group", "seeds", *names), rows, folded=len(rows) > 12)


def _reconstructions(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    yield Heading("Reconstructions")
    yield _strips_of(evidence, model, "rated")


def _of_training_images(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    yield _strips_of(evidence, model, "training")


def _strips_of(evidence: Evidence, model: str, which: Which) -> Item:
    strips = sample_strips(evidence, model, which)
    if not strips:
        return Text(f"No run has kept reconstructions of {which} images.", missing=True)
    how = " (z = μ)" if has_prior(evidence.study.models[model]) else ""
    return drawn(
        evidence.layout,
        f"reconstructions-{which}-{model}",
        f"Reconstructions of {which} images by {model}.",
        _CAPTIONS[which].format(how=how),
        figures.reconstructions,
        strips,
    )


def _correlations(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    """Correlations by layer, raw and without the confounds side by side, and the largest of them."""
    yield Heading("Correlations with the ratings")
    tables = [summary.general_correlations(name) for name in ("pearson", "spearman", "partial")]
    every = pd.concat(tables, ignore_index=True)
    every = every[every["model"] == model].dropna(subset=["r"]) if not every.empty else every
    if every.empty:
        yield Text("No correlation could be computed on all rated images.", missing=True)
        return
    yield from by_layer(evidence, summary, model)
    top = every.loc[every["r"].abs().nlargest(_MOST_ROWS).index]
    caption = f"The {len(top)} largest of {len(every):,} correlations, chosen after the fact: exploratory"
    caption = caption if len(every) > len(top) else "Every correlation"
    yield correlation_table(evidence, top, caption, num_all=len(every))


def _regressions(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    yield Heading("Regression")
    table = summary.general_ridge()
    rows = table[table["model"] == model].dropna(subset=["delta"]) if not table.empty else table
    if rows.empty:
        yield Text("No regression could be computed on all rated images.", missing=True)
        return
    labels = rows["predictors"].map(PREDICTOR_NAMES).fillna(rows["predictors"])
    caption = "R² of ridge regression, pooled out of fold; exploratory but for “all metrics”"
    yield ridge_table(evidence, rows.assign(label=labels), caption, with_predictors=True)


def _groups(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    """The forest plot of the model, or the way to it where the chapter shows it."""
    if set(evidence.study.group_names) <= {"all"} or summary.correlations.empty:
        return
    yield Heading("Groups")
    if model in shown_models(evidence, summary):
        yield Text("Its correlations by group are shown beside those of other models.", link=("groups", "Groups"))
    else:
        yield from forest(evidence, summary, model)


MAKERS: tuple[Callable[[Evidence, Summary, str], Iterator[Item]], ...] = (
    _settings,
    _runs,
    _curves,
    _reconstructions,
    _of_training_images,
    inside,
    plates_of,
    _correlations,
    _regressions,
    _groups,
)
"""What the page of a model consists of, from the top; the first figures are those that a large report still holds."""

OF_PIXELS = (_settings, _runs, plates_of, _correlations, _regressions, _groups)
"""The same of the pixels, of which nothing is trained and nothing is made."""

DETAILS = (_of_training_images, inside, plates_of)
"""What only some models of a large study have; they take most of the time."""


def _left_out(evidence: Evidence) -> Text:
    return Text(
        f"Of {len(evidence.study.model_names)} models only those with the largest Δ R² have figures of "
        "reconstructed training images, feature maps, units, latents, and correlations among metrics. All have them "
        "after: fluence report STUDY --all-figures"
    )
