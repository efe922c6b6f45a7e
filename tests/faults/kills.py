"""Kills by seed: tiny trainings and commands that end at random moments, by SIGKILL, SIGTERM and
SIGINT, and go on; the parameters at the end are those of a training that nobody disturbed.

python -m pytest tests/faults/test_kills.py             a few
DEEPSUM_FAULTS=long python -m pytest tests/faults/…     two hundred, about an hour
"""

from __future__ import annotations

import dataclasses
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from deepsum_jax import load_params
from deepsum_jax.sample import sample_rasters
from faults.report import Report
from faults.running import UNFIT, start

STAGES = ("sisrnet", "regnet", "deepsum")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What a process may end with after each: by itself, before it listens, or well before it came.
STATUSES = {
    signal.SIGKILL: {-9, 0},
    signal.SIGTERM: {143, -15, 0},
    signal.SIGINT: {130, -2, 0},
}
# Commands besides training, and what each writes.
OTHERS = {"simulate": "made", "predict": "sr.npy", "evaluate": "s.json", "rasters": "sr.tif"}
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
        if self.command == "simulate" and "found it there already" in self.output:
            return None  # one before was ended too late, and what it made stands
        if "init_import_site" in self.output and self.number == signal.SIGINT:
            return None  # it met Python before that had started
        if self.status not in STATUSES[self.number]:
            return f"status {self.status}"
        found = UNFIT.search(self.output)
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
        if command == "rasters":
            return ["--system", "ibp", "--output", str(out), *map(str, sample_rasters())]
        return ["--params", str(whole), "--data", str(whole / "data"), "--json", str(out)]

    def start(self, command: str, workdir: str) -> subprocess.Popen[str]:
        module = "predict" if command == "rasters" else command
        return start(self.root / "xla", module, *self.arguments(command, workdir))

    def run(self, command: str, workdir: str) -> str:
        """To its end; the time that it takes is that within which it is ended later."""
        since = time.monotonic()
        process = self.start(command, workdir)
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
        assert not UNFIT.search(output), output
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


def written(path: Path) -> dict[str, bytes]:
    """Every byte of an output, a file or a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def campaign(root: Path, seed: int, trainings: int, kills: int, others: int) -> Report:
    """Trainings, and every other command, are ended again and again, and then left to end.

    Args:
      trainings, others: how many of them, of each other command.
      kills: how often each is ended before it may come to its end.
    """
    driver, faults = Driver(root, seed), []
    driver.run("train", "whole")
    driver.run("train", "again")  # with programs compiled: what a later start takes
    driver.took["train"] = driver.took["train"] * 0.7
    expected = bits(root / "whole")
    done = []
    for n in range(trainings):
        name = f"broken{n}"
        done += [driver.kill("train", name) for _ in range(kills)]
        driver.run("train", name)
        found = bits(root / name)
        faults += [f"{name}: {k} differs" for k in expected if found[k] != expected[k]]
        faults += [f"{name}: left {left}" for left in leftovers(root / name)]
        shutil.rmtree(root / name)
    for command, name in OTHERS.items() if others else ():
        driver.run(command, f"whole/{name}")
        for n in range(others):
            (root / f"{command}{n}").mkdir()
            target = f"{command}{n}/{name}"
            done += [driver.kill(command, target) for _ in range(kills)]
            whole = command == "simulate" and (root / target).exists()  # it refuses to write twice
            if not whole:
                driver.run(command, target)
            if written(root / target) != written(root / "whole" / name):
                faults.append(f"{target}: differs")
            if [p.name for p in (root / f"{command}{n}").iterdir()] != [name]:
                faults.append(f"{target}: left {sorted((root / f'{command}{n}').iterdir())}")
    for kill in done:
        if kill.fault():
            faults.append(f"{kill.command} {kill.number.name} after {kill.after:.2f} s: "
                          f"{kill.fault()}\n{kill.output[-2000:]}")  # fmt: skip
    ended = Counter(
        f"{kill.number.name} {'late' if kill.status == 0 else 'in time'}" for kill in done
    )
    what = ", ".join(f"{count} {how}" for how, count in sorted(ended.items()))
    return Report(f"{len(done)} kills of {trainings} trainings and {others} of each of "
                  f"{', '.join(OTHERS)}: {what}", faults)  # fmt: skip
