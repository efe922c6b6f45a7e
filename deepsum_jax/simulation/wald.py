"""Wald's protocol: real dates, degraded, as scenes whose truth is one of the dates.

Wald, Ranchin and Mangolini 1997. What a coarser sensor would have delivered is made of real images,
and a super-resolved image is held against one of them. The ground between the dates changes as
ground does, which no simulated landscape shows.

A window of a date becomes a frame by a Gaussian blur, the mean over r×r pixels and noise, each
at its own offset of whole HR pixels. How the dates themselves lie on each other stays as it is,
so true offsets are known to that misregistration only.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.ndimage

from deepsum_jax.config import Section
from deepsum_jax.data.fill import nearest_reliable
from deepsum_jax.data.kelvins import SceneFolder
from deepsum_jax.data.scene import Scene
from deepsum_jax.simulation.dataset import scene_number, write_scenes
from deepsum_jax.simulation.dates import Dates, measured
from deepsum_jax.simulation.steady import CONVENTION

YEARS = ("all", "one", "half")
TRUTHS = ("in", "out")

_GREATEST = 65535  # counts that 16 bits hold; cPSNR's peak
HIDDEN = 0.01  # of what an LR pixel sees; a pixel that sees more no-data is masked
REACH = 4.0  # deviations at which the Gaussian is cut off


@dataclasses.dataclass(frozen=True)
class WaldConfig(Section):
    """How dates are degraded, and which of them make a scene."""

    scale: int = 3  # r, 1..8
    window: int = 96  # HR pixels, a multiple of r, 8 r .. 2^15
    psf_sigma: float = 0.42  # LR pixels, Gaussian, before the mean over the pixel, 0..2
    max_offset: int = 2  # HR pixels, per axis, of every frame but the reference, 0..8
    noise: float = 10.0  # counts, standard deviation, 0..500
    years: str = "all"  # all dates, looks at one date, or half of each
    truth: str = "in"  # is HR's own date among the frames? in or out
    looks: int = 0  # frames with years one or half, 0: as many as dates

    def check(self) -> None:
        self._require(1 <= self.scale <= 8, "scale", "1 to 8")
        least, most = 8 * self.scale, 2**15
        multiple = self.window % self.scale == 0 and least <= self.window <= most
        self._require(multiple, "window", f"a multiple of {self.scale} from {least} to {most}")
        self._require(0 <= self.psf_sigma <= 2, "psf_sigma", "0 to 2")
        self._require(0 <= self.max_offset <= 8, "max_offset", "0 to 8")
        self._require(0 <= self.noise <= 500, "noise", "0 to 500")
        self._require(self.years in YEARS, "years", f"one of {', '.join(YEARS)}")
        self._require(self.truth in TRUTHS, "truth", "in or out")
        alone = self.years != "all" and self.truth == "out"
        self._require(not alone, "truth", "in where the frames are looks at HR's own date")
        self._require(self.looks == 0 or 1 < self.looks <= 1000, "looks", "0, or 2 to 1000")


# --- the sensor


def as_counts(values: np.ndarray) -> np.ndarray:
    """Values as counts, float32: 8 bits become 14, anything else is counts already."""
    return values.astype(np.float32) * (64 if values.dtype == np.uint8 else 1)


def _counts(values: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Values as counts; what is hidden takes the nearest value."""
    counts = np.stack([nearest_reliable(d, m) for d, m in zip(as_counts(values), masks)])
    return np.where(masks.any(axis=(1, 2), keepdims=True), counts, 0)


def _blurred(dates: np.ndarray, config: WaldConfig) -> np.ndarray:
    sigma = config.scale * config.psf_sigma
    return np.asarray(
        scipy.ndimage.gaussian_filter(dates, (0, sigma, sigma), mode="nearest", truncate=REACH)
    )


def pixel_means(x: np.ndarray, scale: int) -> np.ndarray:
    """Means over r×r: [H, W] → [h, w]."""
    h, w = x.shape[0] // scale, x.shape[1] // scale
    return np.asarray(x.reshape(h, scale, w, scale).mean(axis=(1, 3)))


def _margin(config: WaldConfig) -> int:
    """HR pixels around a window that its frames may see."""
    return config.max_offset + int(np.ceil(REACH * config.scale * config.psf_sigma))


# --- what a scene is made of


def _members(count: int, hr_date: int, config: WaldConfig) -> list[int]:
    """The date of each frame, in order of time."""
    others = [n for n in range(count) if n != hr_date]
    if config.years == "all":
        return others if config.truth == "out" else list(range(count))
    total = config.looks or count
    if config.years == "one":
        return [hr_date] * total
    kept = min(total // 2, len(others))
    picked = [others[round(k)] for k in np.linspace(0, len(others) - 1, kept)]
    return sorted([hr_date] * (total - kept) + picked)


def _reference(members: Sequence[int], hr_date: int) -> int:
    """The frame nearest to HR in the order of dates, the first of these."""
    return int(np.abs(np.array(members) - hr_date).argmin())


def _corners(length: int, window: int, margin: int) -> range:
    return range(margin, length - margin - window + 1, window)


class _Ground:
    """Dates as counts, once blurred, for all windows."""

    def __init__(self, dates: np.ndarray, masks: np.ndarray, config: WaldConfig) -> None:
        self.config, self.masks = config, masks
        self.counts = _counts(dates, masks)  # [T, H, W]
        self.seen = _blurred(self.counts, config)
        self.hidden = _blurred((~masks).astype(np.float32), config)

    def frame(
        self, date: int, corner: tuple[int, int], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint16 [h, w] and its mask; `corner` has the frame's offset in it."""
        size, r = self.config.window, self.config.scale
        part = (date, slice(corner[0], corner[0] + size), slice(corner[1], corner[1] + size))
        image = pixel_means(self.seen[part], r)
        image = image + self.config.noise * rng.standard_normal(image.shape, dtype=np.float32)
        return to_counts(image), pixel_means(self.hidden[part], r) <= HIDDEN

    def hr(self, date: int, corner: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        size = self.config.window
        part = (date, slice(corner[0], corner[0] + size), slice(corner[1], corner[1] + size))
        return to_counts(self.counts[part]), self.masks[part]


def to_counts(image: np.ndarray) -> np.ndarray:
    """Counts as 16 bits hold them."""
    return np.clip(np.rint(image), 0, _GREATEST).astype(np.uint16)


def _hide_a_corner(masks: np.ndarray, reference: int) -> None:
    """Makes the reference the clearest frame: the others lose their first pixel, in place.

    Where no-data hides part of the reference, they lose as many pixels of their first rows.
    """
    h, w = masks.shape[1:]
    lost = 1 + int(np.count_nonzero(~masks[reference]))
    for n in range(len(masks)):
        if n != reference:
            masks[n].reshape(h * w)[: min(lost, h * w)] = False


def _cut(
    ground: _Ground, corner: tuple[int, int], hr_date: int, rng: np.random.Generator, name: str,
    band: str,
) -> tuple[Scene, dict[str, Any]]:  # fmt: skip
    config = ground.config
    members = _members(len(ground.counts), hr_date, config)
    reference = _reference(members, hr_date)
    reach = config.max_offset
    offsets = rng.integers(-reach, reach + 1, (len(members), 2))
    if config.truth == "in":
        offsets[reference] = 0
    frames = [
        ground.frame(date, (corner[0] + int(dy), corner[1] + int(dx)), rng)
        for date, (dy, dx) in zip(members, offsets)
    ]
    masks = np.stack([mask for _, mask in frames])
    _hide_a_corner(masks, reference)
    hr, hr_mask = ground.hr(hr_date, corner)
    scene = Scene(
        name, np.stack([image for image, _ in frames]), masks, band=band, hr=hr, hr_mask=hr_mask,
        reference=reference,
    )  # fmt: skip
    truth = {
        "units": "HR pixels",
        "convention": CONVENTION,
        "frames": {f"LR{n:03d}": list(map(float, t)) for n, t in enumerate(offsets)},
        "hr": [0.0, 0.0],
        "dates": {f"LR{n:03d}": int(date) for n, date in enumerate(members)},
        "hr_date": int(hr_date),
    }
    return scene, truth


def _checked(dates: np.ndarray, masks: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    dates = np.asarray(dates)
    if dates.ndim != 3 or 0 in dates.shape or dates.dtype.kind not in "uif":
        raise ValueError(
            f"dates: found {dates.dtype} of shape {dates.shape}, expected real numbers [T, H, W]"
        )
    if masks is None:
        return dates, measured(dates)
    masks = np.asarray(masks)
    if masks.shape != dates.shape:
        raise ValueError(f"masks: found shape {masks.shape}, expected {dates.shape} like the dates")
    return dates, (masks != 0) & np.isfinite(dates)


def cut_scenes(
    dates: np.ndarray,
    masks: np.ndarray | None = None,
    config: WaldConfig = WaldConfig(),
    *,
    hr_date: int | None = None,
    seed: int = 0,
    band: str = "",
) -> list[tuple[Scene, dict[str, Any]]]:
    """Cuts co-located dates into scenes with truth, window by window.

    Args:
      dates: [T, H, W] of one band in order of time, any real dtype; uint8 is multiplied by 64,
        anything else is counts already.
      masks: [T, H, W], True = measured; None: what is finite and not 0.
      config: windows, degradation and choice of dates.
      hr_date: the date that is HR; None takes the middle one, T // 2.
      seed: of offsets and noise. A scene depends on it, its place and its dates alone.
      band: what the scenes call their band.

    Returns:
      (scene, truth) of each window, row by row: frames uint16 [T, h, w], HR uint16 [r·h, r·w];
      the reference alone has no masked pixel, so that it is the clearest. With truth "in" it is
      HR's own frame, at no offset; with "out" the nearest in the order of dates. truth holds the
      offset of each frame as `simulate` writes it, and its date.

    Raises:
      ValueError: dates or masks of another shape, too few dates, or none as large as a window.
    """
    dates, masks = _checked(dates, masks)
    count = len(dates)
    hr_date = count // 2 if hr_date is None else hr_date
    if not 0 <= hr_date < count:
        raise ValueError(f"hr_date: found {hr_date}, expected 0 to {count - 1}")
    if seed < 0:
        raise ValueError(f"seed: found {seed}, expected 0 or more")
    if count < 2 and (config.years == "half" or config.truth == "out"):
        raise ValueError(f"dates: found {count}, expected two or more")
    margin = _margin(config)
    corners = [
        (top, left)
        for top in _corners(dates.shape[1], config.window, margin)
        for left in _corners(dates.shape[2], config.window, margin)
    ]
    if not corners:
        side = config.window + 2 * margin
        raise ValueError(
            f"dates: found {dates.shape[1]} × {dates.shape[2]} pixels, expected {side} × {side} "
            f"for a window of {config.window} and what its frames see around it"
        )
    ground = _Ground(dates, masks, config)
    scenes = []
    for number, corner in enumerate(corners):
        rng = np.random.default_rng([seed, *corner])
        scenes.append(_cut(ground, corner, hr_date, rng, f"imgset{number:04d}", band))
    return scenes


# --- a data set


def _parts(
    dates: Dates, train: tuple[int, int] | None, columns: tuple[int, int] | None
) -> dict[str, Dates]:
    """The dates of each part, by its range of columns."""
    ranges = {"train": train, "test": columns}
    if train is None and columns is None:
        ranges["test"] = (0, dates.values.shape[2])
    parts = {}
    for part, found in ranges.items():
        if found is None:
            continue
        first, end = found
        if not 0 <= first < end <= dates.values.shape[2]:
            raise ValueError(
                f"columns of {part}: found {first} to {end}, expected a range within 0 to "
                f"{dates.values.shape[2]}"
            )
        parts[part] = Dates(dates.values[:, :, first:end], dates.masks[:, :, first:end])
    if train and columns and max(train[0], columns[0]) < min(train[1], columns[1]):
        raise ValueError(f"columns: found {columns} and {train} for training, expected them apart")
    return parts


def write_wald_dataset(
    output: str | os.PathLike[str],
    dates: np.ndarray,
    masks: np.ndarray | None = None,
    config: WaldConfig = WaldConfig(),
    *,
    band: str = "NIR",
    columns: tuple[int, int] | None = None,
    train: tuple[int, int] | None = None,
    hr_date: int | None = None,
    seed: int = 0,
) -> tuple[SceneFolder, ...]:
    """Writes scenes of real dates in the Kelvins layout, with truth.json and norm.csv.

    The folder appears when it is whole.

    Args:
      output: a folder that does not exist, or is empty.
      dates, masks, config, hr_date, seed: as of `cut_scenes`.
      band: the scenes' band, "NIR" or "RED".
      columns: first and last + 1 of the columns that test scenes are cut from.
      train: of those for training; the two are apart. Neither: all are test scenes.

    Returns:
      Where each scene lies.

    Raises:
      FileExistsError: `output` is a file, or a folder that is not empty.
      ValueError: as of `cut_scenes`, another band, or ranges that overlap or leave the dates.
    """
    if band not in ("NIR", "RED"):
        raise ValueError(f"band: found {band!r}, expected NIR or RED")
    parts = _parts(Dates(*_checked(dates, masks)), train, columns)

    def scenes() -> Iterator[tuple[str, Scene, dict[str, Any]]]:
        for part, (values, known) in parts.items():
            cut = cut_scenes(values, known, config, hr_date=hr_date, seed=seed, band=band)
            for position, (scene, truth) in enumerate(cut):
                name = f"imgset{scene_number(part, band, position):04d}"
                yield part, dataclasses.replace(scene, name=name), truth

    return write_scenes(output, scenes())
