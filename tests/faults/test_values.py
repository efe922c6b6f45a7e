"""Public functions and the commands' values, whatever they are given.

They give what they promise, or raise ValueError or TypeError with a message of one line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import strategies as st

from deepsum_jax import Bundle, ModelConfig, cli, evaluate, losses, metrics, predict, simulate
from deepsum_jax.config import Section, TrainConfig, override
from deepsum_jax.predict import main as predict_main
from deepsum_jax.train import main as train_main

LONG = os.environ.get("DEEPSUM_FAULTS") == "long"


def settings(examples: int) -> Any:
    return hypothesis.settings(
        max_examples=40 * examples if LONG else examples,
        deadline=None,
        derandomize=not LONG,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def refused(error: BaseException) -> None:
    """An error as a command may show it."""
    assert isinstance(error, (ValueError, TypeError)), repr(error)
    line = str(error)
    assert line and len(line) <= 2000 and len(line.splitlines()) == 1, repr(line)


# --- predict

SHAPES = st.one_of(
    arrays.array_shapes(min_dims=3, max_dims=4, min_side=1, max_side=6),
    arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
)
DTYPES = st.sampled_from(
    ["u1", "i1", "<u2", ">u2", "i4", "i8", "u8", "f2", "f4", ">f8", "?", "c8", "U3", "M8[s]", "O"]
)


def extreme(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An array with the values that break things."""
    rng, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind in "ui":
        least, most = np.iinfo(kind).min, np.iinfo(kind).max
        pool = np.array([0, 1, least, most, min(7000, most)], kind)
    elif kind.kind in "fc":
        pool = np.array([0, -1, 7000, 1e4, math.nan, math.inf, 6e4, -0.0, 1e-7], kind)
        pool = pool if seed % 3 else pool[[0, 2, 3]]
    else:
        pool = np.array([0, 1], dtype)
    return np.asarray(rng.choice(pool, shape))


@st.composite
def stacks(draw: Any) -> tuple[np.ndarray, Any]:
    shape = draw(SHAPES)
    stack = extreme(draw(DTYPES), shape, draw(st.integers(0, 99)))
    masks: Any = None
    if draw(st.booleans()):
        own = draw(st.sampled_from([shape[:3], shape[1:3], shape, shape[:1], (2, 2)]))
        kind = draw(st.sampled_from(["?", "u1", "f4", "i8", "O", "U1"]))
        masks = extreme(kind, own, draw(st.integers(0, 99)))
    return stack, masks


@pytest.mark.parametrize("system", ["bicubic_mean", "robust_ibp"])
@settings(40)
@hypothesis.given(stacks(), st.sampled_from([None, 0, 1, -1, "first", "x", True, 2**70]))
def test_predict(system: str, given: tuple[Any, Any], reference: Any) -> None:
    stack, masks = given
    bundle = Bundle({}, ModelConfig(system=system, scale=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            image = predict(bundle, stack, masks, reference=reference)
        except Exception as error:  # noqa: BLE001 (that is what is tested)
            return refused(error)
    assert image.dtype == np.float32 and np.isfinite(image).all()
    assert image.shape == (2 * stack.shape[1], 2 * stack.shape[2], *stack.shape[3:])


# --- losses and metrics


@st.composite
def scored(draw: Any) -> tuple[Any, ...]:
    side = draw(st.sampled_from([1, 3, 7, 8]))
    shape = draw(st.sampled_from([(1, side, 8, 1), (2, 8, side, 1), (1, 8, 8, 2), (8, 8), ()]))
    sr = extreme(draw(st.sampled_from(["f4", "f2", "u2", "c8"])), shape, draw(st.integers(0, 9)))
    hr = extreme(draw(st.sampled_from(["f4", "u2"])), shape, draw(st.integers(0, 9)))
    other = draw(st.sampled_from([shape, shape, shape, (1, 4, 4, 1)]))
    mask = extreme(draw(st.sampled_from(["?", "f4"])), other, draw(st.integers(0, 9)))
    return sr, hr, mask, draw(st.sampled_from([0, 1, 3, 4, -1]))


@pytest.mark.parametrize("score", [losses.registered_mse, metrics.cpsnr, metrics.cssim])
@settings(12)
@hypothesis.given(scored())
def test_scores(score: Callable[..., Any], given: tuple[Any, ...]) -> None:
    try:
        found = np.asarray(score(*given))
    except Exception as error:  # noqa: BLE001 (that is what is tested)
        return refused(error)
    assert found.shape == given[0].shape[:1] and found.dtype == np.float32


# --- settings


def names(section: type[Section], path: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(section):
        inner = field.default if isinstance(field.default, Section) else None
        found += [f"{path}{field.name}"]
        found += names(type(inner), f"{path}{field.name}.") if inner is not None else []
    return found


VALUES = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(repr),
    st.sampled_from(
        ["9" * 5000, "0x" + "f" * 5000, "-1", "1e999", "[" * 300, "(" * 99 + ")" * 99, "[1,[2]]",
         "{1:2}", "None", "True", "1_0", "1j", "b''", "'\\x1b'", "\x1b[2J", "...", "-" * 3000]
    ),
)  # fmt: skip


@settings(1000)
@hypothesis.given(
    st.one_of(st.sampled_from(names(TrainConfig)), st.text(max_size=10)),
    VALUES,
    st.sampled_from(["", ".x", ".iterations"]),
)
def test_settings(name: str, value: str, more: str) -> None:
    try:
        config = override(TrainConfig(), [f"{name}{more}={value}"])
    except Exception as error:  # noqa: BLE001 (that is what is tested)
        line = cli._one_line(error)
        assert isinstance(error, ValueError) and line.isprintable() and len(line) <= 500
        return
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    hash(config)


COMMANDS: dict[str, tuple[Callable[[list[str]], None], list[str], list[str]]] = {
    "predict": (predict_main, ["--system", "bicubic_mean", "--output", "o.npy", "a.npy"],
                ["--scale", "--psf-sigma", "--max-frames", "--reference", "--set", "--masks",
                 "--uncertainty", "--preview", "--system", "--params", "--output"]),
    "evaluate": (evaluate.main, ["--system", "bicubic_mean", "--data", "nowhere"],
                 ["--split", "--band", "--max-frames", "--json", "--panel", "--data", "--scale"]),
    "simulate": (simulate.main, ["--output", "a.npy", "--scenes", "1", "--seed", "0"],
                 ["--scenes", "--seed", "--size", "--scale", "--band", "--min-frames",
                  "--max-frames", "--ground", "--from", "--window"]),
    "train": (train_main, ["--workdir", "a.npy/w", "--preset", "tiny"],
              ["--preset", "--set", "--stages", "--init", "--data"]),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@settings(60)
@hypothesis.given(data=st.data())
def test_values_of_commands(
    command: str, data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    main, arguments, options = COMMANDS[command]
    option = data.draw(st.sampled_from(options))
    value = data.draw(VALUES).replace("\0", "").replace("/", "")
    folder = tmp_path_factory.mktemp("values")
    np.save(folder / "a.npy", np.full((2, 8, 8), 7000.0) + np.arange(8))
    shown = _run(main, [*arguments, option, value], folder)
    *_, last = shown.splitlines() or [""]
    assert last == "" or (last.isprintable() and len(last) <= 600), last


def _run(main: Callable[[list[str]], None], arguments: list[str], folder: Path) -> str:
    """What a command shows on stderr; it ends well or with status 2."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        import contextlib
        import io

        with contextlib.redirect_stderr(io.StringIO()) as shown, contextlib.redirect_stdout(
            io.StringIO()
        ):  # fmt: skip
            try:
                cli.run(lambda: main(arguments))
            except SystemExit as stopped:
                assert stopped.code in (0, 2, None), arguments
    return shown.getvalue()
