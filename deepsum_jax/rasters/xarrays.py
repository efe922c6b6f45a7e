"""xarray in and out: DataArrays and Datasets of dates, and the finer grid's of the same kind.

xarray itself is imported only once one of its objects is here.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np

from deepsum_jax.data import intake
from deepsum_jax.rasters import labels, values
from deepsum_jax.rasters.labelled import LabelledSource, bands_of, check_masks


def is_labelled(value: Any) -> bool:
    """Whether something is xarray's DataArray or Dataset."""
    ours = any(kind.__module__.partition(".")[0] == "xarray" for kind in type(value).__mro__)
    return ours and hasattr(value, "coords") and hasattr(value, "dims")


def as_source(stack: Any, masks: Any = None, what: str = "stack") -> LabelledSource:
    """A DataArray (time, y, x) or (time, band, y, x), in any order, or a Dataset whose variables
    are bands, as a source that reads a window at a time. Frames come in the order of their times.

    Args:
      stack: names of dimensions as in `data.intake`; where it computes (dask), only windows are.
      masks: bool, 0/1 or 0/255, True = reliable: a DataArray, put in order by its labels, or an
        array [T, h, w] or [h, w] in the order of the stack's; None.
      what: what messages call it.

    Raises:
      TypeError: dimensions of unknown names, or no numbers.
      ValueError: dimensions that are missing, or masks that do not fit.
    """
    bands = bands_of(stack, what)
    dims = labels.dims_of(bands[0], what)
    if dims.time is None:
        raise ValueError(
            f"{what}: found the dimensions ({', '.join(map(str, bands[0].dims))}), expected time "
            "among them; .expand_dims('time') adds it"
        )
    return LabelledSource(bands, dims, check_masks(masks, bands[0], dims, what), what)


# --- the finer grid -----------------------------------------------------------------------------


def labelled_like(
    stack: Any, image: np.ndarray, scale: int, valid: np.ndarray | None = None
) -> Any:
    """An image as the stack that it was made of: a DataArray (y, x) or (band, y, x), or a Dataset.

    Coordinates are pixel centres of the finer grid; CRS, attributes and encoding are kept. Values
    stay in the unit of the stack's. Where its encoding has a dtype of whole numbers, values that
    this could not hold are clipped, and none that is valid would be stored as missing.

    Args:
      image: float32 [r·h, r·w] or [r·h, r·w, C].
      scale: r.
      valid: bool [r·h, r·w]; elsewhere stands the no-data value that the stack's attributes name,
        or NaN.

    Warns of values that are clipped.
    """
    image = image[..., None] if image.ndim == 2 else image
    valid = np.ones(image.shape[:2], bool) if valid is None else valid
    return _like(stack, lambda band, part: _stored(band, part, valid), image, scale)


def standard_error(stack: Any, error: np.ndarray, scale: int, valid: np.ndarray | None) -> Any:
    """The standard error as `labelled_like` gives the image; NaN where nothing is valid."""
    error = error[..., None] if error.ndim == 2 else error
    if valid is not None:
        error = np.where(valid[..., None], error, np.float32(np.nan))
    units = [{k: b.attrs[k] for k in ("units",) if k in b.attrs} for b in bands_of(stack, "stack")]
    found = _like(stack, None, error, scale)
    if hasattr(found, "data_vars"):
        for (name, band), about in zip(found.data_vars.items(), units):
            band.attrs = {**about, "long_name": f"standard error of {name}"}
        found.attrs = {}
        return found
    of = f" of {stack.name}" if stack.name else ""
    found.attrs = {**units[0], "long_name": f"standard error{of}"}
    return found.rename("standard_error")


def frames(stack: Any, spoke: np.ndarray, scale: int) -> Any:
    """How many frames spoke, [r·h, r·w], as a DataArray (y, x)."""
    first = bands_of(stack, "stack")[0]
    dims = labels.dims_of(first, "stack")
    one = first if dims.band is None else first.isel({dims.band: 0}, drop=True)
    found = _like(one, None, spoke[..., None], scale)
    found.attrs = {"long_name": "frames that spoke"}
    return found.rename("frames")


def _like(stack: Any, stored: Any, image: np.ndarray, scale: int) -> Any:
    if hasattr(stack, "data_vars"):
        import xarray

        loose = [name for name, variable in stack.data_vars.items() if not variable.ndim]
        bands = bands_of(stack.set_coords(loose), "stack")  # such as spatial_ref
        made = {
            band.name: _array(band, stored, image[..., b : b + 1], scale)
            for b, band in enumerate(bands)
        }
        about = labels.finer_attributes(stack.attrs, None, scale)
        whole = xarray.Dataset(made, attrs=about).reset_coords(loose)
        return whole[list(stack.data_vars)]  # in the order of the stack's
    return _array(stack, stored, image, scale)


def _array(stack: Any, stored: Any, image: np.ndarray, scale: int) -> Any:
    """An image [H, W, C] with the labels of one DataArray."""
    import xarray

    dims = labels.dims_of(stack, "stack")
    old = labels.geotransform(stack)
    # Along y and x only where the grid is not turned.
    straight = old is not None and not old[2] and not old[4]
    steps = {dims.y: old[5], dims.x: old[1]} if old is not None and straight else {}
    axes: dict[Any, np.ndarray | None] = {}
    for dim in (dims.y, dims.x):
        found = labels.centres(stack, dim)
        if found is not None:
            step = labels.step_of(found, steps.get(dim), f"stack: {dim}")
            found = labels.finer(found, step, scale)
        axes[dim] = found
    new = None
    if old is not None:
        new = labels.finer_geotransform(old, axes[dims.y], axes[dims.x], scale)
    coordinates: dict[Any, Any] = {}
    for name, coordinate in stack.coords.items():
        about = dict(coordinate.attrs)
        if axes.get(name) is not None:
            about = labels.finer_attributes(about, None, scale)
            coordinates[name] = (name, axes[name], about)
        elif not set(coordinate.dims) & {dims.time, dims.y, dims.x}:
            if new is not None and "GeoTransform" in about:
                about["GeoTransform"] = labels.in_words(new)
            kept = coordinate.variable.copy()
            kept.attrs = about
            coordinates[name] = kept
    shape = tuple(dim for dim in (dims.band, dims.y, dims.x) if dim is not None)
    pixels = image[..., 0] if dims.band is None else np.moveaxis(image, -1, 0)
    attrs = labels.finer_attributes(stack.attrs, new, scale)
    encoding = {k: v for k, v in stack.encoding.items() if k == "grid_mapping"}
    if stored is not None:
        pixels, encoding = stored(stack, pixels)
    made = xarray.DataArray(pixels, coordinates, shape, stack.name, attrs)
    made.encoding = encoding
    return made


def _stored(stack: Any, pixels: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, dict]:
    """Pixels [(C,) H, W] with what is missing in them, and the encoding that can store them."""
    encoding = labels.kept_encoding(stack.encoding)
    named = intake.codes_of(SimpleNamespace(attrs=stack.attrs), "stack")
    missing = named[0] if named else np.nan
    dtype = np.dtype(encoding.get("dtype", pixels.dtype))
    code = encoding.get("_FillValue", encoding.get("missing_value"))
    code = missing if code is None else float(code)
    if dtype.kind in "iu" and not values.holds(dtype, code):
        code = None
        if not valid.all():  # whole numbers have no word for it
            encoding.pop("dtype")
            encoding.pop("rasterio_dtype", None)
            dtype = pixels.dtype
    pixels = np.array(pixels, np.float32)
    if dtype.kind in "iu":
        _fit(pixels, valid, dtype, code, encoding)
    elif named:
        taken = valid & (pixels == np.float32(missing))
        pixels[taken] = np.nextafter(pixels[taken], np.float32(np.inf))
    pixels[..., ~valid] = missing
    return pixels, encoding


def _fit(
    pixels: np.ndarray, valid: np.ndarray, dtype: np.dtype, code: float | None, encoding: dict
) -> None:
    """Moves what an encoding in whole numbers would clip, or take for missing; nothing else."""
    factor, offset = (
        float(encoding.get(k, d)) for k, d in (("scale_factor", 1), ("add_offset", 0))
    )
    lost = values.Lost()
    counts = (pixels[..., None].astype(np.float64) - offset) / factor
    for part, band in zip(counts.reshape(-1, *valid.shape, 1), pixels.reshape(-1, *valid.shape)):
        held = values.converted(part, valid, dtype, code, lost)[..., 0].astype(np.float64)
        moved = valid & (np.abs(held - part[..., 0]) > 0.5)
        if code is not None:
            moved |= valid & (np.rint(part[..., 0]) == code)
        band[moved] = held[moved] * factor + offset
    line = lost.line(dtype, pixels.size)
    if line:
        warnings.warn(f"stack: {line}, its encoding", UserWarning, stacklevel=2)
