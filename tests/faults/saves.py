"""Kills processes that do nothing but save, and looks at what they leave.

python -m faults.saves FOLDER SEED COUNT     from tests/; prints what went wrong, and a count

One process forks all others, since importing takes longer than saving. It must not start a thread
itself, as JAX does for anything that it computes: even what is left is looked at in forks.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import select
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint  # noqa: F401 (before all forks: it takes longer than a save)

from deepsum_jax import files, trees
from deepsum_jax.training import mending
from deepsum_jax.training.state import StateKeeper


def _params(step: int) -> dict[str, Any]:
    return {f"layer{n}": {"kernel": np.full((9, 9, n), step, np.float32)} for n in range(1, 9)}


def _state(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    return {"params": _params(step), "noise": rng.random((64, 64)), "step": np.int32(step)}


def _save_best(folder: Path, step: int) -> None:
    """As bundles are."""
    with files.written_aside(folder) as aside:
        aside.mkdir()
        trees.write(aside / "params", _params(step))
        files.write_signed(aside / "bundle.json", {"step": step})
        files.write_sums(aside)


def _equal(one: Any, other: Any) -> bool:
    return bool(jax.tree.all(jax.tree.map(np.array_equal, one, other)))


def _save_on(folder: Path, begin: int, tell: Callable[[int], None]) -> None:
    """Saves until it is killed, and tells the step of every state that is complete."""
    stage = folder / "regnet"
    with contextlib.closing(StateKeeper(stage / "checkpoints")) as keeper:
        for step in itertools.count(begin):
            keeper.save(step, _state(step), {"data": {"at": step}})
            if step > begin:
                tell(step - 1)
            _save_best(stage / "best", step)
            files.write_signed(folder / "run.json", {"step": step})


def _look(folder: Path, told: int) -> int:
    """The newest state's step. Raises AssertionError where something is not as it was written."""
    stage, heard = folder / "regnet", io.StringIO()
    with contextlib.redirect_stderr(heard):
        mending.sweep(folder)
        with contextlib.closing(StateKeeper(stage / "checkpoints")) as keeper:
            restored = keeper.restore(_state(0))
        found = -1
        if restored is not None:
            state, position = restored
            found = position["data"]["at"]
            assert _equal(state, _state(found)), found
        if (stage / "best").exists() or found > 1:
            assert files.fault_of_sums(stage / "best") is None
            step = files.read_json(stage / "best" / "bundle.json")["step"]
            assert _equal(trees.read(stage / "best" / "params"), _params(step))
            assert step - 1 <= files.read_json(folder / "run.json")["step"] <= step
    assert found >= told, f"step {told} was complete, and {found} is the newest"
    assert not heard.getvalue(), heard.getvalue()
    left = [str(p) for p in folder.rglob("*") if p.name.endswith((".tmp", ".old", "-tmp"))]
    assert not left, left
    return found


def _forked(work: Callable[[int], None]) -> tuple[int, int]:
    """Process that does some work, and the pipe that it tells by."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    try:
        os.close(reader)
        work(writer)
    except BaseException as error:  # noqa: BLE001 (the whole of a process)
        os.write(writer, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def _kill_one(folder: Path, begin: int, rng: random.Random) -> tuple[int, str]:
    """The newest state after a process has saved and was killed, and what is wrong with it."""

    def save(writer: int) -> None:
        def tell(step: int) -> None:
            os.write(writer, f"{step}\n".encode())

        _save_on(folder, begin, tell)

    def look(writer: int) -> None:
        os.write(writer, f"{_look(folder, told)}\n".encode())

    process, reader = _forked(save)
    select.select([reader], [], [], 300)  # it saves
    select.select([], [], [], rng.uniform(0, 0.6))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with open(reader) as lines:
        text = lines.read()
    if not text.replace("\n", "").isdecimal():
        return begin, text or "nothing was saved"
    told = int(text.split()[-1])
    process, reader = _forked(look)
    with open(reader) as lines:
        text = lines.read()
    _, status = os.waitpid(process, 0)
    return (begin, text or "died") if status else (int(text), "")


def main(folder: Path, seed: int, count: int) -> None:
    warnings.simplefilter("ignore")  # of forks
    rng, newest, faults = random.Random(seed), 0, []
    for number in range(count):
        newest, fault = _kill_one(folder, newest + 1, rng)
        print(f"kill {number}: {fault or newest}", file=sys.stderr, flush=True)
        if fault:
            faults.append(f"kill {number}: {fault.strip()}")
    print(*faults, f"{count} kills within saves, {newest} states, {len(faults)} faults", sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
