from __future__ import annotations

import pytest

from analysis.kinds import effective_beta
from analysis.methods import Facts, Methods, write_methods
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
        (Facts(compares_groups=True), "Wald F of group × metric"),
        (Facts(num_runs=(4, 3)), "makes 4 runs, 3 of them complete"),
        (Facts(commit="0123abc", versions={"numpy": "2.0"}), "fluence (commit 0123abc), with numpy 2.0."),
    ],
)
def test_what_turned_out_is_in_the_text(facts: Facts, expected: str) -> None:
    assert expected in text_of(write_methods(study(), facts))


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("cell", "corrected over all layers and metrics of one estimator, for one model, seed and set of images."),
        ("study", "corrected over all models, seeds, layers and metrics of one estimator on one set of images."),
    ],
)
def test_what_was_corrected_together_is_said(family: str, expected: str) -> None:
    methods = write_methods(study(analysis={"family": family}), Facts())
    assert expected in text_of(methods)
    assert not any("MacKinnon" in source for source in methods.references)


@pytest.mark.parametrize(
    ("analysis", "expected", "unsaid", "reference"),
    [
        ({}, "we computed the Gini index of the magnitudes", "Hoyer", "Hurley"),
        ({}, "ε is, for each layer, the 0.5 quantile", "Willmore", "Hurley"),
        ({"metrics": ["hoyer", "l0"]}, "we computed Hoyer’s measure", "Lε", "Hoyer PO"),
        ({"metrics": ["kurtosis", "l_eps"]}, "the excess kurtosis (Field 1994) and Lε", "the Gini", "Field DJ"),
        ({"sparsity": {"per": ["layer", "unit"]}}, "sparsity of each unit over the images", "Hoyer", "Willmore"),
    ],
)
def test_the_metrics_that_were_chosen_are_described(
    analysis: dict[str, object], expected: str, unsaid: str, reference: str
) -> None:
    methods = write_methods(study(analysis=analysis), Facts())
    assert expected in text_of(methods)
    assert unsaid not in text_of(methods)
    assert any(reference in source for source in methods.references)
    assert any("Hurley" in source for source in methods.references) == ("metrics" not in analysis)


def test_nothing_that_was_not_used_is_in_the_text() -> None:
    methods = write_methods(study(), Facts())
    assert "LPIPS" not in text_of(methods)
    assert "VGG" not in text_of(methods)
    assert "gates" not in text_of(methods)
    assert not any("Ng A" in reference or "Woo" in reference or "Hill" in reference for reference in methods.references)
    assert not any("Zhang" in reference or "Simonyan" in reference for reference in methods.references)


@pytest.mark.parametrize(
    ("model", "expected", "reference"),
    [
        ({"architecture": "vgg16-5", "width": 0.25}, "13 convolutions of VGG16", "Simonyan"),
        ({"reconstruction": [{"loss": "lpips", "weights": "random"}]}, "hence no perceptual distance", "Zhang"),
        ({"reconstruction": [{"loss": "ssim", "weight": 1000}]}, "1000 times 1 − SSIM", "Higgins"),
        ({"latent": {"kind": "dense", "size": 40}}, "a fully connected latent of 40 numbers", "Kingma"),
        (
            {"sparsity": [{"penalty": "kl", "rho": 0.1, "weight": 3, "layers": "all but conv1"}]},
            "3 times the Kullback-Leibler divergence of ρ = 0.1 from each unit's mean activation over the batch, "
            "squashed by |x|/(1 + |x|) and summed over the units of all layers but the first (Ng 2011)",
            "Ng A (2011)",
        ),
        (
            {"sparsity": [{"penalty": "l1", "layers": [2, "conv4"]}]},
            "0.001 times the sum of the magnitudes of the activations of layer 2 and conv4.",
            "Kingma",
        ),
        (
            {"sparsity": [{"penalty": "l0", "weight": 2}]},
            "The channels of all convolutions have hard concrete gates (temperature 0.667), and its loss has "
            "2 times their expected number of open ones",
            "Louizos",
        ),
        (
            {"attention": {"kind": "cbam", "layers": ["conv2"], "weight": 0.5}},
            "CBAM's gates of channels, computed from",
            "Woo S",
        ),
        (
            {"attention": {"kind": "sigmoid", "layers": ["conv2"]}},
            "sigmoid gates, computed from each channel's mean and maximum by a perceptron narrowed by 16",
            "Woo S",
        ),
        ({"attention": "45-5.0"}, "layer 4 and layer 5 are multiplied by gates", "Woo S"),
        ({"attention": "45-5.0"}, "a softmax at temperature 5, times the number of channels", "Hill MO"),
        ({"prior": {"kind": "tilted", "tau": 9}}, "½ (‖μ‖ − 8.106)²", "Floto"),
        (
            {"kind": "ar-vae", "attributes": [{"column": "age", "unit": 3, "weight": 7}]},
            "plus 7 times the mean over all pairs of images of a batch of |tanh(1 (zᵢ − zⱼ)) − sign(aᵢ − aⱼ)|, z being "
            "latent unit 3 and a the column “age”",
            "Pati",
        ),
        ({"kind": "ae"}, "whose code has neither noise nor a prior", "Hurley"),
        ({"kind": "vq-vae", "codebook_size": 7}, "with a codebook of 7 entries", "Vinyals"),
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


@pytest.mark.parametrize("kind", ["ae", "vq-vae"])
def test_models_without_a_prior_are_said_to_have_none(kind: str) -> None:
    """Only where there is a β is there an effective one, a mean that is taken, or a KL term that is faded in."""
    loss = [{"loss": "ssim", "weight": 1000}]
    changes = {"models": {"m": {"kind": kind, "reconstruction": loss}}, "training": {"kl_warmup_epochs": 3}}
    methods = write_methods(study(**changes), Facts())
    for word in ("KL", "β", "variational", "latent means", "at their mean", "N(0, I)"):
        assert word not in text_of(methods)
        assert not any(author in line for line in methods.references for author in ("Higgins", "Kingma DP, Welling"))
    changes["models"] |= {"v": {"kind": "vae"}}
    text = text_of(write_methods(study(**changes), Facts()))
    assert "with random latents at their mean" in text
    assert f"{'the code before its quantisation' if kind == 'vq-vae' else 'the code'} and the latent means" in text
    assert "The KL term was faded in over 3 epochs" in text


def test_a_model_that_was_taught_the_ratings_is_named() -> None:
    models = {"m": {"kind": "vae"}, "r": {"kind": "ar-vae", "attributes": [{"column": "beauty", "unit": 0}]}}
    data = study().data.model_copy(update={"training": "jury"}).model_dump()
    text = text_of(write_methods(study(data=data, models=models), Facts()))
    assert "trained on the rated images themselves; “r” also on their ratings." in text
    assert "not on their ratings" not in text


DFC_NETWORKS = [
    (
        {"kind": "vgg19"},
        "relu1_1, relu2_1 and relu3_1 of VGG19 (Simonyan & Zisserman 2015), frozen, ImageNet weights",
        "Simonyan",
    ),
    ({"kind": "vgg16", "weights": "random"}, "frozen, random weights, hence no perceptual distance", "Simonyan"),
    ({"kind": "vggface", "weights": "f.pth"}, "VGGFace (Parkhi et al. 2015), frozen, weights from a file", "Parkhi"),
    ({"kind": "attgan", "weights": "a.pth"}, "conv1, conv2, conv3, conv4 and conv5 of the encoder of AttGAN", "He Z"),
    (
        {"kind": "model", "model": "plain"},
        "every convolution of the frozen encoder of “plain”, trained before with the same seed on all training images",
        "Hou X",
    ),
]


@pytest.mark.parametrize(("network", "expected", "reference"), DFC_NETWORKS)
def test_feature_networks_are_described(network: dict[str, object], expected: str, reference: str) -> None:
    loss = {"loss": "dfc", "network": network, "weight": 10}
    methods = write_methods(
        study(models={"m": {"kind": "vae", "reconstruction": [loss]}, "plain": {"kind": "vae"}}), Facts()
    )
    assert "10 times the deep feature consistency loss (Hou et al. 2017) on " in text_of(methods)
    assert expected in text_of(methods)
    for name in (reference, "Hou X", "Higgins"):
        assert any(line.startswith(name) for line in methods.references)


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


def test_typicality_is_told_only_where_it_was_asked_for() -> None:
    assert "typicality" not in text_of(write_methods(study(), Facts()))
    asked = study(analysis={"typicality": {"components": [10, 20], "groups": True, "estimators": ["ppca", "gmm"]}})
    methods = write_methods(asked, Facts())
    assert "on the first 10 and 20 principal components" in text_of(methods)
    assert "the images of the other folds (10 folds" in text_of(methods)
    assert "within each group" in text_of(methods)
    cited = [name for name in ("Tipping", "Ledoit", "Schwarz") if any(name in one for one in methods.references)]
    assert cited == ["Tipping", "Schwarz"]
    outside = study(
        analysis={"typicality": {"reference": "training", "components": 10}}, record={"reference_images": 300}
    )
    assert "fitted to 300 training images, none of them rated" in text_of(write_methods(outside, Facts()))


def test_a_network_that_keeps_the_weights_of_others_is_not_called_untrained() -> None:
    plain = {"kind": "ae", "architecture": "vgg16-5", "pretrained": "imagenet", "training": {"epochs": 0}}
    text = text_of(write_methods(study(models={"vgg": plain}), Facts()))
    assert "Its encoder kept these weights; nothing was trained on" in text
    assert "negative control" not in text
