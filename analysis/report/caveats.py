"""What qualifies the results, said before them."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.kinds import taught_the_score
from analysis.report.evidence import Evidence, correlation_over_images
from analysis.report.page import Caveat, counted, listed
from analysis.report.summary import pixel_models, untrained_networks
from analysis.tables import covariate_design
from fluence.architectures import defeated_constraints
from fluence.study import LpipsLoss, SyntheticDataset

_DETAILS = 40
_SAME = 0.99
_STATUS_WORDS = {
    "failed": "failed",
    "diverged": "diverged (a loss became NaN or infinite)",
    "skipped": "skipped on purpose",
    "blocked": "never started, because a task before them failed",
    "unfinished": "unfinished when this report was made",
}


def caveats(evidence: Evidence) -> tuple[Caveat, ...]:
    """Everything a reader has to know before believing a number, the gravest first."""
    found = [
        *_lpips(evidence),
        *_defeated(evidence),
        *_sharpness(evidence),
        *_training_set(evidence),
        *_runs(evidence),
        *_unreadable(evidence),
        *_images(evidence),
        *_covariates(evidence),
        *_untrained(evidence),
        *_own_groups(evidence),
        *_seeds(evidence),
    ]
    return tuple(sorted(found, key=lambda caveat: not caveat.severe))


def missing_covariates(evidence: Evidence) -> tuple[str, ...]:
    """Covariates that the study names and the rated images lack."""
    rated = evidence.ratings()
    if rated.empty:
        return ()
    design = covariate_design(rated, evidence.study.analysis.covariates)
    return (*design.missing, *design.constant)


def _lpips(evidence: Evidence) -> Iterator[Caveat]:
    study = evidence.study
    losses = [
        name
        for name in study.model_names
        for term in study.models[name].reconstruction
        if isinstance(term, LpipsLoss) and term.weights == "random"
    ]
    if losses:
        yield Caveat(
            f"LPIPS was trained on with random weights in {listed(losses)}: this is no perceptual distance.",
            severe=True,
        )
    if study.record.lpips and study.record.lpips.weights == "random":
        yield Caveat("The LPIPS error was measured with random weights: it is no perceptual distance.", severe=True)


def _sharpness(evidence: Evidence) -> Iterator[Caveat]:
    """Where sharpness is ρ times the norm of the gradient, it is no finding of its own."""
    if not evidence.study.record.sharpness:
        return
    found = correlation_over_images(evidence, "sharpness", "gradient_norm")
    same = {model: r for model, r in found.items() if r > _SAME}
    if same:
        yield Caveat(
            f"Sharpness and the norm of the gradient say the same of the images: they correlate with r > {_SAME:g} in "
            f"{listed([f'{model} ({r:.4f})' for model, r in same.items()])}. So the loss is a straight line nearby, "
            "and a larger record.sharpness.rho would be needed to see its curvature."
        )


def _defeated(evidence: Evidence) -> Iterator[Caveat]:
    study = evidence.study
    layers = {name: defeated_constraints(study.models[name]) for name in study.model_names}
    if any(layers.values()):
        yield Caveat(
            f"In {listed([name for name, found in layers.items() if found])} a KL sparsity constraint holds for layers "
            "under instance normalisation, which gives each channel of each image the same mean and spread and so "
            "defeats it.",
            details=tuple(f"{name}: {', '.join(found)}" for name, found in layers.items() if found),
        )


def _training_set(evidence: Evidence) -> Iterator[Caveat]:
    data, taught = evidence.study.data, taught_the_score(evidence.study)
    same = data.training == data.rated
    if same and set(taught) < set(evidence.study.model_names):
        yield Caveat(
            f"The models were trained on the rated images themselves (not on their ratings"
            f"{f', but for {listed(taught)}' if taught else ''}). What they learned is fitted to these very images, so "
            "the results may not hold for faces they have not seen.",
            severe=True,
        )
    if taught:
        yield Caveat(_taught(listed(taught), data.score, same=same), severe=same)
    if isinstance(data.datasets[data.rated], SyntheticDataset):
        effect = data.datasets[data.rated].effect  # type: ignore[union-attr]
        planted = f"a planted effect of R² = {effect.r2:g}" if effect else "no planted effect"
        yield Caveat(f"The rated faces are synthetic, with {planted}: this is a test of the method, not of people.")


def _taught(models: str, score: str, *, same: bool) -> str:
    if same:
        return (
            f"{models} has seen the ratings: in training, a latent unit was made to follow “{score}” of the rated "
            "images themselves. That its activations then predict these ratings is circular, and no evidence of "
            "anything."
        )
    return (
        f"In the training of {models} a latent unit was made to follow “{score}” of the training images: what it knows "
        "of beauty was taught, not found."
    )


def _runs(evidence: Evidence) -> Iterator[Caveat]:
    for status in sorted({row.status for row in evidence.runs} - {"done"}):
        rows = [row for row in evidence.runs if row.status == status]
        words = _STATUS_WORDS.get(status, status)
        yield Caveat(
            f"{len(rows)} of {counted(len(evidence.runs), 'run')} {words}; nothing in this report comes from them.",
            severe=status in ("failed", "unfinished"),
            details=tuple(f"{row.run.label}: {row.reason or 'no reason given'}" for row in rows),
        )


def _unreadable(evidence: Evidence) -> Iterator[Caveat]:
    if evidence.missing:
        yield Caveat("Some results could not be read.", severe=True, details=tuple(evidence.missing[:_DETAILS]))


def _images(evidence: Evidence) -> Iterator[Caveat]:
    for name, packed in evidence.packed.items():
        problems = packed.problems
        left_out = problems[problems["kept"] == 0]
        if len(left_out):
            yield Caveat(
                f"{counted(len(left_out), 'image')} of “{name}” could not be used; {len(packed):,} were.",
                details=_named(left_out),
            )
        kept = problems[problems["kept"] != 0]
        if len(kept):
            yield Caveat(
                f"{counted(len(kept), 'image')} of “{name}” {'was' if len(kept) == 1 else 'were'} kept with a "
                "reservation; duplicates stay on one side of every split.",
                details=_named(kept),
            )


def _named(problems: pd.DataFrame) -> tuple[str, ...]:
    lines = [f"{row['path'] or row['image_id']}: {row['reason']}" for _, row in problems.head(_DETAILS).iterrows()]
    more = len(problems) - len(lines)
    return (*lines, f"and {more:,} more, listed below") if more > 0 else tuple(lines)


def _covariates(evidence: Evidence) -> Iterator[Caveat]:
    missing = missing_covariates(evidence)
    if missing:
        yield Caveat(
            f"The confound baseline lacks {listed(missing)}, which the rated images lack or which does not vary. "
            "What it would have explained may be counted for the metrics."
        )


def _untrained(evidence: Evidence) -> Iterator[Caveat]:
    control = sorted(untrained_networks(evidence))
    if control:
        yield Caveat(
            f"{listed(control)} {'was' if len(control) == 1 else 'were'} left untrained on purpose (negative control)."
        )
    else:
        yield Caveat(
            "There is no untrained network in this study. Without one, no one can tell what the training contributed: "
            "add a model with “training: {epochs: 0}”."
        )


def _own_groups(evidence: Evidence) -> Iterator[Caveat]:
    """Models of single groups learn from fewer images: a difference from the general one may come from that alone."""
    groups = {row.run.id: row.run.group for row in evidence.runs}
    seen: dict[bool, list[int]] = {True: [], False: []}
    for stage, name, outcome in evidence.outcomes:
        number = outcome.provenance.get("facts", {}).get("num_training_images")
        if stage == "train" and number and name in groups:
            seen[groups[name] == "all"].append(number)
    if seen[True] and seen[False]:
        yield Caveat(
            f"Models of single groups learned from {min(seen[False]):,} to {max(seen[False]):,} images, the general "
            f"ones from {max(seen[True]):,}, in as many epochs: where they differ, this alone may be why."
        )


def _seeds(evidence: Evidence) -> Iterator[Caveat]:
    study = evidence.study
    networks = [name for name in study.model_names if name not in pixel_models(evidence)]
    once = [name for name in networks if len(study.seeds_of(name)) == 1]
    if once:
        who = "Each model" if len(once) == len(networks) else f"Of each of {listed(once)} one general model"
        yield Caveat(f"{who} was trained once: how much another seed would change its results is unknown.")
