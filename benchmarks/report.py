"""The report of a large study: seconds, bytes and memory.

    python benchmarks/report.py                                 # 50 models × 4 seeds, then 200 models × 1 seed
    python benchmarks/report.py --models 10 --seeds 2           # one study of this size
    python benchmarks/report.py --folder /tmp/big --pdf         # keep the folders to look at, print them, too

No network is trained. A study of one model is built and analysed with the code that also does it for people; its
tables are then repeated, with a little noise, under the names of all the other models. Every file that the report
reads is there and was written by the suite's own writers: logs of 40 epochs, tasks and how they ended, metrics of 198
images in 14 layers, maps of the latents, and in each file of activations exhibits, and ten rated and ten training
images of 128 px with what a poor autoencoder makes of them (synthetic faces with the grain of photographs, which is
what compression has to fight with).
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from joblib.externals.loky import get_reusable_executor

from analysis.report import write_report
from analysis.tablefiles import read_statistics, write_statistics
from fluence.data.synthetic import render_face
from fluence.layout import Layout, Run, RunRow
from fluence.store.activations import ActivationWriter, LayerInfo
from fluence.store.exhibits import Exhibits, LayerShown
from fluence.store.files import read_table, write_table
from fluence.store.outcome import Outcome, provenance, write_outcome, write_progress
from fluence.study import Study, SyntheticDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.analysis import invented_study

SIZE_PX, EPOCHS, NUM_LAYERS, NUM_SHOWN, NUM_IMAGES = 128, 40, 13, 10, 198
BASE = "m000"
_FIXED = ("quantile", "epsilon", "n", "num_raters")
STUDIES = ((50, 4), (200, 1))


def main() -> None:
    """Builds, reports and prints."""
    options = _options()
    sizes = ((options.models, options.seeds),) if options.models else STUDIES
    with tempfile.TemporaryDirectory(prefix="fluence-report-") as folder:
        for num_models, num_seeds in sizes:
            root = Path(options.folder or folder) / f"{num_models}x{num_seeds}"
            study, layout, runs = fabricate(root, num_models, num_seeds)
            _measure(study, layout, runs, options)


def _measure(study: Study, layout: Layout, runs: list[RunRow], options: argparse.Namespace) -> None:
    workers = {"num_workers": options.processes} if options.processes else {}
    started = time.perf_counter(), _cpu_s()
    write_report(study, layout, runs, **workers)
    wall = time.perf_counter() - started[0]
    get_reusable_executor().shutdown()  # what its processes have used is known when they have ended
    cpu = _cpu_s() - started[1]
    figures = list(layout.figures.iterdir())
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    print(
        f"{len(study.model_names)} models, {len(runs)} runs: {wall:.1f} s ({cpu:.1f} s of CPU), "
        f"page {layout.report_page.stat().st_size / 1e6:.1f} MB, {len(figures) // 2} figures "
        f"({sum(path.stat().st_size for path in figures) / 1e6:.1f} MB beside it), largest process {peak:.0f} MiB"
    )
    if options.pdf:
        from analysis.report.printing import printer

        started_s = time.perf_counter()
        printer()(layout.report_page, layout.report_pdf)
        print(f"  PDF: {time.perf_counter() - started_s:.1f} s, {layout.report_pdf.stat().st_size / 1e6:.1f} MB")


def fabricate(root: Path, num_models: int, num_seeds: int) -> tuple[Study, Layout, list[RunRow]]:
    """A study folder of so many models and seeds; one that is there already is taken as it is.

    Args:
        root: where to.
        num_models: how many models; the last one is untrained.
        num_seeds: how many runs each has.
    """
    names = [f"m{number:03d}" for number in range(num_models)]
    study = _study(names, num_seeds)
    runs = [RunRow(Run(*cell, f"{cell[0]}-{cell[1]}-s{cell[2]}-1a2b3c4d"), "done") for cell in study.trainings]
    runs[1] = RunRow(runs[1].run, "diverged", "train: the loss became NaN in epoch 3")
    layout = Layout(root)
    if layout.statistics.exists():
        return study, layout, runs
    invented_study.LAYERS[BASE] = NUM_LAYERS
    grid = {"groups": ["all"], "seeds": [0]}
    models = {BASE: {"kind": "vae"}}
    base = invented_study.build(root, ends={}, models=models, grid=grid, training={"epochs": EPOCHS})
    source, rng, faces = base.runs[0].run, np.random.default_rng(0), _faces()
    metrics = read_table(layout.metrics(source.id))
    for row in runs:
        if row.run.id != source.id:
            invented_study.write_training_log(layout, row.run, rng, EPOCHS if row.status == "done" else 3)
            write_table(layout.metrics(row.run.id), _shaken(metrics, rng))
        _write_activations(layout, row.run, faces)
        _write_tasks(layout, row)
        if row.run.id != source.id and row.run.seed == 0:
            shutil.copy(layout.embedding(source.id), layout.embedding(row.run.id))
    for path in sorted(layout.statistics.glob("*.parquet")):
        table = read_statistics(layout.statistics, path.stem)
        write_statistics(layout.statistics, path.stem, pd.concat(list(_repeated(table, runs, rng)), ignore_index=True))
    return study, layout, runs


def _study(names: list[str], num_seeds: int) -> Study:
    width = {name: 0.25 + 0.005 * number for number, name in enumerate(names)}
    models: dict[str, object] = {name: {"kind": "vae", "width": width[name]} for name in names}
    models[names[-1]] = {"kind": "vae", "training": {"epochs": 0}}
    grid = {"groups": ["all"], "seeds": list(range(num_seeds))}
    content = invented_study.settings(models=models, grid=grid, training={"epochs": EPOCHS})
    return Study.model_validate(content)


def _faces() -> np.ndarray:
    """uint8 [images, SIZE_PX, SIZE_PX, 3]."""
    settings, rng = SyntheticDataset(kind="synthetic", num_images=64), np.random.default_rng(1)
    faces = np.stack([render_face(settings, number, SIZE_PX) for number in range(64)]).astype(float)
    return np.clip(faces + rng.normal(0, 8, faces.shape), 0, 255).astype(np.uint8)


def _shaken(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The table with other decimals."""
    numbers = [name for name in table if name not in _FIXED and pd.api.types.is_float_dtype(table[name])]
    return table.assign(**{name: table[name] * rng.normal(1, 0.2, len(table)) for name in numbers})


def _repeated(table: pd.DataFrame, runs: list[RunRow], rng: np.random.Generator) -> Iterator[pd.DataFrame]:
    """The rows of a table for each run, or for each model where the seeds are put together."""
    if "model" not in table:
        yield table
    elif "run_id" in table:
        cells = [(row.run.id, row.run.model, row.run.group, row.run.seed, row.status, row.reason) for row in runs]
        yield pd.DataFrame(cells, columns=["run_id", "model", "trained_on", "seed", "status", "reason"])
    elif "seed" in table:
        for row in runs:
            if row.status == "done":
                yield _shaken(table, rng).assign(model=row.run.model, seed=row.run.seed)
    else:
        for model in dict.fromkeys(row.run.model for row in runs):
            yield _shaken(table, rng).assign(model=model)


def _write_activations(layout: Layout, run: Run, faces: np.ndarray) -> None:
    """A file of activations with as many layers as the metrics have, and all that the report shows of a run."""
    ids, rng = [f"j{number:04d}" for number in range(NUM_IMAGES)], np.random.default_rng(2)
    names = [*(f"conv{number + 1}" for number in range(NUM_LAYERS)), "mu"]
    values = {name: np.maximum(rng.normal(size=(NUM_IMAGES, 16 * 64)), 0) for name in names}
    writer = ActivationWriter(
        layout.activations(run.id), key="k", image_ids=ids, reference_ids=[], probes=[],
        layers=[LayerInfo(name, (16, 8, 8), "post", "latent" if name == "mu" else "conv") for name in names],
        units=dict.fromkeys(names, np.arange(25)),
    )  # fmt: skip
    first = sum(map(ord, run.id)) % NUM_SHOWN
    shown = {"rated": faces[first : first + NUM_SHOWN], "training": faces[-NUM_SHOWN:]}
    with writer:
        for which, pixels in shown.items():
            names = ids[:NUM_SHOWN] if which == "rated" else [f"t{number:04d}" for number in range(NUM_SHOWN)]
            writer.write_samples(which, names, pixels, invented_study.blurred(pixels))
        writer.write_exhibits(_exhibits(ids, faces, values))
        writer.write_block(0, values, {}, {name: one[:, :25] for name, one in values.items()})
        writer.finish()


def _exhibits(ids: list[str], faces: np.ndarray, values: dict[str, np.ndarray]) -> Exhibits:
    """Maps and histograms of three images, and two ways between them."""
    layers = {}
    for name, own in values.items():
        counts, edges = zip(*(np.histogram(one[one > 0], 64) for one in own[:3]), strict=True)
        maps = own[:3].reshape(3, 16, 8, 8).astype(np.float16)
        layers[name] = LayerShown(maps, 1, np.stack(counts), np.stack(edges), (own[:3] == 0).sum(axis=1))
    return Exhibits(ids[:3], faces[:3], layers, np.stack([faces[:8], faces[8:16]]))


def _write_tasks(layout: Layout, row: RunRow) -> None:
    facts = {"epochs": EPOCHS, "num_training_images": 10_000, "device": "NVIDIA H200"}
    made = {**provenance(time.time() - 600, {"pack/web": "k"}), "facts": facts}
    for stage in ("train", "extract", "measure"):
        status = row.status if stage == "train" else "done"
        write_outcome(layout.outcome(stage, row.run.id), Outcome(status, "0a1b2c3d", row.reason, {}, made))
    write_progress(layout.progress("train", row.run.id), "0a1b2c3d", 1.0, "epoch 40 of 40", images_per_s=1234.5)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, help="one study with so many models")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each of them")
    parser.add_argument("--processes", type=int, help="that draw (default: as many as there are cores)")
    parser.add_argument("--folder", type=Path, help="where the studies are kept (default: nowhere)")
    parser.add_argument("--pdf", action="store_true", help="print them, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
