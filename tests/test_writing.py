"""Writing loses nothing silently: not to rounding, not to clipping."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import refuser

from deepsum_jax import files, submit
from deepsum_jax.config import SimulationConfig
from deepsum_jax.data import kelvins
from deepsum_jax.data.scene import Scene
from deepsum_jax.data.stackfile import write_output
from deepsum_jax.predict import main
from deepsum_jax.simulation.dataset import write_dataset

LEVELS = 2000.0 + 100 * np.arange(64).reshape(1, 8, 8)


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        (LEVELS / 1e4, r"from 0\.2 to 0\.83, of which rounding leaves 2 grey levels"),
        (LEVELS / 1e5, "rounding leaves 1 grey level"),
        (0 * LEVELS + 0.2, "rounding leaves 1 grey level"),
        (290 + LEVELS / 4000, "rounding leaves"),  # kelvins
        (290 + LEVELS / 20000, "rounding leaves"),
        (LEVELS - 9000, "from -7000 to -700, 100% of them outside"),
        (LEVELS * 20, r"outside 16 bits.*\.npy"),
    ],
)
def test_an_image_that_would_lose_most_is_refused(
    stack: np.ndarray, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "s.npy", stack)
    output = tmp_path / "out" / "o.png"
    command = ["--system", "bicubic_mean", "--output", output, tmp_path / "s.npy"]
    message = refuser(capsys)(main, *command)
    assert ".npy" in message and "o.png" in message
    with pytest.raises(ValueError, match=words):
        write_output(output, np.squeeze(stack).astype(np.float32))
    assert not output.parent.exists() or not list(output.parent.iterdir())


def test_what_stood_there_stays(tmp_path: Path) -> None:
    write_output(tmp_path / "o.png", LEVELS[0])
    before = (tmp_path / "o.png").read_bytes()
    with pytest.raises(ValueError):
        write_output(tmp_path / "o.png", LEVELS[0] / 1e4)
    assert (tmp_path / "o.png").read_bytes() == before


@pytest.mark.parametrize(
    "image", [LEVELS[0], LEVELS[0] % 256, np.full((4, 4), 5000.0004), np.zeros((3, 3)) + 1e-5,
              np.eye(4), LEVELS[0] / 100],
)  # fmt: skip
def test_what_loses_little_is_written_silently(image: np.ndarray, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_output(tmp_path / "o.PNG", image)
    np.testing.assert_array_equal(kelvins.read_png16(tmp_path / "o.PNG"), np.rint(image))


def test_clipped_pixels_are_counted(tmp_path: Path) -> None:
    image = LEVELS[0].copy()
    image[0, :3], image[1, :2] = -5, 70000
    with pytest.warns(UserWarning, match=r"clipped 5 of 64 pixels \(3 below 0, 2 above 65535\)"):
        write_output(tmp_path / "o.png", image)
    pixels = kelvins.read_png16(tmp_path / "o.png")
    assert not pixels[0, :3].any() and (pixels[1, :2] == 65535).all()


def test_reflectance_is_no_scene_of_the_layout(tmp_path: Path) -> None:
    scene = Scene("s", LEVELS / 1e4, np.ones(LEVELS.shape, bool))
    with pytest.raises(ValueError, match="rounding leaves"):
        kelvins.write_scene(tmp_path / "s", scene)
    assert not list(tmp_path.iterdir())


def test_a_submission_that_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = SimulationConfig(lr_size=16, min_frames=3, max_frames=3)
    write_dataset(tmp_path / "data", dataclasses.replace(looks, scenes=0, test_scenes=2))
    command = ["--system", "bicubic_mean", "--data", str(tmp_path / "data"), "--partial"]
    command += ["--output", str(tmp_path / "s.zip")]
    image = np.tile(LEVELS[0], (6, 6))
    image[:5] -= 9000
    monkeypatch.setattr(submit, "predict", lambda *_, **__: image)
    with pytest.warns(UserWarning, match=r"2 of 2 scenes \(imgset1306, imgset1307\)"):
        submit.main(command)
    (tmp_path / "s.zip").unlink()
    monkeypatch.setattr(submit, "predict", lambda *_, **__: image / 1e5)
    with pytest.raises(ValueError, match="scene imgset1306: found values"):
        submit.main(command)
    assert not (tmp_path / "s.zip").exists()


# --- files and folders that appear whole


def folder_of(path: Path, text: str) -> None:
    with files.written_aside(path) as aside:
        (aside / "in").mkdir(parents=True)
        (aside / "in" / "a").write_text(text)


@pytest.fixture(params=["exchanged", "renamed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a folder takes the place of another: at one instant, or where no system can do that."""
    if request.param == "renamed":
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    elif files._renameat2() is None:
        pytest.skip("the system exchanges no names")
    return str(request.param)


def test_a_folder_takes_the_place_of_another(way: str, tmp_path: Path) -> None:
    for text in ("old", "new"):
        folder_of(tmp_path / "f", text)
        assert (tmp_path / "f" / "in" / "a").read_text() == text
    folder_of(tmp_path / "g", "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "g"]


def test_a_reader_meets_the_old_folder_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the system has been told so far."""
    if files._renameat2() is None:
        pytest.skip("the system exchanges no names")
    folder_of(tmp_path / "f", "old")
    met: list[str] = []

    def watch(module: object, name: str) -> None:
        original = getattr(module, name)

        def watched(*arguments: object) -> object:
            done = original(*arguments)
            met.append((tmp_path / "f" / "in" / "a").read_text())
            return done

        monkeypatch.setattr(module, name, watched)

    watch(os, "replace")
    watch(files, "_exchange")
    folder_of(tmp_path / "f", "new")
    assert met == ["new"]


def test_what_is_written_is_on_the_disk_before_it_gets_its_name(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "f", "old")
    told: list[str] = []
    settle, replace = files._settle, files._replace

    def settled(*paths: Path) -> None:
        told.append(" ".join(path.name for path in paths))
        settle(*paths)

    def renamed(one: Path, other: Path) -> None:
        told.append("renamed")
        replace(one, other)

    monkeypatch.setattr(files, "_settle", settled)
    monkeypatch.setattr(files, "_replace", renamed)
    folder_of(tmp_path / "f", "new")
    assert told == [f"in a .f.{os.getpid()}.tmp", "renamed", tmp_path.name]
    told.clear()
    with files.written_aside(tmp_path / "g") as aside:
        files.write_json(aside / "b.json", [])  # settles with the whole
    assert [name for name in told if name != "renamed"] == [
        f"b.json .g.{os.getpid()}.tmp", tmp_path.name,
    ]  # fmt: skip


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    dead, alive = dead_process(), os.getppid()
    for process in (dead, alive):
        for end in ("tmp", "old"):
            (tmp_path / f".f.{process}.{end}" / "in").mkdir(parents=True)
        (tmp_path / f".g.json.{process}.tmp").write_text("")
    (tmp_path / f".notes.{dead}.txt").write_text("somebody's own")
    folder_of(tmp_path / "f", "new")
    kept = [f".f.{alive}.old", f".f.{alive}.tmp", f".g.json.{alive}.tmp", f".notes.{dead}.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*kept, f".g.json.{dead}.tmp", "f"]  # another file, and maybe another machine's
    )
    files.sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "f"])
    files.sweep(tmp_path / "nowhere")


def test_what_a_dead_process_set_aside_comes_back(tmp_path: Path) -> None:
    """Killed between the two renames of a system that exchanges no names."""
    folder_of(tmp_path / "f", "old")
    dead = dead_process()
    os.replace(tmp_path / "f", tmp_path / f".f.{dead}.old")
    (tmp_path / f".f.{dead}.tmp").mkdir()
    files.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f" / "in" / "a").read_text() == "old"


def full_of_numpy(aside: Path) -> None:
    raise OSError("64 requested and 0 written")


def full_of_python(aside: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_within(aside: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(aside / "in"))


@pytest.mark.parametrize("fault", [full_of_numpy, full_of_python, full_within])
def test_a_full_disk_names_what_was_to_be_written(
    fault: Callable[[Path], None], tmp_path: Path
) -> None:
    with pytest.raises(OSError) as caught, files.written_aside(tmp_path / "f") as aside:
        aside.mkdir()
        fault(aside)
    assert str(caught.value.filename).startswith(str(tmp_path / "f"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError) as missing, files.written_aside(tmp_path / "f"):
        (tmp_path / "other").read_bytes()
    assert missing.value.filename == str(tmp_path / "other")


# --- what was written


def test_sums_are_those_that_others_check(tmp_path: Path) -> None:
    folder_of(tmp_path / "f", "a")
    (tmp_path / "f" / "b c").write_bytes(b"\x00")
    files.write_sums(tmp_path / "f")
    assert files.fault_of_sums(tmp_path / "f") is None
    program = shutil.which("sha256sum")
    if program is not None:
        subprocess.run([program, "--check", "--strict", files.SUMS], cwd=tmp_path / "f", check=True)
    (tmp_path / "f" / "later").write_text("no fault")
    assert files.fault_of_sums(tmp_path / "f") is None
    (tmp_path / "f" / "in" / "a").write_text("b")
    assert files.fault_of_sums(tmp_path / "f") == "in/a has other bytes than were written"
    shutil.rmtree(tmp_path / "f" / "in")
    assert files.fault_of_sums(tmp_path / "f") == "'in/a' is missing"


def test_signed_json_reads_like_any_other(tmp_path: Path) -> None:
    data = {"a": [1, 2.5, None, "ä"], "file": "x" * 64, "sha256": "0" * 64}
    files.write_signed(tmp_path / "s.json", data)
    assert files.read_json(tmp_path / "s.json") == data
    assert json.loads((tmp_path / "s.json").read_text()).keys() == {*data, "file_sha256"}
    files.write_json(tmp_path / "u.json", data)
    assert files.read_json(tmp_path / "u.json") == data
    assert "file_sha256" not in (tmp_path / "u.json").read_text()


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"{", b"", b"[" * 10**6, b"9" * 10**5, b"{'a': 1}"]
)
def test_json_that_is_none_is_named_in_a_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json: expected JSON") as caught:
        files.read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)
