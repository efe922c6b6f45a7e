"""The loss of unrolled back-projection: what it punishes and forgives, and that it is safe."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FAST, UNROLLED, fields

from deepsum_jax.config import Settings, TrainConfig, preset
from deepsum_jax.data.sensor import observe
from deepsum_jax.systems import unrolled
from deepsum_jax.systems.table import init_params

Batch = dict[str, np.ndarray]
Truth = Literal["grid", "registered"]
BOTH = pytest.mark.parametrize("truth", ["grid", "registered"])
SHIFTS = np.array([(0, 0), (1, -2), (-0.6, 1.3)], np.float32)
SIDE = 12


def config(truth: Truth = "grid") -> TrainConfig:
    options = Settings({**UNROLLED.options, "truth": truth})
    model = dataclasses.replace(UNROLLED, options=options)
    return dataclasses.replace(preset("tiny"), model=model, compute=FAST)


@functools.cache
def params() -> Any:
    return init_params(UNROLLED, jax.random.key(2))


def make_batch(frames: int = 3) -> Batch:
    """Two stacks, in units of their contrast."""
    hr = np.stack([(fields(3 * SIDE, n) - 6000) / 600 for n in (0, 1)]).astype(np.float32)
    lr = np.stack([[observe(image, shift, 3) for shift in SHIFTS[:frames]] for image in hr])
    lr += np.random.default_rng(0).normal(0, 0.02, lr.shape).astype(np.float32)
    return {
        "frames": lr[..., None],
        "masks": np.ones((*lr.shape, 1), bool),
        "frame_shifts": np.stack([SHIFTS[:frames]] * 2),
        "noise": np.full(2, 0.02, np.float32),
        "hr": hr[..., None],
        "hr_mask": np.ones((*hr.shape, 1), bool),
    }


@functools.cache
def _compiled(truth: Truth) -> Any:
    def total(params: Any, batch: Any) -> Any:
        loss, told = unrolled.loss(params, batch, config(truth))
        return loss.sum(), (loss, told)

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def evaluate(truth: Truth, batch: Batch) -> tuple[np.ndarray, dict[str, np.ndarray], Any]:
    """Losses [2], diagnostics and the gradient."""
    (_, (loss, told)), gradient = _compiled(truth)(params(), batch)
    return np.asarray(loss), {k: np.asarray(v) for k, v in told.items()}, gradient


def size(gradient: Any) -> float:
    return float(np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradient))))


@functools.cache
def _image() -> np.ndarray:
    """SR [2, H, W, 1] of the batch."""
    run = jax.jit(lambda params, batch: unrolled.run(params, batch, UNROLLED, FAST).sr)
    return np.asarray(run(params(), make_batch()))[..., None]


# --- what the truth is


def test_place_and_brightness_are_part_of_the_truth_or_not() -> None:
    """HR is the network's own image, as it is, moved, and brighter."""
    sr, batch = _image(), make_batch()
    truths = {"same": sr, "moved": np.roll(sr, (1, -2), (1, 2)), "brighter": sr + 0.5}
    found = {
        (truth, name): evaluate(truth, {**batch, "hr": hr})[1]["decibels"]
        for truth in ("grid", "registered")
        for name, hr in truths.items()
    }
    for name in truths:  # the least error that counts is 60 dB below the contrast
        np.testing.assert_allclose(found["registered", name], 60, atol=0.5, err_msg=name)
    np.testing.assert_allclose(found["grid", "same"], 60, atol=0.1)
    np.testing.assert_allclose(found["grid", "brighter"], -20 * np.log10(0.5), atol=0.01)
    error = np.square(truths["moved"] - sr)[:, 3:-3, 3:-3].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found["grid", "moved"], -10 * np.log10(error), atol=0.01)
    assert found["grid", "moved"].max() < 20


def test_loss_by_hand() -> None:
    """Every term in double precision from the network's output."""
    batch = make_batch()
    batch["hr_mask"][0, 5:20, 7:30] = False
    out = jax.jit(lambda p, b: unrolled.run(p, b, UNROLLED, FAST))(params(), batch)
    loss, told, _ = evaluate("grid", batch)
    for n in (0, 1):
        known = batch["hr_mask"][n, 3:-3, 3:-3, 0]

        def inner(x: Any, n: int = n, known: np.ndarray = known) -> np.ndarray:
            return np.asarray(x, np.float64)[n, 3:-3, 3:-3][known]

        hr, log_variance = inner(batch["hr"][..., 0]), inner(out.log_variance)
        square = (inner(out.sr) - hr) ** 2
        fused, own = np.log(square.mean() + 1e-6), np.log(((inner(out.own) - hr) ** 2).mean())
        likely = (log_variance + square / np.exp(log_variance)).mean()
        expected = fused + 0.5 * own + max(0, fused - own) + 0.05 * likely
        np.testing.assert_allclose(loss[n], expected, rtol=1e-4)
        np.testing.assert_allclose(told["decibels"][n], -10 * fused / np.log(10), rtol=1e-4)
        np.testing.assert_allclose(told["own_decibels"][n], -10 * own / np.log(10), rtol=1e-4)


def test_the_standard_error_learns_on_the_grid_alone() -> None:
    """Where HR may lie elsewhere, its pixels do not tell how wrong each one is."""
    batch = make_batch()
    assert size(evaluate("grid", batch)[2]["error"]) > 1e-3
    assert size(evaluate("registered", batch)[2]["error"]) == 0
    for truth in ("grid", "registered"):
        for part in ("own", "agreement", "fusion"):
            assert size(evaluate(truth, batch)[2][part]) > 1e-4, (truth, part)


def test_the_standard_error_does_not_move_the_image() -> None:
    """However sure the network is, its images learn the same."""
    batch = make_batch()
    before = evaluate("grid", batch)[2]
    sure = jax.tree.map(np.asarray, params())
    leave = {**sure["error"]["leave"], "bias": sure["error"]["leave"]["bias"] - 2}
    sure["error"] = {**sure["error"], "leave": leave}
    _, after = _compiled("grid")(sure, batch)
    wanted, found = (np.asarray(g["fusion"]["leave"]["kernel"]) for g in (before, after))
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


# --- what masks hide


@BOTH
def test_what_hr_hides_has_no_say(truth: Truth) -> None:
    batch = make_batch()
    batch["hr_mask"] = np.random.default_rng(1).random(batch["hr"].shape) < 0.8
    loss, told, gradient = evaluate(truth, batch)
    for value in (1e4, np.nan, np.inf):
        other = {**batch, "hr": np.where(batch["hr_mask"], batch["hr"], value).astype(np.float32)}
        again, told_again, gradient_again = evaluate(truth, other)
        np.testing.assert_array_equal(again, loss)
        jax.tree.map(np.testing.assert_array_equal, told_again, told)
        jax.tree.map(np.testing.assert_array_equal, gradient_again, gradient)


@BOTH
def test_what_frames_hide_has_no_say(truth: Truth) -> None:
    batch = make_batch()
    batch["masks"] = np.random.default_rng(2).random(batch["masks"].shape) < 0.8
    batch["masks"][:, 0] = True
    loss, _, gradient = evaluate(truth, batch)
    batch["frames"] = np.where(batch["masks"], batch["frames"], 50).astype(np.float32)
    again, _, gradient_again = evaluate(truth, batch)
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * size(gradient)),
        gradient_again,
        gradient,
    )


def alone(batch: Batch) -> None:
    batch |= {name: batch[name][:, :1] for name in ("frames", "masks", "frame_shifts")}


def others_masked(batch: Batch) -> None:
    batch["masks"][:, 1:] = False


def all_masked(batch: Batch) -> None:
    batch["masks"][:] = False


def padded(batch: Batch) -> None:
    for name in ("frames", "masks", "frame_shifts"):
        batch[name][:, 1:] = 0


def constant(batch: Batch) -> None:
    batch["frames"][:] = batch["hr"][:] = batch["noise"][:] = 0


def exact(batch: Batch) -> None:
    batch["hr"] = _image()


def hidden(batch: Batch) -> None:
    batch["hr_mask"][0] = False


@BOTH
@pytest.mark.parametrize(
    "change", [alone, others_masked, all_masked, padded, constant, exact, hidden]
)
def test_loss_and_gradient_are_finite(change: Any, truth: Truth) -> None:
    batch = make_batch()
    change(batch)
    loss, told, gradient = evaluate(truth, batch)
    for value in (loss, *told.values(), *jax.tree.leaves(gradient)):
        assert np.isfinite(value).all()
    if change in (alone, others_masked, all_masked, padded):
        assert size((gradient["agreement"], gradient["fusion"]["leave"])) <= 1e-6 * size(gradient)
        np.testing.assert_array_equal(told["decibels"], told["own_decibels"])


@BOTH
def test_stacks_do_not_mix(truth: Truth) -> None:
    batch = make_batch()
    loss, _, _ = evaluate(truth, batch)
    other = {name: value[::-1].copy() for name, value in batch.items()}
    np.testing.assert_allclose(evaluate(truth, other)[0], loss[::-1], rtol=1e-5)


def test_a_target_that_shows_nothing_teaches_nothing() -> None:
    batch = make_batch()
    batch["hr_mask"][:] = False
    loss, _, gradient = evaluate("grid", batch)
    assert np.isfinite(loss).all() and size(gradient) == 0
    assert float(jnp.ptp(loss)) == 0
