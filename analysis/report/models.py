"""The chapter on the models: how they trained, and what they make of faces."""

from __future__ import annotations

from collections.abc import Iterator

from analysis import figures
from analysis.kinds import has_prior, is_tilted
from analysis.report.compared import compared_terms
from analysis.report.evidence import Evidence, Which, sample_strips
from analysis.report.inside import inside
from analysis.report.page import Item, Section, Table, Text, cell, drawn
from analysis.report.plates import plates_of
from analysis.report.summary import summarise, untrained_models
from fluence.study import ArVaeModel, Model, VqVaeModel

_CAPTIONS: dict[Which, str] = {
    "rated": "Rated images above what the network makes of them{how}. First by the model of all groups, then by the "
    "models of single groups, each on faces of its own group.",
    "training": "The same for images of the training set; held-out ones where there are any.",
}


def models(evidence: Evidence) -> Section:
    """Loss curves and reconstructions of each model."""
    items: list[Item] = [_table(evidence)]
    summary = summarise(evidence)
    for model in evidence.study.model_names:
        items += [*_curves(evidence, model), *_reconstructions(evidence, model)]
        items += [*inside(evidence, model), *plates_of(evidence, summary, model)]
    return Section("models", "Models", items)


def _curves(evidence: Evidence, model: str) -> Iterator[Item]:
    curves = compared_terms(evidence.curves[evidence.curves["model"] == model])
    if model in untrained_models(evidence):
        yield Text("left untrained: the negative control, whose reconstructions mean nothing.", heading=model)
    elif curves.empty:
        yield Text("no run has written a training log, so there are no loss curves.", heading=model, missing=True)
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


def _reconstructions(evidence: Evidence, model: str) -> Iterator[Item]:
    how = " (z = μ)" if has_prior(evidence.study.models[model]) else ""
    for which, words in _CAPTIONS.items():
        caption = words.format(how=how)
        strips = sample_strips(evidence, model, which)
        if strips:
            title = f"Reconstructions of {which} images by {model}."
            yield drawn(
                evidence.layout, f"reconstructions-{which}-{model}", title, caption, figures.reconstructions, strips
            )
        else:
            yield Text(f"no run has kept reconstructions of {which} images.", heading=model, missing=True)


def _table(evidence: Evidence) -> Table:
    """Loss terms on held-out images at the end of training, mean over seeds, for each model and group."""
    curves = compared_terms(evidence.curves[evidence.curves["run_id"].isin([run.id for run in evidence.done])])
    if curves.empty:
        return Table("Loss on held-out images at the end of training", ("model", "group"), ())
    phase = "validation" if "validation" in set(curves["phase"]) else "train"
    last = curves[curves["phase"] == phase].sort_values("epoch").groupby(["run_id", "term"], sort=False).tail(1)
    grouped = last.groupby(["model", "group"], sort=False)
    terms = list(dict.fromkeys(curves.loc[curves["phase"] == phase, "term"]))
    rows = []
    for (model, group), own in grouped:
        means = own.groupby("term")["value"].mean()
        numbers = [cell(float(means[term]) if term in means else None, 2) for term in terms]
        rows.append(
            (cell(str(model)), cell(str(group)), cell(own["seed"].nunique()), cell(own["epoch"].max()), *numbers)
        )
    images = "held-out" if phase == "validation" else "training"
    return Table(
        f"Loss terms on {images} images at the end of training, mean over the seeds",
        ("model", "group", "seeds", "epochs", *(figures.term_name(term) for term in terms)),
        tuple(sorted(rows, key=lambda row: _place(evidence, row[0].text, row[1].text))),
        folded=len(rows) > 8,
    )


def _place(evidence: Evidence, model: str, group: str) -> tuple[int, int]:
    return evidence.study.model_names.index(model), evidence.study.group_names.index(group)
