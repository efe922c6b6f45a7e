"""Does simulated ground change as real ground does? Simulators held against ten real summers.

    python -m experiments ground --naip DIR --output FILE.png

NAIP aerial images of one place (bands red, green, blue, near infrared; several summers as
GeoTIFFs) are cut into windows of 144 pixels, degraded by three (a Gaussian of 0.42 LR pixels, then
the mean over 3 x 3) with a little noise, and compared with scenes of both simulators, through
clear air, in which NAIP is flown:

* correlation of each frame with the reference, over reliable pixels, registered;
* the same of their detail, less a Gaussian mean of 2 LR pixels: what more frames could sharpen;
* the share of pixels that agree: their difference after a robust gain and offset is below a tenth
  of the reference's deviation;
* power spectra of the reference frames and of HR.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from matplotlib.figure import Figure

from deepsum_jax import cli, figures
from deepsum_jax.config import ChangingGround
from deepsum_jax.data.scene import Scene
from deepsum_jax.simulation import steady as simulate
from deepsum_jax.simulation.changing import simulate_changing_scene
from deepsum_jax.simulation.textures import robust_fit

WINDOW = 144  # HR pixels
SCALE = 3
PSF_SIGMA = 0.42  # LR pixels
COLUMNS = 280  # of the tile, from the west; the rest is kept back for tests
AGREES = 0.1  # of the reference's deviation
_COUNTS = 64  # per grey value of 8 bits
_BORDER = 4  # LR pixels that comparisons leave out
BANDS = {"NIR": 3, "RED": 0}  # of NAIP, by number


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
    """Registered frames of one place."""

    frames: np.ndarray  # [T, h, w]
    masks: np.ndarray  # [T, h, w] bool, True = reliable
    reference: int
    hr: np.ndarray  # [r*h, r*w]
    other_year: np.ndarray  # [T] bool


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """What a collection of stacks looks like."""

    correlation: Mapping[str, np.ndarray]  # "looks" and "years": one number per frame
    detail: Mapping[str, np.ndarray]  # likewise, of what is finer than a few LR pixels
    agreement: Mapping[str, np.ndarray]  # likewise, share of pixels, 0..1
    lr_spectrum: np.ndarray  # power by frequency, up to the Nyquist frequency, mean over stacks
    hr_spectrum: np.ndarray


# --- statistics ---------------------------------------------------------------------------------


def power_spectrum(image: np.ndarray, bins: int = 24) -> np.ndarray:
    """Mean power [bins] of a standardised image by radial frequency, from 0 to 0.5 per pixel."""
    window = np.hanning(image.shape[0])[:, None] * np.hanning(image.shape[1])
    standard = (image - image.mean()) / max(float(image.std()), 1e-9)
    power = np.abs(np.fft.fft2(standard * window)) ** 2 / np.sum(window**2)
    fy, fx = (np.fft.fftfreq(n) for n in image.shape)
    radius = np.hypot(fy[:, None], fx)
    place = np.minimum((radius * 2 * bins).astype(int), bins)
    total = np.bincount(place.ravel(), power.ravel(), bins + 1)
    return np.asarray(
        (total / np.maximum(np.bincount(place.ravel(), minlength=bins + 1), 1))[:bins]
    )


def _fine(frames: np.ndarray) -> np.ndarray:
    """Frames [T, h, w] less their means over a few pixels."""
    return np.asarray(frames - scipy.ndimage.gaussian_filter(frames, (0, 2, 2), mode="nearest"))


def compare_statistics(stacks: Sequence[Stack]) -> Statistics:
    """Correlations and agreement of every frame with its stack's reference, and spectra.

    Args:
      stacks: at least one.
    """
    correlation: dict[str, list[float]] = {"looks": [], "years": []}
    detail: dict[str, list[float]] = {"looks": [], "years": []}
    agreement: dict[str, list[float]] = {"looks": [], "years": []}
    inner = (slice(_BORDER, -_BORDER),) * 2
    for stack in stacks:
        wanted = stack.frames[stack.reference][inner]
        fine = _fine(stack.frames)
        for n, (frame, mask) in enumerate(zip(stack.frames, stack.masks)):
            clear = (mask & stack.masks[stack.reference])[inner]
            if n == stack.reference or clear.mean() < 0.3:
                continue
            values, target = frame[inner][clear].astype(float), wanted[clear].astype(float)
            kind = "years" if stack.other_year[n] else "looks"
            correlation[kind].append(float(np.corrcoef(values, target)[0, 1]))
            pair = fine[n][inner][clear], fine[stack.reference][inner][clear]
            detail[kind].append(float(np.corrcoef(*pair)[0, 1]))
            gain, offset = robust_fit(values, target)
            miss = np.abs(gain * values + offset - target)
            agreement[kind].append(float(np.mean(miss < AGREES * target.std())))
    lr = [power_spectrum(s.frames[s.reference]) for s in stacks]
    hr = [power_spectrum(s.hr) for s in stacks]

    def arrays(by_kind: dict[str, list[float]]) -> dict[str, np.ndarray]:
        return {kind: np.array(values) for kind, values in by_kind.items()}

    return Statistics(
        arrays(correlation), arrays(detail), arrays(agreement),
        np.mean(lr, axis=0), np.mean(hr, axis=0),
    )  # fmt: skip


# --- stacks -------------------------------------------------------------------------------------


def _register(scene: Scene, shifts: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Frames and masks [T, h, w] brought onto the scene's grid by true shifts, HR pixels."""
    frames, masks = [], []
    for frame, mask, shift in zip(scene.lr.astype(float), scene.masks, shifts):
        by = np.asarray(shift) / SCALE
        frames.append(scipy.ndimage.shift(frame, by, order=3, mode="nearest"))
        masks.append(scipy.ndimage.shift(mask.astype(float), by, order=1, mode="nearest") > 0.99)
    return np.stack(frames), np.stack(masks)


def simulated_stacks(kind: str, band: str, count: int, seed: int = 0) -> list[Stack]:
    """Stacks of a simulator, "old" or "changing", as large as NAIP's windows."""
    stacks = []
    size = WINDOW // SCALE
    clear: dict[str, Any] = {
        "clear_fraction": 1.0, "haze_chance": 0.0, "thin_cloud_chance": 0.0, "shadow_chance": 0.0
    }  # fmt: skip
    for index in range(count):
        if kind == "old":
            scene, truth = simulate.simulate_scene(
                seed, index,
                simulate.SimulationConfig(lr_size=size, scale=SCALE, clear_fraction=1.0), band,
            )  # fmt: skip
            years = np.zeros(scene.num_frames, bool)
        else:
            scene, truth = simulate_changing_scene(
                seed, index, ChangingGround(lr_size=size, scale=SCALE, **clear), band
            )
            years = np.array([d["year"] > 0 for d in truth["details"].values()])
        frames, masks = _register(scene, list(truth["frames"].values()))
        assert scene.reference is not None and scene.hr is not None
        stacks.append(Stack(frames, masks, scene.reference, scene.hr, years))
    return stacks


def read_naip(folder: Path) -> np.ndarray:
    """The summers, [D, 4, H, W] uint8, cut to what they all cover, with 0 for no data.

    Raises:
      FileNotFoundError: no such folder, or fewer than two GeoTIFFs in it.
    """
    paths = sorted(folder.glob("*.tif")) if folder.is_dir() else []
    if len(paths) < 2:
        raise FileNotFoundError(f"{folder}: found {len(paths)} files *.tif, expected at least 2")
    try:
        import rasterio
    except ImportError:
        raise ValueError(
            "GeoTIFFs need rasterio, which is not installed: pip install 'deepsum_jax[geo]'"
        ) from None
    dates = []
    for path in paths:
        with rasterio.open(path) as source:
            dates.append(source.read()[:, :, :COLUMNS])
    height, width = (min(d.shape[axis] for d in dates) for axis in (1, 2))
    return np.stack([d[:, :height, :width] for d in dates])


def _degrade(image: np.ndarray) -> np.ndarray:
    """[H, W] -> [h, w]: blurred, then the mean over 3 x 3."""
    blurred = scipy.ndimage.gaussian_filter(image, PSF_SIGMA * SCALE, mode="nearest")
    h, w = (n // SCALE for n in image.shape)
    return np.asarray(blurred.reshape(h, SCALE, w, SCALE).mean(axis=(1, 3)))


def naip_stacks(dates: np.ndarray, band: str) -> list[Stack]:
    """Windows of the tile: every date a frame, and in each window another one the reference.

    Args:
      dates: [D, 4, H, W], from `read_naip`.
      band: "NIR" or "RED".
    """
    rng, stacks = np.random.default_rng(0), []
    images = dates[:, BANDS[band]].astype(float) * _COUNTS
    height, width = images.shape[1:]
    step = (WINDOW // 2, (width - WINDOW) // 2)
    corners = [(y, x) for y in range(0, height - WINDOW + 1, step[0])
               for x in range(0, width - WINDOW + 1, step[1])]  # fmt: skip
    for number, (y, x) in enumerate(corners):
        hr = images[:, y : y + WINDOW, x : x + WINDOW]
        reference = number % len(images)
        if hr[reference].std() < 2 * _COUNTS:  # open water
            continue
        frames = np.stack([_degrade(image) for image in hr])
        frames += 10 * rng.standard_normal(frames.shape)
        present = scipy.ndimage.binary_erosion(hr > 0, np.ones((1, 9, 9), bool), border_value=1)
        years = np.arange(len(images)) != reference
        masks = present[:, 1::SCALE, 1::SCALE]
        stacks.append(Stack(frames, masks, reference, hr[reference], years))
    return stacks


# --- the figure and the table -------------------------------------------------------------------

_SOURCES = {"NAIP": "black", "old": "tab:orange", "changing": "tab:blue"}


def table(statistics: Mapping[tuple[str, str], Statistics]) -> str:
    """Percentiles 5, 25, 50, 75, 95 by source, band and kind of frame, as Markdown."""
    lines = [
        "| source | band | frames | n | correlation | detail | agreement |",
        "|---|---|---|---|---|---|---|",
    ]

    def five(values: np.ndarray) -> str:
        return " / ".join(f"{v:.2f}" for v in np.percentile(values, [5, 25, 50, 75, 95]))

    for (source, band), s in statistics.items():
        for kind, values in s.correlation.items():
            if len(values):
                columns = (five(v[kind]) for v in (s.correlation, s.detail, s.agreement))
                cells = (source, band, kind, str(len(values)), *columns)
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _curve(axis: Any, values: np.ndarray, **style: Any) -> None:
    """A cumulative distribution."""
    axis.plot(np.sort(values), (np.arange(len(values)) + 0.5) / len(values), **style)


def _distributions(panel: Any, band: str, statistics: Mapping[str, Statistics]) -> None:
    """One row of axes: correlation, of detail, agreement, and both spectra, by source."""
    axes = panel.subplots(1, 5)
    for source, s in statistics.items():
        for axis, by_kind in zip(axes, (s.correlation, s.detail, s.agreement)):
            for kind, values in by_kind.items():
                if len(values):
                    style = {"color": _SOURCES[source], "ls": "-" if kind == "years" else ":"}
                    _curve(axis, values, label=f"{source}, {kind}", **style)
        for axis, power in zip(axes[3:], (s.lr_spectrum, s.hr_spectrum)):
            frequency = (np.arange(len(power)) + 0.5) / (2 * len(power))
            axis.loglog(frequency, power, color=_SOURCES[source], label=source)
    titles = (
        "correlation with reference", "correlation of detail", f"share within {AGREES:g} s.d.",
        "power, LR reference", "power, HR",
    )  # fmt: skip
    for axis, title in zip(axes, titles):
        axis.set_title(f"{band}: {title}", fontsize=9)
        axis.legend(fontsize=7)
    for axis in axes[:2]:
        axis.set_xlim(-0.5, 1)


def _images(panel: Any, title: str, stack: Stack) -> None:
    """One row of images: HR, the reference, and six other frames."""
    order = [n for n in range(len(stack.frames)) if n != stack.reference][:6]
    images = [stack.hr, *(stack.frames[n] for n in (stack.reference, *order))]
    titles = [f"{title}: HR", "reference"]
    titles += ["another year" if stack.other_year[n] else "look" for n in order]
    axes = panel.subplots(1, 8)
    for axis in axes:
        axis.set_axis_off()
    for axis, image, text in zip(axes, images, titles):
        low, high = np.percentile(image, [1, 99])
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axis.set_title(text, fontsize=8)


def figure(
    statistics: Mapping[tuple[str, str], Statistics], stacks: Mapping[tuple[str, str], Stack]
) -> Figure:
    """A row of distributions per band, and a row of images per stack.

    Args:
      statistics: by source and band.
      stacks: one to show of each, likewise.
    """
    bands = list(dict.fromkeys(band for _, band in statistics))
    heights = [3.2] * len(bands) + [2.1] * len(stacks)
    drawn = Figure(figsize=(15, sum(heights)), layout="constrained")
    panels = iter(np.ravel(np.asarray(drawn.subfigures(len(heights), 1, height_ratios=heights))))
    for band in bands:
        _distributions(
            next(panels), band, {s: v for (s, of), v in statistics.items() if of == band}
        )
    for (source, band), stack in stacks.items():
        _images(next(panels), f"{source} {band}", stack)
    return drawn


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "python -m experiments ground",
        "Hold both simulators' change between dates against NAIP's: a figure, and a table.",
    )
    p.add_argument("--naip", type=Path, required=True, metavar="DIR", help="GeoTIFFs of summers")
    p.add_argument("--output", type=Path, required=True, metavar="FILE", help="a PNG")
    p.add_argument(
        "--scenes", type=cli.positive, default=60, metavar="N", help="simulated, per band"
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    args = parser().parse_args(argv)
    dates = read_naip(args.naip)
    statistics, shown = {}, {}
    for band in BANDS:
        sources = {"NAIP": naip_stacks(dates, band)}
        sources |= {k: simulated_stacks(k, band, args.scenes) for k in ("old", "changing")}
        for source, stacks in sources.items():
            statistics[source, band] = compare_statistics(stacks)
            # The one with the most other years shows best what years do.
            shown[source, band] = max(stacks, key=lambda s: int(s.other_year.sum()))
    figures.save(figure(statistics, shown), args.output)
    print(table(statistics))


if __name__ == "__main__":
    cli.run(main)
