"""Signals end what runs in good order: one line, a status, and a state that goes on."""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import FAST

from deepsum_jax import cli, files, load_params, signals, trees
from deepsum_jax.config import override, preset
from deepsum_jax.training import loop, merit, parallel
from deepsum_jax.training.run import train

BEFORE = {one: signal.getsignal(one) for one in signals._ENDING}
SETTINGS = ("steps=6", "validate_every=3", "checkpoint_every=6")
CONFIG = dataclasses.replace(
    override(preset("tiny"), ["model.system=sisr", *(f"sisrnet.{s}" for s in SETTINGS)]),
    compute=FAST,
)
OPTIONS: dict[str, Any] = {"progress": False, "report": False}
ENDING = pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])


@pytest.fixture(autouse=True)
def put_back() -> Any:
    yield
    assert {one: signal.getsignal(one) for one in signals._ENDING} == BEFORE


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


@ENDING
def test_commands_end_in_one_line(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing half written is left, and what stood there before stands."""
    (tmp_path / "file").write_text("old")

    def main() -> None:
        with files.written_aside(tmp_path / "file") as aside:
            aside.write_text("ne")
            send(number)
            aside.write_text("new")

    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    assert stopped.value.code == (130 if number == "SIGINT" else 143)
    assert capsys.readouterr().err == f"stopped by {number}\n"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.heard():
            send("SIGHUP")
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signals.asked() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_held_signals_wait_and_the_next_ends_at_once() -> None:
    with pytest.raises(signals.Stopped, match="stopped by SIGTERM"), signals.heard():
        with signals.heard(), signals.held() as asked:
            assert asked() is None
            send("SIGTERM")
            assert asked() == signal.SIGTERM
            for one in signals._ENDING:  # whichever comes next
                assert signal.getsignal(one) is signal.SIG_DFL
            with pytest.raises(signals.Stopped), signals.heeded():
                raise AssertionError("not reached")
        raise AssertionError("not reached")


def test_one_that_comes_while_garbage_is_collected(capfd: pytest.CaptureFixture[str]) -> None:
    """Where what is raised is shown and forgotten."""

    def collecting(phase: str, _: Any) -> None:
        gc.callbacks.remove(collecting)
        send("SIGTERM")

    with pytest.raises(signals.Stopped, match="stopped by SIGTERM"), signals.heard():
        gc.callbacks.append(collecting)
        gc.collect()
        time.sleep(20)
        raise AssertionError("not reached")
    assert capfd.readouterr().err == ""


def test_what_nobody_can_catch_is_shown_as_before(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    before, sys.unraisablehook = sys.unraisablehook, seen.append
    try:
        with signals.heard():
            gc.callbacks.append(failing := lambda *_: 1 / 0)
            gc.collect()
            gc.callbacks.remove(failing)
        assert sys.unraisablehook == seen.append
    finally:
        sys.unraisablehook = before
    assert {what.exc_type for what in seen} == {ZeroDivisionError}


def test_one_that_comes_while_a_tree_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits until the tree is whole, since threads write on."""
    import orbax.checkpoint as ocp

    save = ocp.StandardCheckpointer.save

    def interrupted(*arguments: Any, **more: Any) -> None:
        send("SIGTERM")
        save(*arguments, **more)

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", interrupted)
    with pytest.raises(signals.Stopped), signals.heard():
        trees.write(tmp_path / "params", {"w": np.arange(1000.0)})
    np.testing.assert_array_equal(trees.read(tmp_path / "params")["w"], np.arange(1000.0))


def test_other_threads_set_no_handlers() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with signals.heard(), signals.held():
                assert {one: signal.getsignal(one) for one in signals._ENDING} == BEFORE
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


def bits(folder: Path) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load_params(folder).params)]


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parallel, "map_train_step", functools.cache(parallel.map_train_step))
        yield


@pytest.fixture(scope="module")
def whole(compiled_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "w"
    train(folder, CONFIG, **OPTIONS)
    return folder


def assert_same(folder: Path, whole: Path) -> None:
    for place in ("sisrnet/last", "sisrnet/best"):
        assert bits(folder / place) == bits(whole / place)
        assert load_params(folder / place).info == load_params(whole / place).info


@pytest.mark.parametrize(
    ("number", "raised"), [("SIGTERM", signals.Stopped), ("SIGINT", KeyboardInterrupt)]
)
def test_training_saves_the_step_that_a_signal_meets(
    number: str, raised: type[BaseException], tmp_path: Path, whole: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Step 2, at which no state was due; resumed, all is as if nothing had been."""
    stepped = loop._Progress.stepped

    def and_sent(self: Any, step: int, *rest: Any) -> None:
        stepped(self, step, *rest)
        if step == 1:
            send(number)

    monkeypatch.setattr(loop._Progress, "stepped", and_sent)
    with pytest.raises(raised, match=f"stopped by {number} at step 2 of 6 of sisrnet, which is s"):
        train(tmp_path / "w", CONFIG, whole / "data", **OPTIONS)
    assert [p.name for p in (tmp_path / "w/sisrnet/checkpoints").iterdir()] == ["2"]
    assert not (tmp_path / "w" / "lock").exists()
    monkeypatch.undo()
    train(tmp_path / "w", CONFIG, whole / "data", **OPTIONS)
    assert_same(tmp_path / "w", whole)


@pytest.mark.parametrize("step", [3, 6])
def test_a_validation_does_not_keep_a_signal_waiting(
    step: int, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made up for: the best parameters may be those of that very step."""
    calls: list[int] = []

    def and_sent(*given: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == step // 3:
            send("SIGTERM")
        return judge(*given)

    judge = merit.judge
    monkeypatch.setattr(merit, "judge", and_sent)
    with pytest.raises(signals.Stopped, match=f"at step {step} of 6 of sisrnet, which is saved"):
        train(tmp_path / "w", CONFIG, whole / "data", **OPTIONS)
    monkeypatch.undo()
    train(tmp_path / "w", CONFIG, whole / "data", **OPTIONS)
    assert_same(tmp_path / "w", whole)


def test_preparation_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves no folder from which nothing could go on."""

    def sent(*_: Any, **__: Any) -> None:
        send("SIGTERM")
        raise AssertionError("not reached")

    monkeypatch.setattr("deepsum_jax.training.run.write_dataset", sent)
    with pytest.raises(signals.Stopped), signals.heard():
        train(tmp_path / "a" / "w", CONFIG, **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_a_command_loads(tmp_path: Path) -> None:
    script = "import deepsum_jax, signal; print(signal.getsignal(signal.SIGINT).name)"
    (tmp_path / "loaded.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = ['-m']\n{script}"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "SIG_DFL\n"
