"""Training states on disk: the newest complete one, its bits, and its place in the data."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from deepsum_jax import files, trees
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
    shutil.copytree(tmp_path / "4", tmp_path / f".6.{os.getpid()}.tmp")
    _, position = restore(tmp_path)
    assert position == make_position(4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4"]
    shutil.rmtree(tmp_path / "4")
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


# --- damage


def cut(folder: Path) -> None:
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=os.path.getsize)
    largest.write_bytes(largest.read_bytes()[:-1])


def half_deleted(folder: Path) -> None:
    (folder / files.SUMS).unlink()
    shutil.rmtree(folder / "position")


def without_digests(folder: Path) -> None:
    (folder / files.SUMS).unlink()


def without_arrays(folder: Path) -> None:
    shutil.rmtree(folder / "state")


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def lost_digests(folder: Path) -> None:
    (folder / files.SUMS).write_bytes(b"")


DAMAGES = [cut, half_deleted, without_digests, without_arrays, emptied, lost_digests]


@pytest.mark.parametrize("damage", DAMAGES)
def test_from_a_damaged_state_the_one_before_goes_on(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path, 2, 4)
    damage(tmp_path / "4")
    state, position = restore(tmp_path)
    assert bits(state) == bits(make_state(2)) and position == make_position(2)
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / '4'}: is damaged" in said and said.endswith("going on from step 2")
    keep(tmp_path, 3)  # what comes after it belongs to an end that is no more
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    assert restore(tmp_path)[1] == make_position(3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_no_state_is_intact_it_is_said(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    keep(tmp_path, 2, 4)
    for step in ("2", "4"):
        damage(tmp_path / step)
    with pytest.raises(ValueError, match=r"4: is damaged .*no state before it.*; remove") as caught:
        restore(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_state_that_is_not_needed_is_named_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path, 2, 4)
    cut(tmp_path / "2")
    assert restore(tmp_path)[1] == make_position(4)
    assert f"{tmp_path / '2'}: is damaged" in capsys.readouterr().err


def keep_without_digests(folder: Path, *steps: int) -> None:
    """As earlier versions did."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    with contextlib.closing(ocp.CheckpointManager(folder, options=options)) as manager:
        for step in steps:
            state = ocp.args.StandardSave(make_state(step))
            position = ocp.args.JsonSave(make_position(step))
            manager.save(step, args=ocp.args.Composite(state=state, position=position))


def test_states_of_earlier_versions_have_no_digests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_without_digests(tmp_path, 2, 4)
    state, position = restore(tmp_path)
    assert bits(state) == bits(make_state(4)) and position == make_position(4)
    assert capsys.readouterr().err == ""
    shutil.rmtree(tmp_path / "4" / "position")
    assert restore(tmp_path)[1] == make_position(2)
    assert "4: cannot be read as a training state" in capsys.readouterr().err
    keep(tmp_path, 6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "6"]


# --- ends during a save


def test_a_save_that_fails_leaves_the_states_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error comes with the next call, whichever that is, and names the state."""
    keep(tmp_path, 2)

    def write(path: Path, tree: Any) -> None:
        path.mkdir()
        (path / "half").write_bytes(b"0")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(trees, "write", write)
    keeper = StateKeeper(tmp_path)
    keeper.save(4, make_state(4), make_position(4))
    with pytest.raises(OSError, match="No space left") as caught:
        keeper.save(6, make_state(6), make_position(6))
    assert caught.value.filename == str(tmp_path / "4" / "state")
    keeper.close()
    keeper = StateKeeper(tmp_path)
    keeper.save(4, make_state(4), make_position(4))
    with pytest.raises(OSError, match="No space left"):
        keeper.close()
    assert [p.name for p in tmp_path.iterdir()] == ["2"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("states")]


def test_a_disk_without_room_is_noticed_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def allocate(descriptor: int, start: int, size: int) -> None:
        asked.append(size)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "posix_fallocate", allocate, raising=False)
    tree = {"a": np.zeros((64, 32)), "b": np.float32(1)}
    with pytest.raises(OSError, match="quota") as caught:
        trees.write(tmp_path / "tree", tree)
    assert caught.value.filename == str(tmp_path / "tree") and asked[0] > 64 * 32 * 8
    assert not list(tmp_path.iterdir())


def test_an_end_waits_for_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the caller is interrupted by does not reach it."""
    original, begun, go_on = trees.write, threading.Event(), threading.Event()

    def write(path: Path, tree: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        original(path, tree)

    monkeypatch.setattr(trees, "write", write)
    with pytest.raises(KeyboardInterrupt), contextlib.closing(StateKeeper(tmp_path)) as keeper:
        keeper.save(4, make_state(4), make_position(4))
        assert begun.wait(60) and restore(tmp_path) is None
        go_on.set()
        raise KeyboardInterrupt
    assert restore(tmp_path)[1] == make_position(4)
    assert [p.name for p in tmp_path.iterdir()] == ["4"]


def test_what_is_saved_may_change_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, go_on = trees.write, threading.Event()

    def write(path: Path, tree: Any) -> None:
        assert go_on.wait(60)
        original(path, tree)

    monkeypatch.setattr(trees, "write", write)
    state = make_state(4)
    with contextlib.closing(StateKeeper(tmp_path)) as keeper:
        keeper.save(4, state, make_position(4))
        state["params"]["kernel"][:] = 0
        go_on.set()
    assert bits(restore(tmp_path)[0]) == bits(make_state(4))
