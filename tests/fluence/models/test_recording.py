"""Recording gives each layer's own values, whatever else is recorded and whatever comes after it."""

from __future__ import annotations

import pytest
import torch

from fluence.errors import StudyError
from fluence.models import build, record
from fluence.study import VaeModel
from tests.fluence.models.every_model import model as settings_of

CASES = {
    "small": {},
    "small-batch": {"norm": "batch"},
    "vgg16-instance": {"architecture": "vgg16-5", "norm": "instance"},
    "vgg19": {"architecture": "vgg19-5"},
    "alexnet-batch": {"architecture": "alexnet-5", "norm": "batch"},
    "spectral": {"norm": "spectral"},
    "separable-spectral": {"norm": "spectral", "separable": {}},
    "lwta": {"activation": "lwta", "architecture": "alexnet-10"},
}


@pytest.fixture(params=CASES)
def model(request):
    torch.set_num_threads(1)
    return build(settings_of(**CASES[request.param]), 64, 0).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def recorded(model, images, names="encoder", tap="post") -> dict[str, torch.Tensor]:
    with record(model, names, tap) as recorder, torch.no_grad():
        model(images)
    return recorder.values


def test_values_before_the_relu_are_not_overwritten_by_it(model, images):
    """Mistake: conv activations overwritten by an in-place ReLU."""
    before, after = recorded(model, images, tap="pre"), recorded(model, images, tap="post")
    for name in before:
        if name == "mu":
            assert torch.equal(before[name], after[name])
        else:
            assert (before[name] < 0).any(), name
            assert torch.equal(after[name], model.encoder.get_submodule(name).activation(before[name])), name
            assert not torch.equal(after[name], before[name]), name


def test_values_are_those_of_a_forward_pass_written_out(model, images):
    x = 2 * images - 1
    values = recorded(model, images)
    for name, unit in model.encoder.named_children():
        x = unit.activation(unit.norm(unit.conv(x)))
        torch.testing.assert_close(values[name], x)  # the last channel included, the pooling not
        x = unit.pool(x)
    torch.testing.assert_close(values["mu"], model.head.mean(x))


@pytest.mark.parametrize("tap", ["pre", "post"])
def test_a_layer_does_not_depend_on_which_others_are_recorded(model, images, tap):
    together = recorded(model, images, tap=tap)
    for name in together:
        assert torch.equal(recorded(model, images, [name], tap)[name], together[name]), name


def test_layers_come_in_the_order_of_the_forward_pass_with_their_tap(model, images):
    with record(model, ["mu", model.recordable[0].name], "pre") as recorder:
        model(images)
    assert [info.name for info in recorder.layers] == [model.recordable[0].name, "mu"] == list(recorder.values)
    assert {info.tap for info in recorder.layers} == {"pre"}


def test_recording_changes_nothing_and_ends(model, images):
    expected = model(images).reconstruction
    with record(model, "encoder", "post") as recorder:
        assert torch.equal(model(images).reconstruction, expected)
    first = recorder.values["mu"]
    model(torch.zeros_like(images))
    assert recorder.values["mu"] is first
    assert not any(module._forward_hooks for module in model.modules())


def test_recording_ends_after_an_error(model, images):
    with pytest.raises(RuntimeError), record(model, "encoder", "post"):
        model(images[:, :2])
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_pass_through_recorded_values(images):
    model = build(VaeModel(kind="vae", width=1 / 16), 64, 0)
    with record(model, ["conv3"], "post") as recorder:
        model(images)
    recorder.values["conv3"].sum().backward()
    assert model.encoder.conv1.conv.weight.grad.abs().sum() > 0


def test_unknown_layer_is_refused_with_a_guess():
    model = build(VaeModel(kind="vae", architecture="vgg16-5", width=1 / 16), 32, 0)
    with (
        pytest.raises(StudyError, match=r"no layer 'conv1-2'; did you mean 'conv1_2'\? Allowed: conv1_1, .*, mu$"),
        record(model, ["conv1_1", "conv1-2"], "post"),
    ):
        pass
