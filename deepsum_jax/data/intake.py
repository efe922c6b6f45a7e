"""From whatever users hold their images in to plain arrays and masks.

Lists, numpy masked arrays, dask arrays, xarray DataArrays, netCDF variables: what they know of
missing values is used, or they are refused; it is never lost. None of their packages is imported:
they are known by what they can do. `scene` checks that what comes out of here fits together.

Masks are True where a pixel is reliable, the opposite of numpy's masked arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

# An axis by the names that people give it; the order is that of [T, h, w, C].
_AXES = {
    "time": ("time", "t", "date", "frame"),
    "y": ("y", "lat", "latitude", "northing", "row"),
    "x": ("x", "lon", "longitude", "easting", "column"),
    "band": ("band", "bands", "channel", "variable"),
}
_ORDER = tuple(_AXES)
_CODES = ("_FillValue", "nodata", "missing_value", "nodatavals")

Axes = tuple[str, ...]
IMAGE: tuple[Axes, ...] = (("y", "x"), ("y", "x", "band"))
STACK: tuple[Axes, ...] = tuple(("time", *axes) for axes in IMAGE)


def measurements(
    value: Any, what: str, axes: tuple[Axes, ...] = STACK
) -> tuple[np.ndarray, np.ndarray | None]:
    """Real numbers in any container as a plain array, and where they are measurements.

    Args:
      value: an array, a list of arrays (one a frame), or what else holds numbers.
      what: what messages call it.
      axes: the axes, in order, that named dimensions may come to.

    Returns:
      (array, reliable): the numbers with their dtype, and bool of the same shape, False where the
      container calls a value missing; None where it calls none so.

    Raises:
      TypeError: not real numbers, parts of unequal shapes, or unknown names of dimensions.
      ValueError: named dimensions that are not those of a stack.
    """
    array, reliable = _plain(value, what, axes)
    if array.dtype.name == "bfloat16":  # numpy itself does not count it as floating
        array = array.astype(np.float32)
    if array.dtype.kind not in "uif":
        raise TypeError(f"{what}: found dtype {array.dtype}, expected real numbers")
    return array, reliable


def reliable(value: Any, what: str, axes: tuple[Axes, ...]) -> np.ndarray:
    """A mask in any container as bool, True = reliable. What is missing in it is not reliable.

    Args:
      value: bool, 0 and 1, or 0 and 255.
      what: what messages call it.
      axes: as for `measurements`.

    Raises:
      TypeError: as `measurements`.
      ValueError: other values, such as the codes of a scene classification.
    """
    array, known = _plain(value, what, axes)
    if array.dtype.kind != "b":
        if array.dtype.kind not in "uif":
            raise TypeError(f"{what}: found dtype {array.dtype}, expected bool, or 0 and 1")
        array = _two_valued(array, known, what)
    return array if known is None else array & known


def _two_valued(array: np.ndarray, known: np.ndarray | None, what: str) -> np.ndarray:
    """Numbers that are 0 and 1, or 0 and 255, as bool."""
    for high in (1, 255, 65535):  # 65535: white in 16 bits
        wrong = ~((array == 0) | (array == high))
        if known is not None:
            wrong &= known
        if not wrong.any():
            return np.asarray(array == high)
    values = np.unique(array[(array != 0) & (array != 1) & (True if known is None else known)])
    raise ValueError(
        f"{what}: found the {listed(values)}, expected bool, 0 and 1, or 0 and 255 (True = "
        "reliable); make classes into a mask first, as np.isin(classes, [4, 5, 6])"
    )


def listed(values: np.ndarray) -> str:
    """Values in words: `value 7`, or `values 4, 8, 9 …`."""
    some = ", ".join(f"{v:g}" for v in values[:6].tolist())
    return f"value{'s' if len(values) > 1 else ''} {some}{' …' if len(values) > 6 else ''}"


def by_pixel(reliable: np.ndarray, rank: int) -> np.ndarray:
    """Reliable measurements as reliable pixels: those where every band is.

    Args:
      reliable: of `measurements`, with or without C.
      rank: the number of axes without C.
    """
    return np.asarray(reliable.all(axis=-1)) if reliable.ndim > rank else reliable


# --- containers ---------------------------------------------------------------------------------


def _plain(value: Any, what: str, axes: tuple[Axes, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    """Any container as an array of any dtype, and where its values are measurements, or None."""
    if isinstance(value, np.ma.MaskedArray):
        hidden = np.ma.getmask(value)
        return np.asarray(value.data), None if hidden is np.ma.nomask else ~np.asarray(hidden)
    if _has_parts(value):
        return _joined([_plain(part, what, _one_less(axes)) for part in value], what)
    if isinstance(value, (np.ndarray, list, tuple)) or np.isscalar(value) or value is None:
        return _asarray(value, what), None
    if hasattr(value, "data_vars"):
        names = ", ".join(map(str, value.data_vars))
        raise TypeError(
            f"{what}: found a Dataset of {names}, expected one DataArray: choose a variable, or "
            "join them with .to_array('band')"
        )
    if isinstance(_dimensions(value), tuple):
        return _named(value, what, axes)
    if callable(getattr(value, "compute", None)):  # dask
        return _plain(value.compute(), what, axes)
    own = getattr(value, "mask", None)
    if own is not None and not callable(own):
        raise TypeError(
            f"{what}: found a {type(value).__name__} with a mask of its own, expected a plain "
            "array and masks (True = reliable)"
        )
    if callable(getattr(value, "__array__", None)):
        inner = value.__array__()  # np.asarray would drop a mask that comes with it
        if isinstance(inner, np.ma.MaskedArray):
            return _plain(inner, what, axes)
    return _asarray(value, what), None


def _asarray(value: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:
        raise TypeError(f"{what}: found parts of unequal shapes, expected one array") from None


def _has_parts(value: Any) -> bool:
    """Whether something is a list of arrays, or holds one, whose parts may know of masks."""
    if isinstance(value, np.ndarray):
        return value.dtype == object and value.ndim > 0
    return isinstance(value, (list, tuple)) and any(
        _has_parts(part)
        if isinstance(part, (list, tuple))
        else part is not None and not np.isscalar(part)
        for part in value
    )


def _one_less(axes: tuple[Axes, ...]) -> tuple[Axes, ...]:
    """The axes of a part, where the whole has `axes`."""
    return tuple(a[1:] if a[0] == "time" else a for a in axes)


def _joined(
    parts: list[tuple[np.ndarray, np.ndarray | None]], what: str
) -> tuple[np.ndarray, np.ndarray | None]:
    shapes = {array.shape for array, _ in parts}
    if len(shapes) > 1:
        some = " and ".join(map(str, sorted(shapes)[:2]))
        raise TypeError(f"{what}: found parts of unequal shapes {some}, expected one shape")
    array = np.stack([array for array, _ in parts])
    if all(reliable is None for _, reliable in parts):
        return array, None
    return array, np.stack([np.ones(a.shape, bool) if r is None else r for a, r in parts])


# --- named dimensions: xarray, netCDF -----------------------------------------------------------


def _dimensions(value: Any) -> Any:
    return getattr(value, "dims", getattr(value, "dimensions", None))


def _known() -> str:
    return "; ".join("|".join(names) for names in _AXES.values())


def kinds_of(dims: Iterable[Any], what: str) -> list[str]:
    """What named dimensions are: "time", "y", "x" or "band" each.

    Raises:
      TypeError: a name that is unknown.
    """
    kinds = [next((k for k, names in _AXES.items() if str(d).lower() in names), "") for d in dims]
    unknown = [str(d) for d, kind in zip(dims, kinds) if not kind]
    if unknown:
        raise TypeError(
            f"{what}: found the unknown dimension {', '.join(unknown)}, expected names of "
            f"{_known()}: rename or select"
        )
    return kinds


def _named(value: Any, what: str, axes: tuple[Axes, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    """An array whose dimensions have names, in the order of [T, h, w, C]."""
    inner = value[...] if hasattr(value, "dimensions") else getattr(value, "data", None)
    array, reliable = _plain(value.values if inner is None else inner, what, axes)
    dims = _dimensions(value)
    kinds = kinds_of(dims, what)
    order = tuple(sorted(kinds, key=_ORDER.index))
    alone = tuple(k for k in order if k in "yx" or array.shape[kinds.index(k)] > 1)
    if order not in axes and alone not in axes:
        expected = " or ".join(f"({', '.join(a)})" for a in axes)
        raise ValueError(
            f"{what}: found the dimensions ({', '.join(map(str, dims))}), expected {expected} in "
            f"any order ({_known()})"
        )
    hidden = _missing(array, value, what)
    if hidden is not None:
        reliable = ~hidden if reliable is None else reliable & ~hidden
    turned = [kinds.index(kind) for kind in order]
    shape = [array.shape[kinds.index(kind)] for kind in (order if order in axes else alone)]
    array = array.transpose(turned).reshape(shape)
    return array, None if reliable is None else reliable.transpose(turned).reshape(shape)


def _missing(array: np.ndarray, value: Any, what: str) -> np.ndarray | None:
    """Where a named array is missing: NaN, and what its attributes call so; None if nowhere."""
    hidden = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    for code in codes_of(value, what):
        hidden |= array == code
    return hidden if hidden.any() else None


def codes_of(value: Any, what: str) -> list[float]:
    """The no-data values that an array's attributes and encoding name, NaN aside."""
    sources = [("attributes", getattr(value, "attrs", None))]
    encoding = getattr(value, "encoding", None)
    if isinstance(encoding, Mapping) and not {"scale_factor", "add_offset"} & encoding.keys():
        sources.append(("encoding", encoding))  # of scaled values it holds the code on disk
    codes: list[float] = []
    for place, source in sources:
        for key in _CODES:
            found = source.get(key) if isinstance(source, Mapping) else None
            if found is None or found is False or (isinstance(found, str) and found == "None"):
                continue
            try:
                each = np.atleast_1d(np.asarray(found, object)).ravel()
                numbers = [float(code) for code in each if code is not None]
            except (TypeError, ValueError):
                raise ValueError(
                    f"{what}: found {key} {found!r} in its {place}, expected a number"
                ) from None
            codes += [code for code in numbers if not np.isnan(code)]
    return codes


def check_alike(value: Any, masks: Any, name: str) -> None:
    """Refuses masks whose coordinates along a dimension are not those of the frames.

    Both may be in any container; only where both have coordinates is there something to compare.

    Raises:
      ValueError: other dates, rows or columns, or the same in another order.
    """
    ours, theirs = (getattr(v, "coords", None) for v in (value, masks))
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
        return
    for dim in _dimensions(masks):
        if dim not in ours or dim not in theirs:
            continue
        one, other = np.asarray(ours[dim]), np.asarray(theirs[dim])
        if one.shape == other.shape and not np.array_equal(one, other):
            raise ValueError(
                f"{name}: found masks of other coordinates along {dim} than the frames, expected "
                f"the same in the same order; masks.reindex_like(stack) puts them so"
            )
