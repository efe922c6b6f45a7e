"""The parameters that the package ships, made by one command.

    python -m experiments default --dates DIR --workdir W --scale 3 [--output DIR]

A network that is to serve any stack trains on ground of two kinds: real dates, degraded by sensors,
noise and offsets that are drawn anew for every scene (`simulation.drawn`), and simulated ground
that changes as real ground does, half of it with the real dates' texture. The dates' bands are seen
as they are, as their vegetation index, and mixed, so that edges come with every contrast. Of the
dates, GeoTIFFs of one place, only the first 280 columns are used; what lies east of them is kept
back.

The command goes on where it was. At its end the bundle, in half precision, the run's settings and
its log lie in --output.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deepsum_jax import cli, files
from deepsum_jax.bundle import save_params
from deepsum_jax.config import ChangingGround, TrainConfig, override, preset
from deepsum_jax.data.fill import fill_hidden
from deepsum_jax.data.scene import Scene
from deepsum_jax.simulation.changing import simulate_changing_scene
from deepsum_jax.simulation.dataset import write_scenes
from deepsum_jax.simulation.dates import Dates, read_dates
from deepsum_jax.simulation.drawn import Drawn, draw_scene
from deepsum_jax.training.run import train
from experiments.dates import add_dates, rasters

COLUMNS = (0, 280)  # of the rasters, that may train
SEED = 3  # of all that is drawn; reported scenes have others
REAL, SIMULATED = 3000, 300  # scenes
MIXTURES = 16  # of the bands, as ground of their own
BLUR = (0.34, 0.48)  # LR pixels, of the scenes' sensors: about what the network assumes
WINDOW = 32  # LR pixels, of a real scene
_BANDS = (1, 2, 3, 4)
_RED, _NEAR_INFRARED = 0, 3  # of these


def grounds(folder: Path, columns: tuple[int, int] = COLUMNS) -> list[Dates]:
    """Every band of the dates, their vegetation index, and as often mixtures of the bands."""
    paths = rasters(folder)
    bands = [read_dates(paths, band, columns) for band in _BANDS]
    red, infrared = (bands[n].values.astype(np.float32) for n in (_RED, _NEAR_INFRARED))
    index = (infrared - red) / np.maximum(infrared + red, 1)
    known = bands[_RED].masks & bands[_NEAR_INFRARED].masks
    plain = [*bands, Dates(np.rint(8000 * (1 + index)).astype(np.uint16), known)]
    times = max(1, MIXTURES // len(plain))  # so that a scene shows one or the other as likely
    return [*plain * times, *_mixtures(bands)]


def _mixtures(bands: Sequence[Dates]) -> Iterator[Dates]:
    """Weighted sums of the bands, weights of either sign: other sensors' bands, in a way."""
    rng = np.random.default_rng(SEED)
    known = np.logical_and.reduce([band.masks for band in bands])
    whitened = []
    for band in bands:
        values = band.values.astype(np.float32)
        whitened.append((values - values[known].mean()) / values[known].std())
    for weights in rng.standard_normal((MIXTURES, len(bands))):
        mixed = sum(w * x for w, x in zip(weights.astype(np.float32), whitened))
        counts = 8000 + 2000 * mixed / mixed[known].std()
        yield Dates(np.clip(np.rint(counts), 64, 16320).astype(np.uint16), known)


def scenes(
    ground: Sequence[Dates], scale: int, real: int, simulated: int
) -> Iterator[tuple[str, Scene, Mapping[str, Any]]]:
    """All training scenes of a scale."""
    drawn = Drawn(scale=scale, window=scale * WINDOW, psf_sigma=BLUR)
    for n in range(real):
        rng = np.random.default_rng([SEED, scale, n])
        yield ("train", *draw_scene(ground, drawn, rng, f"imgset{n:04d}"))
    textures = [fill_hidden(d.values, d.masks) for d in ground[: len(_BANDS)]]
    changing = ChangingGround(scale=scale, min_frames=2, max_frames=12, psf_sigma=BLUR)
    for n in range(simulated):
        name = f"imgset{real + n:04d}"
        yield (
            "train",
            *simulate_changing_scene(SEED, n, changing, name=name, textures=textures),
        )


def ship(workdir: Path, output: Path, bundle: Any) -> None:
    """Writes a trained bundle in half precision, with how it came about."""
    half = jax.tree.map(lambda x: np.asarray(x, np.float16), bundle.params)
    # Training scenes name their reference, and are filed under one band; users' stacks need not.
    info = dataclasses.replace(bundle.info, reference="clearest", bands=())
    save_params(output, bundle.replace(params=half, info=info))
    for name in ("config.json", "metrics.jsonl"):
        with files.written_aside(output / name) as aside:
            shutil.copyfile(workdir / name, aside)


def settings(scale: int, assignments: Sequence[str]) -> TrainConfig:
    """The preset `unrolled` at a scale."""
    config = preset("unrolled")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, scale=scale),
        data=dataclasses.replace(config.data, patch_size=scale * WINDOW),
    )
    return override(config, assignments)


def parser() -> argparse.ArgumentParser:
    p = cli.parser("python -m experiments default", "Trains what the package ships.")
    add_dates(p)
    p.add_argument("--workdir", type=Path, required=True, metavar="W", help="data and training")
    p.add_argument("--scale", type=cli.positive, default=3, metavar="R", help="2, 3 or 4")
    p.add_argument(
        "--output", type=Path, metavar="DIR", help="where the bundle goes (default: W/xR/shipped)"
    )
    p.add_argument("--real", type=cli.positive, default=REAL, metavar="N", help="scenes")
    p.add_argument("--simulated", type=cli.positive, default=SIMULATED, metavar="N", help="scenes")
    p.add_argument(
        "--set", action="append", default=[], dest="assignments", metavar="SECTION.FIELD=VALUE",
        help="a training setting, as deepsum.steps=100; may be repeated",
    )  # fmt: skip
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    config = settings(args.scale, args.assignments)
    workdir, data = args.workdir / f"x{args.scale}", args.workdir / f"data-x{args.scale}"
    if not data.exists():
        made = scenes(grounds(args.dates), args.scale, args.real, args.simulated)
        write_scenes(data, made, args.real + args.simulated, progress=True)
    # What it scores is told on columns and seeds that are kept back, by `real` and `trust`.
    bundle = train(workdir, config, data, report=False)
    output = args.output or workdir / "shipped"
    ship(workdir, output, bundle)
    print(f"{output}: the bundle, its settings and its log")


if __name__ == "__main__":
    cli.run(main)
