"""What `predict` writes beside the image: standard error, frames per pixel, preview."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import landscape, refuser
from PIL import Image

from deepsum_jax import ModelConfig, figures
from deepsum_jax.data import kelvins
from deepsum_jax.data.resample import bicubic_upsample
from deepsum_jax.data.stackfile import write_map
from deepsum_jax.predict import main
from deepsum_jax.systems.system import Stack, SuperResolved
from deepsum_jax.systems.table import SYSTEMS


def knows(params: Any, stack: Stack, config: ModelConfig, compute: Any) -> SuperResolved:
    """Bicubic of the reference, an error that grows from left to right, and frames likewise."""
    image = np.moveaxis(bicubic_upsample(np.moveaxis(stack.lr[0], -1, 0), config.scale), 0, -1)
    ramp = np.broadcast_to(np.linspace(20, 300, image.shape[1])[:, None], image.shape)
    frames = np.broadcast_to(np.arange(image.shape[1]) % 3 + 1.25, image.shape[:2])
    weights = np.full(len(stack.lr), 1 / len(stack.lr), np.float32)
    return SuperResolved(
        image,
        weights,
        standard_error=ramp.astype(np.float32),
        frames_per_pixel=frames.astype(np.float32),
    )


@pytest.fixture(autouse=True)
def systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """`robust_ibp` with known maps beside its image; the others as they are."""
    system = dataclasses.replace(
        SYSTEMS["robust_ibp"],
        super_resolve=knows,
        choose_reference=None,
        gives=("standard_error", "frames_per_pixel"),
    )
    known = {**SYSTEMS, "robust_ibp": system}
    monkeypatch.setattr("deepsum_jax.systems.table.SYSTEMS", known)


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    monkeypatch.chdir(tmp_path)
    frames = 5000 + 20 * np.stack([landscape(24, 20, seed=0) + n for n in range(4)])
    masks = np.ones(frames.shape, bool)
    masks[[0, 2, 3], 0, 0] = False  # frame 1 is the clearest
    np.savez("s.npz", stack=frames, masks=masks)
    np.save("two.npy", np.stack([frames, frames], axis=-1))
    return frames


COMMAND = ["--system", "robust_ibp", "--scale", "2"]


def test_maps_as_arrays(stack: np.ndarray) -> None:
    main(
        [*COMMAND, "--output", "o.npy", "--uncertainty", "u.npy", "--frames", "new/f.npy", "s.npz"]
    )
    error, frames = np.load("u.npy"), np.load("new/f.npy")
    assert error.shape == frames.shape == np.load("o.npy").shape == (48, 40)
    assert error.dtype == frames.dtype == np.float32
    np.testing.assert_allclose(error[7], np.linspace(20, 300, 40), rtol=1e-6)
    np.testing.assert_allclose(frames[3, :4], [1.25, 2.25, 3.25, 1.25])
    main([*COMMAND, "--output", "o.npy", "--uncertainty", "u.npy", "--frames", "f.npy", "two.npy"])
    assert np.load("u.npy").shape == (48, 40, 2) and np.load("f.npy").shape == (48, 40)


def test_maps_as_pngs(stack: np.ndarray) -> None:
    main([*COMMAND, "--output", "o.png", "--uncertainty", "u.png", "--frames", "f.png", "s.npz"])
    expected = np.rint(np.linspace(20, 300, 40).astype(np.float32))
    np.testing.assert_array_equal(kelvins.read_png16(Path("u.png"))[5], expected)
    np.testing.assert_array_equal(kelvins.read_png16(Path("f.png"))[5, :4], [1, 2, 3, 1])
    assert sorted(p.name for p in Path().glob("*.png")) == ["f.png", "o.png", "u.png"]


@pytest.mark.parametrize(
    ("values", "written", "words"),
    [
        ([[0.0, 1.0], [2.0, 400.0]], [[0, 1], [2, 400]], ""),
        ([[0.2, 0.3], [0.6, 0.4]], [[0, 0], [1, 0]], "that whole steps cannot hold, rounded"),
        ([[1.0, np.inf], [9.0, np.nan]], [[1, 65535], [9, 65535]], "16 bits cannot hold, clipped"),
        ([[-3.0, 7e4], [9.0, 5.0]], [[0, 65535], [9, 5]], "16 bits cannot hold, clipped"),
        ([[np.inf, np.inf]], [[65535, 65535]], "16 bits cannot hold, clipped"),
    ],
)
def test_a_png_says_what_it_loses(
    values: list[list[float]], written: list[list[int]], words: str, tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    path = tmp_path / "m.png"
    if words:
        with pytest.warns(UserWarning, match=rf"m\.png: found .*{words}; a \.npy keeps them"):
            write_map(path, np.array(values, np.float32))
    else:
        write_map(path, np.array(values, np.float32))
        assert not recwarn.list
    np.testing.assert_array_equal(kelvins.read_png16(path), written)


def panels(path: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """A figure's pixels [h, w, 3], and the columns from which to which something is drawn that is
    taller than half of it."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    drawn = (pixels < 250).any(axis=-1).mean(axis=0) > 0.5
    edges = np.flatnonzero(np.diff(np.concatenate([[0], drawn, [0]]).astype(int)))
    found = list(zip(edges[::2].tolist(), edges[1::2].tolist()))
    return pixels, [(a, b) for a, b in found if b - a > 100]


def test_preview(stack: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    preview = figures.preview

    def keep(*arguments: Any) -> Any:
        seen.append((arguments, preview(*arguments)))
        return seen[-1][1]

    monkeypatch.setattr(figures, "preview", keep)
    main([*COMMAND, "--output", "o.npy", "--preview", "p.png", "s.npz"])
    ((arguments, figure),) = seen
    shown, error, (low, high), _ = arguments
    assert [title for title, _ in shown] == ["reference, frame 1", "bicubic", "robust IBP ×2"]
    np.testing.assert_array_equal(shown[0][1], stack[1])
    np.testing.assert_allclose(shown[1][1], bicubic_upsample(stack[1], 2), rtol=1e-6)
    np.testing.assert_array_equal(shown[2][1], np.load("o.npy"))
    assert error[0] == "standard error" and error[1].shape == (48, 40)
    images = [axis.images[0] for axis in figure.axes[:3]]
    assert {image.get_clim() for image in images} == {(low, high)}  # one grey range
    assert stack[1].min() <= low < np.median(stack[1]) < high <= stack[1].max() + 100
    assert len(figure.axes) == 5  # the error's colour bar
    assert figure.axes[3].images[0].get_clim() == pytest.approx((0, np.percentile(error[1], 99)))
    pixels, found = panels("p.png")
    assert len(found) == 4 and max(b - a for a, b in found) - min(b - a for a, b in found) <= 2
    assert all(b - a > 300 for a, b in found)  # pixels of a panel
    grey = [np.ptp(pixels[:, a:b], axis=-1).max() == 0 for a, b in found]
    assert grey == [True, True, True, False]


def test_preview_without_an_error_and_with_masks(stack: np.ndarray) -> None:
    main(["--system", "bicubic_mean", "--output", "o.npy", "--preview", "p.png", "s.npz"])
    pixels, found = panels("p.png")
    assert len(found) == 3 and np.ptp(pixels, axis=-1).max() == 0
    masks = np.ones(stack.shape, bool)
    masks[:, 8:, :] = False  # most of the reference is hidden, and white, and so is bicubic of it
    frames = np.where(masks, stack, stack.min())  # black, were it shown
    np.savez("hidden.npz", stack=frames, masks=masks)
    main(["--system", "bicubic_mean", "--output", "o.npy", "--preview", "p.png", "hidden.npz"])
    assert len(panels("p.png")[1]) == 1
    main([*COMMAND, "--output", "o.npy", "--preview", "p.png", "two.npy"])
    assert len(panels("p.png")[1]) == 4


@pytest.mark.parametrize("option", ["--uncertainty", "--frames"])
def test_a_system_that_has_none(
    option: str, stack: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--system", "bicubic_mean", "--output", "o.npy", option, "m.npy", "s.npz"]
    message = refuser(capsys)(main, *command)
    assert message.startswith(f"error: {option}: found no ") and "from Bicubic+Mean" in message
    assert not Path("o.npy").exists() and not Path("m.npy").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--uncertainty", "u.jpg"], "--uncertainty u.jpg: found suffix '.jpg', expected .png"),
        (["--frames", "f"], "--frames f: found suffix '', expected .png"),
        (["--preview", "p.npy"], "--preview p.npy: found suffix '.npy', expected .png"),
        (["--preview", "s.npz/p.png"], "--preview s.npz/p.png: found that"),
        (["--frames", "."], "--frames .: found a folder, expected a file"),
        (["--uncertainty", "./o.npy"], "--uncertainty o.npy: found the file of --output"),
        (
            ["--frames", "m.png", "--preview", "m.png"],
            "--preview m.png: found the file of --frames",
        ),
    ],
)
def test_files_are_checked_before_anything_is_computed(
    options: list[str], words: str, stack: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("deepsum_jax.predict.predict", lambda *_, **__: pytest.fail("computed"))
    before = sorted(Path().iterdir())
    assert words in refuser(capsys)(main, *COMMAND, "--output", "o.npy", *options, "s.npz")
    assert sorted(Path().iterdir()) == before


def test_a_png_holds_one_band(stack: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*COMMAND, "--output", "o.npy", "two.npy"]
    message = refuser(capsys)(main, *command, "--uncertainty", "u.png")
    assert "--uncertainty u.png: a .png holds one band, found 2" in message
    main([*command, "--frames", "f.png"])


def test_a_failure_leaves_what_was_there(
    stack: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("p.png").write_text("older")

    def fail(self: Any, path: Any, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="No space"):
        main([*COMMAND, "--output", "o.npy", "--preview", "p.png", "s.npz"])
    assert Path("p.png").read_text() == "older"
    assert not [p for p in Path().iterdir() if p.name.startswith(".")]
