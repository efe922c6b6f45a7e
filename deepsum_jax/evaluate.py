"""Scores of a trained network on scenes with HR, beside Bicubic+Mean on the same frames.

python -m deepsum_jax.evaluate --params DIR --data DIR
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from deepsum_jax import cli, figures, files, kelvins, metrics, ops, prepare
from deepsum_jax.baselines.bicubic_mean import bicubic_mean
from deepsum_jax.checkpoint import Bundle
from deepsum_jax.config import nearest
from deepsum_jax.predict import (
    MAX_FRAMES,
    add_system_arguments,
    check_predictor,
    chosen_bundle,
    select_frames,
    super_resolve,
)
from deepsum_jax.registration import register_frames
from deepsum_jax.scene import Scene
from deepsum_jax.systems import LABELS

SPLITS = ("auto", "all", "train", "val", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class SceneScore:
    """Scores of one scene, and the images they belong to."""

    name: str
    band: str
    frames: int  # used
    cpsnr: float  # dB; NaN where HR has no reliable pixel, or no frame has
    cssim: float
    bicubic_mean: float  # dB, on the same frames
    norm: float | None  # Kelvins baseline, dB
    shift_errors: np.ndarray | None  # [n, 2, 2]: frames × (RegNet, cross-correlation) × (y, x)
    images: dict[str, np.ndarray]  # "LR", "Bicubic+Mean", `label`, "HR": [H, W], and "mask"
    label: str = "DeepSUM"  # of the system
    shape: tuple[int, int] = (0, 0)  # of HR

    @property
    def score(self) -> float | None:
        """Kelvins score of this scene."""
        if self.norm is None or not math.isfinite(self.cpsnr):
            return None
        return self.norm / self.cpsnr


def _score_image(image: np.ndarray, scene: Scene, border: int) -> tuple[float, float]:
    assert scene.hr is not None and scene.hr_mask is not None
    hr = prepare.fill_hidden(prepare.with_channels(scene.hr, 2)[None], scene.hr_mask[None])
    mask = scene.hr_mask[None, ..., None]
    cpsnr = metrics.cpsnr(image[None], hr, mask, border)
    return float(cpsnr[0]), float(metrics.cssim(image[None], hr, mask, border)[0])


def read_truth(folder: kelvins.SceneFolder) -> dict[str, Any] | None:
    """What a simulated scene's truth.json says; None without one."""
    path = folder.path / "truth.json"
    return files.read_json(path) if path.exists() else None


def true_shifts(truth: dict[str, Any], frames: Sequence[int]) -> np.ndarray:
    """[n, 2]: translations that register frames on the first, from a simulated scene's truth.

    Raises:
      ValueError: a frame's translation is missing or is not two numbers.
    """
    place = np.full((len(frames), 2), np.nan)
    for row, number in zip(place, frames):
        try:
            dy, dx = truth["frames"][f"LR{number:03d}"]
            row[:] = float(dy), float(dx)
        except (KeyError, TypeError, ValueError):
            pass  # stays NaN
        if not np.isfinite(row).all():
            raise ValueError(
                f"truth.json: found no translation of LR{number:03d}, expected "
                f"frames.LR{number:03d} to be (dy, dx)"
            )
    return place - place[0]


def _shift_errors(
    bundle: Bundle, scene: Scene, kept: list[int], filters: np.ndarray, truth: dict[str, Any]
) -> np.ndarray:
    """Errors, in HR pixels, of RegNet's filters and of integer cross-correlation.

    Over the first window's frames whose true shift RegNet's filters can reach.
    """
    members = kept[: bundle.config.num_frames]
    true = true_shifts(truth, [scene.frames[n] for n in members])[1:]
    learned = np.asarray(ops.filter_shift(jnp.asarray(filters)))[: len(true)]
    lr = prepare.fill_hidden(prepare.with_channels(scene.lr, 3)[members], scene.masks[members])
    correlated = register_frames(
        prepare.upsample(lr, bundle.config.scale),
        ops.nearest_upsample(scene.masks[members], bundle.config.scale),
    )[1:]
    reached = np.abs(true).max(axis=1) <= bundle.config.filter_size // 2
    return np.stack([learned - true, correlated - true], axis=1)[reached]


def evaluate_scene(
    bundle: Bundle,
    scene: Scene,
    truth: dict[str, Any] | None = None,
    max_frames: int = MAX_FRAMES,
    border: int = 3,
) -> SceneScore:
    """Scores what `predict` makes of a scene.

    Args:
      bundle: a whole network.
      scene: with HR; its scale and channels are the network's.
      truth: of a simulated scene, for registration errors.
      max_frames: as in `predict`.

    Raises:
      ValueError: another scale or number of channels, or a scene without the reference frame
        that the bundle's rule wants given.
    """
    lr = prepare.with_channels(scene.lr, 3)
    if scene.hr is None or scene.scale != bundle.config.scale:
        raise ValueError(
            f"scene {scene.name!r}: found scale {scene.scale}, expected {bundle.config.scale}"
        )
    if lr.shape[-1] != bundle.config.channels:
        raise ValueError(
            f"scene {scene.name!r}: found {lr.shape[-1]} channels, expected "
            f"{bundle.config.channels}"
        )
    shape = (scene.hr.shape[0], scene.hr.shape[1])
    if not scene.masks.any():  # nothing to super-resolve: counted, not scored
        nan = math.nan
        return SceneScore(
            scene.name, scene.band, 0, nan, nan, nan, scene.norm, None, {}, shape=shape
        )
    reference = prepare.reference_frame(scene, bundle.info.reference)
    kept = select_frames(scene.masks, bundle.config.num_frames, reference, max_frames)
    result = super_resolve(bundle, lr, scene.masks, kept)
    mean = bicubic_mean(lr[kept], scene.masks[kept], bundle.config.scale)
    cpsnr, cssim = _score_image(result.image, scene, border)
    baseline, _ = _score_image(mean, scene, border)
    errors = None
    if truth is not None and len(result.filters):
        errors = _shift_errors(bundle, scene, kept, result.filters, truth)
    label = LABELS[bundle.config.system]
    images: dict[str, np.ndarray] = {
        "LR": prepare.fill_hidden(lr[kept[:1]], scene.masks[kept[:1]])[0, ..., 0],
        "Bicubic+Mean": mean[..., 0],
        label: result.image[..., 0],
        "HR": prepare.with_channels(scene.hr, 2)[..., 0].astype(np.float32),
        "mask": np.asarray(scene.hr_mask),
    }
    return SceneScore(
        scene.name, scene.band, len(kept), cpsnr, cssim, baseline, scene.norm, errors, images,
        label, shape,
    )  # fmt: skip


def bootstrap(
    differences: np.ndarray, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of paired differences [S]."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(differences), (resamples, len(differences)))
    low, high = np.percentile(differences[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _mean(values: Iterable[float | None]) -> tuple[float | None, int]:
    """Mean of the finite values, and how many there are."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return (float(np.mean(finite)) if finite else None), len(finite)


def _means(scores: Sequence[SceneScore]) -> dict[str, Any]:
    out: dict[str, Any] = {"n": len(scores)}
    for key in ("cpsnr", "cssim", "bicubic_mean", "score"):
        mean, finite = _mean(getattr(s, key) for s in scores)
        out[key] = mean
        # A scene without a Kelvins baseline has no score to be missing.
        asked = sum(s.norm is not None for s in scores) if key == "score" else len(scores)
        out[f"{key}_not_finite"] = asked - finite
    return out


def _plain(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def summarize(scores: Sequence[SceneScore], split: str) -> dict[str, Any]:
    """All results as plain data for JSON; what is not finite is None, and counted."""
    rows = [
        {
            "name": s.name,
            "band": s.band,
            "frames": s.frames,
            "cpsnr": _plain(s.cpsnr),
            "cssim": _plain(s.cssim),
            "bicubic_mean": _plain(s.bicubic_mean),
            "norm": s.norm,
            "score": s.score,
        }
        for s in scores
    ]
    out: dict[str, Any] = {"format": 1, "split": split, "n": len(scores), "scenes": rows}
    out["mean"] = _means(scores)
    bands = sorted({s.band for s in scores})
    out["by_band"] = {b: _means([s for s in scores if s.band == b]) for b in bands}
    differences = np.array([s.cpsnr - s.bicubic_mean for s in scores])
    differences = differences[np.isfinite(differences)]
    if differences.size:
        low, high = bootstrap(differences)
        out["over_bicubic_mean"] = {
            "n": int(differences.size),
            "mean": float(differences.mean()),
            "low": low,
            "high": high,
            "wins": int((differences > 0).sum()),
        }
    errors = [s.shift_errors for s in scores if s.shift_errors is not None]
    if errors:
        every = np.abs(np.concatenate(errors))  # [n, 2, 2]
        if len(every):
            median = np.median(every, axis=0)
            out["registration"] = {
                "frames": len(every),
                "median_error_regnet": [float(v) for v in median[0]],
                "median_error_cross_correlation": [float(v) for v in median[1]],
            }
    return out


def report(summary: dict[str, Any], rows: int = 40) -> str:
    """The results as a table for people."""

    def number(value: float | None, digits: int = 2) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    line = "{:<16}{:<6}{:>6}{:>14}{:>11}{:>7}{:>9}{:>8}".format
    system = summary.get("system", "DeepSUM")
    lines = [line("scene", "band", "frames", "Bicubic+Mean", system, "gain", "cSSIM", "score")]
    for s in summary["scenes"][:rows]:
        known = s["cpsnr"] is not None and s["bicubic_mean"] is not None
        gain = number(s["cpsnr"] - s["bicubic_mean"]) if known else "–"
        lines.append(
            line(
                s["name"][:15],
                s["band"][:5],
                s["frames"],
                number(s["bicubic_mean"]),
                number(s["cpsnr"]),
                gain,
                number(s["cssim"], 5),
                number(s["score"], 4),
            )
        )
    if len(summary["scenes"]) > rows:
        lines.append(f"… and {len(summary['scenes']) - rows} more scenes")
    groups = summary["by_band"] if len(summary["by_band"]) > 1 else {}
    for label, m in [*groups.items(), ("mean", summary["mean"])]:
        known = m["cpsnr"] is not None and m["bicubic_mean"] is not None
        gain = number(m["cpsnr"] - m["bicubic_mean"]) if known else "–"
        lines.append(
            line(
                label,
                "",
                m["n"],
                number(m["bicubic_mean"]),
                number(m["cpsnr"]),
                gain,
                number(m["cssim"], 5),
                number(m["score"], 4),
            )
        )
        if m["cpsnr_not_finite"]:
            lines.append(f"{m['cpsnr_not_finite']} of {m['n']} scenes have no finite cPSNR")
    if "over_bicubic_mean" in summary:
        o = summary["over_bicubic_mean"]
        lines.append(
            f"over Bicubic+Mean: {o['mean']:+.2f} dB (95 % interval {o['low']:+.2f} to "
            f"{o['high']:+.2f}), better on {o['wins']} of {o['n']} scenes"
        )
    if "registration" in summary:
        r = summary["registration"]
        own = ", ".join(f"{v:.2f}" for v in r["median_error_regnet"])
        other = ", ".join(f"{v:.2f}" for v in r["median_error_cross_correlation"])
        lines.append(
            f"registration, median error (y, x) in HR pixels over {r['frames']} frames: RegNet "
            f"{own}; integer cross-correlation {other}"
        )
    return "\n".join(lines)


def panel(scores: Sequence[SceneScore]) -> Any:
    """A figure: reference LR, Bicubic+Mean, DeepSUM, HR and both errors, one scene a row."""
    rows = []
    for s in scores:
        if not s.images:
            continue
        hr, clear = s.images["HR"], s.images["mask"]
        bicubic = figures.match_brightness(s.images["Bicubic+Mean"], hr, clear)
        sr = figures.match_brightness(s.images[s.label], hr, clear)
        limit = np.where(clear, 1.0, np.nan)
        rows.append(
            (
                f"{s.band} {s.name}",
                [
                    ("reference LR", s.images["LR"]),
                    (f"Bicubic+Mean {s.bicubic_mean:.2f} dB", bicubic),
                    (f"{s.label} {s.cpsnr:.2f} dB", sr),
                    ("HR", hr),
                    ("error of Bicubic+Mean", (bicubic - hr) * limit),
                    (f"error of {s.label}", (sr - hr) * limit),
                ],
            )
        )
    return figures.grid(rows)


def select_scenes(
    bundle: Bundle, data: Path, split: str, band: str = ""
) -> tuple[str, tuple[kelvins.SceneFolder, ...]]:
    """The scenes with HR that a split means for this bundle and this data.

    "auto" is the held-out split where `data` holds the bundle's own training scenes (the test
    scenes with HR, else the validation scenes), and all scenes elsewhere.

    Returns:
      The split's name, resolved, and its scenes.

    Raises:
      ValueError: no scene with HR, or a split that the data does not have.
    """
    folders = kelvins.find_scenes(data)
    if band and band != "all":
        bands = sorted({f.band for f in folders})
        if band not in bands:
            raise ValueError(
                f"--band: found {band!r}, but {data} has {', '.join(bands) or 'no band folders'}; "
                f"{nearest(band, [*bands, 'all'])}"
            )
        folders = tuple(f for f in folders if f.band == band)
    scored = tuple(f for f in folders if (f.path / "HR.png").exists())
    if not scored:
        raise ValueError(f"{data}: found {len(folders)} scenes but no HR.png, nothing to score")
    test = tuple(f for f in scored if f.part == "test")
    if split == "auto":
        split = "all"
        if _is_own_data(bundle, data):
            test = tuple(f for f in test if f.band in bundle.info.bands)
            split = "test" if test else "val"
    if split == "all":
        return split, scored
    if split == "test":
        chosen = test
    else:
        info = bundle.info
        ids = set(info.train_scenes if split == "train" else info.validation_scenes)
        chosen = tuple(f for f in scored if f.part != "test" and f"{f.band}/{f.name}" in ids)
    if not chosen:
        raise ValueError(f"{data}: found no scene with HR of the split {split!r}")
    return split, chosen


def _is_own_data(bundle: Bundle, data: Path) -> bool:
    if not bundle.info.data_fingerprint:
        return False
    folders = [f for f in prepare.training_folders(data) if f.band in bundle.info.bands]
    return prepare.fingerprint(folders) == bundle.info.data_fingerprint


def evaluate(
    bundle: Bundle,
    data: Path,
    split: str = "auto",
    band: str = "",
    max_frames: int = MAX_FRAMES,
    progress: bool = False,
    each: Callable[[SceneScore], None] | None = None,
) -> tuple[dict[str, Any], list[SceneScore]]:
    """Scores every scene of a split.

    Args:
      bundle: a whole network.
      data: a Kelvins-layout folder.
      split: one of `SPLITS`; see `select_scenes`.
      band: only this band.
      each: called with every scene's score; if given, images are not kept afterwards.

    Returns:
      The summary (see `summarize`) and the scenes' scores.

    Raises:
      ValueError, FileNotFoundError: a structural fault of the data or the bundle.
    """
    check_predictor(bundle)
    split, folders = select_scenes(bundle, data, split, band)
    norms = kelvins.read_norm_for(data)
    scores = []
    for folder in tqdm(folders, "evaluating", disable=not progress, unit="scene"):
        scene = kelvins.read_scene(folder, norms.get(folder.name))
        truth = read_truth(folder)
        try:
            score = evaluate_scene(bundle, scene, truth, max_frames)
        except ValueError as error:
            raise ValueError(f"{folder.path}: {error}") from None
        if each is not None:
            each(score)
            score = dataclasses.replace(score, images={})
        scores.append(score)
    return {**summarize(scores, split), "system": LABELS[bundle.config.system]}, scores


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "python -m deepsum_jax.evaluate",
        "Score a trained network on scenes with HR, beside Bicubic+Mean on the same frames.",
        """splits:
  auto   held-out scenes where DIR is the bundle's own training data, else all
  all    every scene with HR       train, val   those of the bundle's own split
  test   scenes under DIR/test that have HR""",
    )
    add_system_arguments(p)
    p.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="scenes in the Kelvins layout"
    )
    p.add_argument("--split", choices=SPLITS, default="auto", help="default: auto")
    p.add_argument(
        "--reference",
        choices=("clearest", "first", "given"),
        help="the frame whose grid images lie on; given: by the scenes' reference.txt "
        "(default: as in training)",
    )
    p.add_argument("--band", default="", help="score only this band; default: every one")
    p.add_argument(
        "--max-frames",
        type=cli.positive,
        default=MAX_FRAMES,
        metavar="M",
        help="use at most the M clearest frames (default: %(default)s)",
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    p.add_argument(
        "--panel", type=Path, metavar="FILE", help="also draw the first four scenes into this PNG"
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    for target, argument in ((args.json, "--json"), (args.panel, "--panel")):
        if target is not None:
            files.check_target(target, argument)
    bundle = chosen_bundle(args)
    if args.reference:
        info = dataclasses.replace(bundle.info, reference=args.reference)
        bundle = dataclasses.replace(bundle, info=info)
    kept: list[SceneScore] = []

    def each(score: SceneScore) -> None:
        if len(kept) < 4:
            kept.append(score)

    summary, _ = evaluate(
        bundle, args.data, args.split, args.band, args.max_frames, progress=True, each=each
    )
    print(f"split: {summary['split']} ({summary['n']} scenes of {args.data})")
    print(report(summary))
    if args.json:
        files.write_json(args.json, summary)
    if args.panel:
        figures.save(panel(kept), args.panel)


if __name__ == "__main__":
    cli.run(main)
