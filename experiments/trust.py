"""How far the shipped system can be trusted: its standard error, its position, its level.

    python -m experiments trust --dates DIR --workdir W [--output DIR] [--params DIR]

On kept-back columns of real dates, degraded by Wald's protocol, and on simulated scenes of seeds
that nothing was trained on:

* **standard error**: RMS error over σ in each tenth of the pixels by σ, and how well σ ranks errors
  within a scene, beside the bicubic image's local gradient, the plain guess of where it is wrong;
* **true in position and level**: shift against HR, mean against HR's, and the image seen through
  the sensor against the reference, in units of its noise;
* **what the others add**: cPSNR over the system's own image of the reference alone, which no stack
  should take away; and 1 to 15 frames of ground that stays;
* **other sensors**: a blur assumed too wide or too narrow, four times the noise, scales 2 and 4;
  and the mean over flips and quarter turns, for eight times the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.stats
from matplotlib.figure import Figure
from tqdm import tqdm

from deepsum_jax import Bundle, ModelConfig, cli, figures, files, load_params
from deepsum_jax.config import Compute, SimulationConfig
from deepsum_jax.data import resample
from deepsum_jax.data.scene import Scene
from deepsum_jax.data.sensor import observe
from deepsum_jax.predict import predict
from deepsum_jax.prediction import Prediction
from deepsum_jax.scoring.company import COMPANY
from deepsum_jax.scoring.scene import score_image
from deepsum_jax.simulation.dates import read_dates
from deepsum_jax.simulation.steady import simulate_scene
from deepsum_jax.simulation.wald import WaldConfig, cut_scenes
from experiments import real
from experiments.benchmark import machine
from experiments.dates import add_dates, rasters

BORDER = 3  # HR pixels, left out as cPSNR does
CURVE = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15)  # frames
CURVE_SCENES = 12
BLURS = (0.15, -0.15)  # LR pixels, by which the sensor is taken to be more blurred than by default
MINE = {"robust_ibp": "robust IBP", "unrolled": "unrolled"}
TURNS = "unrolled, all turns"


def _predicted(bundle: Bundle, scene: Scene) -> Prediction:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frames left out are named elsewhere
        return predict(
            bundle, scene.lr, scene.masks, reference=scene.reference, return_details=True
        )


def _inner(x: np.ndarray) -> np.ndarray:
    return x[BORDER:-BORDER, BORDER:-BORDER]


# --- standard error ------------------------------------------------------------------------------


class Sureness(NamedTuple):
    """Of the scenes of one kind."""

    tenths: list[float]  # RMS error over RMS σ, by tenths of σ
    ranks: float  # median over scenes of Spearman's ρ of σ and |error|
    gradient_ranks: float  # of the bicubic image's gradient and |error|
    better: float  # share of scenes in which σ ranks better


def sureness(predictions: Sequence[Prediction], scenes: Sequence[Scene]) -> Sureness:
    """How well the standard error tells the error."""
    errors, sigmas, ranks, plain = [], [], [], []
    for prediction, scene in zip(predictions, scenes):
        assert prediction.standard_error is not None
        assert scene.hr is not None and scene.hr_mask is not None
        known = _inner(scene.hr_mask)
        error = np.abs(_inner(prediction.image - scene.hr.astype(np.float32)))[known]
        sigma = _inner(prediction.standard_error)[known]
        frame = scene.lr[prediction.reference_index].astype(np.float32)
        steep = np.hypot(*np.gradient(resample.bicubic_upsample(frame, scene.scale or 1)))
        errors.append(error)
        sigmas.append(sigma)
        ranks.append(scipy.stats.spearmanr(sigma, error).statistic)
        plain.append(scipy.stats.spearmanr(_inner(steep)[known], error).statistic)
    error, sigma = np.concatenate(errors), np.concatenate(sigmas)
    order = np.argsort(sigma)
    tenths = [
        float(np.sqrt(np.mean(error[part] ** 2) / np.mean(sigma[part] ** 2)))
        for part in np.array_split(order, 10)
    ]
    better = float(np.mean(np.array(ranks) > np.array(plain)))
    return Sureness(tenths, float(np.median(ranks)), float(np.median(plain)), better)


# --- position and level --------------------------------------------------------------------------


class Truth(NamedTuple):
    """Of the scenes of one kind."""

    shift: tuple[float, float]  # mean over scenes against HR, HR pixels
    farthest: float  # of a scene
    level: float  # greatest difference of a scene's mean, as part of HR's
    residual: float  # RMS of the reference less the image seen through the sensor, over its noise
    told: float  # the same where the system is told the sensor's blur


def shift_between(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The translation [2] that the image has against the truth, by least squares of slopes."""
    slopes = np.stack([_inner(s).ravel() for s in np.gradient(truth)], axis=1).astype(np.float64)
    left = _inner(image - truth).ravel().astype(np.float64)
    columns = np.concatenate([slopes, np.ones((len(slopes), 1))], axis=1)
    return np.asarray(-np.linalg.lstsq(columns, left, rcond=None)[0][:2])


def truthfulness(
    predictions: Sequence[Prediction], told: Sequence[Prediction], scenes: Sequence[Scene],
    sensor: WaldConfig = WaldConfig(),
) -> Truth:  # fmt: skip
    """How true images are in position and level, and those of a system that is told the sensor's
    blur; frames are as `sensor` makes them."""
    shifts, levels = [], []
    for prediction, scene in zip(predictions, scenes):
        assert scene.hr is not None
        hr = scene.hr.astype(np.float32)
        shifts.append(shift_between(prediction.image, hr))
        levels.append(prediction.image.mean() / hr.mean() - 1)
    mean = np.mean(shifts, axis=0)
    return Truth(
        (float(mean[0]), float(mean[1])),
        float(np.abs(shifts).max()),
        float(np.abs(levels).max()),
        residual(predictions, scenes, sensor),
        residual(told, scenes, sensor),
    )


def residual(
    predictions: Sequence[Prediction], scenes: Sequence[Scene], sensor: WaldConfig = WaldConfig()
) -> float:
    """RMS of references less what the sensor sees of the images, over its noise."""
    squares = []
    for prediction, scene in zip(predictions, scenes):
        frame = scene.lr[prediction.reference_index].astype(np.float32)
        seen = observe(prediction.image, (0, 0), scene.scale or 1, sensor.psf_sigma)
        known = scene.masks[prediction.reference_index][1:-1, 1:-1]
        squares.append(np.mean((frame - seen)[1:-1, 1:-1][known] ** 2))
    return float(np.sqrt(np.mean(squares)) / sensor.noise)


def added(
    bundle: Bundle, predictions: Sequence[Prediction], scenes: Sequence[Scene]
) -> list[float]:
    """cPSNR of each scene above that of its reference alone, dB."""
    return [
        score_image(p.image[..., None], s, BORDER)[0]
        - real.image_cpsnr(bundle, s, p.reference_index, 1)
        for p, s in zip(predictions, scenes)
    ]


# --- frames and sensors --------------------------------------------------------------------------


def curve(bundles: dict[str, Bundle]) -> dict[str, list[float]]:
    """Mean cPSNR over scenes of ground that stays, by how many frames a system sees."""
    config = SimulationConfig(lr_size=64, min_frames=15, max_frames=15)
    scenes = [simulate_scene(real.SEED, 100 + n, config)[0] for n in range(CURVE_SCENES)]
    values: dict[str, list[float]] = {key: [] for key in bundles}
    for count in tqdm(CURVE, "frames"):
        for key, bundle in bundles.items():
            scores = [real.image_cpsnr(bundle, s, s.reference, count) for s in scenes]
            values[key].append(float(np.mean(scores)))
    return values


def sensor_stacks(
    folder: Path, scale: int, noise: float = WaldConfig.noise
) -> dict[str, real.Scenes]:
    """Near-infrared stacks of the kept-back columns through another sensor."""
    dates = read_dates(rasters(folder), real.BANDS["NIR"])
    values, masks = dates.values[:, :, real.REPORTED :], dates.masks[:, :, real.REPORTED :]
    window = 96 if 96 % scale == 0 else 32 * scale
    out: dict[str, real.Scenes] = {}
    for years, name in (("all", "all years"), ("one", "looks at one date")):
        config = WaldConfig(scale=scale, window=window, years=years, noise=noise)
        out[name] = [s for s, _ in cut_scenes(values, masks, config, seed=real.SEED, band="NIR")]
    return out


def _blurred_name(key: str, change: float) -> str:
    return f"{MINE[key]}, blur {change:+g}"


def _blurred(bundle: Bundle, change: float) -> Bundle:
    sigma = round(bundle.config.psf_sigma + change, 4)
    return dataclasses.replace(bundle, config=dataclasses.replace(bundle.config, psf_sigma=sigma))


def sensors(folder: Path, shipped: dict[int, Bundle]) -> dict[str, dict[str, list[float]]]:
    """cPSNR by stack and sensor, then system."""
    classical = {"robust_ibp": Bundle({}, ModelConfig(system="robust_ibp"))}
    mine = {**classical, "unrolled": shipped[3]}
    blurs = {
        _blurred_name(key, change): _blurred(bundle, change)
        for key, bundle in mine.items()
        for change in BLURS
    }
    rows: dict[str, dict[str, list[float]]] = {}
    for name, scenes in sensor_stacks(folder, 3).items():
        row = real.score_stacks({name: scenes}, {**mine, **blurs}, 16)[name]
        turns = Compute(self_ensemble=True)
        row[TURNS] = [
            real.image_cpsnr(shipped[3], s, s.reference, compute=turns) for s in tqdm(scenes, TURNS)
        ]
        rows[f"×3, {name}"] = row
    for name, scenes in sensor_stacks(folder, 3, noise=4 * WaldConfig.noise).items():
        rows[f"×3, {name}, noise × 4"] = real.score_stacks({name: scenes}, mine, 16)[name]
    for scale, bundle in shipped.items():
        if scale == 3:
            continue
        plain = Bundle({}, ModelConfig(system="robust_ibp", scale=scale))
        for name, scenes in sensor_stacks(folder, scale).items():
            found = real.score_stacks({name: scenes}, {"robust_ibp": plain, "unrolled": bundle}, 16)
            rows[f"×{scale}, {name}"] = found[name]
    return rows


# --- what is written -----------------------------------------------------------------------------


def _sure_lines(found: dict[str, Sureness]) -> list[list[str]]:
    return [
        [
            name,
            " ".join(f"{x:.2f}" for x in s.tenths),
            f"{s.ranks:.2f}",
            f"{s.gradient_ranks:.2f}",
            f"{100 * s.better:.0f} %",
        ]
        for name, s in found.items()
    ]


def _truth_lines(found: dict[str, Truth]) -> list[list[str]]:
    return [
        [
            name,
            f"{t.shift[0]:+.3f}, {t.shift[1]:+.3f}",
            f"{t.farthest:.3f}",
            f"{100 * t.level:.3f} %",
            f"{t.residual:.2f}",
            f"{t.told:.2f}",
        ]
        for name, t in found.items()
    ]


def _sensor_lines(rows: dict[str, dict[str, list[float]]], keys: Sequence[str]) -> list[list[str]]:
    return [
        [f"{name} ({len(values['bicubic'])})"]
        + [f"{np.mean(values[key]):.2f}" if key in values else "" for key in keys]
        for name, values in rows.items()
    ]


def chart(found: dict[str, Sureness], frames: dict[str, list[float]]) -> Figure:
    """Calibration, and what more frames bring."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, s in found.items():
        left.plot(range(1, 11), s.tenths, "o-", markersize=3, label=name)
    left.axhspan(0.7, 1.4, color="0.92")
    left.axhline(1, color="black", linewidth=1)
    left.set(
        xlabel="tenth of the pixels, by standard error",
        ylabel="RMS error over standard error",
        title="Is the standard error right?",
        ylim=(0, 2.5),
    )
    left.legend(fontsize=7)
    for key, values in frames.items():
        right.plot(CURVE, values, "o-", markersize=3, label=key)
    right.set(
        xlabel="frames", ylabel="mean cPSNR, dB", title="What more frames bring where ground stays"
    )
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    return figure


def parser() -> argparse.ArgumentParser:
    p = cli.parser("python -m experiments trust", "How far the shipped system can be trusted.")
    add_dates(p)
    p.add_argument("--output", type=Path, required=True, metavar="DIR", help="where results go")
    p.add_argument(
        "--params",
        type=Path,
        metavar="DIR",
        help="a folder of bundles x2, x3, x4 (default: those that the package ships)",
    )
    return p


def _shipped(folder: Path | None) -> dict[int, Bundle]:
    if folder is None:
        return {scale: load_params("default", scale=scale) for scale in (3, 2, 4)}
    return {
        scale: load_params(folder / f"x{scale}")
        for scale in (3, 2, 4)
        if (folder / f"x{scale}").is_dir()
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    shipped = _shipped(args.params)
    bundle, made = shipped[3], machine()
    stacks = {**real.real_stacks(args.dates), **real.simulated_stacks()}
    sure, true, more = {}, {}, {}
    knowing = _blurred(bundle, WaldConfig().psf_sigma - bundle.config.psf_sigma)
    for name, scenes in tqdm(stacks.items(), "stacks"):
        predictions = [_predicted(bundle, scene) for scene in scenes]
        more[name] = added(bundle, predictions, scenes)
        if name == real.STEADY:  # its HR lies on a grid of its own
            continue
        sure[name] = sureness(predictions, scenes)
        if name.startswith(tuple(real.BANDS)):
            told = [_predicted(knowing, scene) for scene in scenes]
            true[name] = truthfulness(predictions, told, scenes)
    frames = curve(
        {
            "unrolled": bundle,
            "robust IBP": Bundle({}, ModelConfig(system="robust_ibp")),
            "IBP": Bundle({}, ModelConfig(system="ibp")),
        }
    )
    rows = sensors(args.dates, shipped)
    keys = {**COMPANY, **MINE}
    keys |= {name: name for name in (_blurred_name(k, c) for k in MINE for c in BLURS)}
    keys[TURNS] = TURNS
    about = f"Made {made['date']} of commit {made['commit']} on {made['cores']} cores."
    head = ["stack", "RMS error / σ, by tenths of σ", "ρ(σ, error)", "ρ(gradient, error)", "σ wins"]
    parts = [
        "# How far to trust the shipped system\n",
        real.markdown(head, _sure_lines(sure)),
        "ρ: Spearman's, median over scenes.\n",
        real.markdown(
            [
                "stack",
                "mean shift, HR px",
                "farthest",
                "level",
                "reference / noise",
                "the same, told the blur",
            ],
            _truth_lines(true),
        ),
        real.markdown(
            ["stack", "over its own image of the reference, dB", "worst scene"],
            [[k, f"{np.mean(v):+.2f}", f"{np.min(v):+.2f}"] for k, v in more.items()],
        ),
        real.markdown(
            ["frames", *map(str, CURVE)],
            [[key, *(f"{v:.2f}" for v in values)] for key, values in frames.items()],
        ),
        real.markdown(["sensor (scenes)", *keys.values()], _sensor_lines(rows, list(keys))),
        f"Mean cPSNR in dB. `python -m experiments trust --dates DIR --output O`. {about}\n",
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    with files.written_aside(args.output / "trust.md") as aside:
        aside.write_text("\n".join(parts), encoding="utf-8")
    files.write_json(
        args.output / "trust.json",
        {
            "sureness": {k: v._asdict() for k, v in sure.items()},
            "truth": {k: v._asdict() for k, v in true.items()},
            "added": more,
            "frames": frames,
            "sensors": rows,
            "about": about,
        },
    )
    figures.save(chart(sure, frames), args.output / "trust.png", about)
    print("\n".join(parts))


if __name__ == "__main__":
    cli.run(main)
