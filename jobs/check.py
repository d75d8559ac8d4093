"""Looks at everything that a study needs, without running it, and says all that is wrong at once."""

from __future__ import annotations

import math
import random
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fluence.errors import FluenceError, StudyError
from fluence.layout import Layout
from fluence.study import Analysis, DfcLoss, Model, ModelFeatures, PixelsModel, Study, TiltedPrior, VaeModel
from jobs.estimate import ALL, Estimate, estimate
from jobs.findings import Finding, Findings, Level, Report, counted, findings_of
from jobs.pipeline import datasets_in_use

if TYPE_CHECKING:
    from fluence.data.manifest import Manifest

_NUM_SAMPLED = 20
_MOST_SHOWN = 5
_SPARE = 1.2
_FEW_RATED = 50  # below it only a correlation above .38 would be seen (R² > .145)


def check(study: Study, layout: Layout, *, strict: bool = False) -> Report:
    """Looks at data, models, machine and disk.

    Args:
        study: a study that has been read without mistakes.
        layout: where its results would go.
        strict: whether an unusable image is an error, as with `fluence run --strict`.
    """
    manifests, findings = _read(study, datasets_in_use(study))
    for name, manifest in manifests.items():
        findings += _images(name, manifest, strict)
    rated, training = manifests.get(study.data.rated), manifests.get(study.data.training)
    if rated is not None:
        findings += [*_ratings(study, rated), *_covariates(study, rated), *_images_of_densities(study, rated)]
    if training is not None:
        findings += [*_groups(study, training, rated), *_attributes(study, training)]
    models = list(_models(study))
    models += [*_layers_of_densities(study), *_packages(study)]
    findings += [*models, *look_for_weights(study), *_device(study), *_output(layout)]
    if rated is not None and training is not None and not Report(tuple(models)).has_errors:
        sizes = {**training.table["group"].value_counts(), ALL: len(training.table)}
        findings += _cost(study, estimate(study, sizes, len(rated.table)), layout)
    return Report(tuple(findings))


# ── Data ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(study: Study, names: Iterable[str]) -> tuple[dict[str, Manifest], list[Finding]]:
    """The manifests of the data sets that can be read, and what is wrong with the others."""
    from fluence.data.readers import read_manifest

    manifests: dict[str, Manifest] = {}
    findings: list[Finding] = []
    for name in names:
        try:
            manifests[name] = read_manifest(study.data.datasets[name], study.data)
        except FluenceError as error:
            hint = f"correct the table, or the data set in the study; --data {name}=DIR names another folder"
            findings += findings_of(error, f"data.datasets.{name}", hint)
    return manifests, findings


def look_for_data(study: Study, layout: Layout) -> Findings:
    """Whether the data sets that are still to be packed lie where this process looks."""
    manifests, findings = _read(study, [name for name in datasets_in_use(study) if not layout.packed(name).exists()])
    yield from findings
    for name, manifest in manifests.items():
        yield from _images(name, manifest, strict=False)


def _images(name: str, manifest: Manifest, strict: bool) -> Findings:
    key = f"data.datasets.{name}"
    if not len(manifest.table):
        yield Finding("error", key, "no image", f"--data {name}=DIR names another folder")
        return
    level: Level = "error" if strict else "warning"
    repair = "repair it, delete it, or leave out --strict" if strict else "repair it, or go on without it"
    for problem in manifest.problems[:_MOST_SHOWN]:
        place = f"line {problem.line:.0f}: " if problem.line == problem.line else ""
        yield Finding(level, key, f"{place}{problem.path or 'an image'}: {problem.reason}", repair)
    if len(manifest.problems) > _MOST_SHOWN:
        yield Finding(level, key, f"{len(manifest.problems) - _MOST_SHOWN} more images with a problem", repair)
    missing, looked_at = _missing_files(manifest)
    if missing:
        shown = ", ".join(missing[:_MOST_SHOWN])
        found = f"{len(missing)} of the {looked_at} images looked at are not below {manifest.root}: {shown}"
        hint = "is root right, and is path relative to it?"
        yield Finding("error" if strict or len(missing) == looked_at else "warning", key, found, hint)
    else:
        yield Finding("ok", key, f"{len(manifest.table)} images")


def _missing_files(manifest: Manifest) -> tuple[list[str], int]:
    """Paths that do not exist among the first, the last and some random images, and how many were looked at."""
    if manifest.root is None:
        return [], 0
    paths = list(manifest.table["path"])
    some = random.Random(0).sample(paths, min(_NUM_SAMPLED, len(paths)))
    chosen = dict.fromkeys([paths[0], paths[-1], *some])
    return [path for path in chosen if not (manifest.root / path).is_file()], len(chosen)


def _ratings(study: Study, rated: Manifest) -> Findings:
    key, column = f"data.datasets.{study.data.rated}", study.data.score
    if column not in rated.table:
        columns = ", ".join(rated.table.columns)
        yield Finding(
            "error",
            "data.score",
            f"{key} has no column {column!r}; there are: {columns}",
            "write `score: COLUMN` under data",
        )
        return
    scores = rated.table[column].dropna()
    found = f"{column}: {len(scores)} of {len(rated.table)} images are rated"
    if scores.nunique() < 2:
        hint = "write another column as `score:` under data"
        yield Finding("error", "data.score", f"{found}, and all alike; there is nothing to explain", hint)
    elif len(scores) < _FEW_RATED:
        yield Finding("warning", "data.score", f"{found}; so few show only strong relations", "have more of them rated")
    else:
        yield Finding("ok", "data.score", f"{found}, from {scores.min():g} to {scores.max():g}")


def _covariates(study: Study, rated: Manifest) -> Findings:
    from fluence.data.covariates import NAMES

    known = {"group", *NAMES, *rated.table.columns}
    for covariate in study.analysis.covariates:
        if covariate not in known:
            hint = _nearest(covariate, sorted(known)) or "delete it, or add the column to the table"
            level: Level = "ok" if covariate in Analysis().covariates else "warning"
            yield Finding(level, "analysis.covariates", f"no column {covariate!r}; it will be left out", hint)


def _images_of_densities(study: Study, rated: Manifest) -> Findings:
    """Whether the folds of a cross-fitted typicality leave enough images for its components."""
    asked, key = study.analysis.typicality, "analysis.typicality.components"
    if asked is None or asked.reference == "training":
        return
    sizes = {"rated images": len(rated.table)}
    if asked.groups and "group" in rated.table:
        largest = rated.table["group"].value_counts()
        sizes |= {f"images in the largest group, {name}": size for name, size in largest.iloc[:1].items()}
    for what, size in sizes.items():
        left = size - math.ceil(size / asked.folds)
        if left < asked.fewest_images:
            needed = f"{max(asked.each_components)} components need {asked.fewest_images} images"
            found = f"{needed}, and {asked.folds} folds leave {left} of the {size} {what}"
            yield Finding("error", key, found, f"write at most {left // 5}" if left >= 5 else "write typicality: null")


def _packages(study: Study) -> Findings:
    """Whether what draws the latents is installed."""
    from analysis.embedding import why_not

    if reason := why_not(study.analysis.embeddings):
        found, _, hint = reason.partition("; ")
        yield Finding("error", "analysis.embeddings", found, hint)


def _groups(study: Study, training: Manifest, rated: Manifest | None) -> Findings:
    sizes = training.table["group"].value_counts()
    there = ", ".join(f"{name} ({size})" for name, size in sizes.items())
    for group in study.group_names:
        if group == ALL:
            continue
        if group not in sizes:
            found = f"no training image is in group {group!r}; there are: {there}"
            yield Finding("error", "grid.groups", found, _nearest(group, list(sizes.index)) or "write one of these")
        elif sizes[group] < study.data.min_group_size:
            found = f"{group} has {counted(sizes[group], 'training image')}, fewer than data.min_group_size"
            found += f" ({study.data.min_group_size}); its runs will be skipped"
            yield Finding("warning", "grid.groups", found, "write a smaller min_group_size, or leave the group out")
        elif rated is not None and not (rated.table["group"] == group).any():
            hint = "`values` of a data set renames its groups"
            yield Finding("warning", "grid.groups", f"no rated image is in group {group!r}", hint)
        else:
            yield Finding("ok", "grid.groups", f"{group}: {sizes[group]} training images")


def _attributes(study: Study, training: Manifest) -> Findings:
    """Whether the columns that latent units are to follow are there; packing adds what it measures of the pixels."""
    from fluence.data.attributes import check_columns
    from fluence.data.covariates import NAMES

    for name in study.model_names:
        try:
            check_columns(study.models[name], training.table, name, measured=NAMES)
        except StudyError as error:
            yield from findings_of(error, f"models.{name}.attributes", "name one of the columns in the study")


def _nearest(word: str, words: list[str]) -> str:
    from fluence.data.manifest import did_you_mean

    return did_you_mean(word, words)


# ── Models ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _models(study: Study) -> Findings:
    from fluence.architectures import (
        check_image_size,
        check_layers,
        check_pretrained,
        check_units,
        constrained_layers,
        recordable_names,
    )
    from fluence.losses.networks import check_feature_layers, check_perceptual_losses

    hint = "change it in the study; `fluence check --explain` prints every setting"
    for name in study.model_names:
        model, key = study.models[name], f"models.{name}"
        if isinstance(model, PixelsModel):
            yield Finding("ok", key, "the pixels themselves, once, without training: a control")
            continue
        found = []
        try:
            check_image_size(model.architecture, study.data.image_size_px, model.norms.encoder)
            check_units(model, study.data.image_size_px)
            check_pretrained(model)
            constrained_layers(model)
            recordable = recordable_names(model)
            check_perceptual_losses(model, study.data.image_size_px)
            for loss in model.reconstruction:
                if isinstance(loss, DfcLoss) and isinstance(loss.network, ModelFeatures):
                    check_feature_layers(loss, recordable_names(study.models[loss.network.model]))
            if study.record.layers != "encoder":
                check_layers(recordable, study.record.layers, f"record.layers: {name!r}")
        except StudyError as error:
            found = [
                replace(finding, key=finding.key.replace("models.*", key)) for finding in findings_of(error, key, hint)
            ]
        yield from found or [
            Finding("ok", key, f"{model.kind}, {model.architecture}, width {model.width:g}"),
            *_defeated(model, key),
            *_shell(model, key, study.data.image_size_px),
        ]


def _layers_of_densities(study: Study) -> Findings:
    """Whether some model records each layer whose typicality is asked for."""
    from fluence.architectures import check_layers, recordable_names

    asked, recorded, key = study.analysis.typicality, study.record.layers, "analysis.typicality.layers"
    if asked is None or asked.layers == "all":
        return
    try:
        every = (name for model in study.model_names for name in recordable_names(study.models[model]))
        kept = [name for name in dict.fromkeys(every) if recorded == "encoder" or name in recorded]
        check_layers(kept, asked.layers, f"{key}: the study")
    except StudyError as error:
        yield from findings_of(error, key, "write names of recorded layers, or all")


def _defeated(model: Model, key: str) -> Findings:
    """A constraint that the normalisation undoes."""
    from fluence.architectures import defeated_constraints

    layers = defeated_constraints(model)
    if layers:
        found = f"instance normalisation defeats the KL constraint on {', '.join(layers)}: it gives each channel"
        hint = "write norm: batch or norm: none, or penalty: l1 or penalty: l0"
        yield Finding("warning", f"{key}.sparsity", f"{found} of each image the same mean and spread", hint)


def _shell(model: Model, key: str, image_size_px: int) -> Findings:
    """Whether a tilted prior moves the means away from the origin at all."""
    from fluence.architectures import code_size
    from fluence.losses.tilted import best_radius

    if not isinstance(model, VaeModel) or not isinstance(model.prior, TiltedPrior):
        return
    tau, size, key = model.prior.tau, code_size(model, image_size_px), f"{key}.prior.tau"
    radius = best_radius(tau, size)
    if radius > 0:
        yield Finding("ok", key, f"the means of the {size} latent units are drawn to a shell of radius {radius:.3g}")
        return
    found = f"with {size} latent units, τ = {tau:g} draws the means to the origin, as the standard normal does"
    hint = f"write a tau above √{size} ≈ {math.sqrt(size):.3g}, or a smaller latent"
    yield Finding("warning", key, found, hint)


def look_for_weights(study: Study) -> Findings:
    """Whether the weights files that the study needs are on disk, where this process looks."""
    from fluence.store.pretrained import RANDOM, needs_of

    for need in needs_of(study):
        try:
            path = need.find()
        except FluenceError as error:
            fetch = "type `fluence weights STUDY --fetch` where there is internet"
            yield Finding("error", need.key, str(error), fetch if need.url else "write the path of the file there")
            continue
        if need.setting == RANDOM:
            found = f"{need.who} with random weights is no perceptual distance; every output will say so"
            yield Finding("warning", need.key, found, "fetch the weights and write `weights: imagenet`")
        else:
            yield Finding("ok", need.key, f"weights of {need.who}: {path}")


# ── The machine ──────────────────────────────────────────────────────────────────────────────────────────────────


def _device(study: Study) -> Findings:
    """Whether this build of torch has code for the GPU, and the GPU the precision."""
    import torch

    from fluence.training.precision import choose_precision

    if not torch.cuda.is_available():
        reason = "" if torch.version.cuda is None else f"; torch is built for CUDA {torch.version.cuda}"
        yield Finding("ok", "torch", f"{torch.__version__}, no GPU here{reason}; everything runs on the CPU")
    else:
        yield kernels_fit(torch.cuda.get_device_capability(), torch.cuda.get_arch_list(), torch.__version__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        choose_precision(study.training, device)
    except StudyError as error:
        yield from findings_of(error, "training.precision", "write `precision: auto` under training")


def kernels_fit(capability: tuple[int, int], built_for: list[str], version: str) -> Finding:
    """Code for sm_80 also runs on sm_86, never the other way round; PTX (compute_80) runs on anything later."""
    major, minor = capability
    own = [_number(arch) for arch in built_for if arch.startswith("sm_")]
    portable = [_number(arch) for arch in built_for if arch.startswith("compute_")]
    fits = any(a == major and b <= minor for a, b in own) or any(arch <= capability for arch in portable)
    found = f"{version} is built for {', '.join(built_for)}; the GPU is sm_{major}{minor}"
    if fits:
        return Finding("ok", "torch", found)
    right = "'fluence[v100]' (torch before 2.11)" if capability < (7, 5) else "--upgrade torch"
    return Finding("error", "torch", f"{found}: no kernel image is available for it", f"type: pip install {right}")


def _number(arch: str) -> tuple[int, int]:
    digits = "".join(c for c in arch.partition("_")[2] if c.isdigit())
    return int(digits[:-1]), int(digits[-1])


def nearest_existing(path: Path) -> Path:
    """A folder, or the nearest one above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _output(layout: Layout) -> Findings:
    place = nearest_existing(layout.root)
    try:
        with tempfile.TemporaryFile(dir=place):
            yield Finding("ok", "output", f"{layout.root}")
    except OSError as error:
        found = f"nothing can be written in {place} ({error.strerror})"
        yield Finding("error", "output", found, "choose another folder with --output")


def disk_finding(cost: Estimate, layout: Layout) -> Finding:
    """Whether all artifacts of a study fit on the disk."""
    parts = ", ".join(f"{kind} {gb:.2g}" for kind, gb in cost.disk_gb.items())
    free = shutil.disk_usage(nearest_existing(layout.root)).free / 1e9
    needed = f"about {cost.total_gb:.2g} GB ({parts}); {free:.3g} GB are free"
    if cost.total_gb * _SPARE > free:
        return Finding("error", "disk", needed, "free some space, or choose another folder with --output")
    return Finding("ok", "disk", needed)


def _cost(study: Study, cost: Estimate, layout: Layout) -> Findings:
    yield disk_finding(cost, layout)
    if not cost.runs:
        other = "add training images" if ALL in study.group_names else "write `groups: [all]` under grid"
        hint = f"write a smaller min_group_size under data, or {other}"
        yield Finding("error", "grid", "no group has enough training images; nothing would be trained", hint)
        return
    longest = max(cost.runs, key=lambda run: run.hours)
    speed = f"at {cost.gflops_per_s:.2g} GFLOP/s on {cost.device}, an order of magnitude"
    yield Finding(
        "ok", "time", f"about {_duration(cost.total_hours)} for {counted(cost.num_runs, 'run')} one after the other, "
        f"up to {_duration(longest.hours)} each ({longest.model}, {longest.group}); {speed}",
    )  # fmt: skip


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return "a minute"
    return f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:.2g} hours" if hours < 100 else f"{hours:,.0f} hours"
