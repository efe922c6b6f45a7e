"""Exported functions against prediction: what they prepare, what they give, what they refuse."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FAST, TINY, UNROLLED, fields, random_bundle, refuser

from deepsum_jax import Bundle, export, save_params
from deepsum_jax.config import Compute, Settings
from deepsum_jax.data.fill import nearest_reliable
from deepsum_jax.data.sensor import observe
from deepsum_jax.inference import super_resolve
from deepsum_jax.systems.system import Stack
from deepsum_jax.systems.table import init_params
from deepsum_jax.systems.unrolling import standalone
from deepsum_jax.systems.unrolling.alignment import align

pytest.importorskip("flatbuffers")

SHIFTS = np.array([(0, 0), (1, -2), (0.4, 1.3), (-1.6, 0.7)])
SIZE = export.Size(4, 20, 24)
SMALL = dataclasses.replace(  # compiles in half the time
    UNROLLED, options=Settings({**UNROLLED.options, "own_blocks": 0, "blocks": 0, "iterations": 1})
)


@functools.cache
def looks() -> tuple[np.ndarray, np.ndarray]:
    """Frames of another brightness, with clouds of NaN, hot pixels and noise."""
    rng, ground = np.random.default_rng(0), fields(72)[:60]
    lr = np.stack([observe(ground, shift, 3) for shift in SHIFTS]) + rng.normal(0, 10, SIZE)
    lr[2] = 1.4 * lr[2] + 500
    masks = np.ones(lr.shape, bool)
    masks[0, 4:9, 12:17] = masks[3, :, :6] = False
    masks[1] = rng.random(lr.shape[1:]) < 0.8
    lr[0, 15, 5] = lr[2, 8, 10] = 60000
    lr[~masks] = np.nan
    return lr.astype(np.float32), masks


@functools.cache
def bundle() -> Bundle:
    return Bundle(init_params(SMALL, jax.random.key(1)), SMALL)


@dataclasses.dataclass
class Made:
    """What the command wrote and said."""

    file: Path
    said: str
    function: export.Function


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """By the command, once: it takes seconds."""
    folder, loaded = tmp_path_factory.mktemp("made"), []
    save_params(folder / "params", bundle())
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        load = export.load

        def remembered(path: Path) -> export.Function:
            loaded.append(load(path))
            return loaded[-1]

        patch.setattr(export, "load", remembered)
        export.main(command(folder))
    return Made(folder / "sr.jax", said.getvalue(), loaded[0])


def command(folder: Path, *more: str) -> list[str]:
    size = [f"--{name}={value}" for name, value in zip(("frames", "height", "width"), SIZE)]
    given = ["--params", str(folder / "params"), "--output", str(folder / "sr.jax")]
    return [*given, *size, "--set", "compute.backend=plain", *more]


@functools.cache
def prepare() -> Any:
    """Compiled."""
    return jax.jit(functools.partial(standalone.prepare, scale=3))


def expected(lr: np.ndarray, masks: np.ndarray, blur: float) -> tuple[np.ndarray, np.ndarray]:
    sharper = dataclasses.replace(SMALL, psf_sigma=blur)
    result = super_resolve(Bundle(bundle().params, sharper), Stack(lr[..., None], masks), FAST)
    assert result.standard_error is not None
    return result.image[..., 0], result.standard_error[..., 0]


def assert_alike(found: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...]) -> None:
    deviation = wanted[0].std()
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-4 * deviation)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-3)


# --- what the network takes


@pytest.mark.parametrize("share", [0.6, 0.2, 0.02, 0.0])
def test_hidden_pixels_take_the_nearest(share: float) -> None:
    """The very one that the host takes, of equally near ones too."""
    rng = np.random.default_rng(0)
    frame, mask = rng.random((21, 17), np.float32), rng.random((21, 17)) < share
    filled = jax.jit(standalone._nearest_reliable)(frame, mask)
    np.testing.assert_array_equal(filled, nearest_reliable(frame, mask))


@pytest.mark.parametrize("case", ["looks", "hidden frame", "flat", "one frame"])
def test_frames_are_prepared_as_the_host_prepares_them(case: str) -> None:
    lr, masks = (x.copy() for x in looks())
    if case == "flat":
        lr = np.where(masks, 7, lr)
    count = {"one frame": 1, "hidden frame": 3}.get(case, 4)
    wanted = align(lr[:count, ..., None], masks[:count], 3, 0.5)
    shifts = np.zeros((4, 2), np.float32)
    shifts[:count] = wanted.shifts
    if case == "hidden frame":  # is as none
        masks[3] = False
    few = slice(1 if case == "one frame" else None)
    found = prepare()(lr[few], masks[few], shifts[few], psf_sigma=jnp.float32(0.5))
    np.testing.assert_array_equal(found.masks[:count], wanted.masks)
    assert case == "flat" or not np.array_equal(wanted.masks[0], masks[0])  # a hot pixel is found
    for name in ("level", "contrast", "noise"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-4)
    np.testing.assert_allclose(found.frames[:count], wanted.frames, rtol=0, atol=1e-4)


# --- the function


@pytest.mark.parametrize("blur", [SMALL.psf_sigma, 0.6])
def test_it_is_what_prediction_gives(made: Made, blur: float) -> None:
    lr, masks = looks()
    wanted = expected(lr, masks, blur)
    shifts = align(lr[..., None], masks, 3, blur).shifts
    given = 0.0 if blur == SMALL.psf_sigma else blur  # 0 is the parameters' own
    assert_alike(made.function(lr, masks, shifts, given), wanted)
    assert_alike(made.function(lr, masks, blur=blur), wanted)  # finds the shifts


def test_fewer_frames(made: Made) -> None:
    lr, masks = (x[:3] for x in looks())
    hidden = looks()[1].copy()
    hidden[3] = False
    wanted = made.function(looks()[0], hidden)
    assert_alike(made.function(lr, masks), wanted)
    assert np.abs(made.function(*looks())[0] - wanted[0]).max() > 1


def test_what_the_command_wrote(made: Made) -> None:
    for said in (made.said, str(made.function)):
        assert "×3 of 4 frames of 20×24 on cpu, cuda, tpu" in said
    assert "sr.jax: unrolled" in made.said and "from predict's" in made.said
    loaded = export.load(made.file)
    assert (loaded.size, loaded.scale) == (SIZE, 3)
    assert loaded.platforms == ("cpu", "cuda", "tpu")


def test_other_parameters_differ(made: Made) -> None:
    assert 0 < max(export.difference(made.function, bundle(), FAST)) < 1e-3
    other = Bundle(init_params(SMALL, jax.random.key(2)), SMALL)
    assert export.difference(made.function, other, FAST).image > 0.01


def test_the_bytes_say_nothing_of_this_machine(made: Made) -> None:
    data = made.file.read_bytes()
    assert b".py" not in data and str(Path.home()).encode() + b"/" not in data
    assert export.exported(bundle(), *SIZE, FAST) == data


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": looks()[0][:, 1:]}, r"found shape \(4, 19, 24\), expected \[n, 20, 24\]"),
        ({"frames": np.ones((5, 20, 24)), "masks": None}, r"found shape \(5, 20, 24\)"),
        ({"masks": np.zeros(SIZE, bool)}, "first frame without a reliable pixel"),
        ({"masks": None}, "finite"),
        ({"blur": 2.5}, "blur: found 2.5, expected 0 to 2"),
        ({"shifts": np.zeros((3, 2))}, r"shifts: found shape \(3, 2\), expected \(4, 2\)"),
    ],
)  # fmt: skip
def test_what_it_refuses(made: Made, changes: dict[str, Any], words: str) -> None:
    lr, masks = looks()
    if "frames" in changes and "masks" not in changes:
        masks = masks[:, 1:]
    with pytest.raises(ValueError, match=words):
        made.function(**{"frames": lr, "masks": masks, **changes})


# --- the command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_params(tmp_path / "params", bundle())
    return tmp_path


def test_what_differs_from_prediction_is_not_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "difference", lambda *_: export.Difference(0.5, float("nan")))
    message = refuser(capsys)(export.main, *command(folder))
    assert "away from prediction, expected 0.01 at most" in message
    assert [p.name for p in folder.iterdir()] == ["params"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--height", "7"], "height: found 7, expected at least 8"),
        (["--set", "compute.self_ensemble=true"], "self_ensemble: found true, expected false"),
        (["--output", "."], "--output .: found a folder"),
    ],
)
def test_what_the_command_refuses(
    folder: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refuser(capsys)(export.main, *command(folder, *more))


def test_other_systems_are_refused() -> None:
    with pytest.raises(ValueError, match="found DeepSUM, expected what can be exported: unrolled"):
        export.exported(random_bundle(TINY), 3, 16, 16)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.jax"
    path.write_bytes(b"no function at all")
    with pytest.raises(ValueError, match=r"f\.jax: found no exported function"):
        export.load(path)
    double = jax.export.export(jax.jit(lambda x: 2 * x))(jax.ShapeDtypeStruct((3,), jnp.float32))
    path.write_bytes(double.serialize())
    with pytest.raises(ValueError, match="another function than `deepsum export` writes"):
        export.load(path)
    with pytest.raises(FileNotFoundError):
        export.load(tmp_path / "nothing")


def test_without_flatbuffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need flatbuffers: pip install 'deepsum_jax\[export\]'"):
        export.exported(bundle(), *SIZE, Compute())
