"""Stacks that are xarray's, read window by window."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepsum_jax.data import intake
from deepsum_jax.rasters import labels
from deepsum_jax.tiling.source import Rect


def bands_of(stack: Any, what: str) -> list[Any]:
    """A DataArray alone, or the variables of a Dataset that are bands; others have no dimension.

    Raises:
      ValueError: no bands, or variables of other dimensions or sizes.
    """
    if not hasattr(stack, "data_vars"):
        return [stack]
    bands = [variable for variable in stack.data_vars.values() if variable.ndim]
    if not bands:
        raise ValueError(f"{what}: found a Dataset without a band, expected variables (time, y, x)")
    dims = labels.dims_of(bands[0], what)
    for band in bands:
        if dims.band is not None or set(band.dims) != set(bands[0].dims):
            found = ", ".join(map(str, band.dims))
            raise ValueError(
                f"{what}: found the variable {band.name} with the dimensions ({found}), expected "
                "(time, y, x) of each, a variable a band; drop or select"
            )
    return bands


class LabelledSource:
    """A `tiling.source.Source` of DataArrays; see `xarrays.as_source`.

    Attributes:
      order: [T] where each frame stands in the stack that was given: they come in order of time.
    """

    def __init__(self, bands: list[Any], dims: labels.Dims, masks: Any, what: str) -> None:
        self._dims, self._what, self._masks = dims, what, masks
        first = bands[0]
        self.order = _in_time(first, dims)
        self.names = _names(first, dims, self.order)
        self.height, self.width = first.sizes[dims.y], first.sizes[dims.x]
        self.channels = len(bands) if dims.band is None else first.sizes[dims.band]
        self.dtype = np.result_type(*(band.dtype for band in bands))
        if self.dtype.kind not in "uif":
            raise TypeError(f"{what}: found dtype {self.dtype}, expected real numbers")
        self.fractions = np.zeros((len(self.order), 2))
        self._codes = [intake.codes_of(band, what) for band in bands]
        self._stack = bands[0] if len(bands) == 1 else _together(bands)

    def read(self, rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        """A part of all frames: raw lr [T, h, w, C] and masks [T, h, w], True = reliable."""
        part = {self._dims.y: rect.part[0], self._dims.x: rect.part[1]}
        found = self._stack.isel(part).compute()  # of dask just these pixels, all bands at once
        bands = list(found.data_vars.values()) if hasattr(found, "data_vars") else [found]
        shape = tuple(d for d in self._dims if d is not None)
        lr = np.stack(
            [np.asarray(band.transpose(*shape).values) for band in bands], axis=-1
        )  # [T, h, w, (C or bands)]
        lr = lr[..., 0] if self._dims.band is not None else lr
        lr = lr.astype(self.dtype, copy=False)[self.order]
        missing = ~np.isfinite(lr) if self.dtype.kind == "f" else np.zeros(lr.shape, bool)
        for b, codes in enumerate(self._codes):
            own = ... if self._dims.band is not None else (..., b)
            for code in codes:
                missing[own] |= lr[own] == code
        reliable = np.asarray(~missing.any(axis=-1))
        if self._masks is not None:
            reliable &= self._read_masks(rect)
        return lr, reliable

    def _read_masks(self, rect: Rect) -> np.ndarray:
        """bool [T, h, w] or [1, h, w]."""
        masks = self._masks
        if isinstance(masks, np.ndarray):
            return masks[(self.order if len(masks) > 1 else slice(None), *rect.part)]
        rows, columns = (masks.at[k][part] for k, part in zip("yx", rect.part))
        part = masks.array.isel({masks.dims.y: rows, masks.dims.x: columns}).compute()
        if masks.dims.time is None:
            part = part.transpose(masks.dims.y, masks.dims.x)
            return intake.reliable(part.values, f"{self._what}: masks", intake.IMAGE[:1])[None]
        part = part.transpose(masks.dims.time, masks.dims.y, masks.dims.x)
        found = part.values[masks.at["time"]][self.order]
        return intake.reliable(found, f"{self._what}: masks", intake.STACK[:1])


def _together(bands: list[Any]) -> Any:
    """Bands as one Dataset, so that what they share is computed once."""
    import xarray

    return xarray.Dataset({b: band.variable for b, band in enumerate(bands)})


def _in_time(first: Any, dims: labels.Dims) -> np.ndarray:
    count = first.sizes[dims.time]
    if dims.time not in first.coords:
        return np.arange(count)
    try:
        return np.argsort(np.asarray(first.coords[dims.time].values), kind="stable")
    except TypeError:  # labels that have no order
        return np.arange(count)


def _names(first: Any, dims: labels.Dims, order: np.ndarray) -> tuple[str, ...]:
    if dims.time not in first.coords:
        return tuple(f"frame {k}" for k in order)
    times = np.asarray(first.coords[dims.time].values)[order]
    if times.dtype.kind == "M":
        days = np.datetime_as_string(times, unit="D")
        times = days if len(set(days.tolist())) == len(days) else times
    return tuple(str(t) for t in times)


# --- masks --------------------------------------------------------------------------------------


class _Masks:
    """Masks with labels, and where along each axis the stack's labels are among theirs."""

    def __init__(self, array: Any, dims: labels.Dims, at: dict[str, np.ndarray]) -> None:
        self.array, self.dims, self.at = array, dims, at


def check_masks(masks: Any, first: Any, dims: labels.Dims, what: str) -> _Masks | np.ndarray | None:
    """Masks as the source reads them: by label where they have some.

    Returns:
      None; bool [T, h, w] or [1, h, w] in the order of the stack; or with labels.

    Raises:
      TypeError, ValueError: as `data.intake.reliable`; other shapes, or a label that is not there.
    """
    if masks is None:
        return None
    what = f"{what}: masks"
    sizes = tuple(first.sizes[d] for d in dims[:3])  # time, y, x
    if not (hasattr(masks, "coords") and hasattr(masks, "isel")):
        found = intake.reliable(masks, what, (intake.STACK[0], intake.IMAGE[0]))
        if found.shape not in (sizes, sizes[1:]):
            raise ValueError(f"{what}: found the shape {found.shape}, expected {sizes}")
        return found if found.ndim == 3 else found[None]
    if hasattr(masks, "data_vars"):
        names = ", ".join(map(str, masks.data_vars))
        raise TypeError(f"{what}: found a Dataset of {names}, expected one DataArray")
    own = labels.dims_of(masks, what)
    if own.band is not None:
        if masks.sizes[own.band] > 1:
            raise ValueError(f"{what}: found bands, expected (time, y, x), shared by the bands")
        masks, own = masks.isel({own.band: 0}, drop=True), own._replace(band=None)
    at = {
        kind: _found(first, ours, masks, theirs, what)
        for kind, ours, theirs in zip(("time", "y", "x"), dims, own)
        if theirs is not None
    }
    return _Masks(masks, own, at)


def _found(first: Any, ours: Any, masks: Any, theirs: Any, what: str) -> np.ndarray:
    """Where each label of one axis of the stack is among those of the masks."""
    count = first.sizes[ours]
    if ours not in first.coords or theirs not in masks.coords:
        if masks.sizes[theirs] != count:
            raise ValueError(
                f"{what}: found {masks.sizes[theirs]} along {theirs}, expected {count}, or labels"
            )
        return np.arange(count)
    wanted, there = (np.asarray(v.coords[d].values) for v, d in ((first, ours), (masks, theirs)))
    if len(there) > 1 and wanted.dtype.kind in "uif" and there.dtype.kind in "uif" and count > 1:
        near = 0.01 * np.abs(np.diff(wanted.astype(np.float64))).min()
    else:
        near = 0
    sort = np.argsort(there, kind="stable")
    if near:
        after = np.searchsorted(there[sort], wanted - near)
    else:
        after = np.searchsorted(there[sort], wanted)
    at = sort[np.minimum(after, len(there) - 1)]
    same = np.abs(there[at] - wanted) <= near if near else there[at] == wanted
    if not np.all(same):
        label = wanted[~np.asarray(same)][0]
        raise ValueError(f"{what}: found none at {theirs} = {label}, expected those of the stack")
    return at
