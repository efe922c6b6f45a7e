"""Numbers that go wrong: skipped, told and kept for inspection; and what diverges stops."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FAST, delta_bundle

from deepsum_jax import Bundle, load_params, predict, save_params
from deepsum_jax.config import StageConfig, override, preset
from deepsum_jax.data import kelvins, patches
from deepsum_jax.data.prepare import SceneSkipped, prepare_scene
from deepsum_jax.simulation.dataset import write_dataset
from deepsum_jax.systems.system import Stage
from deepsum_jax.training.run import train
from deepsum_jax.training.soundness import Step, Watch
from deepsum_jax.training.step import init_state, make_train_step

TINY = preset("tiny")
CONFIG = dataclasses.replace(override(TINY, ["model.system=sisr"]), compute=FAST)
OPTIONS: dict[str, Any] = {"progress": False, "report": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes") / "data"
    write_dataset(root, dataclasses.replace(TINY.simulation, scale=TINY.model.scale))
    return root


# --- one step


def linear(params: Any, batch: Any, config: Any, axis_name: Any) -> Any:
    loss = (params["a"]["w"] * batch["x"]).sum(axis=-1)
    return loss, {}


LINEAR = Stage("sisrnet", linear, trains=("a",), view="frames", uses=("b",))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_a_step_that_is_not_finite_changes_nothing_but_its_count(value: float) -> None:
    """3e38 is finite, but not the gradient's norm, nor the square that Adam would keep."""
    params = {"a": {"w": jnp.ones(3)}, "b": {"w": jnp.ones(2)}}
    state = init_state(params, LINEAR, CONFIG)
    step = jax.jit(make_train_step(LINEAR, CONFIG))
    state, metrics = step(state, {"x": np.ones((4, 3), np.float32)})
    assert metrics["skipped"] == 0 and (state.params["a"]["w"] != 1).all()
    x = np.ones((4, 3), np.float32)
    x[2, 1] = value
    after, metrics = step(state, {"x": x})
    assert metrics["skipped"] == 1 and after.step == 2
    for old, new in zip(jax.tree.leaves(state[1:]), jax.tree.leaves(after[1:]), strict=True):
        np.testing.assert_array_equal(old, new)


def test_an_update_that_would_not_be_finite_is_skipped() -> None:
    config = override(CONFIG, ["sisrnet.learning_rate=3e38"])
    params = {"a": {"w": jnp.full(3, -3e38)}, "b": {"w": jnp.ones(2)}}
    state = init_state(params, LINEAR, config)
    step = jax.jit(make_train_step(LINEAR, config))
    after, metrics = step(state, {"x": np.full((4, 3), 1e-3, np.float32)})
    assert np.isfinite(metrics["loss"]) and metrics["skipped"] == 1
    np.testing.assert_array_equal(after.params["a"]["w"], params["a"]["w"])


# --- which are sound


def watch(folder: Path, told: list[str], log_loss: bool = False, **settings: Any) -> Watch:
    stage = dataclasses.replace(LINEAR, log_loss=log_loss)
    return Watch(stage, StageConfig(**settings), folder, lambda r: ["NIR/x"], told.append)


def step(number: int, loss: float, skipped: float = 0.0) -> Step:
    metrics = {"loss": loss, "gradient_norm": 1.0, "skipped": skipped}
    return Step(number, metrics, {"x": np.full((2, 2, 3), number)}, np.array([0, 0, 1, 1]))


def test_spikes_do_not_stop_and_explosions_do(tmp_path: Path) -> None:
    """Nine in a row are survived, ten are not; a batch that shows nothing has no say."""
    one = watch(tmp_path, [])
    losses = [0.0, 5.0, *[4999.0] * 30, *[5001.0] * 9, 4.0, *[np.nan] * 3, *[1e9] * 6]
    for number, loss in enumerate(losses, 1):
        one.judge(step(number, loss, float(not np.isfinite(loss))))
    with pytest.raises(ValueError, match=r"unsound for 10 steps in a row.*1e\+09 .*was 5\).*NIR/x"):
        one.judge(step(99, 1e9))


def test_losses_below_one_may_rise_to_it(tmp_path: Path) -> None:
    one = watch(tmp_path, [], max_unsound=1)
    for loss in (1e-4, 900.0):
        one.judge(step(1, loss))
    with pytest.raises(ValueError, match=r"unsound for 1 step, the last with a loss of 1.1e"):
        one.judge(step(2, 1100.0))


def test_logarithms_of_errors(tmp_path: Path) -> None:
    one = watch(tmp_path, [], log_loss=True, max_unsound=1)
    for loss in (-8.0, -20.0, 6.8):
        one.judge(step(1, loss))
    with pytest.raises(ValueError, match="a loss of 7"):
        one.judge(step(2, 7.0))


def test_a_batch_is_kept_with_the_names_of_its_scenes(tmp_path: Path) -> None:
    told: list[str] = []
    watch(tmp_path, told).judge(step(7, np.nan, 1.0))
    place = tmp_path / "skipped_000007.npz"
    assert told == [
        f"sisrnet step 7: a loss of nan; update skipped, its batch (of NIR/x) kept in {place}"
    ]
    with np.load(place) as kept:
        assert kept["x"].shape == (4, 3) and (kept["x"] == 7).all()
        assert list(kept["scenes"]) == ["NIR/x"] * 4 and np.isnan(kept["metric_loss"])


# --- a training


@pytest.mark.parametrize(("rate", "steps"), [("1e6", 1), ("1e30", 6)])
def test_what_diverges_stops_and_goes_on_at_a_lower_rate(
    rate: str, steps: int, data: Path, tmp_path: Path
) -> None:
    wild = override(CONFIG, [f"sisrnet.learning_rate={rate}", f"sisrnet.steps={steps}"])
    with pytest.raises(
        ValueError, match=r"sisrnet: stopped at step .* lower sisrnet.learning_rate"
    ):
        train(tmp_path / "w", wild, data, **OPTIONS)
    assert not list((tmp_path / "w").rglob("bundle.json"))
    calm = override(wild, ["sisrnet.learning_rate=1e-3"])
    bundle = train(tmp_path / "w", calm, data, **OPTIONS)
    assert bundle.info.step <= steps
    with pytest.raises(ValueError, match=r"sisrnet.learning_rate is 0.001 there and 0.0001 here"):
        train(tmp_path / "w", override(calm, ["sisrnet.learning_rate=1e-4"]), data, **OPTIONS)


def test_a_bad_batch_is_passed_over(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even the last of a stage: its state is that of the step before, and sound."""
    plain, drawn = patches._Finish.__call__, []

    def broken(self: Any, position: int, index: int) -> Any:
        record = plain(self, position, index)
        drawn.append(index)
        if 12 <= position < 16:  # the fourth batch
            record["images"] = np.full_like(record["images"], np.nan)
        return record

    monkeypatch.setattr(patches._Finish, "__call__", broken)
    bundle = train(tmp_path / "w", CONFIG, data, **OPTIONS)
    assert "sisrnet step 4: a loss of nan; update skipped" in "".join(capsys.readouterr())
    with np.load(tmp_path / "w/sisrnet/skipped_000004.npz") as kept:
        assert (
            set(kept["scenes"]) <= set(bundle.info.train_scenes) and np.isnan(kept["images"]).all()
        )
    records = (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()
    assert sum('"skipped": 1.0' in line for line in records) == 1 and "NaN" not in str(records)
    last = load_params(tmp_path / "w/sisrnet/last")
    assert last.info.step == 4


# --- bundles and images


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "not finite"), (np.inf, "not finite"), (2e5, "value of 2e\\+05"), (None, "int32")],
)
def test_parameters_that_cannot_be(
    value: float | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = delta_bundle()
    bias = bundle.params["regnet"]["conv4"]["bias"]
    if value is None:
        bundle.params["regnet"]["conv4"]["bias"] = bias.astype(np.int32)
    else:
        bias[1] = value
    with pytest.raises(ValueError, match=f"parameter regnet/conv4/bias .*{words}.*; not written"):
        save_params(tmp_path / "b", bundle)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("deepsum_jax.bundle.fault_of", lambda params: None)
    save_params(tmp_path / "b", bundle)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"b: found parameter regnet/conv4/bias .*{words}"):
        load_params(tmp_path / "b")


def test_an_image_that_is_not_finite_is_refused() -> None:
    bundle = delta_bundle()
    params = jax.tree.map(lambda x: np.full_like(x, np.nan), bundle.params)
    stack = np.random.default_rng(0).normal(7700, 2000, (3, 8, 8))
    with pytest.raises(ValueError, match="576 of 576 pixels of the image not finite"):
        predict(Bundle(params, bundle.config), stack)


# --- scenes


@pytest.mark.parametrize("level", [0.0, 7000.0, 65535.0])
def test_scenes_that_show_nothing_are_skipped(level: float, data: Path) -> None:
    """Constant, black or saturated, but for a few pixels."""
    scene = kelvins.read_scene(next(f for f in kelvins.find_scenes(data) if f.part == "train"))
    assert scene.hr is not None
    model, settings = TINY.model, dataclasses.replace(TINY.data, max_value=0, max_shift=9)
    few = np.arange(scene.hr.size).reshape(scene.hr.shape) % 40 == 0
    hr = np.where(few, scene.hr, level)
    with pytest.raises(SceneSkipped, match="HR is of one value, as black or saturated"):
        prepare_scene(dataclasses.replace(scene, hr=hr), model, settings)
    few = np.arange(scene.lr[0].size).reshape(scene.lr[0].shape) % 40 == 0
    lr = np.where(few, scene.lr, level)
    with pytest.raises(SceneSkipped, match=r"0 usable frames.* of one value, as black or sat"):
        prepare_scene(dataclasses.replace(scene, lr=lr), model, settings)
