"""Looks at everything that a study needs, without running it, and says all that is wrong at once."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fluence.errors import FluenceError, StudyError
from fluence.layout import Layout
from fluence.study import Analysis, DfcLoss, ModelFeatures, Study
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
    manifests, findings = _read(study)
    for name, manifest in manifests.items():
        findings += _images(name, manifest, strict)
    rated, training = manifests.get(study.data.rated), manifests.get(study.data.training)
    if rated is not None:
        findings += [*_ratings(study, rated), *_covariates(study, rated)]
    if training is not None:
        findings += _groups(study, training, rated)
    models = list(_models(study))
    findings += [*models, *look_for_weights(study), *_device(study), *_output(layout)]
    if rated is not None and training is not None and not Report(tuple(models)).has_errors:
        sizes = {**training.table["group"].value_counts(), ALL: len(training.table)}
        findings += _cost(estimate(study, sizes, len(rated.table)), layout)
    return Report(tuple(findings))


# ── Data ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(study: Study) -> tuple[dict[str, Manifest], list[Finding]]:
    """The manifests of the data sets that can be read, and what is wrong with the others."""
    from fluence.data.readers import read_manifest

    manifests: dict[str, Manifest] = {}
    findings: list[Finding] = []
    for name in datasets_in_use(study):
        try:
            manifests[name] = read_manifest(study.data.datasets[name], study.data)
        except FluenceError as error:
            findings += findings_of(error, f"data.datasets.{name}")
    return manifests, findings


def _images(name: str, manifest: Manifest, strict: bool) -> Findings:
    key = f"data.datasets.{name}"
    if not len(manifest.table):
        yield Finding("error", key, "no image")
        return
    level: Level = "error" if strict else "warning"
    for problem in manifest.problems[:_MOST_SHOWN]:
        place = f"line {problem.line:.0f}: " if problem.line == problem.line else ""
        yield Finding(level, key, f"{place}{problem.path or 'an image'}: {problem.reason}")
    if len(manifest.problems) > _MOST_SHOWN:
        yield Finding(level, key, f"{len(manifest.problems) - _MOST_SHOWN} more images with a problem")
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
        yield Finding("error", "data.score", f"{key} has no column {column!r}; there are: {columns}")
        return
    scores = rated.table[column].dropna()
    found = f"{column}: {len(scores)} of {len(rated.table)} images are rated"
    if scores.nunique() < 2:
        yield Finding("error", "data.score", f"{found}, and all alike; there is nothing to explain")
    elif len(scores) < _FEW_RATED:
        yield Finding("warning", "data.score", f"{found}; so few show only strong relations")
    else:
        yield Finding("ok", "data.score", f"{found}, from {scores.min():g} to {scores.max():g}")


def _covariates(study: Study, rated: Manifest) -> Findings:
    from fluence.data.covariates import NAMES

    known = {"group", *NAMES, *rated.table.columns}
    for covariate in study.analysis.covariates:
        if covariate not in known:
            hint = _nearest(covariate, sorted(known))
            level: Level = "ok" if covariate in Analysis().covariates else "warning"
            yield Finding(level, "analysis.covariates", f"no column {covariate!r}; it will be left out", hint)


def _groups(study: Study, training: Manifest, rated: Manifest | None) -> Findings:
    sizes = training.table["group"].value_counts()
    there = ", ".join(f"{name} ({size})" for name, size in sizes.items())
    for group in study.grid.groups:
        if group == ALL:
            continue
        if group not in sizes:
            found = f"no training image is in group {group!r}; there are: {there}"
            yield Finding("error", "grid.groups", found, _nearest(group, list(sizes.index)))
        elif sizes[group] < study.data.min_group_size:
            found = f"{group} has {counted(sizes[group], 'training image')}, fewer than data.min_group_size"
            yield Finding("warning", "grid.groups", f"{found} ({study.data.min_group_size}); its runs will be skipped")
        elif rated is not None and not (rated.table["group"] == group).any():
            hint = "`values` of a data set renames its groups"
            yield Finding("warning", "grid.groups", f"no rated image is in group {group!r}", hint)
        else:
            yield Finding("ok", "grid.groups", f"{group}: {sizes[group]} training images")


def _nearest(word: str, words: list[str]) -> str:
    from fluence.data.manifest import did_you_mean

    return did_you_mean(word, words)


# ── Models ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _models(study: Study) -> Findings:
    from fluence.losses.networks import check_feature_layers, check_perceptual_losses
    from fluence.models.architectures import check_image_size, check_layers, check_pretrained, recordable_names

    for name in study.model_names:
        model, key = study.models[name], f"models.{name}"
        found = []
        try:
            check_image_size(model.architecture, study.data.image_size_px, model.norms.encoder)
            check_pretrained(model)
            check_perceptual_losses(model, study.data.image_size_px)
            for loss in model.reconstruction:
                if isinstance(loss, DfcLoss) and isinstance(loss.network, ModelFeatures):
                    check_feature_layers(loss, recordable_names(study.models[loss.network.model]))
            if study.record.layers != "encoder":
                check_layers(recordable_names(model), study.record.layers, f"record.layers: {name!r}")
        except StudyError as error:
            found = [replace(finding, key=finding.key.replace("models.*", key)) for finding in findings_of(error, key)]
        yield from found or [Finding("ok", key, f"{model.kind}, {model.architecture}, width {model.width:g}")]


def look_for_weights(study: Study) -> Findings:
    """Whether the weights files that the study needs are on disk, where this process looks."""
    from fluence.store.pretrained import RANDOM, needs_of

    for need in needs_of(study):
        try:
            path = need.find()
        except FluenceError as error:
            yield Finding("error", need.key, str(error))
            continue
        if need.setting == RANDOM:
            found = f"{need.who} with random weights is no perceptual distance; every output will say so"
            yield Finding("warning", need.key, found)
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
        yield from findings_of(error, "training.precision")


def kernels_fit(capability: tuple[int, int], built_for: list[str], version: str) -> Finding:
    """Code for sm_80 also runs on sm_86, never the other way round; PTX (compute_80) runs on anything later."""
    major, minor = capability
    own = [_number(arch) for arch in built_for if arch.startswith("sm_")]
    portable = [_number(arch) for arch in built_for if arch.startswith("compute_")]
    fits = any(a == major and b <= minor for a, b in own) or any(arch <= capability for arch in portable)
    found = f"{version} is built for {', '.join(built_for)}; the GPU is sm_{major}{minor}"
    if fits:
        return Finding("ok", "torch", found)
    hint = "install torch<2.11, with the extra [v100]" if capability < (7, 5) else "install a newer torch"
    return Finding("error", "torch", f"{found}: no kernel image is available for it", hint)


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


def _cost(cost: Estimate, layout: Layout) -> Findings:
    parts = ", ".join(f"{kind} {gb:.2g}" for kind, gb in cost.disk_gb.items())
    free = shutil.disk_usage(nearest_existing(layout.root)).free / 1e9
    needed = f"about {cost.total_gb:.2g} GB ({parts}); {free:.3g} GB are free"
    if cost.total_gb * _SPARE > free:
        yield Finding("error", "disk", needed, "free some space, or choose another folder with --output")
    else:
        yield Finding("ok", "disk", needed)
    if not cost.runs:
        yield Finding("error", "grid", "no group has enough training images; nothing would be trained")
        return
    num_runs = len(cost.runs) * cost.num_seeds
    longest = max(cost.runs, key=lambda run: run.hours)
    speed = f"at {cost.gflops_per_s:.2g} GFLOP/s on {cost.device}, an order of magnitude"
    yield Finding(
        "ok", "time", f"about {_duration(cost.total_hours)} for {counted(num_runs, 'run')} one after the other, up to "
        f"{_duration(longest.hours)} each ({longest.model}, {longest.group}); {speed}",
    )  # fmt: skip


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return "a minute"
    return f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:.2g} hours" if hours < 100 else f"{hours:,.0f} hours"
