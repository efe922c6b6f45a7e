"""Whatever users pass: what it knows of missing values is used or refused, never lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepsum_jax import Bundle, ModelConfig, predict
from deepsum_jax.data import kelvins
from deepsum_jax.data.scene import Scene, check_stack
from deepsum_jax.data.stackfile import read_input

MEAN = Bundle({}, ModelConfig(system="bicubic_mean"))
RNG = np.random.default_rng(0)
LR = RNG.integers(1000, 9000, (3, 6, 8)).astype(np.uint16)
CLEAR = RNG.random(LR.shape) < 0.7
BANDS = np.stack([LR, LR + 7], axis=-1)  # [T, h, w, 2]


class Named:
    """The part of xarray's DataArray that matters here."""

    def __init__(self, values: Any, dims: tuple[str, ...], **more: Any) -> None:
        self.values, self.dims, self.shape = values, dims, values.shape
        self.attrs, self.encoding = more.get("attrs", {}), more.get("encoding", {})

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.values)


class Lazy:
    """The part of a dask array that matters here."""

    def __init__(self, values: Any) -> None:
        self.inner, self.shape = values, values.shape

    def compute(self) -> Any:
        return self.inner

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.inner)


class Variable:
    """The part of netCDF4's Variable that matters here: its __array__ is masked."""

    def __init__(self, values: Any, dimensions: tuple[str, ...]) -> None:
        self.inner, self.dimensions = values, dimensions

    def __getitem__(self, key: Any) -> Any:
        return self.inner[key]

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.inner[...]


def masked(values: np.ndarray = LR) -> Any:
    hidden = ~CLEAR if values.ndim == 3 else np.repeat(~CLEAR[..., None], 2, axis=-1)
    return np.ma.masked_array(values, hidden)


YXT = ("y", "x", "time")


@pytest.mark.parametrize(
    "stack",
    [
        masked(),
        list(masked()),
        tuple(masked()),
        [list(frame) for frame in masked()],
        Lazy(masked()),
        [Lazy(frame) for frame in masked()],
        Named(masked(), ("time", "y", "x")),
        Named(Lazy(masked()), ("date", "lat", "lon")),
        Named(masked().transpose(1, 2, 0), YXT),
        Named(np.where(CLEAR, LR, np.nan), ("t", "northing", "easting")),
        Named(np.where(CLEAR, LR, 0), ("frame", "row", "column"), attrs={"_FillValue": 0}),
        Named(np.where(CLEAR, LR, 7), ("time", "y", "x"), encoding={"nodata": 7}),
        Named(np.where(CLEAR, LR, 7), ("time", "y", "x"), attrs={"missing_value": [7, 9]}),
        Named(np.where(CLEAR, LR, 7), ("Time", "Latitude", "Longitude"), attrs={"nodata": "7"}),
        [Named(np.where(c, f, 0), ("y", "x"), attrs={"nodata": 0}) for f, c in zip(LR, CLEAR)],
        Variable(masked(), ("time", "lat", "lon")),
    ],
)
def test_what_a_container_hides_stays_hidden(stack: Any) -> None:
    lr, masks = check_stack(stack)
    np.testing.assert_array_equal(masks, CLEAR)
    np.testing.assert_array_equal(lr[CLEAR], LR[CLEAR])
    given = np.ones(LR.shape, bool)
    given[0] = False
    np.testing.assert_array_equal(check_stack(stack, given)[1], CLEAR & given)


def test_a_pixel_is_reliable_where_every_band_is() -> None:
    stack = masked(BANDS)
    stack[1, 2, 3, 1] = np.ma.masked
    expected = CLEAR.copy()
    expected[1, 2, 3] = False
    for one in (stack, list(stack), Named(stack, ("time", "y", "x", "band"))):
        np.testing.assert_array_equal(check_stack(one)[1], expected)
    channels_first = Named(np.moveaxis(BANDS, -1, 1), ("time", "channel", "y", "x"))
    np.testing.assert_array_equal(check_stack(channels_first)[0], BANDS)


def test_masks_in_any_container() -> None:
    numbers = CLEAR.astype(np.uint8)
    for masks in (
        [list(frame) for frame in numbers],
        CLEAR * 255,
        (CLEAR * 255.0).astype(np.float32),
        Named(CLEAR.transpose(1, 2, 0), YXT),
        Named(numbers[..., None], ("time", "y", "x", "band")),
        Named(np.where(CLEAR, 1.0, np.nan), ("time", "y", "x")),
        Lazy(CLEAR),
        [Named(frame, ("y", "x")) for frame in CLEAR],
        np.ma.masked_array(np.ones(LR.shape, bool), ~CLEAR),
    ):
        np.testing.assert_array_equal(check_stack(LR, masks)[1], CLEAR)
    assert check_stack(LR, np.full(LR.shape, 255))[1].all()


def test_one_mask_serves_all_frames() -> None:
    for one in (CLEAR[0], CLEAR[0] * 255, Named(CLEAR[0], ("y", "x"))):
        np.testing.assert_array_equal(check_stack(LR, one)[1], np.stack([CLEAR[0]] * 3))
        np.testing.assert_array_equal(check_stack(BANDS, one)[1], np.stack([CLEAR[0]] * 3))
    scene = Scene("s", LR, CLEAR[0])
    np.testing.assert_array_equal(scene.masks, np.stack([CLEAR[0]] * 3))


def test_truth_keeps_its_mask_too() -> None:
    hr = np.ma.masked_array(np.kron(LR[0], np.ones((2, 2))), np.kron(~CLEAR[0], np.ones((2, 2))))
    given = np.ones(hr.shape, bool)
    given[0] = False
    reliable = ~np.ma.getmaskarray(hr)
    np.testing.assert_array_equal(Scene("s", LR, CLEAR, hr=hr).hr_mask, reliable)
    named: Any = Named(hr, ("y", "x"))
    both = Scene("s", LR, CLEAR, hr=named, hr_mask=given)
    np.testing.assert_array_equal(both.hr_mask, reliable & given)


@pytest.mark.parametrize(
    ("stack", "masks", "error", "words"),
    [
        (Named(LR, ("time", "y", "depth")), None, TypeError, "unknown dimension depth,.*rename"),
        (Named(LR, ("band", "y", "x")), None, ValueError, r"\(band, y, x\), expected \(time, y"),
        (Named(LR[0], ("y", "x")), None, ValueError, r"expected \(time, y, x\)"),
        (Named(LR, ("y", "lat", "x")), None, ValueError, r"\(y, lat, x\)"),
        (
            Named(LR, ("time", "y", "x"), attrs={"nodata": "none at all"}),
            None,
            ValueError,
            "nodata 'none at all'",
        ),
        (LR, np.where(CLEAR, 4, 9), ValueError, r"masks: found the values 4, 9, .*np\.isin"),
        (LR, CLEAR * 2, ValueError, "masks: found the value 2"),
        (LR, CLEAR + 254 * CLEAR[[1, 2, 0]], ValueError, "found the values 254, 255"),
        (LR, CLEAR[0, :5], ValueError, r"\(5, 8\).*\(3, 6, 8\).*one mask \(6, 8\)"),
        ([LR[0], masked()[1, :4]], None, TypeError, "unequal"),
        (np.moveaxis(np.stack([LR] * 9, -1), -1, 1), None, ValueError, r"np\.moveaxis"),
        (np.moveaxis(BANDS, -1, 1), None, ValueError, r"\(3, 2, 6, 8\).*np\.moveaxis"),
    ],
)
def test_what_cannot_be_used_is_refused(
    stack: Any, masks: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        predict(MEAN, stack, masks)
    assert "\n" not in str(caught.value)


def test_a_mask_of_its_own_that_is_not_understood() -> None:
    class Other:
        mask = ~CLEAR

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return LR

    with pytest.raises(TypeError, match="Other with a mask of its own"):
        check_stack(Other())

    class Dataset:
        dims = ("time", "y", "x")
        data_vars = ("B04", "B08")

    with pytest.raises(TypeError, match="Dataset of B04, B08, expected one DataArray"):
        check_stack(Dataset())


def test_a_code_on_disk_is_not_looked_for_in_scaled_values() -> None:
    encoding = {"_FillValue": 1000, "scale_factor": 0.1}
    stack = Named(np.full((2, 4, 4), 1000.0), ("time", "y", "x"), encoding=encoding)
    assert check_stack(stack)[1].all()


def test_real_xarray() -> None:
    xarray = pytest.importorskip("xarray")
    holes = np.where(CLEAR, LR.astype(np.float32), np.nan)
    array = xarray.DataArray(holes, dims=("time", "y", "x"))
    codes = xarray.DataArray(np.where(CLEAR, LR, 0), dims=("time", "y", "x"))
    pieces = [array.isel(time=n) for n in range(3)]
    for stack in (array, array.transpose(*YXT), pieces, codes.assign_attrs(_FillValue=0)):
        lr, masks = check_stack(stack, array.notnull())
        np.testing.assert_array_equal(masks, CLEAR)
        np.testing.assert_array_equal(lr[CLEAR], LR[CLEAR])
    with pytest.raises(TypeError, match=re.escape("Dataset of red")):
        check_stack(array.to_dataset(name="red"))


def test_masks_of_other_dates() -> None:
    xarray = pytest.importorskip("xarray")
    dims = ("time", "y", "x")
    stack = xarray.DataArray(LR, dims=dims, coords={"time": [1, 2, 3]})
    masks = xarray.DataArray(CLEAR[::-1], dims=dims, coords={"time": [3, 2, 1]})
    with pytest.raises(ValueError, match=r"other coordinates along time.*reindex_like"):
        check_stack(stack, masks)
    np.testing.assert_array_equal(check_stack(stack, masks.reindex_like(stack))[1], CLEAR)


def test_real_dask() -> None:
    dask = pytest.importorskip("dask.array")
    for stack in (dask.from_array(masked(), chunks=4), [dask.from_array(f) for f in masked()]):
        np.testing.assert_array_equal(check_stack(stack)[1], CLEAR)


# --- files --------------------------------------------------------------------------------------


def png(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"mask": CLEAR}, "the array mask beside 'stack'.*did you mean 'masks'"),
        ({"clouds": CLEAR, "dates": np.arange(3)}, "arrays clouds, dates beside.*'masks'"),
        ({"Masks": CLEAR}, "array Masks.*did you mean 'masks'"),
        ({"masks": CLEAR, "qa": CLEAR}, "the array qa"),
    ],
)
def test_arrays_of_unknown_names(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", stack=LR, **more)
    with pytest.raises(ValueError, match=words):
        read_input([tmp_path / "s.npz"], [])


def test_masks_of_an_npz_are_not_replaced(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", stack=LR, masks=CLEAR * 255)
    np.testing.assert_array_equal(read_input([tmp_path / "s.npz"], [])[1], CLEAR)
    np.save(tmp_path / "m.npy", CLEAR)
    with pytest.raises(ValueError, match="has its own masks"):
        read_input([tmp_path / "s.npz"], [tmp_path / "m.npy"])


def test_one_mask_file_for_all_frames(tmp_path: Path) -> None:
    frames = [png(tmp_path / f"{n}.PNG", frame) for n, frame in enumerate(LR)]
    np.save(tmp_path / "s.npy", LR)
    (tmp_path / "s.npy").rename(tmp_path / "s.NPY")
    one = png(tmp_path / "m.PNG", CLEAR[0].astype(np.uint8) * 255)
    np.save(tmp_path / "one.npy", CLEAR[0] * 255)
    np.save(tmp_path / "all.npy", CLEAR * np.uint8(255))
    for inputs in (frames, [tmp_path / "s.NPY"]):
        for masks in ([one], [tmp_path / "one.npy"]):
            found = read_input(inputs, masks)[1]
            np.testing.assert_array_equal(found, np.stack([CLEAR[0]] * 3))
        np.testing.assert_array_equal(read_input(inputs, [tmp_path / "all.npy"])[1], CLEAR)
        with pytest.raises(ValueError, match="masks"):
            read_input(inputs, [one, one])


def test_classes_in_mask_files_are_refused(tmp_path: Path) -> None:
    frames = [png(tmp_path / f"{n}.png", frame) for n, frame in enumerate(LR)]
    classes = [png(tmp_path / f"m{n}.png", np.where(c, 4, 9).astype(np.uint8)) for n, c in
               enumerate(CLEAR)]  # fmt: skip
    with pytest.raises(ValueError, match=r"m0\.png: found the values 4, 9.*np\.isin"):
        read_input(frames, classes)
    with pytest.raises(ValueError, match=r"values 4, 9"):
        read_input(frames, classes[:1])
    plain = [png(tmp_path / f"p{n}.png", np.full(LR[0].shape, n + 4, np.uint8)) for n in range(3)]
    with pytest.raises(ValueError, match=r"p1\.png: found the values 4, 5"):
        read_input(frames, plain)
    grades = png(tmp_path / "grades.png", (np.arange(48).reshape(6, 8) * 5).astype(np.uint8))
    with pytest.raises(ValueError, match=r"values 0, 5, 10"):
        read_input(frames, [grades])


def test_classes_in_a_scene_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "imgset0001"
    kelvins.write_scene(folder, Scene("s", LR, CLEAR, hr=np.kron(LR[0], np.ones((2, 2)))))
    png(folder / "QM001.png", np.full(LR[0].shape, 1, np.uint8))  # white of another writer
    assert kelvins.read_scene(folder).masks[1].all()
    png(folder / "QM001.png", np.where(CLEAR[1], 5, 8).astype(np.uint8))
    with pytest.raises(ValueError, match=r"QM001\.png: found the values"):
        kelvins.read_scene(folder)
    kelvins.write_mask_png(folder / "QM001.png", CLEAR[1])
    png(folder / "SM.png", (np.arange(192).reshape(12, 16) % 7).astype(np.uint8))
    with pytest.raises(ValueError, match=r"SM\.png: found the values 0, 1, 2"):
        kelvins.read_scene(folder)
