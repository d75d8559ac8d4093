from __future__ import annotations

import pytest

from analysis.methods import Facts, Methods, effective_beta, write_methods
from fluence.study import Study, VaeModel


def study(**changes: object) -> Study:
    settings: dict[str, object] = {
        "name": "s",
        "data": {
            "datasets": {"web": {"kind": "fairface", "root": "/w"}, "jury": {"kind": "cfd", "root": "/j"}},
            "training": "web",
            "rated": "jury",
            "image_size_px": 32,
        },
        "models": {"small": {"kind": "vae", "kl_weight": 2.0}},
    }
    return Study.model_validate(settings | changes)


def text_of(methods: Methods) -> str:
    return "\n".join(text for _, text in methods.paragraphs)


def test_the_settings_are_in_the_text() -> None:
    text = text_of(write_methods(study(), Facts(num_training=1200, num_rated=1, epochs_run={"small": (30, 30)})))
    assert "trained on 1,200 images of “web” (FairFace" in text
    assert "1 rated image of “jury” (Chicago Face Database" in text
    assert "32 × 32 px" in text
    assert "β = 2 times the KL divergence" in text
    assert "trained for 30 epochs." in text
    assert "10 shuffled folds" in text
    assert "999 permutations" in text


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(epochs_run={"small": (12, 30)}), "trained for 12 to 30 epochs (at most 30)"),
        (Facts(epochs_run={"small": (12, 12)}), "trained for 12 epochs of the 30 foreseen"),
        (Facts(), "to be trained for 30 epochs; no run got that far"),
        (Facts(num_excluded={"jury": 3}), "3 images could not be used and were left out"),
        (Facts(num_excluded={"jury": 0}), "No image was left out"),
        (Facts(missing_covariates=("age",)), "pixel_gini (age not available)"),
        (Facts(num_runs=(4, 3)), "makes 4 runs, 3 of them complete"),
        (Facts(commit="0123abc", versions={"numpy": "2.0"}), "fluence (commit 0123abc), with numpy 2.0."),
    ],
)
def test_what_turned_out_is_in_the_text(facts: Facts, expected: str) -> None:
    assert expected in text_of(write_methods(study(), facts))


def test_nothing_that_was_not_used_is_in_the_text() -> None:
    methods = write_methods(study(), Facts())
    assert "LPIPS" not in text_of(methods)
    assert "VGG" not in text_of(methods)
    assert not any("Zhang" in reference or "Simonyan" in reference for reference in methods.references)


@pytest.mark.parametrize(
    ("model", "expected", "reference"),
    [
        ({"architecture": "vgg16-5", "width": 0.25}, "13 convolutions of VGG16", "Simonyan"),
        ({"reconstruction": [{"loss": "lpips", "weights": "random"}]}, "hence no perceptual distance", "Zhang"),
        ({"reconstruction": [{"loss": "ssim", "weight": 1000}]}, "1000 times 1 − SSIM", "Higgins"),
        ({"latent": {"kind": "dense", "size": 40}}, "a fully connected latent of 40 numbers", "Kingma"),
        ({"training": {"epochs": 0}}, "left untrained, as a negative control", "Kingma"),
        ({"training": {"learning_rate": 0.5}}, "settings of its own: learning rate 0.5", "Kingma"),
        ({"training": {"optimizer": "sgd"}}, "settings of its own: optimizer sgd", "Sutskever"),
        ({"training": {"sam": {"rho": 0.1}}}, "sharpness-aware training with ρ = 0.1", "Foret"),
    ],
)
def test_models_are_described(model: dict[str, object], expected: str, reference: str) -> None:
    methods = write_methods(study(models={"m": {"kind": "vae", **model}}), Facts())
    assert expected in text_of(methods)
    assert any(reference in line for line in methods.references)


@pytest.mark.parametrize(
    ("changes", "expected", "reference"),
    [
        ({"training": {"sam": {"rho": 0.1}}}, "Training was sharpness-aware (Foret et al. 2021)", "Foret"),
        ({"training": {"optimizer": "sgd"}}, "Stochastic gradient descent with momentum 0.9 (Sutskever", "Sutskever"),
        ({"training": {"optimizer": "sgd", "weight_decay": 0.1}}, "momentum 0.9 and weight decay 0.1", "Sutskever"),
        ({"training": {"micro_batch_size": 8}}, "in pieces of at most 8 images", "Kingma"),
        ({"record": {"sharpness": {}}}, "its own gradient by all weights and ρ = 0.05", "Foret"),
        ({"record": {"sharpness": {"parameters": "encoder"}}}, "by the weights that lead to the code", "Foret"),
    ],
)
def test_optimisation_is_described(changes: dict[str, object], expected: str, reference: str) -> None:
    methods = write_methods(study(**changes), Facts())
    assert expected in text_of(methods)
    assert any(reference in line for line in methods.references)
    assert ("Adam" in text_of(methods)) == ("optimizer" not in str(changes))
    assert reference == "Kingma" or expected not in text_of(write_methods(study(), Facts()))


def test_models_trained_on_the_rated_images_are_named_so() -> None:
    data = study().data.model_copy(update={"training": "jury"})
    assert "trained on the rated images themselves" in text_of(write_methods(study(data=data.model_dump()), Facts()))


def test_effective_beta_of_a_mean_by_hand() -> None:
    # 1000 · (1 − SSIM) + KL on 3 · 4² = 48 values: one value weighs 1000 / 48, so β_eff = 48 / 1000.
    model = VaeModel.model_validate({"kind": "vae", "reconstruction": [{"loss": "ssim", "weight": 1000}]})
    assert effective_beta(model, 4) == pytest.approx(0.048)


def test_effective_beta_is_that_of_the_losses() -> None:
    pytest.importorskip("torch")
    from fluence.losses.objective import effective_beta as reference

    terms = [{"loss": "l1", "weight": 2}, {"loss": "ssim", "weight": 300}]
    model = VaeModel.model_validate({"kind": "vae", "kl_weight": 3, "reconstruction": terms})
    assert effective_beta(model, 16) == pytest.approx(reference(model, 16), rel=1e-12)
