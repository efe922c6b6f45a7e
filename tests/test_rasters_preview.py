"""What a preview of a large raster shows."""

from __future__ import annotations

from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest

from deepsum_jax import alongside, figures
from deepsum_jax.rasters.preview import SIDE, Crop, drawn_bands, telling_part
from deepsum_jax.tiling.source import ArraySource, Rect, Strip

RNG = np.random.default_rng(0)


def source(detail: tuple[int, int], cloud: tuple[int, int] | None = None) -> ArraySource:
    """Flat ground with detail at one place; the first of three frames has a cloud at another."""
    ground = np.full((500, 400), 1000.0)
    row, column = detail
    ground[row : row + 80, column : column + 80] += RNG.normal(0, 200, (80, 80))
    lr = ground + RNG.normal(0, 5, (3, 500, 400))
    masks = np.ones(lr.shape, bool)
    if cloud is not None:
        row, column = cloud
        lr[0, row : row + 90, column : column + 90] += RNG.normal(4000, 2000, (90, 90))
        masks[0, row : row + 90, column : column + 90] = False
    return ArraySource(lr[..., None].astype(np.float32), masks)


def test_a_small_one_is_shown_whole() -> None:
    stack = ArraySource(np.zeros((2, 40, 150, 1)), np.ones((2, 40, 150), bool))
    assert telling_part(stack, 0) == Rect(0, 0, 40, 150)


@pytest.mark.parametrize("detail", [(10, 10), (400, 300), (200, 160)])
def test_detail_is_found_and_no_cloud(detail: tuple[int, int]) -> None:
    found = telling_part(source(detail, cloud=(110, 230)), 0)
    assert (found.height, found.width) == (SIDE, SIDE)
    assert abs(found.row - detail[0]) < 60 and abs(found.column - detail[1]) < 60
    assert found.row + found.height <= 500 and found.column + found.width <= 400


def test_where_the_reference_is_hidden_there_is_nothing_to_see() -> None:
    stack = source((110, 230), cloud=(105, 225))
    there, elsewhere = telling_part(stack, 1), telling_part(stack, 0)
    assert abs(there.row - 110) < 60 and abs(there.column - 230) < 60
    assert abs(elsewhere.row - 110) > 60 or abs(elsewhere.column - 230) > 60


@pytest.mark.parametrize("step", [7, 40, 1000])
def test_a_part_of_the_strips(step: int) -> None:
    image = RNG.normal(0, 1, (120, 90, 2)).astype(np.float32)
    valid = RNG.random((120, 90)) < 0.9
    crop = Crop(Rect(11, 4, 17, 9), 3, 2)
    for row in range(0, 120, step):
        rows = slice(row, row + step)
        crop.take(Strip(row, image[rows], valid[rows], image[rows] * 2, None))
    expected = np.where(valid[..., None], image, np.nan)[33:84, 12:39]
    np.testing.assert_array_equal(crop.image, expected)
    np.testing.assert_array_equal(crop.standard_error, expected * 2)


def test_which_bands_are_drawn() -> None:
    assert drawn_bands(["Blue", "Green", "Red", "Undefined"]) == (2, 1, 0)
    assert drawn_bands(["Gray"]) == (0,) == drawn_bands(["red", "nir"])


def test_in_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grey ground is drawn grey, and nothing is drawn white."""
    seen: list[tuple] = []

    def keep(*arguments: object) -> matplotlib.figure.Figure:
        seen.append(arguments)
        return figure(*arguments)  # type: ignore[arg-type]

    figure = figures.preview
    monkeypatch.setattr(figures, "preview", keep)
    frame = np.repeat(RNG.uniform(100, 200, (20, 20, 1)), 4, axis=-1)
    frame[..., 2] += np.linspace(0, 90, 20)
    mask = np.ones((20, 20), bool)
    mask[3, 4] = False
    image = frame.repeat(2, axis=0).repeat(2, axis=1)
    path = tmp_path / "p.png"
    alongside.draw(path, frame, mask, image, image / 10, "before", "after", (2, 1, 0))
    ((shown, error, _, _),) = seen
    assert [title for title, _ in shown] == ["before", "bicubic", "after"]
    assert all(panel.shape[2] == 3 and panel.min() >= 0 <= panel.max() <= 1 for _, panel in shown)
    np.testing.assert_array_equal(shown[0][1][3, 4], 1)
    np.testing.assert_array_equal(shown[1][1][6:8, 8:10], 1)  # nor is anything made up there
    np.testing.assert_allclose(shown[2][1][:, 0, 0], shown[2][1][:, 0, 2])  # no blue is added there
    assert (shown[2][1][..., 0] >= shown[2][1][..., 1]).all()
    np.testing.assert_allclose(error[1], image[..., [2, 1, 0]].mean(axis=-1) / 10)
    assert path.stat().st_size > 0
