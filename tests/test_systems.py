"""The systems that one configuration field chooses: they register, train, predict and score."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FAST, landscape, refuser

import deepsum_jax
from deepsum_jax import Bundle, ModelConfig, evaluate, metrics, train
from deepsum_jax import DeepSUM as Network
from deepsum_jax.config import SimulationConfig, override, preset
from deepsum_jax.data import kelvins, resample
from deepsum_jax.data.patches import flip_and_rotate
from deepsum_jax.model import ops
from deepsum_jax.model.graph import GraphConv
from deepsum_jax.model.sisrnet import SISRNet
from deepsum_jax.predict import main as predict_main
from deepsum_jax.scoring import summary as scoring
from deepsum_jax.simulation.dataset import write_dataset
from deepsum_jax.systems.bicubic_mean import bicubic_mean
from deepsum_jax.systems.ibp import ibp
from deepsum_jax.systems.pretraining import REGNET, regnet_loss, sisr_image
from deepsum_jax.systems.table import init_params, param_shapes, stages_of
from deepsum_jax.training import stages

TINY = dataclasses.replace(preset("tiny"), compute=FAST)
MODEL = TINY.model
LEARNED = ("deepsum", "duf", "sisr", "sisr_mean")


def predict(*arguments: Any, **options: Any) -> Any:
    """`deepsum_jax.predict` in a formulation that compiles fast."""
    return deepsum_jax.predict(*arguments, **{"compute": FAST, **options})


def DeepSUM(config: ModelConfig, **options: Any) -> Any:
    return Network(config, FAST, **options)


def output_scale(config: ModelConfig) -> float:
    """From the units of inputs to those of outputs."""
    return float(np.divide(config.normalization.lr_std, config.normalization.hr_std))


def _stacks(side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((1, 3, side, side, 1)).astype(np.float32)
    return images, np.ones((1, 3, side, side, 1), bool)


def _frames(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    stack = landscape(12, 12) + rng.standard_normal((count, 12, 12))
    return stack.astype(np.float32), rng.random(stack.shape) < 0.97


# --- registration by shifts


@pytest.mark.parametrize("shift", [(0, 0), (2, -1), (-4, 3), (0.5, -1.25), (9, -9)])
def test_translation_filters(shift: tuple[float, float]) -> None:
    """They sum to one, are deltas for whole numbers, and apply the translation they are for."""
    filters = np.asarray(ops.translation_filters(jnp.asarray(shift, jnp.float32), 9))
    np.testing.assert_allclose(filters.sum(), 1, atol=1e-6)
    reached = np.clip(shift, -4, 4)
    if all(s == round(s) for s in shift):
        delta = np.zeros((9, 9))
        delta[4 - round(reached[0]), 4 - round(reached[1])] = 1
        np.testing.assert_allclose(filters, delta, atol=1e-6)
    else:  # on a plane, which cubic interpolation reproduces
        y, x = np.mgrid[:9, :9] - 4
        np.testing.assert_allclose((filters * (2 * y - 3 * x)).sum(), -2 * shift[0] + 3 * shift[1])


def test_translation_filters_learn() -> None:
    """The shift can be found by following its gradient."""
    y, x = np.mgrid[:24, :24] / 3
    image = jnp.asarray(np.sin(y) + np.cos(1.3 * x), jnp.float32)[None, None, ..., None]

    def loss(shift: jax.Array) -> jax.Array:
        moved = ops.global_dynamic_convolution(
            image, ops.translation_filters(shift, 9)[None, None], backend="plain"
        )
        target = np.sin(y - 0.4) + np.cos(1.3 * x + 0.52)  # registered(y) = frame(y − s)
        return ((moved[0, 0, ..., 0] - target)[6:-6, 6:-6] ** 2).mean()

    shift, step = jnp.zeros(2), jax.jit(jax.grad(loss))
    for _ in range(200):
        shift = shift - 2.0 * step(shift)
    np.testing.assert_allclose(shift, [1.2, -1.2], atol=0.05)


def test_cross_correlation_is_given_shifts() -> None:
    """Frames that are shifted copies come to lie on frame 0; other systems refuse shifts."""
    config = dataclasses.replace(MODEL, registration="correlation", inpainting="none")
    params = init_params(config, jax.random.key(0))
    assert set(params) == {"sisrnet", "fusionnet"}
    images, masks = _stacks(16)
    images[:, 1] = np.roll(images[:, 0], (1, -2), (1, 2))
    shifts = np.array([[(0, 0), (-1, 2), (0, 0)]], np.float32)
    out = DeepSUM(config).apply({"params": params}, images, masks, False, shifts)
    expected = images.copy()
    expected[:, 1] = images[:, 0]
    base = np.asarray(out.base)[0, 3:-3, 3:-3]
    scale = output_scale(config)
    np.testing.assert_allclose(base, expected.mean(1)[0, 3:-3, 3:-3] * scale, atol=1e-4)
    with pytest.raises(ValueError, match=r"shifts: found shape None, expected \(1, 3, 2\)"):
        DeepSUM(config).apply({"params": params}, images, masks)
    other = init_params(MODEL, jax.random.key(0))
    with pytest.raises(ValueError, match=r"shifts: found shape \(1, 3, 2\), expected None"):
        DeepSUM(MODEL).apply({"params": other}, images, masks, False, shifts)


def test_without_registration_frames_stay() -> None:
    config = dataclasses.replace(MODEL, registration="none", inpainting="none")
    images, masks = _stacks()
    out = DeepSUM(config).apply({"params": init_params(config, jax.random.key(0))}, images, masks)
    expected = images.mean(1) * output_scale(config)
    np.testing.assert_allclose(out.base, expected, atol=1e-4)


def test_learned_shifts_make_filters() -> None:
    config = dataclasses.replace(MODEL, registration="shifts")
    params = init_params(config, jax.random.key(0))
    params["regnet"]["conv4"]["bias"] = np.array([1.0, -2.0], np.float32)
    params["regnet"]["conv4"]["kernel"] = np.zeros_like(params["regnet"]["conv4"]["kernel"])
    out = DeepSUM(config).apply({"params": params}, *_stacks())
    np.testing.assert_allclose(ops.filter_shift(out.filters)[0], [(1, -2)] * 2, atol=1e-5)


@pytest.mark.parametrize("registration", ["regnet", "shifts"])
def test_right_proposals_cost_nothing(registration: Any) -> None:
    """A RegNet that always proposes (1, −2), on versions that are shifted by that, and by more."""
    model = dataclasses.replace(MODEL, registration=registration)
    config = dataclasses.replace(TINY, model=model)
    params = stages.fresh_params(REGNET, model, jax.random.key(0))
    last = params["regnet"]["conv4"]
    last["kernel"] = np.zeros_like(last["kernel"])
    if registration == "shifts":
        last["bias"] = np.array([1, -2], np.float32)
    else:
        last["bias"] = np.zeros(25, np.float32)
        last["bias"][(2 - 1) * 5 + (2 + 2)] = 50  # the tap at (K//2 − s_y, K//2 − s_x)
    images = np.random.default_rng(0).standard_normal((2, 1, 16, 16, 1)).astype(np.float32)
    shifts = np.array([[(0, 0), (1, -2), (1, -2)], [(0, 0), (1, -2), (-1, -2)]], np.int32)
    loss, told = regnet_loss(
        params, {"images": jnp.asarray(images), "shifts": jnp.asarray(shifts)}, config
    )
    np.testing.assert_allclose(loss[0], 0, atol=1e-6)
    assert float(loss[1]) > 0.5
    np.testing.assert_allclose(told["accuracy"], [1, 0.5])


def test_inpainting_and_residual_can_be_left_out() -> None:
    images, masks = _stacks()
    masks[:, 1, :6] = False
    given = {"params": init_params(MODEL, jax.random.key(0))}
    whole = DeepSUM(MODEL).apply(given, images, masks)
    plain = DeepSUM(dataclasses.replace(MODEL, inpainting="none")).apply(given, images, masks)
    clear = DeepSUM(MODEL).apply(given, images, np.ones_like(masks))
    np.testing.assert_allclose(plain.sr, clear.sr, atol=1e-5)
    assert np.abs(plain.sr - whole.sr).max() > 1e-3
    bare = DeepSUM(dataclasses.replace(MODEL, global_residual=False)).apply(given, images, masks)
    np.testing.assert_allclose(bare.sr, whole.sr - whole.base, atol=1e-4)


def test_nonlocal_sisrnet() -> None:
    """Every second layer is a graph convolution in the place of the plain one."""
    config = dataclasses.replace(MODEL, neighbours=4, system="sisr")
    params = init_params(config, jax.random.key(0))["sisrnet"]
    assert set(params["conv0"]) == {"kernel", "bias"} and "local" in params["conv1"]
    with pytest.raises(ValueError, match="neighbours: found 113, expected 0 to 112"):
        param_shapes(dataclasses.replace(MODEL, neighbours=113))
    small = ModelConfig.from_dict({"neighbours": 41, "options": {"search": 7}})
    with pytest.raises(ValueError, match=r"neighbours: found 41, expected 0 to 40 \(of a 7×7"):
        param_shapes(small)
    images = np.random.default_rng(3).standard_normal((1, 2, 16, 16, 1)).astype(np.float32)
    network: Any = SISRNet(config, FAST)
    out = network.apply({"params": params}, images)
    first = dataclasses.replace(config, sisrnet_layers=1)
    x: Any = SISRNet(first, FAST).apply({"params": params}, images)
    x = GraphConv(config.features, config, FAST).apply({"params": params["conv1"]}, x)
    norm = params["norm1"]
    x = ops.leaky_relu(ops.instance_norm(jnp.asarray(x), norm["scale"], norm["bias"]))
    np.testing.assert_allclose(out, x, atol=1e-4)
    images[:, 0] = 0
    other = network.apply({"params": params}, images)
    np.testing.assert_allclose(other[0, 1], out[0, 1], atol=1e-5)  # frames do not mix
    config = dataclasses.replace(config, system="deepsum")
    given = {"params": init_params(config, jax.random.key(0))}
    whole = DeepSUM(config).apply(given, *_stacks(16))
    turned = DeepSUM(config, frame_by_frame=True).apply(given, *_stacks(16))
    np.testing.assert_allclose(turned.sr, whole.sr, atol=1e-4)


@pytest.mark.parametrize("code", range(8))
def test_shifts_turn_with_their_images(code: int) -> None:
    """A frame and its shift, turned together, still register on the turned reference."""
    rng = np.random.default_rng(1)
    frame = rng.standard_normal((12, 12))
    shift = (2, -1)
    reference = resample.translate(frame, shift)
    record = {
        "images": np.stack([reference, frame])[..., None],
        "frame_shifts": np.array([(0, 0), shift], np.float32),
    }
    turned = flip_and_rotate(record, code)
    moved = resample.translate(
        turned["images"][1, ..., 0], turned["frame_shifts"][1].astype(int).tolist()
    )
    np.testing.assert_array_equal(moved[3:-3, 3:-3], turned["images"][0, 3:-3, 3:-3, 0])


# --- every system through the same functions and commands


def test_sub_trees_and_stages() -> None:
    def of(**changes: Any) -> tuple[set[str], list[tuple[str, tuple[str, ...]]]]:
        model = dataclasses.replace(MODEL, **changes)
        plan = [(s.name, s.trains) for s in stages_of(model)]
        return set(param_shapes(model)), plan

    first = ("sisrnet", ("sisrnet", "sisr_head"))
    registers = ("regnet", ("regnet",))
    everything = ("deepsum", ("sisrnet", "regnet", "fusionnet"))
    assert of() == ({"sisrnet", "regnet", "fusionnet"}, [first, registers, everything])
    assert of(registration="shifts") == of()
    unregistered = ("deepsum", ("sisrnet", "fusionnet"))
    assert of(registration="none") == ({"sisrnet", "fusionnet"}, [first, unregistered])
    for given in ("correlation", "agreement"):
        assert of(registration=given) == of(registration="none")
    assert of(system="sisr") == of(system="sisr_mean") == ({"sisrnet", "sisr_head"}, [first])
    assert of(system="duf") == ({"duf"}, [("deepsum", ("duf",))])
    with pytest.raises(ValueError, match="IBP has nothing to train"):
        of(system="ibp")


def test_parameterless_systems_predict() -> None:
    stack, masks = _frames(4)
    for system, function in (("ibp", ibp), ("bicubic_mean", bicubic_mean)):
        bundle = Bundle({}, ModelConfig(system=system))
        result = predict(bundle, stack, masks, return_details=True)
        kept = list(result.frames_used)
        expected = function(stack[kept][..., None], masks[kept], 3)[..., 0]
        np.testing.assert_allclose(result.image, expected, rtol=1e-6)
        np.testing.assert_allclose(result.weights, 1 / len(kept))


def test_single_images_predict() -> None:
    """SISR sees the clearest frame alone; SISR+Mean of equal frames is SISR."""
    stack, _ = _frames(4)
    masks = np.ones(stack.shape, bool)
    masks[[0, 1, 3], 0, :2] = False
    single, mean = (
        dataclasses.replace(MODEL, system=system, residual_init="glorot")
        for system in ("sisr", "sisr_mean")
    )
    params = init_params(single, jax.random.key(1))
    norm = dataclasses.replace(MODEL.normalization, lr_mean=60.0, lr_std=20.0)
    single, mean = (dataclasses.replace(m, normalization=norm) for m in (single, mean))
    result = predict(Bundle(params, single), stack, masks, return_details=True)
    expected = sisr_image(params, stack[2][..., None].astype(np.float32), single, FAST)[..., 0]
    np.testing.assert_allclose(result.image, expected, atol=1e-4)
    assert result.reference_index == 2
    np.testing.assert_array_equal(result.weights, np.eye(4)[0])
    alike = np.stack([stack[2]] * 4)
    np.testing.assert_allclose(predict(Bundle(params, mean), alike), expected, atol=1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("systems") / "data"
    simulation = SimulationConfig(
        scenes=4, test_scenes=2, seed=0, lr_size=16, min_frames=5, max_frames=6
    )
    write_dataset(root, simulation)
    return root


def _structureless(data: Path, name: str) -> float:
    """cPSNR of an image of zeros."""
    (folder,) = [f for f in kelvins.find_scenes(data) if f.name == name]
    scene = kelvins.read_scene(folder)
    assert scene.hr is not None and scene.hr_mask is not None
    hr, mask = scene.hr[None, ..., None], scene.hr_mask[None, ..., None]
    return float(metrics.cpsnr(np.zeros(hr.shape, np.float32), hr, mask)[0])


@pytest.mark.parametrize(
    "settings",
    [
        # What does not start from an enlarged image needs some steps to get to one.
        ["model.system=sisr", "sisrnet.steps=80", "sisrnet.learning_rate=5e-3"],
        ["model.system=duf", "deepsum.steps=40", "deepsum.learning_rate=3e-3"],
        ["model.registration=correlation"],
        ["model.registration=shifts"],
        ["model.registration=none", "model.inpainting=none"],
        ["model.neighbours=4", "model.norm=batch"],
        ["model.mask_alignment=shifts", "data.reference=first"],
        ["model.inpainting=before_registration", "data.reference=given", "data.max_shift=6"],
    ],
    ids=" ".join,
)
def test_every_system_trains_and_scores(settings: list[str], data: Path, tmp_path: Path) -> None:
    few = {"steps": 2, "validate_every": 20, "checkpoint_every": 20}
    short = [f"{stage}.{field}={n}" for stage in stages.NAMES for field, n in few.items()]
    config = override(TINY, [*short, *settings])
    bundle = train.train(tmp_path / "w", config, data, progress=False)
    assert set(param_shapes(bundle.config)) <= set(bundle.params)
    summary, _ = scoring.evaluate(bundle, data, "test", compute=FAST)
    assert summary["n"] == 2
    # An image of zeros has some 36 dB: brightness correction makes it the mean of HR. Frames that
    # nobody registers are blurred; all else is about as good as a bicubic image.
    below = 6 if config.model.registration == "none" else 3
    for row in summary["scenes"]:
        assert row["cpsnr"] > _structureless(data, row["name"]) + 3
        assert row["cpsnr"] > row["bicubic"] - below
    assert ("registration" in summary) == (config.model.system == "deepsum")
    assert bundle.info.reference == config.data.reference
    assert (bundle.config.neighbours, bundle.config.norm) == (
        config.model.neighbours, config.model.norm,
    )  # fmt: skip


def test_commands_take_a_system(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main(["--system", "ibp", "--data", str(data), "--split", "test"])
    out = capsys.readouterr().out
    assert "IBP" in out and "over Bicubic+Mean" in out
    scene = next((data / "test" / "NIR").iterdir())
    predict_main(["--system", "bicubic_mean", "--output", str(tmp_path / "a.npy"), str(scene)])
    assert np.load(tmp_path / "a.npy").shape == (48, 48)
    refused = refuser(capsys)
    settings = ["--preset", "tiny", "--set", "model.system=ibp"]
    message = refused(train.main, "--workdir", tmp_path / "w", "--data", data, *settings)
    assert "nothing to train" in message and not (tmp_path / "w").exists()
