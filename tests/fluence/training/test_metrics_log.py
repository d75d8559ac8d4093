from __future__ import annotations

import json
import math

import pytest
import torch

from fluence.training.metrics_log import EpochSums, MetricsLog


def add(sums: EpochSums, terms: list[float], num_images: int, norm: float) -> None:
    sums.add(torch.tensor(terms, dtype=torch.float64), num_images, torch.tensor(norm))


def test_terms_are_means_over_images_and_the_norm_over_steps():
    sums = EpochSums(("loss", "norm"), torch.device("cpu"))
    assert sums.means() == {}
    add(sums, [12.0], 4, 1.0)
    add(sums, [8.0], 1, 3.0)
    assert sums.means() == {"loss": 4.0, "norm": 2.0}
    add(sums, [5.0], 5, math.inf)
    assert sums.means() == {"loss": 2.5, "norm": 2.0}
    sums.clear()
    assert sums.means() == {}


def test_sums_do_not_lose_small_terms_beside_large_ones():
    """In float32 the ones would vanish beside 2²⁴."""
    sums = EpochSums(("loss", "norm"), torch.device("cpu"))
    add(sums, [2.0**24], 1, 0.0)
    for _ in range(1000):
        add(sums, [1.0], 1, 0.0)
    assert sums.means()["loss"] == (2**24 + 1000) / 1001


def test_log_goes_back_to_the_text_of_a_checkpoint(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    log = MetricsLog(path, writes=True)
    log.restart_from("")
    assert path.read_text() == ""
    log.append({"epoch": 1, "loss": 0.1})
    saved = log.text
    log.append({"epoch": 2, "loss": 0.2})
    with path.open("a") as file:
        file.write('{"epoch": 3, "lo')  # a line that a killed process left unfinished
    again = MetricsLog(path, writes=True)
    again.restart_from(saved)
    again.append({"epoch": 2, "loss": 0.2})
    assert path.read_text() == log.text == again.text
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 0.2},
    ]  # fmt: skip


def test_only_the_first_process_writes_and_nobody_writes_nan(tmp_path):
    silent = MetricsLog(tmp_path / "metrics.jsonl", writes=False)
    silent.restart_from("x\n")
    silent.append({"loss": 1})
    assert not (tmp_path / "metrics.jsonl").exists()
    assert silent.text == 'x\n{"loss": 1}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        silent.append({"loss": math.nan})
