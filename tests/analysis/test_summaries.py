from __future__ import annotations

import pandas as pd

from analysis.summaries import placed_models, summary_constraint, summary_layers
from fluence.study import Study

KL = {"penalty": "kl", "rho": 0.05, "weight": 0.3}
VAE = {"kind": "vae"}
WHERE = {"trained_on": "all", "scorer": "general", "subset": "all", "num_seeds": 2, "missing_seeds": "", "n": 100}
FAMILY = {"family": "cell", "family_size": 8}


def study_of(**models: object) -> Study:
    data = {"datasets": {"faces": {"kind": "csv", "root": "x"}}, "training": "faces", "rated": "faces"}
    return Study.model_validate({"name": "test", "data": data, "models": models})


def constrained(layers: object, **changes: object) -> dict[str, object]:
    return {**VAE, "sparsity": [{**KL, "layers": layers} | changes]}


def test_models_that_differ_in_the_place_of_one_constraint() -> None:
    study = study_of(
        free=VAE,
        everywhere=constrained("everywhere"),
        two=constrained(["conv2", 3]),
        idle=constrained("none"),
        deep={**constrained("everywhere"), "architecture": "vgg16-5"},
    )
    found = placed_models(study)
    assert [(one.place, one.model) for one in found] == [
        ("everywhere", "everywhere"),
        ("conv2, 3", "two"),
        ("none", "free"),
        ("none", "idle"),
    ]
    assert {one.base for one in found} == {"free"}
    assert {one.constraint for one in found} == {"kl, rho 0.05, weight 0.3, squash rational"}


def test_every_constraint_stands_beside_the_model_without() -> None:
    study = study_of(free=VAE, weak=constrained("everywhere"), strong=constrained("everywhere", weight=0.9))
    found = {(one.constraint.split("weight ")[1][:3], one.place, one.model) for one in placed_models(study)}
    assert found == {
        ("0.3", "everywhere", "weak"),
        ("0.3", "none", "free"),
        ("0.9", "everywhere", "strong"),
        ("0.9", "none", "free"),
    }


def test_another_training_or_architecture_is_another_model() -> None:
    longer = {**constrained("everywhere"), "training": {"epochs": 3}}
    assert placed_models(study_of(free=VAE, longer=longer)) == []
    assert placed_models(study_of(weak=constrained("everywhere"), strong=constrained("everywhere", weight=0.9))) == []


def test_the_tables_hold_the_means_and_the_largest_p() -> None:
    study = study_of(free=VAE, sparse=constrained("all but conv1"), other={**VAE, "architecture": "vgg16-5"})
    numbers = {f"{name}{end}_mean": 0.1 for name in ("r2_metrics", "delta_r2") for end in ("", "_low", "_high")}
    numbers |= {"p_delta_max": 0.3, "p_delta_bh_max": 0.4, "p_delta_mean": 0.2}
    where = WHERE | FAMILY | {"predictors": "gini", "estimator": "pooled"}
    ridge = pd.DataFrame([{"model": model, **where, **numbers} for model in ("free", "sparse", "other")])
    found = summary_constraint(study, ridge).set_index("model")
    assert found["place"].to_dict() == {"sparse": "all but conv1", "free": "none"}
    assert found.loc["sparse", ["r2_metrics", "delta_r2_low", "p_delta", "p_delta_bh"]].tolist() == [0.1, 0.1, 0.3, 0.4]

    numbers = {"estimate_mean": 0.2, "ci_low_mean": 0.1, "ci_high_mean": 0.3, "p_permutation_max": 0.01}
    where = WHERE | FAMILY | {"layer": "mu", "metric": "gini", "estimator": "partial", "num_significant": 1}
    rows = [{"model": model, **where, **numbers, "p_adjusted_max": 0.02} for model in ("other", "free", "sparse")]
    layers = summary_layers(study, pd.DataFrame(rows)).set_index("model")
    assert set(layers.index) == {"free", "sparse"}
    assert layers.loc["free", ["estimate", "ci_low", "p_adjusted", "n"]].tolist() == [0.2, 0.1, 0.02, 100]
