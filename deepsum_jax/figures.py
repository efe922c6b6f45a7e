"""Pictures: panels of one scene side by side, as a person would compare them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from deepsum_jax import files

Panel = tuple[str, np.ndarray]  # title, image [H, W]


def stretch(images: Sequence[np.ndarray], clear: np.ndarray | None = None) -> tuple[float, float]:
    """Display limits that images share: the 1st and 99th percentile of their finite pixels."""
    values = np.concatenate(
        [np.ravel(i if clear is None or clear.shape != i.shape else i[clear]) for i in images]
    )
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [1, 99])
    return float(low), float(max(high, low + 1e-6))


def match_brightness(image: np.ndarray, target: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """An image with its mean over clear pixels moved to the target's, as cPSNR does."""
    return image + (target[clear].mean() - image[clear].mean()) if clear.any() else image


def grid(rows: Sequence[tuple[str, Sequence[Panel]]], error_scale: float | None = None) -> Figure:
    """A figure of rows of images; panels whose title starts with "error" share one error scale."""
    if not rows:
        return Figure(figsize=(2.6, 1.0))  # nothing to show, and no reason to fail
    columns = max(len(panels) for _, panels in rows)
    figure = Figure(figsize=(2.6 * columns + 0.3, 2.85 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, panels) in zip(axes, rows):
        shown = [image for title, image in panels if not title.startswith("error")]
        low, high = stretch(shown)
        for axis in line:
            axis.set_axis_off()
        for axis, (title, image) in zip(line, panels):
            if title.startswith("error"):
                shown_errors = np.abs(image[np.isfinite(image)])
                largest = float(np.percentile(shown_errors, 99)) if shown_errors.size else 0.0
                limit = error_scale or max(1e-6, largest)
                axis.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            else:
                axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axis.set_title(title, fontsize=9)
        line[0].text(
            -0.04,
            0.5,
            label,
            transform=line[0].transAxes,
            rotation=90,
            va="center",
            ha="right",
            fontsize=9,
        )
    return figure


def preview(
    images: Sequence[Panel], error: Panel | None, limits: tuple[float, float], unit: str = ""
) -> Figure:
    """Images of one place side by side under one grey range, an error beside them under its own.

    Args:
      images: each drawn as large as the others, whatever its number of pixels; [H, W, 3] from 0
        to 1 is in colour.
      error: shown in colours from 0 to its 99th percentile.
      limits: the values that are black and white.
      unit: what the error's colour bar counts.
    """
    columns = len(images) + (error is not None)
    height, width = images[-1][1].shape[:2]
    tall = 4.0 * min(max(height / width, 0.25), 4.0)  # inches; strips stay readable
    figure = Figure(figsize=(4.2 * columns + 0.8, tall + 0.5), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis, (title, image) in zip(axes, images):
        axis.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
        axis.set_title(title, fontsize=11)
    if error is not None:
        title, values = error
        finite = values[np.isfinite(values)]
        most = float(np.percentile(finite, 99)) if finite.size else 0.0
        drawn = axes[-1].imshow(
            values, cmap="magma", vmin=0, vmax=max(most, 1e-6), interpolation="nearest"
        )
        axes[-1].set_title(title, fontsize=11)
        figure.colorbar(drawn, ax=axes[-1], shrink=0.9, extend="max", label=unit)
    for axis in axes:
        axis.set_axis_off()
    return figure


def save(figure: Figure, path: str | os.PathLike[str], description: str = "") -> None:
    """Writes a figure as PNG, aside and then renamed; the description goes into the file."""
    about = {"Description": description} if description else None
    with files.written_aside(Path(path)) as aside:
        figure.savefig(aside, dpi=110, format="png", metadata=about)


def to_array(figure: Figure) -> np.ndarray:
    """A figure as RGB pixels, uint8 [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
