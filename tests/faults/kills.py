"""Kills by seed: tiny trainings and commands that end at random moments, by SIGKILL, SIGTERM and
SIGINT, and go on; the parameters at the end are those of a training that nobody disturbed.

python -m pytest tests/faults/test_kills.py             a few
DEEPSUM_FAULTS=long python -m pytest tests/faults/…     two hundred, about an hour
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from deepsum_jax import load_params

REPOSITORY = Path(__file__).parents[2]
STAGES = ("sisrnet", "regnet", "deepsum")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What a process may end with after each: by itself, before it listens, or well before it came.
STATUSES = {
    signal.SIGKILL: {-9, 0},
    signal.SIGTERM: {143, -15, 0},
    signal.SIGINT: {130, -2, 0},
}
_UNFIT = re.compile(r"Traceback|Exception ignored|Fatal Python error")
_LEFT = re.compile(r"\.(tmp|old)$|orbax-checkpoint-tmp|^lock$")


@dataclasses.dataclass(frozen=True)
class Kill:
    """One: what was run, by which signal it was ended after how long, and how."""

    command: str
    number: signal.Signals
    after: float  # seconds
    status: int
    output: str

    def fault(self) -> str | None:
        if self.status not in STATUSES[self.number]:
            return f"status {self.status}"
        found = _UNFIT.search(self.output)
        return found.group() if found else None


class Driver:
    """Runs commands in a folder, and ends them.

    Args:
      root: a folder of its own.
      seed: of all that is drawn.
      steps: of every stage.
    """

    def __init__(self, root: Path, seed: int, steps: int = 6) -> None:
        self.root, self.rng, self.steps = root, random.Random(seed), steps
        self.took: dict[str, float] = {}

    def arguments(self, command: str, workdir: str) -> list[str]:
        whole, out = self.root / "whole", self.root / workdir
        if command == "train":
            sets = [f"{s}.{f}={v}" for s in STAGES for f, v in (
                ("steps", self.steps), ("checkpoint_every", 2), ("validate_every", 3))]  # fmt: skip
            sets += ["compute.backend=plain"]
            return ["--workdir", str(out), "--preset", "tiny", *(f"--set={s}" for s in sets)]
        if command == "simulate":
            return ["--output", str(out), "--scenes", "12", "--size", "32"]
        if command == "predict":
            scene = next((whole / "data" / "test" / "NIR").iterdir())
            return ["--params", str(whole), "--output", str(out), str(scene)]
        return ["--params", str(whole), "--data", str(whole / "data"), "--json", str(out)]

    def start(self, command: str, workdir: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", f"deepsum_jax.{command}", *self.arguments(command, workdir)],
            cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "JAX_ENABLE_COMPILATION_CACHE": "true",
                "JAX_COMPILATION_CACHE_DIR": str(self.root / "xla"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
        )  # fmt: skip

    def run(self, command: str, workdir: str) -> str:
        """To its end; the time that it takes is that within which it is ended later."""
        since = time.monotonic()
        process = self.start(command, workdir)
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
        assert not _UNFIT.search(output), output
        self.took.setdefault(command, time.monotonic() - since)
        return output

    def kill(self, command: str, workdir: str) -> Kill:
        number = self.rng.choice(SIGNALS)
        after = self.rng.uniform(0, self.took[command])
        process = self.start(command, workdir)
        try:
            output, _ = process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            output, _ = process.communicate(timeout=300)
        return Kill(command, number, after, process.returncode, output)


def leftovers(folder: Path) -> list[str]:
    """What a whole run leaves nothing of."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if _LEFT.search(p.name)]


def bits(folder: Path) -> dict[str, list[bytes]]:
    """Parameters of every bundle of a training, byte by byte."""
    return {
        f"{stage}/{kind}": [
            np.asarray(leaf).tobytes()
            for leaf in jax.tree.leaves(load_params(folder / stage / kind).params)
        ]
        for stage in STAGES
        for kind in ("best", "last")
    }


def campaign(root: Path, seed: int, trainings: int, kills: int, others: int) -> list[str]:
    """What went wrong, a line each.

    Args:
      trainings: each ended `kills` times before it may come to its end.
      others: how often each other command is ended.
    """
    driver, faults = Driver(root, seed), []
    driver.run("train", "whole")
    driver.run("train", "again")  # with programs compiled: what a later start takes
    driver.took["train"] = driver.took["train"] * 0.7
    expected = bits(root / "whole")
    done = []
    for n in range(trainings):
        for _ in range(kills):
            done.append(driver.kill("train", f"broken{n}"))
        driver.run("train", f"broken{n}")
        found = bits(root / f"broken{n}")
        faults += [f"broken{n}: {k} differs" for k in expected if found[k] != expected[k]]
        faults += [f"broken{n}: left {name}" for name in leftovers(root / f"broken{n}")]
    for command, name in (("simulate", "made"), ("predict", "sr.npy"), ("evaluate", "s.json")):
        if others:
            driver.run(command, f"whole_{name}")
        for n in range(others):
            done.append(driver.kill(command, f"{n}_{name}"))
            there = (root / f"{n}_{name}").exists()
            if there and command == "predict":
                np.load(root / f"{n}_{name}")  # whole, or not at all
    for kill in done:
        if kill.fault():
            faults.append(f"{kill.command} {kill.number.name} after {kill.after:.2f} s: "
                          f"{kill.fault()}\n{kill.output[-2000:]}")  # fmt: skip
    return faults
