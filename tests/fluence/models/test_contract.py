"""What every model must do, whatever its kind, architecture, latent and normalisation."""

from __future__ import annotations

import math

import pytest
import torch

from fluence.architectures import ARCHITECTURES, LATENT_LAYER, recordable_names
from fluence.errors import StudyError
from fluence.losses import Objective
from fluence.models import Autoencoder, build, record
from fluence.models.latents import LOGVAR_LIMIT
from fluence.models.layers import ConvUnit
from fluence.study import ArVaeModel, Model, TiltedPrior, VaeModel, VqVaeModel
from tests.fluence.models.every_model import EVERY_MODEL, smallest_size_px


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=EVERY_MODEL)
def settings(request) -> Model:
    return EVERY_MODEL[request.param]


def has_logvar(settings: Model) -> bool:
    return isinstance(settings, ArVaeModel) or (
        isinstance(settings, VaeModel) and not isinstance(settings.prior, TiltedPrior)
    )


def some_images(size_px: int, count: int = 4, seed: int = 0) -> torch.Tensor:
    """Smooth images [count, 3, size, size] in [0, 1]: noise at an eighth of the size, enlarged."""
    coarse = torch.rand(count, 3, size_px // 8, size_px // 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=size_px, mode="bilinear")


def some_noise(model: Autoencoder, count: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, *model.noise_shape, generator=torch.Generator().manual_seed(seed))


def built(settings: Model, seed: int = 0) -> tuple[Autoencoder, torch.Tensor]:
    size_px = smallest_size_px(settings)
    return build(settings, size_px, seed), some_images(size_px)


def loss_of(settings: Model, model: Autoencoder, images: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """The loss that is trained, with weights that leave no term out."""
    objective = Objective(settings)
    with record(model, objective.layers, "post") as recorder:
        output = model(images, some_noise(model, len(images), seed))
    attributes = torch.linspace(-1, 1, len(images))[:, None].expand(-1, len(objective.columns))
    losses, _ = objective(output, images, recorder.values, attributes)
    return losses.mean()


def test_shapes_and_range(settings):
    model, images = built(settings)
    output = model(images, some_noise(model))
    assert output.reconstruction.shape == images.shape
    assert output.mu.shape == output.z.shape == (4, *model.latent_shape)
    assert (output.logvar.shape == output.mu.shape) if has_logvar(settings) else output.logvar is None
    num_drawn = math.prod(model.latent_shape) if isinstance(settings, VaeModel | ArVaeModel) else 0
    num_gates = sum(len(gates.log_alpha) for gates in model.encoder.l0_gates.values())
    assert math.prod(model.noise_shape) == num_drawn + num_gates
    assert output.reconstruction.min() >= 0
    assert output.reconstruction.max() <= 1


def test_gradients_reach_every_parameter(settings):
    model, images = built(settings)
    loss_of(settings, model, images).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_recordable_layers_are_complete_in_order_and_of_their_shapes(settings):
    model, images = built(settings)
    seen = []
    for name, module in model.encoder.named_modules():
        if isinstance(module, ConvUnit):
            module.conv.register_forward_hook(lambda *_, name=name: seen.append(name))
    with record(model, "encoder", "post") as recorder:
        model(images)
    layers = [info for info in model.recordable if info.kind != "gate"]
    assert [info.name for info in layers] == [*seen, LATENT_LAYER]
    assert [name for name in recorder.values if "." not in name] == [*seen, LATENT_LAYER]
    assert {info.name: info.shape for info in model.recordable} == {
        name: tuple(value.shape[1:]) for name, value in recorder.values.items()
    }
    assert [info.kind for info in layers] == ["conv"] * len(seen) + ["latent"]
    assert tuple(info.name for info in model.recordable) == recordable_names(settings)


def test_gates_are_recorded_right_after_their_layer(settings):
    model, _ = built(settings)
    layer = ""
    for info in model.recordable:
        if info.kind == "gate":
            assert info.name in (f"{layer}.channels", f"{layer}.places")
        else:
            layer = info.name
    assert any(info.kind == "gate" for info in model.recordable) == (settings.attention is not None)


def test_state_dict_round_trip(settings, tmp_path):
    model, images = built(settings)
    model(images, some_noise(model))  # moves the running statistics, if there are any
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = build(settings, smallest_size_px(settings), seed=1)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other.eval()(images).reconstruction, model.eval()(images).reconstruction)


def test_eval_is_deterministic_and_the_latent_is_its_mean(settings):
    """Mistakes: a latent that is sampled in eval mode; error from one random z.

    A VQ-VAE decodes entries of its codebook, so there z is not its `mu` (see test_latents.py).
    """
    model, images = built(settings)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = model(images, some_noise(model)), model(images, None)
    assert torch.equal(first.mu, second.mu)
    assert torch.equal(first.z, second.z if isinstance(settings, VqVaeModel) else first.mu)
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_eval_takes_each_image_by_itself(settings):
    """Mistake: metrics computed in train mode, where an image's values depend on its batch."""
    model, images = built(settings)
    model.eval()
    torch.testing.assert_close(model(images).mu[2:3], model(images[2:3]).mu, rtol=1e-4, atol=1e-5)


def test_an_empty_share_of_a_batch_passes(settings):
    """With several processes the last validation batch may leave one of them nothing; it takes part all the same."""
    model, images = built(settings)
    objective = Objective(settings)
    with record(model.eval(), objective.layers, "post") as recorder, torch.no_grad():
        output = model(images[:0])
    losses, terms = objective(output, images[:0], recorder.values, torch.zeros(0, len(objective.columns)))
    assert output.reconstruction.shape == images[:0].shape
    assert {tuple(value.shape) for value in (losses, *terms.values())} == {(0,)}


def test_training_draws_the_latent_from_the_noise_it_is_given(settings):
    model, images = built(settings)
    noise = some_noise(model)
    output = model(images, noise)
    of_latents = noise.flatten(1)[:, : output.mu[0].numel()]  # the first, if there are others
    if isinstance(settings, VaeModel | ArVaeModel):
        sd = torch.sqrt(output.logvar.exp()) if has_logvar(settings) else 1.0
        torch.testing.assert_close(output.z, output.mu + sd * of_latents.reshape(output.mu.shape))
        without = model(images, None)
        assert torch.equal(without.z, without.mu)
    elif not model.encoder.l0_gates:  # the only chance there is in a model without latent noise
        assert torch.equal(output.z, model(images, None).z)


def test_no_nan_in_fifty_steps(settings):
    size_px = smallest_size_px(settings)
    model, images = build(settings.model_copy(update={"width": 1 / 64}), size_px, 0), some_images(size_px, count=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(50):
        optimizer.zero_grad()
        loss = loss_of(settings, model, images, seed=step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e4)
        optimizer.step()
        assert torch.isfinite(loss)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert torch.isfinite(model.eval()(images).reconstruction).all()


def test_same_seed_same_bits_and_global_random_numbers_stay(settings):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = built(settings, seed=3)[0].state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second, other = built(settings, seed=3)[0].state_dict(), built(settings, seed=4)[0].state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    conv = next(name for name, value in first.items() if name.startswith("encoder.") and value.ndim == 4)
    assert not torch.equal(first[conv], other[conv])


def test_latent_means_and_variances_do_not_pass_a_relu(settings):
    """Mistake: μ, σ or z passed through ReLU. (z of a VQ-VAE is made of entries, which have both signs.)"""
    model, images = built(settings)
    if has_logvar(settings):
        torch.nn.init.normal_(next(model.head.logvar.parameters()), std=1.0)
    output = model(images, some_noise(model))
    latents = [output.mu] if isinstance(settings, VqVaeModel) else [output.mu, output.z]
    for value in (*latents, *([output.logvar] if has_logvar(settings) else [])):
        assert (value < 0).any()
        assert (value > 0).any()


@pytest.mark.parametrize("settings", [s for s in EVERY_MODEL.values() if has_logvar(s)], ids=lambda s: s.kind)
def test_logvar_is_limited_and_keeps_a_gradient(settings):
    model, images = built(settings)
    bias = next(p for n, p in model.head.logvar.named_parameters() if n.endswith("bias"))
    torch.nn.init.constant_(bias, 40.0)
    logvar = model(images).logvar
    assert logvar.max() <= LOGVAR_LIMIT
    assert logvar.min() > 0.99 * LOGVAR_LIMIT
    logvar.sum().backward()
    assert bias.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"norm": "none"}, 50),
        ({"norm": "batch"}, 50),
        ({"architecture": "vgg16-5", "width": 1 / 8}, 50),
        ({"architecture": "vgg16-5", "width": 1 / 8, "norm": "batch"}, 50),
        ({"architecture": "vgg19-10", "width": 1 / 8, "norm": "batch"}, 60),
        ({"architecture": "alexnet-10"}, 50),
        ({"residual": True}, 50),
        ({"activation": "lwta", "upsampling": "nearest"}, 50),
        ({"separable": {"kernel_px": 3, "parts": ["encoder", "decoder"]}}, 100),
        ({"norm": {"encoder": "spectral", "latent": "spectral"}, "upsampling": "bilinear"}, 100),
    ],
    ids=str,
)
def test_loss_falls_from_scratch(settings, steps):
    settings = VaeModel.model_validate({"kind": "vae", "width": 1 / 4} | settings)
    model, images = build(settings, 32, 0), some_images(32, count=8).gt(0.5).float()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(settings, model, images, seed=step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e4)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_width_multiplies_channels(architecture):
    def channels(width: float) -> list[int]:
        settings = VaeModel(kind="vae", architecture=architecture, width=width)
        with torch.device("meta"):
            return [info.shape[0] for info in build(settings, 32, 0).recordable if info.kind == "conv"]

    whole = channels(1)
    assert channels(0.5) == [c // 2 for c in whole]
    assert all(c % 4 == 0 for c in channels(0.37))
    assert set(channels(0.001)) == {4}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("size_px", "nearest"), [(48, "32 or 64"), (20, "32"), (100, "96 or 128")])
def test_image_sizes_that_cannot_be_halved_are_refused(architecture, size_px, nearest):
    with pytest.raises(StudyError, match=f"{size_px} is not a multiple of 32.*nearest allowed: {nearest}$"):
        build(VaeModel(kind="vae", architecture=architecture), size_px, 0)


def test_instance_norm_of_a_single_position_is_refused():
    with pytest.raises(StudyError, match="image_size_px of at least 64"):
        build(VaeModel(kind="vae", norm="instance"), 32, 0)
    model = build(VaeModel(kind="vae", architecture="vgg16-5", norm="instance", width=1 / 16), 32, 0)
    assert model(some_images(32)).mu.std() > 0  # its last map has four positions, and is pooled only after the norm


def test_channels_last_gives_the_same_numbers():
    model = build(VaeModel(kind="vae", width=0.25), 64, 0).eval()
    images = some_images(64)
    expected = model(images).reconstruction
    last = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last.reconstruction, expected, rtol=1e-4, atol=1e-5)


def test_autocast_returns_float32():
    model = build(VaeModel(kind="vae", width=0.25), 64, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(some_images(64), some_noise(model))
    assert {value.dtype for value in (output.reconstruction, output.mu, output.logvar, output.z)} == {torch.float32}
