"""The shipped stack: what it is, how it is read, and that a path of its name comes first."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers import refuser

from deepsum_jax import sample, sample_stack
from deepsum_jax.data.stackfile import read_input
from deepsum_jax.predict import main
from deepsum_jax.simulation.dates import read_dates

REAL = Path(__file__).parents[1].parent / "shared" / "real" / "naip-dakota"
README = sample.FILE.with_name("README.md").read_text()


def test_the_stack() -> None:
    stack, masks = sample_stack()
    assert stack.shape == masks.shape == (10, 128, 128)
    assert stack.dtype == np.uint8 and masks.dtype == bool
    assert masks.all() and stack.min() > 0  # 0 is no data
    assert sample.FILE.stat().st_size < 500_000
    correlation = np.corrcoef(stack.reshape(10, -1))
    assert correlation.min() > 0.5 and np.sort(correlation, axis=None)[-11] < 0.99  # one place
    with np.load(sample.FILE) as arrays:
        assert set(arrays.files) == {"stack", "masks"}


def test_dates_source_and_licence_are_told() -> None:
    dates = re.findall(r"\| (\d) \| (20\d\d-\d\d-\d\d) ", README)
    assert sorted(int(frame) for frame, _ in dates) == list(range(10))
    in_order = [date for _, date in sorted(dates)]
    assert in_order == sorted(in_order) and in_order[0] == "2009-08-18"
    for words in ("public domain", "USDA", "NAIP", "opengeos/data", "MIT"):
        assert words in README


@pytest.mark.skipif(not REAL.is_dir(), reason="the real dates lie beside the checkout only")
def test_it_is_cut_as_its_readme_says() -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
    recipe = re.search(r"columns=\((\d+), (\d+)\)\)`, rows\n?\s*`\[(\d+):(\d+)\]`", README)
    assert recipe is not None
    first, end, top, bottom = (int(n) for n in recipe.groups())
    assert end <= 280  # the columns that others are scored on stay apart
    dates = read_dates(sorted(REAL.glob("*.tif")), band=4, columns=(first, end))
    np.testing.assert_array_equal(dates.values[:, top:bottom], sample_stack()[0])
    corner = re.search(r"corner\s+lies at (\d+) east, (\d+) north", README)
    assert corner is not None
    with rasterio.open(min(REAL.glob("*.tif"))) as file:
        assert file.crs.to_epsg() == 26914 and "EPSG:26914" in README
        left, high = (int(n) for n in corner.groups())
        row, column = file.index(left + 2.5, high - 2.5)
        found = file.read(4)[row : row + 128, column : column + 128]
    np.testing.assert_array_equal(found, sample_stack()[0][0])


def test_the_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--system", "bicubic_mean", "--scale", "2", "--output", "o.npy"]
    main([*command, "sample"])
    assert np.load("o.npy").shape == (256, 256)
    assert "from 10 of 10 frames" in capsys.readouterr().out
    stack, masks = read_input([Path("sample")], [])
    np.testing.assert_array_equal(stack, sample_stack()[0])
    np.testing.assert_array_equal(masks, sample_stack()[1])
    np.save("m.npy", masks)
    assert "has its own masks" in refuser(capsys)(main, *command, "sample", "--masks", "m.npy")
    assert "sample: no such file" in refuser(capsys)(main, *command, "sample", "sample")
    Path("sample").mkdir()  # somebody's own
    assert "sample" in refuser(capsys)(main, *command, "sample")


def test_the_sample_as_rasters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the README's first command does, with a system that is fast."""
    rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
    files = sample.sample_rasters()
    assert len(files) == 10 and sum(f.stat().st_size for f in files) < 300_000
    assert "dates/*.tif" in (Path(__file__).parents[1] / "pyproject.toml").read_text()
    out = tmp_path / "sr.tif"
    main(["--system", "bicubic_mean", "--output", str(out), "sample"])
    said = capsys.readouterr().out
    with rasterio.open(out) as made:
        reference = said.split()[-1]
        with rasterio.open(sample.DATES / f"{reference}.tif") as date:
            assert made.bounds == date.bounds and made.crs == date.crs
            assert made.descriptions == date.descriptions == ("red", "green", "blue", "nir")
        assert made.shape == (300, 300) and made.nodata == 0
        assert made.tags()["DEEPSUM_REFERENCE"] == reference
