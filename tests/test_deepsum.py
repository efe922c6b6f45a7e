"""The assembled network: ways of running it agree, and masks reach frame 0's grid as stated."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsum_jax import Compute, DeepSUM, ModelConfig, losses
from deepsum_jax.config import Backend
from deepsum_jax.model.deepsum import Output
from deepsum_jax.model.layers import apply
from deepsum_jax.systems.table import init_params

CONFIG = ModelConfig(num_frames=5, features=4, filter_size=5, sisrnet_layers=2)
COMPUTE = Compute(dtype="float64", param_dtype="float64", backend="accelerator")


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def _stacks(batch: int = 2, side: int = 10) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, CONFIG.num_frames, side, side, 1))
    return images, rng.random((batch, CONFIG.num_frames, side, side, 1)) < 0.7


def _params(config: ModelConfig, scale: float = 3.0) -> Any:
    """Larger than fresh ones, so that filters are far from flat."""
    params = init_params(config, jax.random.key(0), COMPUTE)
    return {**params, "regnet": jax.tree.map(lambda x: scale * x, params["regnet"])}


def _run(
    params: Any,
    images: Any,
    masks: Any,
    registered: bool = False,
    config: ModelConfig = CONFIG,
    compute: Compute = COMPUTE,
    frame_by_frame: bool = False,
) -> Output:
    return apply(DeepSUM(config, compute, frame_by_frame), params, images, masks, registered)


@pytest.mark.parametrize("inpainting", ["after_registration", "before_registration"])
@pytest.mark.parametrize("registered", [False, True])
def test_frame_by_frame_is_the_same(inpainting: Any, registered: bool) -> None:
    config = dataclasses.replace(CONFIG, inpainting=inpainting)
    images, masks = _stacks()
    given = _params(config)
    whole = _run(given, images, masks, registered, config)
    turned = _run(given, images, masks, registered, config, frame_by_frame=True)
    for a, b in zip(whole, turned, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-12)
    assert np.ptp(np.asarray(whole[0])) > 0.1


def test_frame_by_frame_initialises_alike() -> None:
    images, masks = _stacks(1)
    one, other = (
        DeepSUM(CONFIG, COMPUTE, frame_by_frame=turn).init(jax.random.key(3), images, masks)
        for turn in (False, True)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)  # and the structures


def test_rematerialised_training_is_the_same() -> None:
    """Equal gradients; on accelerators the layers really are computed again."""
    images, masks = _stacks()
    hr, clear = jnp.asarray(images[:, 0]), jnp.asarray(masks[:, 0])

    def gradient(compute: Compute) -> Any:
        def loss(params: Any) -> jax.Array:
            out = _run(params, images, masks, compute=compute)
            return losses.registered_mse(out.sr, hr, clear, border=1).sum()

        return jax.jit(jax.grad(loss))

    params = _params(CONFIG)
    kept, again = (
        gradient(dataclasses.replace(COMPUTE, rematerialize=choice)) for choice in (False, True)
    )
    for a, b in zip(jax.tree.leaves(kept(params)), jax.tree.leaves(again(params)), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-10)

    def convolutions(function: Any) -> int:
        text = function.trace(params).lower(lowering_platforms=("cuda",)).as_text()
        return text.count("stablehlo.convolution")

    assert convolutions(again) > convolutions(kept)


def test_masks_by_filters() -> None:
    """A frame is reliable where enough of what its filter gathers is; frame 0's mask stays."""
    images, masks = _stacks()
    out = _run(_params(CONFIG), images, masks)
    filters, aligned = np.asarray(out.filters), np.asarray(out.masks)
    side, reach = masks.shape[2], CONFIG.filter_size // 2
    np.testing.assert_array_equal(aligned[:, 0], masks[:, 0])
    padded = np.pad(masks[..., 0], [(0, 0)] * 2 + [(reach, reach)] * 2, mode="reflect")
    seen = set()
    for b, n, y, x in np.ndindex(len(masks), CONFIG.num_frames - 1, side, side):
        window = padded[b, n + 1, y : y + CONFIG.filter_size, x : x + CONFIG.filter_size]
        fraction = (filters[b, n] * window).sum()
        if abs(fraction - CONFIG.mask_threshold) > 1e-3:
            assert aligned[b, n + 1, y, x, 0] == (fraction > CONFIG.mask_threshold)
            seen.add(bool(aligned[b, n + 1, y, x, 0]))
    assert seen == {False, True}


def test_threshold_of_masks() -> None:
    """The higher the threshold, the fewer pixels count; a clear stack is clear at any."""
    images, masks = _stacks()
    given = _params(CONFIG, 1.0)
    counts = []
    for threshold in (0.1, 0.6, 1.0):
        config = dataclasses.replace(CONFIG, mask_threshold=threshold)
        counts.append(int(_run(given, images, masks, config=config).masks[:, 1:].sum()))
        clear = _run(given, images, np.ones_like(masks), config=config).masks
        assert clear.all()
    assert counts[0] > counts[1] > counts[2]


def test_registered_masks_are_used_as_they_are() -> None:
    images, masks = _stacks()
    out = _run(_params(CONFIG), images, masks, True)
    np.testing.assert_array_equal(out.masks, masks)


@pytest.mark.parametrize(
    ("images", "masks", "named"),
    [
        ((1, 3, 8, 8, 1), (1, 3, 8, 8, 1), "images"),  # frames
        ((1, 5, 8, 8, 2), (1, 5, 8, 8, 1), "images"),  # channels
        ((5, 8, 8, 1), (5, 8, 8, 1), "images"),  # rank
        ((1, 5, 8, 8, 1), (1, 5, 8, 8), "masks"),
        ((1, 5, 2, 8, 1), (1, 5, 2, 8, 1), "pixels"),
    ],
)
def test_shapes_are_checked(images: tuple[int, ...], masks: tuple[int, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        _run(_params(CONFIG), np.zeros(images), np.zeros(masks, bool))


# --- plain definitions


def test_formulations_agree() -> None:
    """The whole network and its gradient: plain definitions and each platform's formulations."""
    images, masks = _stacks()
    hr, clear = jnp.asarray(images[:, 0]), jnp.asarray(masks[:, 0])
    params = _params(CONFIG)

    def evaluate(backend: Backend) -> Any:
        compute = dataclasses.replace(COMPUTE, backend=backend)

        def loss(params: Any) -> tuple[jax.Array, Output]:
            out = _run(params, images, masks, compute=compute)
            return losses.registered_mse(out.sr, hr, clear, border=1).sum(), out

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    plain = evaluate("plain")
    others: tuple[Backend, ...] = ("cpu", "accelerator", "auto")
    for backend in others:
        for a, b in zip(jax.tree.leaves(evaluate(backend)), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("inpainting", ["after_registration", "before_registration", "none"])
def test_forward_derivatives(inpainting: Any) -> None:
    """Of the plain definitions, by parameters and images at once: as differences and the adjoint
    have them."""
    config = dataclasses.replace(CONFIG, inpainting=inpainting)
    images, masks = _stacks()
    rng = np.random.default_rng(1)
    at = _params(config), images
    direction = jax.tree.map(lambda x: rng.standard_normal(x.shape) * 0.1, at)
    weights = rng.standard_normal((2, 10, 10, 1))
    compute = dataclasses.replace(COMPUTE, backend="plain")

    # Registered masks: those that filters align jump where a pixel meets the threshold.
    @jax.jit
    def sr(params: Any, images: Any) -> jax.Array:
        return _run(params, images, masks, True, config, compute).sr

    _, slope = jax.jit(lambda at, direction: jax.jvp(sr, at, direction))(at, direction)
    _, pull = jax.vjp(sr, *at)
    adjoint = pull(jnp.asarray(weights))
    along = sum(
        float(np.sum(np.asarray(g) * d))
        for g, d in zip(jax.tree.leaves(adjoint), jax.tree.leaves(direction), strict=True)
    )
    assert np.sum(np.asarray(slope) * weights) == pytest.approx(along, rel=1e-9)
    step = 1e-6  # few values cross the activation's kink within it
    ends = [
        np.asarray(sr(*jax.tree.map(lambda x, d, s=s: x + s * d, at, direction)))
        for s in (step, -step)
    ]
    difference = (ends[0] - ends[1]) / (2 * step)
    assert np.abs(difference).max() > 0.1
    np.testing.assert_allclose(slope, difference, rtol=0, atol=1e-4 * np.abs(difference).max())
