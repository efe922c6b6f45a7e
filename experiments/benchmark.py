"""How fast, and how close to what the machine can do: forward, training steps, predict, pipeline.

    python -m experiments benchmark [--preset P] [--set section.field=value …] [--json FILE]

Every row runs in a process of its own, so that its memory is its own. What is timed is what
`train` and `predict` run: the mapped step with its optimiser, and `predict` from raw counts to raw
counts.

* **roof**: one large matrix product in the row's dtype, timed alternately with the row.
* **score**: nominal work ÷ seconds ÷ roof, the median over pairs of one timing of each. Nominal
  work is that of the network as published, however it is computed: a score above 1 is possible,
  since algebra saves work.
* **memory**: on a CPU, the greatest resident size less that before the row; on an accelerator the
  device's own peak.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepsum_jax import Bundle, cli, files, predict
from deepsum_jax.bundle import package_version
from deepsum_jax.config import PRESETS, TrainConfig, override, preset
from deepsum_jax.data.aligned import Aligned
from deepsum_jax.data.inputs import View
from deepsum_jax.data.patches import Patches, make_iterator, synthetic_shifts
from deepsum_jax.data.prepare import PreparedScene
from deepsum_jax.systems import deepsum
from deepsum_jax.systems.deepsum import nominal_work
from deepsum_jax.systems.system import Stage
from deepsum_jax.systems.table import init_params, stages_of, system_of
from deepsum_jax.systems.windows import Forward
from deepsum_jax.training import parallel, stages
from deepsum_jax.training.step import init_state

ROWS = ("forward", *(f"step_{name}" for name in stages.NAMES), "predict", "pipeline")
_SCENE = 128  # LR pixels a side of the scene that `predict` gets, as PROBA-V's
_PIPELINE_SECONDS = 3.0  # for which the input pipeline is watched
_CPU_PRODUCT, _ACCELERATOR_PRODUCT = (82_944, 576, 64), (8_192, 8_192, 8_192)


# --- nominal work -------------------------------------------------------------------------------


def step_work(stage: Stage, config: TrainConfig, batch: int) -> float:
    """Nominal operations of a training step: three times its forward pass, where it trains."""
    model, side = config.model, config.data.patch_size
    if stage.view == "aligned":
        return 3 * batch * system_of(model).work(model, side, side, model.num_frames)
    whole = nominal_work(model, side, side)
    one_frame = whole.sisrnet / model.num_frames
    if stage.name == "sisrnet":
        return 3 * batch * one_frame
    if stage.name == "regnet":
        inner = side - 2 * (model.filter_size // 2)  # what the synthetic shifts leave
        return batch * (one_frame + 3 * nominal_work(model, inner, inner).regnet)
    return 3 * batch * whole.total


# --- what is timed ------------------------------------------------------------------------------


def _noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def _batch(stage: Stage, config: TrainConfig, size: int) -> dict[str, np.ndarray]:
    rng, model, side = np.random.default_rng(0), config.model, config.data.patch_size
    if stage.view == "aligned":
        lr_side = side // model.scale
        return {
            "frames": _noise(rng, size, model.num_frames, lr_side, lr_side, 1),
            "masks": rng.random((size, model.num_frames, lr_side, lr_side, 1)) < 0.9,
            "frame_shifts": _noise(rng, size, model.num_frames, 2),
            "noise": np.full(size, 0.1, np.float32),
            "hr": _noise(rng, size, side, side, 1),
            "hr_mask": rng.random((size, side, side, 1)) < 0.9,
        }
    frames = model.num_frames if stage.view == "stacks" else 1
    batch = {"images": _noise(rng, size, frames, side, side, model.channels)}
    if stage.view == "shifts":
        shifts = [synthetic_shifts(rng, model) for _ in range(size)]
        return {**batch, "shifts": np.stack(shifts)}
    batch["hr"] = _noise(rng, size, side, side, model.channels)
    batch["hr_mask"] = rng.random((size, side, side, 1)) < 0.9
    if stage.view == "stacks":
        batch["masks"] = rng.random((size, frames, side, side, 1)) < 0.9
    return batch


def _scene(config: TrainConfig, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A raw stack [frames, h, w] in the model's units, and masks nine tenths clear."""
    rng, norm = np.random.default_rng(0), config.model.normalization
    mean, std = float(np.mean(norm.lr_mean)), float(np.mean(norm.lr_std))
    stack = mean + std * _noise(rng, frames, _SCENE, _SCENE)
    return stack, rng.random((frames, _SCENE, _SCENE)) < 0.9


Timed = tuple[Callable[[], Any], float]  # something to run to its end, and its nominal work


def _forward(config: TrainConfig, batch: int) -> Timed:
    model, side = config.model, config.data.patch_size
    given = _batch(deepsum.END_TO_END, config, batch)
    params = jax.device_put(init_params(model, jax.random.key(0)))
    images, masks = jax.device_put((given["images"], given["masks"]))
    run = jax.jit(Forward(deepsum.run, model, config.compute))
    work = batch * nominal_work(model, side, side).total
    return lambda: run(params, images, masks), work


def _step(stage: Stage, config: TrainConfig, batch: int) -> Timed:
    params = stages.fresh_params(stage, config.model, jax.random.key(0))
    mapped = parallel.map_train_step(stage, config)
    state = parallel.replicate(init_state(params, stage, config))
    given = parallel.shard(_batch(stage, config, batch))

    def run() -> Any:
        nonlocal state
        state, metrics = mapped(state, given)
        return state, metrics

    return run, step_work(stage, config, batch)


def _predict(config: TrainConfig) -> Timed:
    model = config.model
    if model.channels != 1:
        raise ValueError(f"model.channels: found {model.channels}, expected 1 for this benchmark")
    bundle = Bundle(init_params(model, jax.random.key(0)), model)
    stack, masks = _scene(config, model.num_frames)
    side = _SCENE * model.scale
    work = system_of(model).work(model, side, side, len(stack))
    return lambda: predict(bundle, stack, masks, compute=config.compute), work


def _prepared(config: TrainConfig, patches: int = 64) -> PreparedScene:
    """A scene as `prepare` leaves it, of random content."""
    rng, model = np.random.default_rng(0), config.model
    stack, masks = _scene(config, 2 * model.num_frames)
    side = _SCENE * model.scale
    shifts = np.zeros((len(stack), 2), np.float32)
    one = np.ones(())
    aligned = Aligned(stack.astype(np.float32), masks, shifts, one.astype(np.float32), 0 * one, one)
    corners = rng.integers(0, _SCENE - config.data.patch_size // model.scale, (patches, 2))
    return PreparedScene(
        name="random", band="NIR", lr=stack[..., None].repeat(model.channels, -1), masks=masks,
        shifts=np.zeros((len(stack), 2), np.int32), hr=_noise(rng, side, side, model.channels),
        hr_mask=rng.random((side, side)) < 0.9, corners=corners.astype(np.int32),
        members=np.arange(model.num_frames, dtype=np.int32)[None].repeat(patches, 0),
        aligned=aligned,
    )  # fmt: skip


def examples_per_second(config: TrainConfig, view: View, batch: int) -> float:
    """The input pipeline alone, after its first batches."""
    patches = Patches((_prepared(config),), config.model, config.data, view)
    batches = make_iterator(patches, batch, seed=0)
    for _ in range(4):  # the prefetched ones
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < _PIPELINE_SECONDS:
        next(batches)
        count += batch
    return count / (time.perf_counter() - start)


# --- measuring ----------------------------------------------------------------------------------


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def _roof(dtype: str) -> tuple[Callable[[], Any], float]:
    """A matrix product at full precision of `dtype`, and its operations."""
    m, k, n = _CPU_PRODUCT if jax.default_backend() == "cpu" else _ACCELERATOR_PRODUCT
    a, b = (jax.random.normal(jax.random.key(i), s, dtype) for i, s in enumerate([(m, k), (k, n)]))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    return lambda: product(a, b), 2.0 * m * k * n


def _resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in bytes; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    line = next((one for one in status.splitlines() if one.startswith(field)), "- 0")
    return int(line.split()[1]) * 1024


def _peak_memory(before: int) -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", 0)) or _resident("VmHWM") - before


def measure(run: Callable[[], Any], work: float, pairs: int, dtype: str) -> dict[str, float]:
    """Alternating timings of `run` and the roof; seconds, score and peak memory."""
    before = _resident("VmRSS")
    first = _seconds(run)
    _seconds(run)
    memory = _peak_memory(before)
    product, operations = _roof(dtype)
    for _ in range(2):
        _seconds(product)
    # Enough products that a timing is no shorter than a few milliseconds.
    repeats = max(1, round(0.02 / _seconds(product)))
    times, roofs = [], []
    for _ in range(pairs):
        times.append(_seconds(run))
        roofs.append(operations / (sum(_seconds(product) for _ in range(repeats)) / repeats))
    seconds = float(np.median(times))
    return {
        "seconds": seconds,
        "compile_seconds": max(0.0, first - seconds),
        "work_gflop": work / 1e9,
        "roof_gflops": float(np.median(roofs)) / 1e9,
        "score": float(np.median([work / t / r for t, r in zip(times, roofs)])),
        "peak_memory_gb": memory / 1e9,
    }


def run_row(row: str, config: TrainConfig, batch: int, pairs: int) -> dict[str, Any]:
    """Measures one of `ROWS` in this process."""
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are to be seen
    device = jax.devices()[0]
    about = {"row": row, "platform": device.platform, "device": device.device_kind}
    if row == "pipeline":
        plan = stages_of(config.model)
        rates = {s.name: examples_per_second(config, s.view, batch) for s in plan}
        return {**about, "examples_per_second": rates}
    if row == "predict":
        run, work = _predict(config)
    elif row == "forward":
        run, work = _forward(config, batch)
    else:
        run, work = _step(stages.stage(row.removeprefix("step_"), config.model), config, batch)
    dtype: str = config.compute.dtype
    if device.platform == "cpu":
        dtype = "float32"  # half precision is computed as float32 there
    size = {} if row == "predict" else {"batch": batch}
    return {**about, **size, **measure(run, work, pairs, dtype)}


def run_apart(
    row: str, preset_name: str, assignments: Sequence[str], batch: int, pairs: int
) -> dict[str, Any]:
    """Measures one of `ROWS` in a process of its own."""
    print(row, *assignments, "…", file=sys.stderr)
    command = [sys.executable, "-m", "experiments.benchmark", "--in-process", row]
    command += ["--preset", preset_name, "--batch", str(batch), "--pairs", str(pairs)]
    command += [f"--set={a}" for a in assignments]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{row}: the process that measures it ended with {done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def rows_of(config: TrainConfig) -> tuple[str, ...]:
    """The rows that a configuration's system has.

    Raises:
      ValueError: a system whose nominal work is not that of its training steps.
    """
    if config.model.system == deepsum.DEEPSUM.name:
        return ROWS
    if system_of(config.model).align is None:
        raise ValueError(
            f"model.system: found {config.model.system!r}, expected {deepsum.DEEPSUM.name!r} or "
            "unrolled, whose nominal work this is"
        )
    return (*(f"step_{s.name}" for s in stages_of(config.model)), "predict", "pipeline")


def machine() -> dict[str, Any]:
    """Where and with what the figures were made."""
    try:
        root = Path(__file__).parents[1]
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True,
            check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.date.today().isoformat(),
        "processor": name,
        "cores": cores,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "deepsum_jax": package_version(),
        "commit": commit,
    }


def report(results: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| row | batch | seconds | compile s | GFLOP | roof GFLOP/s | score | peak GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        if "seconds" in r:
            lines.append(
                f"| {r['row']} | {r.get('batch', 1)} | {r['seconds']:.3g} "
                f"| {r['compile_seconds']:.1f} | {r['work_gflop']:.4g} | {r['roof_gflops']:.4g} "
                f"| {r['score']:.2f} | {r['peak_memory_gb']:.2f} |"
            )
    steps = {r["row"].removeprefix("step_"): r for r in results if r["row"].startswith("step_")}
    for r in results:
        for stage, rate in r.get("examples_per_second", {}).items():
            text = f"input pipeline, {stage}: {rate:.0f} examples/s"
            if stage in steps:
                wanted = steps[stage]["batch"] / steps[stage]["seconds"]
                text += f", {rate / wanted:.0f} × what the step takes"
            lines += ["", text]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "python -m experiments benchmark",
        "Time the network, its training steps, predict and the input pipeline against the\n"
        "machine's own matrix product.",
        """examples:
  benchmark                                           the reference network, every row
  benchmark --rows forward,predict --pairs 15
  benchmark --set compute.dtype=bfloat16 --batch 8      as on an accelerator""",
    )
    p.add_argument(
        "--preset", default="reference", help=f"{', '.join(PRESETS)} (default: %(default)s)"
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assignments",
        metavar="SECTION.FIELD=VALUE",
        help="override one setting; may be repeated",
    )
    p.add_argument("--rows", help=f"some of {', '.join(ROWS)} (default: all that the system has)")
    p.add_argument(
        "--batch", type=cli.positive, default=1, help="stacks a step (default: %(default)s)"
    )
    p.add_argument(
        "--pairs", type=cli.positive, default=7, help="alternating timings (default: %(default)s)"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    p.add_argument("--in-process", metavar="ROW", help=argparse.SUPPRESS)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    config = override(preset(args.preset), args.assignments)
    known = rows_of(config)
    if args.in_process:
        print(json.dumps(run_row(args.in_process, config, args.batch, args.pairs)))
        return
    rows = [r for r in args.rows.split(",") if r] if args.rows else list(known)
    unknown = [r for r in rows if r not in known]
    if unknown or not rows:
        raise ValueError(f"--rows: found {args.rows!r}, expected some of {', '.join(known)}")
    if args.json:
        files.check_target(args.json, "--json")
    results = [run_apart(r, args.preset, args.assignments, args.batch, args.pairs) for r in rows]
    about = machine()
    described = ", ".join(f"{k} {v}" for k, v in about.items())
    print(f"{results[0]['platform']} {results[0]['device']}; {described}\n")
    print(report(results))
    if args.json:
        settings = {"preset": args.preset, "set": args.assignments, "pairs": args.pairs}
        files.write_json(args.json, {"machine": about, "settings": settings, "rows": results})


if __name__ == "__main__":
    cli.run(main)
