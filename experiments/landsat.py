"""Real unregistered images with a truth: Landsat 8 panchromatic dates around New York.

    python -m experiments landsat --input DIR --params DIR --output DIR

The dates of two neighbouring path/rows see one box of ground together. Windows of it become
scenes in the Kelvins layout: every date's band 8, degraded by the network's scale, is a frame, and
the clearest date, left out of the frames, is HR as it is. A network is scored on them, beside the
alternatives that need none.

* No date is resampled. Each has its own origin and pixel size, so its window begins at its own
  whole pixel nearest to a common ground position, and what is left, up to half a pixel a date, is
  a real sub-pixel shift. `truth.json` keeps it, as the geo-coordinates say it.
* Pixel sizes differ by up to 0.5 %, which over a whole image is most of a pixel. Every window is
  anchored anew at its own centre: over 45 pixels the grids drift apart by about 0.1 pixel to
  either side, which counts as part of the data.
* The set was thinned, not averaged: a pixel of 1.5 km holds the value of about one pixel of 15 m.
  Dates whose grids are a fraction of a pixel apart saw different ground there, so most of HR's
  fine detail is in no other date and no method can win it back. Two columns say how much there is
  to win: a flat image, and HR's own LR image, which is no frame. Smooth images do well
  between the two, even an untrained network's; a small gain over Bicubic+Mean proves little. What
  is tested is clouds, shifts, seasons and units that no simulation made up.
* Quality flags come on a grid half as fine, thinned likewise: small clouds slip through.
* The other path/row of the set that reaches this box, 014031, is left out: two of its dates are
  the same overpass as two of 014032, the same image twice.

Units (`--radiometry`), since a network expects those it was trained in:

* `match`: one gain and one offset for all images of the data set give its clear LR pixels the
  mean and deviation of the training. All columns of a table share these units; digital numbers
  are not corrected for the height of the sun, so winter dates have less than half the contrast
  of summer ones.
* `reflectance`: corrected for it first, then matched in the same way.
* `raw`: digital numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage

from deepsum_jax import cli, figures, files, metrics
from deepsum_jax.bundle import Bundle, load_params
from deepsum_jax.data import kelvins
from deepsum_jax.data.frames import select_frames
from deepsum_jax.data.resample import bicubic_upsample
from deepsum_jax.data.scene import Scene
from deepsum_jax.data.stackfile import write_output
from deepsum_jax.inference import check_predictor
from deepsum_jax.predict import predict
from deepsum_jax.scoring.company import COMPANY
from deepsum_jax.scoring.report import panel
from deepsum_jax.scoring.scene import SceneScore, true_shifts
from deepsum_jax.scoring.summary import evaluate
from deepsum_jax.simulation.dataset import kelvins_norm
from deepsum_jax.simulation.steady import CONVENTION

BAND = "PAN"  # the folder's name
PATH_ROWS = ("013032", "014032")
WINDOW = 45  # HR pixels a side, cut down to a multiple of the scale
PSF_SIGMA = 0.45  # LR pixels, Gaussian, before the average over the pixel
MIN_HR_CLEAR = 0.75  # fraction of HR, as in the Kelvins data
RADIOMETRY = ("match", "reflectance", "raw")
_SHOWN = 6  # scenes in the panel
_MARGIN = 2  # LR pixels around a window, as far as the Gaussian reaches
_NAME = re.compile(r"LC08_[A-Z0-9]+_(\d{6})_(\d{8})_B8\.TIF", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A north-up grid: the outer corner of its first pixel, and its pixels' size, in metres."""

    left: float
    top: float
    dx: float  # eastwards
    dy: float  # southwards


@dataclasses.dataclass(frozen=True, eq=False)
class Date:
    """One acquisition."""

    name: str  # path/row and day, "013032_20180421"
    grid: Grid
    values: np.ndarray  # [H, W], 0 where there are no data
    present: np.ndarray  # [H, W] bool, False = no data
    clear: np.ndarray  # [H, W] bool, True = reliable


# --- reading ------------------------------------------------------------------------------------


def _rasterio() -> Any:
    try:
        import rasterio
    except ImportError:
        raise ValueError(
            "GeoTIFFs need rasterio, which is not installed: pip install 'deepsum_jax[geo]'"
        ) from None
    return rasterio


def _read_raster(path: Path) -> tuple[np.ndarray, Grid, str]:
    """One band [H, W], its grid and its coordinate system."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with _rasterio().open(path) as source:
        t = source.transform
        if t.b or t.d or t.a <= 0 or t.e >= 0:
            raise ValueError(f"{path}: found a rotated or flipped grid, expected one north up")
        values = source.read(1)
        system = str(source.crs)
    if values.dtype != np.uint16:
        raise ValueError(f"{path}: found dtype {values.dtype}, expected uint16")
    return values, Grid(t.c, t.f, t.a, -t.e), system


def is_clear(quality: np.ndarray) -> np.ndarray:
    """Reliable pixels by the quality band of Landsat's collection 1.

    Snow counts as unreliable, although it is ground and not a veil: it lies on one date and not
    on the next, so as a frame it speaks of another ground than HR's, and the flag also falls on
    bright cloud.

    Args:
      quality: [H, W] bit flags.

    Returns:
      [H, W] bool.
    """
    fill, cloud = quality & 1, (quality >> 4) & 1
    # Two bits each, 3 = high: confidence in cloud, cloud shadow, snow or ice.
    sure = [(quality >> bit) & 3 == 3 for bit in (5, 7, 9)]
    return np.asarray(~((fill == 1) | (cloud == 1) | np.logical_or.reduce(sure)))


def nearest(values: np.ndarray, grid: Grid, wanted: Grid, shape: tuple[int, int]) -> np.ndarray:
    """A band on another grid, each pixel from the one its centre lies in (or is nearest to)."""
    y = wanted.top - wanted.dy * (np.arange(shape[0]) + 0.5)
    x = wanted.left + wanted.dx * (np.arange(shape[1]) + 0.5)
    rows = np.floor((grid.top - y) / grid.dy).astype(int)
    columns = np.floor((x - grid.left) / grid.dx).astype(int)
    return values[np.ix_(rows.clip(0, values.shape[0] - 1), columns.clip(0, values.shape[1] - 1))]


def read_dates(folder: Path) -> list[Date]:
    """The dates of the two path/rows, in the order of their days.

    Raises:
      FileNotFoundError: no such folder, or a date without its quality band.
      ValueError: fewer than two dates, or files that do not fit together.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected Landsat 8 files in it")
    found = []
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and match[1] in PATH_ROWS:
            found.append((match[2], match[1], path))
    if len(found) < 2:
        raise ValueError(
            f"{folder}: found {len(found)} files LC08_*_B8.TIF of the path/rows "
            f"{' and '.join(PATH_ROWS)}, expected at least 2"
        )
    dates, systems = [], {}
    for day, path_row, path in sorted(found):
        values, grid, systems[path] = _read_raster(path)
        partner = path.with_name(path.name[: -len("B8.TIF")] + "BQA" + path.suffix)
        quality, coarse, system = _read_raster(partner)
        if len({system, *systems.values()}) > 1:
            raise ValueError(f"{path}: found another coordinate system than that of other files")
        quality = nearest(quality, coarse, grid, values.shape)
        # The flag of fill is coarser than the band: a zero it misses is no data all the same.
        present = (values > 0) & (quality & 1 == 0)
        dates.append(Date(f"{path_row}_{day}", grid, values, present, present & is_clear(quality)))
    return dates


def sun_height(day: str) -> float:
    """Sine of the sun's elevation at the overpass of a day, YYYYMMDD, over New York.

    The usual approximation of the declination; the satellite passes at the same solar time, about
    a quarter to eleven, on every date.
    """
    number = datetime.datetime.strptime(day, "%Y%m%d").timetuple().tm_yday
    declination = np.deg2rad(-23.44 * np.cos(2 * np.pi * (number + 10) / 365.25))
    latitude, hour_angle = np.deg2rad(40.6), np.deg2rad(-19.0)
    return float(
        np.sin(latitude) * np.sin(declination)
        + np.cos(latitude) * np.cos(declination) * np.cos(hour_angle)
    )


def reflectance(date: Date) -> Date:
    """The date in units of reflectance, a constant factor apart.

    Level-1 numbers are (reflectance × sine of the sun's elevation + 0.1) / 2e-5 for every scene.
    """
    day = date.name.split("_")[1]
    return dataclasses.replace(date, values=(date.values - 5000.0) / sun_height(day))


# --- cutting ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """A date's window."""

    values: np.ndarray  # [size + 2 · margin] in both axes, float64
    present: np.ndarray
    clear: np.ndarray
    shift: tuple[float, float]  # (dy, dx), HR pixels: where it lies off the asked position


def cut(date: Date, centre: tuple[float, float], size: int, pixel: Grid, margin: int = 0) -> Cut:
    """The window of whole pixels whose centre is nearest to a ground position.

    Args:
      date: to cut from; what lies outside it is not present.
      centre: y (northing) and x (easting).
      size: pixels a side.
      pixel: whose pixel size is the unit of the shift.
      margin: further pixels on every side.
    """
    g, (y, x) = date.grid, centre
    row = round((g.top - y) / g.dy - size / 2)
    column = round((x - g.left) / g.dx - size / 2)
    shift = (
        (y - (g.top - (row + size / 2) * g.dy)) / pixel.dy,
        (g.left + (column + size / 2) * g.dx - x) / pixel.dx,
    )
    rows = np.arange(row - margin, row + size + margin)
    columns = np.arange(column - margin, column + size + margin)
    height, width = date.values.shape
    inside = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
    pick = np.ix_(rows.clip(0, height - 1), columns.clip(0, width - 1))
    return Cut(
        date.values[pick].astype(np.float64), date.present[pick] & inside,
        date.clear[pick] & inside, shift,
    )  # fmt: skip


def common_grid(dates: Sequence[Date]) -> tuple[Grid, tuple[float, float]]:
    """The box that all dates' grids cover, with the mean pixel; and its size in such pixels."""
    grids = [d.grid for d in dates]
    left, top = max(g.left for g in grids), min(g.top for g in grids)
    right = min(d.grid.left + d.grid.dx * d.values.shape[1] for d in dates)
    bottom = max(d.grid.top - d.grid.dy * d.values.shape[0] for d in dates)
    dx, dy = float(np.mean([g.dx for g in grids])), float(np.mean([g.dy for g in grids]))
    return Grid(left, top, dx, dy), ((top - bottom) / dy, (right - left) / dx)


def place_windows(dates: Sequence[Date], size: int) -> list[tuple[float, float]]:
    """Centres (y, x) of windows that do not overlap, all within the dates' common box.

    Rows of windows fill its height; each row moves along to where the dates have the most data,
    since the swaths run across the box at a slant.

    Raises:
      ValueError: no window fits.
    """
    box, (height, width) = common_grid(dates)
    rows, columns = int(height // size), int(width // size)
    if rows < 1 or columns < 1:
        raise ValueError(
            f"the dates share {max(height, 0):.0f}×{max(width, 0):.0f} pixels, expected room for "
            f"a window of {size}×{size}"
        )
    first = (height - rows * size) / 2
    centres = []
    for row in range(rows):
        y = box.top - (first + (row + 0.5) * size) * box.dy
        choices = [
            [(y, box.left + (start + (n + 0.5) * size) * box.dx) for n in range(columns)]
            for start in range(int(width - columns * size) + 1)
        ]
        data = [sum(cut(d, c, size, box).present.sum() for d in dates for c in choice)
                for choice in choices]  # fmt: skip
        centres += choices[int(np.argmax(data))]
    return centres


# --- degrading ----------------------------------------------------------------------------------


def _blocks(x: np.ndarray, scale: int) -> np.ndarray:
    """[r·h, r·w] → [h, w, r²]."""
    h, w = x.shape[0] // scale, x.shape[1] // scale
    return x.reshape(h, scale, w, scale).swapaxes(1, 2).reshape(h, w, scale * scale)


def degrade(
    values: np.ndarray, present: np.ndarray, clear: np.ndarray, scale: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a sensor of 1/scale the resolution sees: a Gaussian, then the mean over each pixel.

    Pixels without data take no part: the rest is weighted anew. Clouds do, since a sensor sees
    them too.

    Args:
      values: [r·h, r·w].
      present: [r·h, r·w] bool, False = no data.
      clear: [r·h, r·w] bool.
      scale: r.

    Returns:
      values [h, w] float64, 0 where there are no data; present [h, w]; and clear [h, w]: where
      all r² pixels are.
    """

    def blurred(x: np.ndarray) -> np.ndarray:
        smooth = scipy.ndimage.gaussian_filter(x, PSF_SIGMA * scale, mode="constant")
        return np.asarray(_blocks(smooth, scale).mean(axis=-1))

    weight = blurred(present.astype(np.float64))
    total = blurred(np.where(present, values, 0.0))
    seen = _blocks(present, scale).any(axis=-1)
    low = np.where(seen, total / np.where(seen, weight, 1), 0)
    return low, np.asarray(seen), np.asarray(_blocks(clear, scale).all(axis=-1))


def fill(values: np.ndarray, present: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Pixels without data at the median of the clear ones, as `predict` treats what is not finite.

    PNGs have no NaN, and a wedge of zeros would shift the statistics that the network takes over
    a whole frame.
    """
    return np.where(present, values, np.median(values[clear if clear.any() else present]))


# --- scenes -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A scene, not yet rounded, and what is known of it."""

    scene: Scene  # float64, raw units
    own: np.ndarray  # [h, w], HR's date degraded, which is no frame
    truth: dict[str, Any]  # shifts, dates and place, as `truth.json` holds them


def make_place(
    dates: Sequence[Date], centre: tuple[float, float], size: int, scale: int, rank: int, name: str
) -> Place | None:
    """The scene of one window; None if its HR is not clear enough or no frame is left.

    Args:
      dates: all of them; a frame's number is its date's position here.
      centre: of the window, (y, x).
      size: HR pixels a side, a multiple of the scale.
      scale: r.
      rank: which date is HR: 0 takes the clearest (the earliest of a tie), 1 the next.
      name: of the scene.
    """
    pixel, _ = common_grid(dates)
    margin = _MARGIN * scale
    inner, low_inner = slice(margin, -margin), slice(_MARGIN, -_MARGIN)
    cuts = [cut(d, centre, size, pixel, margin) for d in dates]
    clearance = [float(c.clear[inner, inner].mean()) for c in cuts]
    if rank >= len(dates):
        return None
    truth = sorted(range(len(dates)), key=lambda n: -clearance[n])[rank]
    if clearance[truth] < MIN_HR_CLEAR:
        return None
    frames, masks, numbers, own = [], [], [], np.zeros(())
    for n, c in enumerate(cuts):
        low, present, clear = (
            x[low_inner, low_inner] for x in degrade(c.values, c.present, c.clear, scale)
        )
        if n == truth:
            own = fill(low, present, clear)
        elif clear.any():
            frames.append(fill(low, present, clear))
            masks.append(clear)
            numbers.append(n)
    if not frames:
        return None
    chosen = cuts[truth]
    hr, present, hr_mask = (x[inner, inner] for x in (chosen.values, chosen.present, chosen.clear))
    scene = Scene(
        name, np.stack(frames), np.stack(masks), tuple(numbers), BAND,
        fill(hr, present, hr_mask), hr_mask,
    )  # fmt: skip
    place = {
        "units": "HR pixels",
        "convention": CONVENTION,
        "frames": {f"LR{n:03d}": [round(s, 4) for s in cuts[n].shift] for n in numbers},
        "hr": [round(s, 4) for s in chosen.shift],
        "dates": {f"LR{n:03d}": dates[n].name for n in numbers},
        "hr_date": dates[truth].name,
        "centre": {"northing": round(centre[0], 1), "easting": round(centre[1], 1)},
    }
    return Place(scene, own, place)


def make_places(dates: Sequence[Date], size: int, scale: int, truths: int = 1) -> list[Place]:
    """All scenes: every window, with each of its `truths` clearest dates in turn as HR.

    Raises:
      ValueError: none is clear enough.
    """
    places: list[Place] = []
    for centre in place_windows(dates, size):
        for rank in range(truths):
            name = f"imgset{len(places):04d}"
            place = make_place(dates, centre, size, scale, rank, name)
            if place is not None:
                places.append(place)
    if not places:
        raise ValueError(f"found no window whose clearest date is {MIN_HR_CLEAR:.0%} clear")
    return places


def matching(places: Sequence[Place], bundle: Bundle) -> tuple[float, float]:
    """Gain and offset that bring the clear LR pixels to the bundle's mean and deviation."""
    clear = np.concatenate([p.scene.lr[p.scene.masks] for p in places])
    norm = bundle.config.normalization
    mean, std = (float(np.atleast_1d(v)[0]) for v in (norm.lr_mean, norm.lr_std))
    gain = std / max(float(clear.std()), 1e-6)
    return gain, mean - gain * float(clear.mean())


def scaled(scene: Scene, gain: float, offset: float) -> Scene:
    """The scene in other units, rounded to uint16; what leaves its range is not reliable."""

    def convert(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counts = np.rint(gain * values + offset)
        inside = (counts >= 0) & (counts <= 65535)
        return counts.clip(0, 65535).astype(np.uint16), mask & inside

    assert scene.hr is not None and scene.hr_mask is not None
    lr, masks = convert(scene.lr, scene.masks)
    hr, hr_mask = convert(scene.hr, scene.hr_mask)
    return dataclasses.replace(scene, lr=lr, masks=masks, hr=hr, hr_mask=hr_mask)


def write_places(
    data: Path, places: Sequence[Place], gain: float = 1.0, offset: float = 0.0
) -> None:
    """Writes the scenes as a data set in the Kelvins layout, `truth.json` and `norm.csv` too."""
    norm = {}
    for place in places:
        scene = scaled(place.scene, gain, offset)
        kelvins.write_scene(folder_of(data, place), scene)
        files.write_json(folder_of(data, place) / "truth.json", place.truth)
        norm[scene.name] = kelvins_norm(scene)
    kelvins.write_norm(data / "norm.csv", norm)


def folder_of(data: Path, place: Place) -> Path:
    """Where a scene lies in the data set."""
    return data / "test" / BAND / place.scene.name


# --- the experiment -----------------------------------------------------------------------------


def bounds(scene: Scene, own: np.ndarray) -> dict[str, float | None]:
    """cPSNR, in dB, of a flat image and of HR's own LR image `own` [h, w], bicubic."""
    assert scene.hr is not None and scene.hr_mask is not None and scene.scale is not None
    upsampled = bicubic_upsample(own.astype(np.float32), scene.scale)
    images = np.stack([np.zeros_like(upsampled), upsampled])[..., None]
    hr, mask = (np.stack([x, x])[..., None] for x in (scene.hr, scene.hr_mask))
    scores = (float(v) for v in metrics.cpsnr(images, hr, mask))
    return {k: v if np.isfinite(v) else None for k, v in zip(("flat", "own_lr"), scores)}


def rest(scene: Scene, truth: dict[str, Any], frames: int) -> np.ndarray:
    """True shifts [n, 2] of the first window's frames: the error of no registration at all."""
    members = select_frames(scene.masks, frames)[:frames]
    return true_shifts(truth, [scene.frames[n] for n in members])[1:]


def report(summary: dict[str, Any]) -> str:
    """The results in Markdown, and what the table does not say."""
    about = summary["landsat"]

    def line(label: str, date: str, frames: str, row: dict[str, Any]) -> str:
        both = row["cpsnr"], row["bicubic_mean"]
        gain = None if None in both else both[0] - both[1]
        others = [(row[name], ".2f") for name in ("flat", *COMPANY)]
        own = [(row["cpsnr"], ".2f"), (gain, "+.2f"), (row["own_lr"], ".2f"), (row["cssim"], ".4f")]
        texts = ["–" if value is None else format(value, form) for value, form in (*others, *own)]
        return f"| {' | '.join([label, date, frames, *texts])} |"

    heads = ["flat", *COMPANY.values(), summary["system"], "over Bicubic+Mean", "HR's own LR"]
    lines = [
        f"| scene | HR date | frames | {' | '.join(heads)} | cSSIM |",
        "|---|---|---:|" + "---:|" * (len(heads) + 1),
    ]
    for row in summary["scenes"]:
        place = about["scenes"][row["name"]]
        frames = f"{row['frames']} of {len(place['frames'])}"
        lines.append(line(row["name"], place["hr_date"], frames, {**row, **place["bounds"]}))
    mean = {**summary["mean"], **about["mean_bounds"]}
    lines.append(line(f"mean of {summary['n']} scenes", "", "", mean))
    lines += [
        "",
        f"cPSNR in dB, values × {about['gain']:.4g} {about['offset']:+.1f} "
        f"({about['radiometry']}); {about['windows']} windows of {about['window']}×"
        f"{about['window']} HR pixels",
    ]
    errors = summary.get("registration")
    if errors:
        learned, correlated, none = (
            ", ".join(f"{v:.2f}" for v in pair)
            for pair in (errors["median_error"], errors["median_error_cross_correlation"],
                         about["median_shift"])
        )  # fmt: skip
        lines += [
            "",
            f"registration against the geo-coordinates, median error (y, x) in HR pixels over "
            f"{errors['frames']} frames: {errors['by']} {learned}; integer cross-correlation "
            f"{correlated}; none at all {none}",
        ]
    return "\n".join(lines) + "\n"


def run(
    source: Path, params: Path, output: Path, radiometry: str = "match", truths: int = 1
) -> str:
    """Makes the scenes, scores the network on them and writes everything into a new folder.

    Args:
      source: folder of Landsat 8 level-1 GeoTIFFs, B8 and BQA of every date.
      params: a bundle or a workdir.
      output: a folder that does not exist, or is empty; it appears when it is whole.
      radiometry: one of `RADIOMETRY`.
      truths: how many of each window's clearest dates take their turn as HR.

    Returns:
      The table and what belongs to it.

    Raises:
      ValueError, FileNotFoundError, FileExistsError: unusable input, bundle or output.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output}: found it there already, expected a new or empty folder")
    bundle = load_params(params)
    check_predictor(bundle)
    if bundle.config.channels != 1:
        raise ValueError(f"{params}: found {bundle.config.channels} channels, expected 1")
    scale = bundle.config.scale
    size = WINDOW // scale * scale
    dates = read_dates(source)
    if radiometry == "reflectance":
        dates = [reflectance(date) for date in dates]
    places = make_places(dates, size, scale, truths)
    gain, offset = (1.0, 0.0) if radiometry == "raw" else matching(places, bundle)
    with files.written_aside(output) as aside:
        data = aside / "data"
        write_places(data, places, gain, offset)
        shown: list[SceneScore] = []

        def each(score: SceneScore) -> None:
            if len(shown) < _SHOWN:
                shown.append(score)

        summary, _ = evaluate(bundle, data, "all", each=each)
        about: dict[str, Any] = {
            "radiometry": radiometry, "gain": gain, "offset": offset, "window": size,
            "windows": len({tuple(p.truth["centre"].values()) for p in places}), "scenes": {},
        }  # fmt: skip
        shifts = []
        for place in places:
            scene = kelvins.read_scene(folder_of(data, place))
            image = predict(bundle, scene.lr, scene.masks)
            write_output(aside / "sr" / f"{scene.name}.npy", image)
            write_output(aside / "sr" / f"{scene.name}.png", image)
            limits = bounds(scene, gain * place.own + offset)
            about["scenes"][scene.name] = {**place.truth, "bounds": limits}
            shifts.append(rest(scene, place.truth, bundle.config.num_frames))
        found = [p["bounds"] for p in about["scenes"].values()]
        about["mean_bounds"] = {
            k: float(np.mean([b[k] for b in found if b[k] is not None])) for k in found[0]
        }
        about["median_shift"] = np.median(np.abs(np.concatenate(shifts)), axis=0).tolist()
        summary["landsat"] = about
        files.write_json(aside / "results.json", summary)
        text = report(summary)
        (aside / "results.md").write_text(text, encoding="utf-8")
        figures.save(panel(shown), aside / "panel.png")
    return text


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "python -m experiments landsat",
        "Score a trained network on real Landsat 8 dates, degraded, beside what needs no network.",
        """writes into the output folder:
  data/        the scenes in the Kelvins layout, norm.csv, truth.json (shifts, dates)
  sr/          the super-resolved images, .npy and 16-bit .png
  results.json, results.md, panel.png""",
    )
    p.add_argument("--input", required=True, type=Path, metavar="DIR",
                   help="LC08_*_B8.TIF with LC08_*_BQA.TIF of every date")  # fmt: skip
    p.add_argument("--params", required=True, type=Path, metavar="DIR",
                   help="a parameter bundle, or the workdir of a training")  # fmt: skip
    p.add_argument("--output", required=True, type=Path, metavar="DIR",
                   help="new or empty folder")  # fmt: skip
    p.add_argument("--radiometry", choices=RADIOMETRY, default="match",
                   help="match: one gain and offset for all images, so that clear LR pixels have "
                        "the mean and deviation of the training; reflectance: the same after "
                        "correction for the height of the sun; raw: as read "
                        "(default: %(default)s)")  # fmt: skip
    p.add_argument("--truths", type=cli.positive, default=1, metavar="N",
                   help="each window gives N scenes, its N clearest dates being HR in turn "
                        "(default: %(default)s)")  # fmt: skip
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    print(run(args.input, args.params, Path(os.path.abspath(args.output)),
              args.radiometry, args.truths), end="")  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
