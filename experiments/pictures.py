"""The figures that no table replaces: systems side by side on a scene, and RegNet's filters.

Pure functions from bundles and scenes to figures, which `figures.save` writes. Shapes are named as
in `ops`. Of scenes with several channels, channel 0 is shown.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from deepsum_jax import figures, losses
from deepsum_jax.bundle import Bundle
from deepsum_jax.config import Compute
from deepsum_jax.data import kelvins, resample
from deepsum_jax.data.fill import fill_hidden
from deepsum_jax.data.frames import reference_frame, select_frames
from deepsum_jax.data.scene import Scene, with_channels
from deepsum_jax.inference import check_predictor, super_resolve
from deepsum_jax.model import ops
from deepsum_jax.scoring.scene import evaluate_scene, read_truth, true_shifts
from deepsum_jax.scoring.splits import select_scenes
from deepsum_jax.systems.system import Stack

CROP = 48  # HR pixels, side of the magnified detail
MARGIN = 8  # HR pixels that the detail keeps from the border of the scene
_BORDER = 3  # HR pixels, d of cPSNR's alignment search
_SIDE, _CELL = 2.4, 1.8  # inches, of a panel of the two figures
_EMPTY = (2.6, 1.0)  # inches, of a figure with nothing to show
_MARK, _TRUE, _HIDDEN = "#ff7f0e", "#0090ff", (0.9, 0.1, 0.2, 0.4)  # what is drawn on images
_ERRORS = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.7")


class Column(NamedTuple):
    """One image of a scene among others."""

    title: str  # two lines
    image: np.ndarray  # [H, W] raw counts, on HR's grid; NaN where there is none
    error: np.ndarray | None = None  # [H, W] raw counts; NaN where cPSNR does not look


_align = jax.jit(losses.align, static_argnames="border")


def place(image: np.ndarray, hr: np.ndarray, clear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image as cPSNR compares it with HR: moved by whole pixels and brightened to fit best.

    Args:
      image, hr, clear: [H, W], H and W > 6; raw counts, and HR's mask, bool.

    Returns:
      The image, NaN where the move brings nothing in; and image − HR, NaN where cPSNR does not
      look: under the mask, and beyond the window of HR that fits best.
    """
    known = np.where(clear, hr, 0)
    best = _align(*(x[None, ..., None] for x in (image, known, clear)), border=_BORDER)
    centre = (_BORDER, _BORDER)  # stands in for the best position where no pixel is reliable
    top, left = map(int, best.position[0] if np.isfinite(best.mse[0]) else centre)
    bottom, right = (n - 2 * _BORDER + at for n, at in zip(hr.shape, (top, left)))
    scored = np.zeros_like(clear)
    scored[top:bottom, left:right] = clear[top:bottom, left:right]

    move = top - _BORDER, left - _BORDER
    inside = resample.translate(np.ones_like(clear), move, fill=False)
    moved = figures.match_brightness(resample.translate(image, move), known, scored)
    return np.where(inside, moved, np.nan), np.where(scored, moved - known, np.nan)


def choose_crop(hr: np.ndarray, clear: np.ndarray) -> tuple[int, int, int]:
    """The window of HR with most detail: the greatest sum of squared differences of neighbours.

    Among windows `MARGIN` from the border (less in a small scene) that are fully clear, or as
    clear as any.

    Args:
      hr, clear: [H, W], raw counts and mask, bool.

    Returns:
      (top, left, side) in HR pixels; the side is `CROP`, or all that a smaller scene has.
    """
    side = min(CROP, *hr.shape)
    known, energy = np.where(clear, hr, 0).astype(np.float64), np.zeros(hr.shape)
    energy[:-1] += np.where(clear[:-1] & clear[1:], np.diff(known, axis=0), 0) ** 2
    energy[:, :-1] += np.where(clear[:, :-1] & clear[:, 1:], np.diff(known, axis=1), 0) ** 2
    y, x = (min(MARGIN, (n - side) // 2) for n in hr.shape)
    inner = np.s_[y : hr.shape[0] - y, x : hr.shape[1] - x]
    count = resample.window_sums(clear[inner].astype(np.int64), side)
    detail = np.where(count == count.max(), resample.window_sums(energy[inner], side), -np.inf)
    row, column = np.unravel_index(int(detail.argmax()), detail.shape)
    return int(row) + y, int(column) + x, side


def _columns(
    systems: Sequence[tuple[str, Bundle]], scene: Scene, max_frames: int, compute: Compute
) -> tuple[list[Column], np.ndarray]:
    """LR, every system and HR of a scene, and HR's mask [H, W]."""
    if scene.hr is None or scene.hr_mask is None or scene.scale is None:
        raise ValueError(f"scene {scene.name!r}: found no HR, expected it to compare with")
    hr, clear = with_channels(scene.hr, 2)[..., 0].astype(np.float32), scene.hr_mask
    scores = [evaluate_scene(b, scene, None, max_frames, _BORDER, compute) for _, b in systems]
    frames = [resample.nearest_upsample(s.images["LR"], scene.scale) for s in scores if s.images]
    blank = np.full(hr.shape, np.nan)  # what a scene without a reliable pixel gives
    lr, _ = place(frames[0], hr, clear) if frames else (blank, blank)
    columns = [Column("LR, reference frame\n", lr)]
    for (label, _), score in zip(systems, scores):
        cpsnr = "–" if math.isnan(score.cpsnr) else f"{score.cpsnr:.2f} dB"
        pair = place(score.images["SR"], hr, clear) if score.images else (blank, blank)
        columns.append(Column(f"{textwrap.fill(label, 30)}\n{cpsnr}", *pair))
    return [*columns, Column("HR\n", hr)], clear


def _draw_errors(axes: Sequence[Axes], columns: Sequence[Column]) -> None:
    """Error maps of a scene on one scale, which the first and last panel explain."""
    drawn = [(axis, c.error) for axis, c in zip(axes, columns) if c.error is not None]
    axes[0].set_axis_off()
    axes[-1].set_axis_off()
    if not drawn:
        return
    values = np.array([error for _, error in drawn])
    sizes = np.abs(values[np.isfinite(values)])
    limit = max(float(np.percentile(sizes, 99)), 1e-6) if sizes.size else 1.0
    for axis, error in drawn:
        axis.imshow(error, _ERRORS, Normalize(-limit, limit), interpolation="nearest")
    note = "system − HR,\nat the shift and brightness\nof cPSNR;\ngrey: not compared"
    axes[0].text(0.5, 0.5, note, transform=axes[0].transAxes, ha="center", va="center", fontsize=9)
    beside = axes[-1].inset_axes((0.02, 0.04, 0.07, 0.92))
    label = "error, raw counts"
    axes[-1].figure.colorbar(drawn[0][0].images[0], cax=beside, extend="both", label=label)
    beside.tick_params(labelsize=8)


def _draw_scene(axes: np.ndarray, scene: Scene, columns: list[Column], clear: np.ndarray) -> None:
    """The images, their detail, and the errors, on axes [3, columns]."""
    y, x, side = choose_crop(columns[-1].image, clear)
    low, high = figures.stretch([columns[-1].image], clear if clear.any() else None)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for whole, detail, column in zip(axes[0], axes[1], columns):
        for axis, image in ((whole, column.image), (detail, column.image[y:, x:][:side, :side])):
            axis.imshow(image, "gray", vmin=low, vmax=high, interpolation="nearest")
        whole.set_title(column.title, fontsize=9)
        whole.add_patch(Rectangle((x - 0.5, y - 0.5), side, side, fill=False, color=_MARK))
    axes[0, 0].set_ylabel(f"{scene.band} {scene.name}".strip(), fontsize=9)
    axes[1, 0].set_ylabel(f"detail, {side} × {side} HR pixels", fontsize=9)
    _draw_errors(axes[2], columns)


def comparison(
    systems: Sequence[tuple[str, Bundle]],
    scenes: Sequence[Scene],
    max_frames: int = 9,
    compute: Compute = Compute(),
) -> Figure:
    """Systems side by side: per scene the images, one detail of them, and their errors.

    Columns are the first system's reference LR frame, the systems with their cPSNR, and HR. All lie
    on HR's grid, at HR's brightness, as cPSNR matches them, and share HR's grey stretch. The detail
    is chosen from HR alone (`choose_crop`). A scene's errors share one scale (99th percentile).

    Args:
      systems: what to call each, and a whole system of the scenes' scale and channels.
      scenes: with HR.
      max_frames, compute: as in `predict`.

    Raises:
      ValueError: a scene without HR, or of another scale or number of channels.
    """
    if not scenes:
        return Figure(figsize=_EMPTY)
    count = len(systems) + 2
    heights = [r for h, w in (s.lr.shape[1:3] for s in scenes) for r in (h / w, 1.0, h / w)]
    size = _SIDE * count + 0.4, (_SIDE + 0.05) * sum(heights) + 0.5 * len(scenes)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(heights), count, squeeze=False, height_ratios=heights)
    for rows, scene in zip(axes.reshape(len(scenes), 3, count), scenes):
        _draw_scene(rows, scene, *_columns(systems, scene, max_frames, compute))
    return figure


def _vector(shift: np.ndarray) -> str:
    return ", ".join(f"{v:+.2f}" for v in np.round(shift, 2) + 0.0).replace("-", "−")


def _draw_filter(axis: Axes, taps: np.ndarray, norm: Normalize, true: np.ndarray | None) -> None:
    """A filter [K, K] over HR pixels, its centroid, and the tap of the true shift (s_y, s_x)."""
    half, reach = len(taps) / 2, len(taps) // 2
    axis.imshow(taps, "gray", norm=norm, extent=(-half, half, half, -half))  # y runs down
    axis.set_axis_on()
    for ruler in (axis.xaxis, axis.yaxis):
        ruler.set_ticks(sorted({-reach, 0, reach}))
        ruler.set_ticks(np.arange(len(taps) + 1) - half, minor=True)
    axis.grid(which="minor", color="0.45", linewidth=0.4)
    axis.tick_params(which="both", labelsize=7, length=0, pad=2)
    axis.yaxis.tick_right()  # so that a filter stands close to its own frame
    shift = np.asarray(ops.filter_shift(jnp.asarray(taps)))
    axis.plot(*-shift[::-1], "o", c=_MARK, mfc="none", ms=8, mew=1.5, label="filter's centroid")
    title = f"filter {_vector(shift)}"
    if true is not None:
        at = np.clip(-true, -half, half)  # a delta there; on the edge where no tap reaches
        axis.plot(*at[::-1], "x", c=_TRUE, ms=7, mew=1.8, clip_on=False, label="true shift's tap")
        title += f"\ntrue {_vector(true)}" + " (beyond)" * bool(np.abs(true).max() > half)
    axis.set_title(title, fontsize=8)
    axis.set(xlim=(-half, half), ylim=(half, -half))


def _draw_filters(
    figure: Figure, axes: np.ndarray, filters: np.ndarray, true: Sequence[np.ndarray | None]
) -> None:
    """Filters [N − 1, K, K] in every other cell; the reference, which has none, gets the legend."""
    norm = PowerNorm(0.5, min(0.0, float(filters.min())), float(filters.max()))
    for axis, taps, shift in zip(axes.flat[3::2], filters, true):
        _draw_filter(axis, taps, norm, shift)
    legend = axes.flat[3].get_legend_handles_labels()
    axes.flat[1].legend(
        *legend, loc="center", fontsize=8, title="(y, x), HR pixels", title_fontsize=8
    )
    bar = figure.colorbar(axes.flat[3].images[0], ax=axes, shrink=0.7, aspect=40, pad=0.01)
    bar.set_label("weight of a tap", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def filters_on_frames(
    bundle: Bundle,
    scene: Scene,
    truth: dict[str, Any] | None = None,
    compute: Compute = Compute(),
) -> Figure:
    """RegNet's dynamic filters beside the frames of the first window, which they register.

    Filters share one scale of grey, by the square root of the weights so that their tails show. Of
    systems without filters the frames stand alone; of a scene without a reliable pixel there is
    nothing to show.

    Args:
      bundle: a whole system of the scene's channels.
      scene: HR is not needed.
      truth: of a simulated scene, to mark where its true shifts would put each filter's delta.
      compute: as in `predict`.

    Raises:
      ValueError: a bundle that cannot predict, or a truth without the frames' shifts.
    """
    check_predictor(bundle)
    if not scene.masks.any():
        return Figure(figsize=_EMPTY)
    config, lr = bundle.config, with_channels(scene.lr, 3)
    reference = reference_frame(scene, bundle.info.reference)
    kept = select_frames(scene.masks, config.num_frames, reference, config.num_frames)
    stack = Stack(lr[kept], scene.masks[kept])
    found = super_resolve(bundle, stack, compute).filters  # [N − 1, K, K]
    filters = np.zeros((0, 1, 1)) if found is None else found
    members = [*kept, *kept[:1] * (len(filters) + 1 - len(kept))]  # as windows repeat frame 0
    numbers = [scene.frames[n] for n in members]
    true = [None] * len(members) if truth is None else [*true_shifts(truth, numbers)]
    filled = fill_hidden(lr[members], scene.masks[members])[..., :1]
    frames = resample.upsample(filled, config.scale)[..., 0]  # [N, H, W]
    clear = resample.nearest_upsample(scene.masks[members], config.scale)
    low, high = figures.stretch([frames[clear]])

    cells, columns = (2 if len(filters) else 1), math.ceil(math.sqrt(len(members)))
    rows, aspect = -(-len(members) // columns), max(0.8, lr.shape[1] / lr.shape[2])
    size = _CELL * cells * columns + 0.6, (_CELL * aspect + 0.4) * rows + 0.4
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"{scene.band} {scene.name}, masked pixels red".strip(), fontsize=9)
    axes = figure.subplots(rows, cells * columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for n, axis in enumerate(axes.flat[: cells * len(members) : cells]):
        axis.imshow(frames[n], "gray", vmin=low, vmax=high, interpolation="nearest")
        axis.imshow(np.where(clear[n][..., None], 0.0, _HIDDEN), interpolation="nearest")  # RGBA
        role = ", reference" if n == 0 else ", repeated" if n >= len(kept) else ""
        axis.set_title(f"LR{numbers[n]:03d}{role}", fontsize=8)
    if len(filters):
        _draw_filters(figure, axes, filters, true[1:])
    return figure


def choose_scenes(
    bundle: Bundle, data: Path, split: str, band: str, count: int
) -> list[tuple[Scene, dict[str, Any] | None]]:
    """Scenes to show, by a rule that looks at no result: evenly spaced by name, first to last.

    Args:
      bundle, data, split, band: as in `splits.select_scenes`.
      count: at most this many; a single one is the first.

    Returns:
      Each scene, with its `truth.json` where it has one.
    """
    _, found = select_scenes(bundle, data, split, band)
    folders = sorted(found, key=lambda folder: (folder.name, folder.band, folder.part))
    count, norms = min(count, len(folders)), kelvins.read_norm_for(data)
    chosen = []
    for n in range(count):
        folder = folders[n * (len(folders) - 1) // max(count - 1, 1)]
        scene = kelvins.read_scene(folder, norms.get(folder.name))
        chosen.append((scene, read_truth(folder)))
    return chosen
