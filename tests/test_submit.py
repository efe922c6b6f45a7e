"""`deepsum submit` and `deepsum check`, and the console script."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import refuser

from deepsum_jax import Bundle, ModelConfig, check, submit
from deepsum_jax.__main__ import COMMANDS
from deepsum_jax.bundle import BundleInfo
from deepsum_jax.config import SimulationConfig
from deepsum_jax.data.submission import NAMES, check_submission, write_submission
from deepsum_jax.simulation.dataset import write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("submit") / "data"
    looks = SimulationConfig(lr_size=16, min_frames=3, max_frames=3, bands=("RED", "NIR"))
    write_dataset(root, dataclasses.replace(looks, scenes=0, test_scenes=2))
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A submission with nothing wrong but that its images are small."""
    path = tmp_path_factory.mktemp("zip") / "whole.zip"
    image = np.arange(144.0).reshape(12, 12)
    names = [n for group in NAMES.values() for n in group]
    write_submission(path, dict.fromkeys(names, image), expected_names=names)
    return path


def test_the_challenge_has_290_test_scenes() -> None:
    names = [n for group in NAMES.values() for n in group]
    assert len(names) == len(set(names)) == 290
    assert (names[0], names[-1]) == ("imgset1160", "imgset1449")


def test_a_partial_submission(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "some.zip"
    submit.main(
        ["--system", "bicubic_mean", "--data", str(data), "--output", str(output), "--partial"]
    )
    with zipfile.ZipFile(output) as archive:
        assert archive.namelist() == [
            "imgset1160.png", "imgset1161.png", "imgset1306.png", "imgset1307.png"
        ]  # fmt: skip
    faults = check_submission(output, side=48)
    assert faults == ["286 images missing: imgset1162.png, imgset1163.png, imgset1164.png …"]


def test_scenes_that_are_missing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "some.zip"
    message = refuser(capsys)(submit.main, "--system", "ibp", "--data", data, "--output", output)
    assert "found 4 test scenes and no imgset1162, expected the challenge's 290" in message
    assert not output.exists()


def test_bands_that_no_bundle_serves() -> None:
    nir = Bundle({}, ModelConfig(system="ibp"), BundleInfo(bands=("NIR",)))
    with pytest.raises(ValueError, match="systems for NIR, expected one for RED too"):
        submit.bundles_by_band([("a", nir)])
    with pytest.raises(ValueError, match="b: found a second system for band NIR"):
        submit.bundles_by_band([("a", nir), ("b", nir)])


def test_a_whole_submission(whole: Path) -> None:
    assert check_submission(whole, side=12) == []


def test_every_fault_is_named(whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(whole) as good, zipfile.ZipFile(broken, "w") as bad:
        for name in good.namelist()[2:]:
            png = good.read(name)
            if name == "imgset1170.png":
                png = b"no picture"
            if name == "imgset1171.png":
                png = png[:60] + b"\x00\x00" + png[62:]
            bad.writestr(f"folder/{name}" if name == "imgset1180.png" else name, png)
    faults = check_submission(broken, side=12)
    assert faults[0].startswith("3 images missing: imgset1160.png, imgset1161.png, imgset1180.png")
    assert faults[1] == "1 images not of the challenge's test scenes: folder/imgset1180.png"
    assert faults[2] == "imgset1170.png is not a PNG"
    assert faults[3].startswith("imgset1171.png cannot be read")
    assert len(faults) == 4
    small = check_submission(whole)
    assert len(small) == 290 and "has 12×12 pixels, expected 384×384" in small[0]


def test_the_command_check(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "290 faults" in refuser(capsys)(check.main, whole)
    text = tmp_path / "text.zip"
    text.write_text("no zip")
    assert "expected a zip" in refuser(capsys)(check.main, text)
    assert "no such file" in refuser(capsys)(check.main, tmp_path / "nothing.zip")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "deepsum_jax", command, "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"usage: deepsum {command}" in done.stdout


def test_the_console() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "deepsum_jax", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert all(name in run("--help").stdout for name in COMMANDS)
    wrong = run("predcit")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: deepsum: no command 'predcit'; did you mean 'predict'?\n"


def test_a_reader_that_has_read_enough() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-u", "-m", "deepsum_jax", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
