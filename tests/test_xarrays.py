"""xarray in and out: labels, coordinates, CRS, attributes, encoding, windows."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

xarray = pytest.importorskip("xarray")

from deepsum_jax.rasters import xarrays  # noqa: E402
from deepsum_jax.tiling.source import Rect  # noqa: E402

T, H, W, C, SCALE = 4, 12, 10, 3, 3
RNG = np.random.default_rng(0)
DATES = np.array(["2021-03-01", "2021-01-05", "2021-02-10", "2021-04-02"], "M8[ns]")
ORDER = [1, 2, 0, 3]
LR = RNG.integers(1, 4000, (T, H, W, C)).astype(np.uint16)
CLEAR = RNG.random((T, H, W)) < 0.8
WHOLE = Rect(0, 0, H, W)
IMAGE = RNG.uniform(1, 4000, (H * SCALE, W * SCALE, C)).astype(np.float32)
Y, X = 4600000 - 10 * (np.arange(H) + 0.5), 500000 + 10 * (np.arange(W) + 0.5)


def array(dims: tuple[str, ...] = ("time", "band", "y", "x"), **more: Any) -> Any:
    coords = {
        "time": DATES, "y": ("y", Y, {"units": "metre", "resolution": -10.0}), "x": X,
        "band": ["red", "green", "blue"], "name": ("band", ["B4", "B3", "B2"]),
        "cloud": ("time", [0.1, 0.2, 0.3, 0.4]), "platform": "S2A",
    }  # fmt: skip
    full = xarray.DataArray(LR, dims=("time", "y", "x", "band"), coords=coords, name="dn", **more)
    return full.transpose(*dims)


def one(dims: tuple[str, ...] = ("time", "y", "x"), **more: Any) -> Any:
    return array(**more).isel(band=0, drop=True).transpose(*dims)


def bands() -> Any:
    found = array().drop_vars("name").to_dataset("band").assign_attrs(title="a stack")
    for band in found.data_vars.values():
        band.attrs["units"] = "1"
    return found


# --- in -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dims", [("time", "band", "y", "x"), ("x", "y", "time", "band"), ("band", "time", "y", "x")]
)
def test_frames_come_in_order_of_time(dims: tuple[str, ...]) -> None:
    source = xarrays.as_source(array(dims))
    lr, masks = source.read(Rect(2, 3, 5, 4))
    np.testing.assert_array_equal(lr, LR[ORDER, 2:7, 3:7])
    assert lr.dtype == np.uint16 == source.dtype and masks.all() and masks.shape == (T, 5, 4)
    assert source.names == ("2021-01-05", "2021-02-10", "2021-03-01", "2021-04-02")
    assert (source.height, source.width, source.channels) == (H, W, C)
    np.testing.assert_array_equal(source.order, ORDER)
    assert source.fractions.shape == (T, 2) and not source.fractions.any()


def test_other_names() -> None:
    stack = one().rename(time="date", y="latitude", x="longitude").drop_vars("date")
    source = xarrays.as_source(stack)
    np.testing.assert_array_equal(source.read(WHOLE)[0][..., 0], LR[..., 0])
    assert source.names[1] == "frame 1" and source.channels == 1


def test_a_dataset_of_bands() -> None:
    source = xarrays.as_source(bands())
    np.testing.assert_array_equal(source.read(WHOLE)[0], LR[ORDER])
    wrong = bands().assign(dem=(("y", "x"), np.zeros((H, W))))
    with pytest.raises(ValueError, match="the variable dem with the dimensions"):
        xarrays.as_source(wrong)


def test_what_is_missing() -> None:
    """Each band knows its own codes."""
    two = bands()
    two["red"].attrs["_FillValue"] = LR[0, 0, 0, 0]
    two["green"].encoding["_FillValue"] = LR[1, 3, 4, 1]
    _, masks = xarrays.as_source(two).read(WHOLE)
    missing = (LR[..., 0] == LR[0, 0, 0, 0]) | (LR[..., 1] == LR[1, 3, 4, 1])
    np.testing.assert_array_equal(masks, ~missing[ORDER])
    holes = array().astype(np.float32)
    holes[2, 1, 3, 4] = np.nan
    _, masks = xarrays.as_source(holes).read(WHOLE)
    assert np.argwhere(~masks).tolist() == [[ORDER.index(2), 3, 4]]


def test_masks_by_label() -> None:
    masks = xarray.DataArray(
        CLEAR.astype(np.uint8), {"time": DATES, "y": Y, "x": X}, ("time", "y", "x")
    )
    turned = masks.isel(time=[3, 1, 0, 2], y=slice(None, None, -1)).transpose("x", "time", "y")
    larger = turned.pad(x=2, constant_values=0).assign_coords(
        x=np.concatenate([X[0] - [20, 10], X, X[-1] + [10, 20]]) + 1e-4
    )
    rect = Rect(1, 2, 6, 5)
    for found in (masks, turned, larger, CLEAR, CLEAR.astype(np.uint8) * 255):
        _, clear = xarrays.as_source(array(), found).read(rect)
        np.testing.assert_array_equal(clear, CLEAR[ORDER][:, 1:7, 2:7])
    for found in (masks.isel(time=0, drop=True), CLEAR[0]):
        _, clear = xarrays.as_source(array(), found).read(rect)
        np.testing.assert_array_equal(clear, np.repeat(CLEAR[:1, 1:7, 2:7], T, axis=0))
    with pytest.raises(ValueError, match=r"masks: found none at time = 2021-02-10"):
        xarrays.as_source(array(), masks.isel(time=[0, 1, 3]))
    with pytest.raises(ValueError, match=r"masks: found none at x = 5"):
        xarrays.as_source(array(), masks.assign_coords(x=X + 5))
    with pytest.raises(ValueError, match="expected bool, 0 and 1"):
        xarrays.as_source(array(), masks * 7).read(rect)


def test_dimensions_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"expected time .*expand_dims"):
        xarrays.as_source(array().isel(time=0))
    with pytest.raises(TypeError, match="unknown dimension depth"):
        xarrays.as_source(array().rename(band="depth"))
    with pytest.raises(ValueError, match="expected time, y, x"):
        xarrays.as_source(array().rename(band="row"))


def test_dask_is_read_window_by_window() -> None:
    dask = pytest.importorskip("dask.array")
    read: list[tuple[int, ...]] = []
    lock = threading.Lock()

    def block(at: Any = None) -> np.ndarray:
        with lock:
            read.append(at["chunk-location"])
        y, x = (slice(*at["array-location"][k]) for k in (2, 3))
        return np.moveaxis(LR, -1, 1)[:, :, y, x]

    def load(block_info: Any = None) -> np.ndarray:
        return block(block_info[None])

    lazy = dask.map_blocks(
        load, chunks=((T,), (C,), (6, 6), (5, 5)), dtype=np.uint16, meta=np.empty(0, np.uint16)
    )
    stack = array().copy(data=lazy)
    masks = xarray.DataArray(dask.from_array(CLEAR, chunks=(1, 6, 5)), dims=("time", "y", "x"))
    for given in (stack, stack.drop_vars("name").to_dataset("band")):
        read.clear()
        source = xarrays.as_source(given, masks)
        assert not read
        lr, clear = source.read(Rect(7, 1, 3, 4))
        np.testing.assert_array_equal(lr, LR[ORDER, 7:10, 1:5])
        np.testing.assert_array_equal(clear, CLEAR[ORDER][:, 7:10, 1:5])
        assert read == [(0, 0, 1, 0)]  # one block, once


def test_reads_from_many_threads() -> None:
    source = xarrays.as_source(bands())
    rects = [Rect(r, c, 3, 2) for r in range(0, H, 3) for c in range(0, W, 2)]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        for rect, (lr, _) in zip(rects, pool.map(source.read, rects)):
            np.testing.assert_array_equal(lr, LR[ORDER][:, *rect.part])


# --- out ----------------------------------------------------------------------------------------


def test_an_array_like_the_stack() -> None:
    stack = array(
        attrs={"units": "counts", "res": (10.0, 10.0), "transform": (10, 0, 5, 0, -10, 7)}
    )
    made = xarrays.labelled_like(stack, IMAGE, SCALE)
    assert made.dims == ("band", "y", "x") and made.name == "dn" and made.dtype == np.float32
    np.testing.assert_array_equal(made.values, np.moveaxis(IMAGE, -1, 0))
    np.testing.assert_allclose(made.x, 500000 + 10 / 3 * (np.arange(3 * W) + 0.5), rtol=1e-15)
    np.testing.assert_allclose(made.y, 4600000 - 10 / 3 * (np.arange(3 * H) + 0.5), rtol=1e-15)
    assert made.y.attrs == {"units": "metre", "resolution": -10 / 3}
    assert made.band.values.tolist() == ["red", "green", "blue"]
    assert made.coords["name"].values.tolist() == ["B4", "B3", "B2"]
    assert made.platform == "S2A" and "cloud" not in made.coords and "time" not in made.coords
    assert made.attrs["units"] == "counts" and made.attrs["res"] == (10 / 3, 10 / 3)
    assert made.attrs["transform"][0] == 10 / 3 and stack.attrs["res"] == (10.0, 10.0)


@pytest.mark.parametrize("order", [1, -1])
def test_rows_up_and_down(order: int) -> None:
    stack = one().isel(y=slice(None, None, order))
    made = xarrays.labelled_like(stack, IMAGE[..., 0], SCALE)
    assert made.dims == ("y", "x")
    mean = made.y.values.reshape(H, SCALE).mean(axis=1)  # of the pixels that one became
    np.testing.assert_allclose(mean, stack.y.values, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.diff(made.y), -order * 10 / 3, rtol=1e-6)


def test_uneven_coordinates() -> None:
    stack = one().assign_coords(y=Y + 5 * (np.arange(H) == 7))
    with pytest.raises(ValueError, match="stack: y: found coordinates that are not evenly spaced"):
        xarrays.labelled_like(stack, IMAGE[..., 0], SCALE)
    bare = xarrays.labelled_like(one().drop_vars(["x", "y"]), IMAGE[..., 0], SCALE)
    assert bare.shape == (H * SCALE, W * SCALE) and "x" not in bare.coords


def test_a_dataset_like_the_stack() -> None:
    stack = bands().assign(
        spatial_ref=xarray.DataArray(0, attrs={"GeoTransform": "5e5 10 0 0 0 -1"})
    )
    stack["green"].attrs["long_name"] = "reflectance"
    made = xarrays.labelled_like(stack, IMAGE, SCALE)
    assert list(made.data_vars) == ["red", "green", "blue", "spatial_ref"]
    numbers = [float(n) for n in made["spatial_ref"].attrs["GeoTransform"].split()]
    assert numbers == pytest.approx([500000, 10 / 3, 0, 4600000, 0, -10 / 3])
    assert made.attrs == stack.attrs and made.attrs["title"] == "a stack"
    assert made["green"].attrs == {"units": "1", "long_name": "reflectance"}
    assert made["green"].dims == ("y", "x")
    np.testing.assert_array_equal(made["green"].values, IMAGE[..., 1])
    error = xarrays.standard_error(stack, IMAGE / 9, SCALE, None)
    assert list(error.data_vars)[:3] == ["red", "green", "blue"]
    assert error["red"].attrs == {"units": "1", "long_name": "standard error of red"}


def test_what_accompanies() -> None:
    valid = np.ones((H * SCALE, W * SCALE), bool)
    valid[0, 0] = False
    stack = array(attrs={"units": "counts", "_FillValue": 0})
    error = xarrays.standard_error(stack, IMAGE / 9, SCALE, valid)
    assert error.name == "standard_error" and error.dims == ("band", "y", "x")
    assert error.attrs == {"units": "counts", "long_name": "standard error of dn"}
    assert np.isnan(error[0, 0, 0]) and error[0, 0, 1] == IMAGE[0, 1, 0] / np.float32(9)
    frames = xarrays.frames(stack, IMAGE[..., 0], SCALE)
    assert frames.dims == ("y", "x") and frames.name == "frames" and "band" not in frames.coords


@pytest.mark.parametrize("part", [slice(None), slice(4, 9)])
def test_rioxarray_agrees(part: slice) -> None:
    """Also of a stack that was cut, which leaves the transform of the whole behind."""
    pytest.importorskip("rioxarray")
    stack = array().rio.write_crs(32614).rio.write_transform()
    stack = stack.isel(x=part, y=part)
    h, w = stack.sizes["y"] * SCALE, stack.sizes["x"] * SCALE
    made = xarrays.labelled_like(stack, IMAGE[:h, :w], SCALE)
    assert made.rio.crs == stack.rio.crs
    start = part.start or 0
    for recalc in (False, True):
        found = made.rio.transform(recalc=recalc)
        expected = (10 / 3, 0, 500000 + 10 * start, 0, -10 / 3, 4600000 - 10 * start)
        assert tuple(found)[:6] == pytest.approx(expected, rel=1e-10 if recalc else 1e-12)
    assert made.rio.bounds() == pytest.approx(stack.rio.bounds(), rel=1e-12)
    numbers = made.spatial_ref.attrs["GeoTransform"].split()
    assert float(numbers[0]) == 500000 + 10 * start and float(numbers[1]) == 10 / 3


def test_a_turned_grid() -> None:
    """It has no coordinates along y and x, and only its transform says where it is."""
    about = {"GeoTransform": "100.0 9.0 1.0 200.0 1.0 -9.0"}
    stack = one().drop_vars(["x", "y"]).assign_coords(spatial_ref=((), 0, about))
    made = xarrays.labelled_like(stack, IMAGE[..., 0], SCALE)
    numbers = [float(n) for n in made.spatial_ref.attrs["GeoTransform"].split()]
    assert numbers == pytest.approx([100, 3, 1 / 3, 200, 1 / 3, -3])
    assert stack.spatial_ref.attrs == about


# --- encodings ----------------------------------------------------------------------------------


def decoded(**encoding: Any) -> Any:
    """A stack as xarray has it after reading a file with such an encoding."""
    stack = one().astype(np.float32) * np.float32(1e-4)
    stack.encoding = {"scale_factor": 1e-4, "add_offset": 0.0, "dtype": "int16", **encoding}
    return stack


def test_a_file_and_back(tmp_path: Path) -> None:
    valid = np.ones((H * SCALE, W * SCALE), bool)
    valid[:2] = False
    image = IMAGE[..., 0] * np.float32(1e-4)
    image[5, 5], image[6, 6], image[7, 7] = 1e-5, -9.0, 9.0  # no value of a valid pixel may be 0
    stack = decoded(_FillValue=0, chunksizes=(1, H, W), source="a.nc")
    with pytest.warns(UserWarning, match="clipped 2 of 1080 values .1 below -32768, 1 above 32767"):
        made = xarrays.labelled_like(stack, image, SCALE, valid)
    assert made.encoding == {
        "scale_factor": 1e-4, "add_offset": 0.0, "dtype": "int16", "_FillValue": 0,
    }  # fmt: skip
    made.to_netcdf(tmp_path / "sr.nc", engine="scipy")
    with xarray.open_dataarray(tmp_path / "sr.nc", mask_and_scale=False, engine="scipy") as raw:
        assert raw.dtype == np.int16
        counts = np.clip(np.rint(image.astype(np.float64) / 1e-4), -32768, 32767)
        counts[counts == 0] = 1
        np.testing.assert_array_equal(raw.values, np.where(valid, counts, 0))


def test_encodings_that_have_no_word_for_missing() -> None:
    stack = decoded(rasterio_dtype="int16")
    valid = np.ones((H * SCALE, W * SCALE), bool)
    image = IMAGE[..., 0] * np.float32(1e-4)
    kept = xarrays.labelled_like(stack, image, SCALE, valid)
    assert kept.encoding["dtype"] == "int16"
    valid[3, 3] = False
    made = xarrays.labelled_like(stack, image, SCALE, valid)
    assert np.isnan(made[3, 3]) and not {"dtype", "rasterio_dtype"} & made.encoding.keys()


def test_codes_stay_codes() -> None:
    """Where a stack's attributes name a no-data value, that of the image is the same."""
    stack = one(attrs={"_FillValue": 0, "units": "1"})
    stack.encoding = {"rasterio_dtype": "uint16", "grid_mapping": "spatial_ref"}
    valid = np.ones((H * SCALE, W * SCALE), bool)
    valid[3, 3] = False
    image = IMAGE[..., 0].copy()
    image[4, 4] = 0
    made = xarrays.labelled_like(stack, image, SCALE, valid)
    assert made.attrs == stack.attrs and made.encoding == {"grid_mapping": "spatial_ref"}
    assert made.attrs["_FillValue"].dtype == made.dtype
    assert made[3, 3] == 0 and 0 < made[4, 4] < 1e-30
    _, again = xarrays.as_source(made.expand_dims("time")).read(Rect(0, 0, H * SCALE, W * SCALE))
    np.testing.assert_array_equal(again[0], valid)


def test_xarray_is_not_imported() -> None:
    script = (
        "import sys; import numpy as np; from deepsum_jax.rasters import xarrays; "
        "assert not xarrays.is_labelled(np.zeros(3)); print('xarray' in sys.modules, "
        "'rasterio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
    assert xarrays.is_labelled(one()) and xarrays.is_labelled(bands())
