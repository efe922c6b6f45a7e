"""Training states on disk: the newest complete one, its bits, and its place in the data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsum_jax.training.state import StateKeeper


def bits(tree: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every leaf by its path: dtype, shape and bytes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return {path: (a.dtype.name, a.shape, a.tobytes()) for path, a in arrays.items()}


def make_state(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    return {
        "params": {"kernel": rng.standard_normal((3, 4)).astype(np.float32)},
        "moments": (
            np.array([np.nan, -0.0, 1e-45], np.float32),
            rng.integers(0, 9, 5).astype(np.int32),
        ),
        "step": np.asarray(step, np.int32),
    }


def make_position(step: int) -> dict[str, Any]:
    return {"data": {"next_index": 2**40 + step}, "workers": 0, "best": 47.1 + step / 3}


def keep(folder: Path, *steps: int) -> None:
    keeper = StateKeeper(folder)
    for step in steps:
        keeper.save(step, make_state(step), make_position(step))
    keeper.close()


def restore(folder: Path, like: Any = None) -> Any:
    keeper = StateKeeper(folder)
    try:
        return keeper.restore(make_state(0) if like is None else like)
    finally:
        keeper.close()


def test_nothing_to_restore(tmp_path: Path) -> None:
    assert restore(tmp_path / "new" / "checkpoints") is None


def test_newest_state_and_its_position(tmp_path: Path) -> None:
    """Two are kept, however they come; in another process their bits are the same."""
    keep(tmp_path, 2)
    for saved, kept in [((4,), ["2", "4"]), ((6, 10), ["6", "10"])]:
        keep(tmp_path, *saved)
        assert sorted((p.name for p in tmp_path.iterdir()), key=int) == kept
        state, position = restore(tmp_path)
        newest = saved[-1]
        assert str(jax.tree.structure(state)) == str(jax.tree.structure(make_state(0)))
        assert bits(state) == bits(make_state(newest))
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))
        assert position == make_position(newest)


def test_states_on_devices_and_an_unknown_best(tmp_path: Path) -> None:
    """What is saved may change at once: the next step is given the buffers."""
    keeper = StateKeeper(tmp_path)
    state = make_state(3)
    position = {"data": {"next_index": 1}, "workers": 0, "best": None}
    keeper.save(3, jax.tree.map(jnp.asarray, state), position)
    keeper.close()
    restored, found = restore(tmp_path)
    assert bits(restored) == bits(make_state(3)) and found == position


def test_a_state_that_is_not_complete_does_not_count(tmp_path: Path) -> None:
    keep(tmp_path, 2, 4)
    shutil.copytree(tmp_path / "4", tmp_path / "6.orbax-checkpoint-tmp")
    _, position = restore(tmp_path)
    assert position == make_position(4)
    shutil.rmtree(tmp_path / "4")  # as the message about a damaged one advises
    _, position = restore(tmp_path)
    assert position == make_position(2)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {**state, "more": np.zeros(2)},
        lambda state: {k: v for k, v in state.items() if k != "step"},
    ],
)
def test_state_of_another_structure(change: Callable[[Any], Any], tmp_path: Path) -> None:
    keep(tmp_path, 2)
    with pytest.raises(ValueError, match=r"2: cannot be read as a training state") as caught:
        restore(tmp_path, change(make_state(0)))
    assert "\n" not in str(caught.value)
