"""Scores for people: a table, and a panel of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepsum_jax import figures
from deepsum_jax.scoring.company import COMPANY
from deepsum_jax.scoring.scene import SceneScore


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def report(summary: Mapping[str, Any], rows: int = 40) -> str:
    """The results as a table: every scene, the means, and how far the system lies above each
    alternative."""
    system = summary.get("system", "system")
    heads = (*COMPANY.values(), system)
    widths = [max(9, len(head) + 2) for head in heads]

    def line(name: str, band: str, frames: Any, values: Sequence[str], cssim: str, sc: str) -> str:
        columns = "".join(f"{v:>{w}}" for v, w in zip(values, widths))
        return f"{name:<16}{band:<6}{frames:>6}{columns}{cssim:>9}{sc:>8}"

    def scored(name: str, band: str, count: int, values: Mapping[str, Any]) -> str:
        columns = [_number(values[key]) for key in (*COMPANY, "cpsnr")]
        cssim, kelvins = _number(values["cssim"], 5), _number(values["score"], 4)
        return line(name[:15], band[:5], count, columns, cssim, kelvins)

    lines = [line("scene", "band", "frames", heads, "cSSIM", "score")]
    lines += [scored(s["name"], s["band"], s["frames"], s) for s in summary["scenes"][:rows]]
    if len(summary["scenes"]) > rows:
        lines.append(f"… and {len(summary['scenes']) - rows} more scenes")
    groups = summary["by_band"] if len(summary["by_band"]) > 1 else {}
    for label, means in [*groups.items(), ("mean", summary["mean"])]:
        lines.append(scored(label, "", means["n"], means))
        if means["cpsnr_not_finite"]:
            lines.append(f"{means['cpsnr_not_finite']} of {means['n']} scenes have no finite cPSNR")
    remarks = [f"{s['name']}: {r}" for s in summary["scenes"] for r in s.get("remarks", ())]
    lines += remarks[:rows]
    for name, over in summary["over"].items():
        if over is not None:
            lines.append(
                f"over {COMPANY[name]}: {over['mean']:+.2f} dB (95 % interval {over['low']:+.2f} "
                f"to {over['high']:+.2f}), better on {over['wins']} of {over['n']} scenes, worst "
                f"{over['worst']:+.2f}"
            )
    if "registration" in summary:
        r = summary["registration"]
        own = ", ".join(f"{v:.2f}" for v in r["median_error"])
        other = ", ".join(f"{v:.2f}" for v in r["median_error_cross_correlation"])
        lines.append(
            f"registration, median error (y, x) in HR pixels over {r['frames']} frames: {r['by']} "
            f"{own}; integer cross-correlation {other}"
        )
    return "\n".join(lines)


def panel(scores: Sequence[SceneScore]) -> Any:
    """A figure: reference LR, bicubic, Bicubic+Mean, the system, HR and its error beside that of
    bicubic, one scene a row."""
    rows = []
    for s in scores:
        if not s.images:
            continue
        hr, clear = s.images["HR"], s.images["mask"]
        blank = np.full(hr.shape, np.nan)
        bicubic, mean, sr = (
            figures.match_brightness(s.images.get(name, blank), hr, clear)
            for name in ("bicubic", "bicubic_mean", "SR")
        )
        limit = np.where(clear, 1.0, np.nan)
        rows.append(
            (
                f"{s.band} {s.name}",
                [
                    ("reference LR", s.images["LR"]),
                    (f"bicubic {s.company['bicubic']:.2f} dB", bicubic),
                    (f"Bicubic+Mean {s.company['bicubic_mean']:.2f} dB", mean),
                    (f"{s.label} {s.cpsnr:.2f} dB", sr),
                    ("HR", hr),
                    ("error of bicubic", (bicubic - hr) * limit),
                    (f"error of {s.label}", (sr - hr) * limit),
                ],
            )
        )
    return figures.grid(rows)
