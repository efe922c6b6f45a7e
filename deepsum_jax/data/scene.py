"""A scene: several low-resolution frames of one place and, where it exists, the truth.

It holds raw values exactly as a sensor delivered them and checks that they fit together; `intake`
below makes them plain arrays. It reads no file (`kelvins`) and changes no value (`fill`,
`prepare`).

Shapes: T frames of a scene, h x w low-resolution pixels, C bands, r scale; HR is r*h x r*w.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepsum_jax.data import intake

# Greatest magnitude of a reliable value: sums of its squares still fit float32.
_GREATEST = 1e15


def _check_finite(values: np.ndarray, mask: np.ndarray, what: str) -> None:
    """Every band of every reliable pixel is finite, and no number too large to compute with.

    `mask` has the axes of `values` less C.
    """
    if values.dtype.kind != "f" and values.dtype.itemsize < 8:
        return

    def count(broken: np.ndarray) -> int:
        if broken.ndim > mask.ndim:  # [..., h, w, C] against a mask [..., h, w] shared by bands
            broken = np.asarray(broken.any(axis=-1))
        return int(np.count_nonzero(mask & broken))

    broken = count(~np.isfinite(values))
    if broken:
        raise ValueError(
            f"{what}: found {broken} non-finite pixels that the mask calls reliable, expected "
            "finite values there (mask them out)"
        )
    if values.dtype.itemsize > 2:
        large = count((values > _GREATEST) | (values < -_GREATEST))
        if large:
            raise ValueError(
                f"{what}: found {large} pixels beyond ±{_GREATEST:g} that the mask calls reliable, "
                "expected values that float32 can hold and square (mask no-data values out)"
            )


def with_channels(images: np.ndarray, rank: int) -> np.ndarray:
    """Adds the channel axis that single-band images leave out."""
    return images[..., None] if images.ndim == rank else images


def check_stack(lr: Any, masks: Any = None, name: str = "stack") -> tuple[np.ndarray, np.ndarray]:
    """Checks a stack of frames and its masks, and returns both as numpy arrays.

    Args:
      lr: frames [T, h, w] or [T, h, w, C] with T, h, w, C >= 1, any real dtype, raw units; an
        array, a list of frames, numpy masked arrays, a dask array or an xarray DataArray, whose
        dimensions are known by their names.
      masks: [T, h, w], or one [h, w] for all frames; bool, 0/1 or 0/255, True = reliable, shared
        by the bands; None calls every pixel reliable. A pixel that `lr` itself calls missing, in
        any band, is not reliable either.
      name: what the messages call the stack.

    Returns:
      (lr, masks): `lr` with its dtype kept, `masks` as bool [T, h, w].

    Raises:
      TypeError: not an array of real numbers, or dimensions of unknown names.
      ValueError: a wrong rank, an empty axis, more channels than rows or columns, shapes that
        disagree, another mask value, or a value that the masks call reliable and that is not
        finite, or beyond ±1e15.
    """
    intake.check_alike(lr, masks, name)
    lr, own = intake.measurements(lr, f"{name}: frames")
    if lr.ndim not in (3, 4):
        raise ValueError(
            f"{name}: found frames of shape {lr.shape}, expected [T, h, w] or [T, h, w, C]"
        )
    if 0 in lr.shape:
        raise ValueError(
            f"{name}: found frames of shape {lr.shape}, expected at least one frame of at least "
            "one pixel"
        )
    if lr.ndim == 4 and lr.shape[3] > min(lr.shape[1:3]):
        raise ValueError(
            f"{name}: found frames of shape {lr.shape}, more channels than rows or columns, "
            "expected [T, h, w, C]; np.moveaxis(stack, 1, -1) moves channels last"
        )
    reliable = _all_masks(masks, lr.shape[:3], name)
    if own is not None:
        reliable = reliable & intake.by_pixel(own, 3)
    _check_finite(lr, reliable, f"{name}: frames")
    return lr, reliable


def _all_masks(masks: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """What users give as masks, as bool of a shape [T, h, w]."""
    if masks is None:
        return np.ones(shape, bool)
    found = intake.reliable(masks, f"{name}: masks", (intake.STACK[0], intake.IMAGE[0]))
    if found.shape == shape[1:]:
        return np.repeat(found[None], shape[0], axis=0)
    if found.shape != shape:
        raise ValueError(
            f"{name}: found masks of shape {found.shape}, expected {shape} like the frames, or "
            f"one mask {shape[1:]} for all"
        )
    return found


@dataclass(frozen=True, eq=False)
class Scene:
    """The frames of one place, their masks and, where known, the high-resolution truth.

    Attributes:
      name: what messages and tables call the scene, for example "imgset0594".
      lr: frames [T, h, w] or [T, h, w, C], raw units, any real dtype, T >= 1. Values may be
        non-finite only where the mask is False.
      masks: [T, h, w] bool, True = reliable; whatever `check_stack` takes becomes that.
      frames: frame numbers, one per frame, in the order of `lr`; may have gaps. Empty becomes
        0..T-1.
      band: name of the spectral band, "" where unknown.
      hr: [r*h, r*w] or [r*h, r*w, C], raw units, or None.
      hr_mask: [r*h, r*w] bool, True = reliable. Becomes all True where only `hr` is given; may
        stand without `hr` (the test scenes of the Kelvins challenge).
      norm: the challenge's baseline cPSNR of this scene in dB, or None.
      reference: number, as in `frames`, of the frame that HR belongs to best (taken at its time,
        say), for whoever uses given reference frames; None where nothing is known.

    Raises:
      TypeError: a wrong kind of thing, such as complex frames or a name that is not a string.
      ValueError: anything that does not fit together; one line with the scene, what was found
        and what was expected.
    """

    name: str
    lr: np.ndarray
    masks: np.ndarray
    frames: tuple[int, ...] = ()
    band: str = ""
    hr: np.ndarray | None = None
    hr_mask: np.ndarray | None = None
    norm: float | None = None
    reference: int | None = None

    def __post_init__(self) -> None:
        for field in ("name", "band"):
            value = getattr(self, field)
            if not isinstance(value, str):
                raise TypeError(f"scene {self.name!r}: found {field} {value!r}, expected a string")
        title = f"scene {self.name!r}"
        lr, masks = check_stack(self.lr, self.masks, title)
        self._set(lr=lr, masks=masks, frames=self._checked_frames(len(lr), title))
        self._check_truth(title)
        if self.norm is not None:
            try:
                self._set(norm=float(self.norm))
            except (TypeError, ValueError):
                raise TypeError(
                    f"{title}: found norm {self.norm!r}, expected a number of dB or None"
                ) from None

    def _check_truth(self, title: str) -> None:
        """HR and its mask: plain arrays that fit the frames and each other."""
        own = None
        if self.hr is not None:
            hr, own = intake.measurements(self.hr, f"{title}: HR", intake.IMAGE)
            if hr.ndim != self.lr.ndim - 1 or hr.shape[2:] != self.lr.shape[3:]:
                raise ValueError(
                    f"{title}: found HR of shape {hr.shape} beside frames of shape "
                    f"{self.lr.shape}, expected the same bands"
                )
            self._check_multiple(hr.shape, "HR", title)
            hr_mask = np.ones(hr.shape[:2], bool) if self.hr_mask is None else self.hr_mask
            self._set(hr=hr, hr_mask=hr_mask)
        if self.hr_mask is None:
            return
        hr_mask = intake.reliable(self.hr_mask, f"{title}: HR mask", intake.IMAGE[:1])
        if hr_mask.ndim != 2:
            raise ValueError(
                f"{title}: found an HR mask of shape {hr_mask.shape}, expected [r*h, r*w]"
            )
        if self.hr is None:
            self._check_multiple(hr_mask.shape, "HR mask", title)
        elif hr_mask.shape != self.hr.shape[:2]:
            raise ValueError(
                f"{title}: found an HR mask of shape {hr_mask.shape}, expected "
                f"{self.hr.shape[:2]} like HR"
            )
        else:
            hr_mask = hr_mask if own is None else hr_mask & intake.by_pixel(own, 2)
            _check_finite(self.hr, hr_mask, f"{title}: HR")
        self._set(hr_mask=hr_mask)

    def _set(self, **values: Any) -> None:
        # The one place that writes to the frozen instance, while it is being made.
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def _checked_frames(self, count: int, title: str) -> tuple[int, ...]:
        try:
            frames = tuple(operator.index(number) for number in self.frames) or tuple(range(count))
        except TypeError:
            raise TypeError(
                f"{title}: found frame numbers {self.frames!r}, expected integers"
            ) from None
        if len(frames) != count or len(set(frames)) != count or min(frames) < 0:
            raise ValueError(
                f"{title}: found frame numbers {frames}, expected {count} different ones, "
                "none negative"
            )
        return frames

    def _check_multiple(self, shape: tuple[int, ...], what: str, title: str) -> None:
        h, w = self.lr.shape[1:3]
        r = shape[0] // h if shape else 0
        if len(shape) < 2 or r < 1 or shape[:2] != (r * h, r * w):
            raise ValueError(
                f"{title}: found {what} of shape {shape}, expected one integer multiple of "
                f"the frames' {h} x {w} in both axes"
            )

    @property
    def scale(self) -> int | None:
        """The factor r between the HR and the frame grid, None without HR."""
        return None if self.hr is None else self.hr.shape[0] // self.lr.shape[1]

    @property
    def num_frames(self) -> int:
        """The number of frames T."""
        return len(self.lr)

    @property
    def clearance(self) -> np.ndarray:
        """Fraction of reliable pixels of each frame, float64 [T], from 0 to 1."""
        return np.asarray(self.masks.mean(axis=(1, 2)))
