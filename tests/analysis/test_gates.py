"""Metrics of gates."""

from __future__ import annotations

import math
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given

from analysis.gates import gate_metrics
from analysis.measure import measure
from analysis.sparsity import METRICS, NonFinite, gini
from fluence.layout import Layout, Run
from fluence.store.activations import ActivationWriter, LayerInfo
from fluence.store.files import read_table
from fluence.study import Epsilon

GATES = hnp.arrays("float64", st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=st.floats(0, 1))


def slow_metrics(gates: np.ndarray) -> dict[str, list[float]]:
    """One gate after the other, by the definitions."""
    found: dict[str, list[float]] = {"gate_l1": [], "gate_entropy": [], "gate_effective": []}
    for row in gates.tolist():
        total = math.fsum(row)
        entropy = -math.fsum(g / total * math.log(g / total) for g in row if g / total > 0) if total else math.nan
        found["gate_l1"].append(total / len(row))
        found["gate_entropy"].append(entropy)
        found["gate_effective"].append(math.exp(entropy))
    return found


@given(GATES)
def test_against_the_definitions(gates: np.ndarray) -> None:
    metrics = gate_metrics(gates)
    for name, expected in slow_metrics(gates).items():
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-9, atol=1e-12)


def test_cases_worked_by_hand() -> None:
    metrics = gate_metrics(np.array([[1, 0, 0, 0], [1, 1, 1, 1], [0.5, 0.25, 0.25, 0]]))
    assert metrics["gate_l1"].tolist() == [0.25, 1.0, 0.25]
    np.testing.assert_allclose(metrics["gate_entropy"], [0, math.log(4), 1.5 * math.log(2)], rtol=1e-12)
    np.testing.assert_allclose(metrics["gate_effective"], [1, 4, 2**1.5], rtol=1e-12)


def test_gates_that_are_all_zero_have_no_entropy() -> None:
    metrics = gate_metrics(np.array([[0.0, 0.0], [0.0, 1.0]]))
    assert metrics["gate_l1"].tolist() == [0.0, 0.5]
    for name in ("gate_entropy", "gate_effective"):
        assert np.isnan(metrics[name]).tolist() == [True, False]


@given(GATES, st.floats(0.01, 0.99))
def test_entropy_does_not_depend_on_the_scale(gates: np.ndarray, factor: float) -> None:
    assume((gates[gates > 0] > 1e-100).all())
    for name in ("gate_entropy", "gate_effective"):
        np.testing.assert_allclose(gate_metrics(factor * gates)[name], gate_metrics(gates)[name], rtol=1e-6, atol=1e-9)


@given(GATES)
def test_the_effective_number_lies_between_one_and_all(gates: np.ndarray) -> None:
    effective = gate_metrics(gates)["gate_effective"]
    alive = effective[~np.isnan(effective)]
    assert (alive >= 1 - 1e-12).all()
    assert (alive <= gates.shape[1] * (1 + 1e-12)).all()


def test_the_mean_of_a_softmax_is_a_constant_whatever_rounding_does() -> None:
    """Its gates have the mean 1 by construction; what half precision makes of that is no measurement."""
    logits = np.random.default_rng(0).normal(size=(50, 37))
    gates = (37 * np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float16)
    assert len(np.unique(gates.astype(np.float64).mean(axis=1))) > 1
    assert gate_metrics(gates)["gate_l1"].tolist() == [1.0] * 50


def test_sums_run_in_float64_and_the_callers_array_stays() -> None:
    gates = np.full((1, 100_000), 0.1, dtype=np.float16)
    before = gates.copy()
    assert gate_metrics(gates)["gate_l1"][0] == pytest.approx(float(np.float16(0.1)), rel=1e-12)
    np.testing.assert_array_equal(gates, before)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NonFinite, match="1 of 4 values"):
        gate_metrics(np.array([[0, 1], [np.nan, 1]]))


@pytest.mark.parametrize("with_conv", [True, False])
def test_measure_gives_gates_their_own_metrics_in_the_place_of_l_epsilon(tmp_path: Path, with_conv: bool) -> None:
    rng = np.random.default_rng(0)
    conv, gates = LayerInfo("conv1", (3, 2, 2), "post", "conv"), LayerInfo("conv1.channels", (3,), "post", "gate")
    layers = (conv, gates) if with_conv else (gates,)
    values = {layer.name: rng.uniform(size=(40, layer.num_units)).astype(np.float32) for layer in layers}
    ids = [f"face-{number}" for number in range(40)]
    layout, run = Layout(tmp_path), Run("m", "all", 0, "m-all-s0")
    with ActivationWriter(
        layout.activations(run.id), key="k", image_ids=ids, reference_ids=ids[:4], layers=layers, probes=()
    ) as writer:
        writer.write_reference(0, {name: value[:4] for name, value in values.items()})
        writer.write_block(0, values, {})
        writer.finish()
    measure(run, layout, Epsilon(quantiles=(0.25, 0.5), report=0.5), key="k")

    metrics = read_table(layout.metrics(run.id))
    wide = metrics[metrics["layer"] == "conv1.channels"].pivot(index="image_id", columns="metric", values="value")
    stored = values["conv1.channels"].astype(np.float16)
    expected = gate_metrics(stored) | {"gini": gini(stored)}
    assert set(wide.columns) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(wide.loc[ids, name], value, rtol=1e-12)
    epsilon = read_table(layout.epsilon(run.id))
    assert epsilon["layer"].tolist() == ["conv1", "conv1"] * with_conv
    of_conv = set(metrics.loc[metrics["layer"] == "conv1", "metric"])
    assert not any(name.startswith("gate") for name in of_conv)
    assert len(of_conv) == (len(METRICS) + 4) * with_conv
