"""Trainings whose rate is far too high, in every stage: they stop, keep what was sound, and follow
the advice that they give."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np

from deepsum_jax import load_params
from faults.report import Report
from faults.running import run, told_in_a_line

STAGES = ("sisrnet", "regnet", "deepsum")
RATES = ("1e6", "1e30")
STEPS = (1, 20)
_ADVICE = re.compile(r"as --set (\S+=\S+)$")


def _settings(stage: str, steps: int, rate: str) -> list[str]:
    settings = ["compute.backend=plain", f"{stage}.learning_rate={rate}", f"{stage}.steps={steps}"]
    settings += [f"{stage}.checkpoint_every=4", f"{stage}.validate_every=4"]
    return [f"--set={s}" for s in settings]


def _unsound(workdir: Path) -> list[str]:
    """Bundles that hold what is not finite."""
    bundles = [path.parent for path in workdir.glob("*/*/bundle.json")]
    return [
        str(path)
        for path in bundles
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_params(path).params))
    ]


def _fault(root: Path, stage: str, rate: str, steps: int) -> str | None:
    workdir = root / f"{stage}_{rate}_{steps}"
    begun = ["--workdir", workdir, "--preset", "tiny", *_settings(stage, steps, rate)]
    status, output = run(root / "xla", "train", *begun)
    line = told_in_a_line(status, output)
    if line is None or f"{stage}: stopped at step" not in line:
        return f"ended with {status}: {output[-600:]}"
    advice = _ADVICE.search(line)
    if advice is None:
        return f"gives no advice: {line}"
    wrong = _unsound(workdir)
    if wrong:
        return f"wrote {wrong}"
    status, output = run(root / "xla", "train", *begun, "--set", advice.group(1))
    if status or not (workdir / "deepsum" / "best" / "bundle.json").is_file():
        return f"{advice.group(1)} ended with {status}: {output[-600:]}"
    wrong = _unsound(workdir)
    return f"wrote {wrong}" if wrong else None


def campaign(root: Path, stages: tuple[str, ...] = STAGES) -> Report:
    """Every stage at every rate, of one step and of twenty."""
    cases = [(stage, rate, steps) for stage in stages for rate in RATES for steps in STEPS]
    faults = []
    for case in cases:
        fault = _fault(root, *case)
        faults += [] if fault is None else [f"{case}: {fault}"]
    return Report(
        f"{len(cases)} diverging trainings ({', '.join(stages)}; rates {', '.join(RATES)}; "
        f"{' and '.join(map(str, STEPS))} steps), each resumed at the rate that it advised",
        faults,
    )
