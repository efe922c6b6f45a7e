"""Training unrolled back-projection: from half precision, cut off and gone on with, on devices."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import FAST, UNROLLED, fields

from deepsum_jax import Bundle, load_params, predict, save_params
from deepsum_jax.bundle import params_digest
from deepsum_jax.config import Compute, TrainConfig, override, preset
from deepsum_jax.data import kelvins
from deepsum_jax.data.sensor import observe
from deepsum_jax.systems.table import init_params
from deepsum_jax.systems.unrolled import END_TO_END, OWN, network, own_loss, run
from deepsum_jax.training import loop, parallel, stages
from deepsum_jax.training.run import train
from deepsum_jax.training.step import gradients

SETTINGS = [
    "sisrnet.steps=3", "deepsum.steps=7", "deepsum.checkpoint_every=2", "deepsum.validate_every=5",
    "data.ground=changing", "data.reference=given", "data.min_lr_clearance=0.4",
    "data.min_hr_clearance=0.4", "data.max_value=0", "data.fewer_frames=0.4",
    "simulation.min_frames=2", "simulation.max_frames=4",
]  # fmt: skip
CONFIG = override(dataclasses.replace(preset("tiny"), model=UNROLLED, compute=FAST), SETTINGS)
QUIET: Mapping[str, Any] = {"progress": False, "report": False}


def leaves(tree: Any) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(v) for p, v in found}


def bits(folder: Path) -> dict[str, bytes]:
    return {path: leaf.tobytes() for path, leaf in leaves(load_params(folder).params).items()}


def half_bundle(folder: Path) -> Bundle:
    """As the package ships parameters."""
    params = init_params(UNROLLED, jax.random.key(3))
    half = jax.tree.map(lambda x: x.astype(np.float16), params)
    save_params(folder, Bundle(half, UNROLLED))
    return load_params(folder)


def test_cut_off_in_the_middle_it_ends_in_the_same_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From parameters in half precision, in float32, on ground that changes."""
    # The step is the same in all runs: compiled once.
    monkeypatch.setattr(parallel, "map_train_step", functools.cache(parallel.map_train_step))
    half = half_bundle(tmp_path / "half")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    bundle = train(whole, CONFIG, init=tmp_path / "half", **QUIET)
    data = whole / "data"

    def cut_off(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_validate", cut_off)
        with pytest.raises(KeyboardInterrupt):  # at step 5, the last checkpoint is that of step 4
            train(broken, CONFIG, data, init=tmp_path / "half", **QUIET)
    assert not (broken / "deepsum" / "last").exists()
    train(broken, CONFIG, data, **QUIET)
    for place in ("deepsum/last", "deepsum/best"):
        assert bits(broken / place) == bits(whole / place)

    last, start = leaves(load_params(whole / "deepsum/last").params), leaves(half.params)
    assert {leaf.dtype for leaf in last.values()} == {np.dtype(np.float32)}
    moved = {path: np.abs(last[path] - start[path]).max() for path in start}
    assert min(m for path, m in moved.items() if path.endswith("kernel")) > 0
    assert max(moved.values()) < 0.02  # seven steps of Adam, no leap
    assert bundle.info.parent == params_digest(tmp_path / "half") and bundle.info.stage == "deepsum"
    records = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    told = [r["step"] for r in records if "loss" in r]
    assert told == list(range(1, 8))
    assert all(np.isfinite([r["decibels"], r["own_decibels"]]).all() for r in records if
               "loss" in r)  # fmt: skip

    scene = kelvins.read_scene(kelvins.find_scenes(data)[0])
    result = predict(
        load_params(whole), scene.lr, scene.masks, reference=scene.reference, return_details=True,
        compute=FAST,
    )  # fmt: skip
    assert result.image.shape == (48, 48)
    assert result.standard_error is not None and result.frames_per_pixel is not None
    assert result.standard_error.shape == result.frames_per_pixel.shape == (48, 48)
    assert np.isfinite(result.image).all() and (result.standard_error > 0).all()


def test_handed_over_parameters_take_the_run_s_precision() -> None:
    half = jax.tree.map(lambda x: x.astype(np.float16), init_params(UNROLLED, jax.random.key(3)))
    for dtype in (np.float32, np.float64):
        compute = Compute(param_dtype=np.dtype(dtype).name)  # type: ignore[arg-type]
        fresh = stages.fresh_params(END_TO_END, UNROLLED, jax.random.key(4), compute)
        given = {name: half[name] for name in ("own", "error")}
        out = stages.hand_over(fresh, given, "a test")
        assert {leaf.dtype for leaf in leaves(out).values()} == {np.dtype(dtype)}
        for path, leaf in leaves(out).items():
            source = half if path.split("/")[0] in given else fresh
            np.testing.assert_array_equal(leaf, leaves(source)[path].astype(dtype))
    with pytest.raises(ValueError, match=r"a test do not fit: missing own/enter/bias"):
        stages.hand_over(fresh, {"own": {}}, "a test")


def make_batch(size: int = 4) -> dict[str, np.ndarray]:
    """Stacks of one, two and three frames, as records have them."""
    rng = np.random.default_rng(0)
    hr = np.stack([(fields(24, n) - 6000) / 600 for n in range(size)]).astype(np.float32)
    shifts = rng.uniform(-2, 2, (size, 3, 2)).astype(np.float32)
    shifts[:, 0] = 0
    lr = [[observe(image, s, 3) for s in of_stack] for image, of_stack in zip(hr, shifts)]
    frames = np.asarray(lr, np.float32) + rng.normal(0, 0.03, (size, 3, 8, 8)).astype(np.float32)
    masks = rng.random(frames.shape) < 0.95
    masks[0, 1:] = masks[1, 2] = False
    return {
        "frames": frames[..., None],
        "masks": masks[..., None],
        "frame_shifts": shifts,
        "noise": np.full(size, 0.03, np.float32),
        "hr": hr[..., None],
        "hr_mask": rng.random((*hr.shape, 1)) < 0.9,
    }


def test_the_first_stage_learns_the_reference_s_own_image() -> None:
    """The whole network's, in which other frames have no say, by its own parameters."""
    batch: Any = make_batch()
    params = init_params(UNROLLED, jax.random.key(5))
    output = run(params, batch, UNROLLED, FAST)
    alone: Any = jax.vmap(
        lambda frame, mask, noise: network(UNROLLED, FAST).apply(
            {"params": params}, frame, mask, noise, True, method="reference_alone"
        )
    )(batch["frames"][:, 0, ..., 0], batch["masks"][:, 0, ..., 0], batch["noise"])
    np.testing.assert_allclose(alone, output.own, atol=1e-4)
    found, told = own_loss({"own": params["own"]}, batch, CONFIG)
    square = np.where(batch["hr_mask"], (np.asarray(output.own)[..., None] - batch["hr"]) ** 2, 0)
    inner = (slice(None), slice(3, -3), slice(3, -3))
    mean = square[inner].sum(axis=(1, 2, 3)) / batch["hr_mask"][inner].sum(axis=(1, 2, 3))
    np.testing.assert_allclose(found, np.log(mean), rtol=1e-3)
    np.testing.assert_allclose(told["own_decibels"], -10 * np.log10(mean), rtol=1e-3)
    gradient, _ = gradients({"own": params["own"]}, batch, OWN, CONFIG)
    assert set(gradient) == {"own"} and END_TO_END.takes == ("own",)
    assert all(np.abs(leaf).max() > 0 for leaf in leaves(gradient).values())


def test_both_stages_in_a_row(tmp_path: Path) -> None:
    """The second begins with what the first has learned, and each is judged by its own images."""
    train(tmp_path / "w", CONFIG, only=("sisrnet",), **QUIET)
    first = load_params(tmp_path / "w" / "sisrnet/last")
    assert set(first.params) == {"own"} and (first.info.validation_cpsnr or 0) > 10
    train(tmp_path / "w", CONFIG, only=("deepsum",), **QUIET)
    records = [json.loads(x) for x in (tmp_path / "w/metrics.jsonl").read_text().splitlines()]
    assert {r["stage"] for r in records} == {"sisrnet", "deepsum"}
    before, after = leaves(first.params), leaves(load_params(tmp_path / "w/deepsum/last").params)
    moved = {path: np.abs(after[path] - value).max() for path, value in before.items()}
    assert max(moved.values()) < 0.02


def mapped(config: TrainConfig, count: int) -> Any:
    return jax.pmap(
        lambda params, batch: gradients(params, batch, END_TO_END, config, parallel.AXIS),
        parallel.AXIS, in_axes=(None, 0), out_axes=(None, None), devices=jax.devices()[:count],
    )  # fmt: skip


def test_devices_agree_and_the_gradient_leads_down() -> None:
    batch, params = make_batch(), init_params(UNROLLED, jax.random.key(5))
    batch["hr_mask"][3] = False  # a target that shows nothing, on one of two devices
    found = {}
    for count in (1, 2):
        given = parallel.shard(batch, jax.devices()[:count])
        run = mapped(CONFIG, count)
        gradient, metrics = run(params, given)
        found[count] = leaves(gradient), float(metrics["loss"])
    np.testing.assert_allclose(found[2][1], found[1][1], rtol=1e-5)
    for path, value in found[1][0].items():
        error = np.linalg.norm(found[2][0][path] - value)
        assert error <= 1e-3 * np.linalg.norm(value), path
    for part in END_TO_END.trains:
        of_part = [v for path, v in found[1][0].items() if path.startswith(part)]
        assert max(np.abs(v).max() for v in of_part) > 1e-3, part
    losses = []
    for _ in range(25):
        gradient, metrics = run(params, given)
        losses.append(float(metrics["loss"]))
        length = np.sqrt(sum(np.square(g).sum() for g in leaves(gradient).values()))
        params = jax.tree.map(lambda p, g, n=length: p - 0.03 * np.asarray(g) / n, params, gradient)
    assert losses[-1] < losses[0] - 0.3
