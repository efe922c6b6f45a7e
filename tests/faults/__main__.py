"""All drivers, long, and their report.

    python -m faults --workdir W [--seed N] [--report FILE] [PART …]      from tests/

Parts: kills, saves, flips, readers, commands, disks, divergence, endurance; all of them take about
two hours. What one says is kept in W, so parts may be run one at a time; the report is of all that
there are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from faults import disks, divergence, endurance, kills
from faults.report import Report

HERE = Path(__file__).parent


def _process(command: list[str], **more: str) -> tuple[int, list[str]]:
    """Status and lines of a driver that needs a process of its own."""
    path = os.pathsep.join((str(HERE.parent), str(HERE)))
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, "PYTHONPATH": path, **more},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).splitlines()


def _saves(root: Path, seed: int) -> Report:
    status, lines = _process(["-m", "faults.saves", str(root), str(seed), "200"])
    last = next((n for n, line in enumerate(lines) if "kills within saves" in line), 0)
    return Report(lines[last], lines[:last] + ([f"status {status}"] if status else []))


def _flips(root: Path, seed: int) -> Report:
    """300 flips over all files, and 20 newest states that are damaged and resumed."""
    test = str(HERE.parent / "test_faults_flips.py")
    status, lines = _process(["-m", "pytest", "-q", "-s", test], DEEPSUM_FAULTS="long")
    told = [line for line in lines if "none silent" in line or "went on" in line]
    return Report("; ".join(told), lines[-40:] if status else [])


def _readers(root: Path, seed: int) -> Report:
    command = ["-m", "faults.mutations", "--count", "10000", "--seed", str(seed)]
    return _mutations(*_process(command))


def _commands(root: Path, seed: int) -> Report:
    command = ["-m", "faults.mutations", "--count", "0", "--commands", "100", "--seed", str(seed)]
    return _mutations(*_process(command))


def _mutations(status: int, lines: list[str]) -> Report:
    counted = [line for line in lines if re.search(r": (read|refused) \d+$", line)]
    told = [line for line in lines if re.search(r"^[1-9]\d* \S+: \d+ faults$", line)]
    kinds = f" ({', '.join(counted)})" if counted else ""
    return Report("; ".join(told) + kinds, lines[len(counted) :] if status else [])


PARTS: dict[str, Callable[[Path, int], Report]] = {
    "kills": lambda root, seed: kills.campaign(root, seed, trainings=40, kills=4, others=3),
    "saves": _saves,
    "flips": _flips,
    "readers": _readers,
    "commands": _commands,
    "disks": lambda root, seed: disks.campaign(root, seed, trainings=12, others=8),
    "divergence": lambda root, seed: divergence.campaign(root),
    "endurance": lambda root, seed: endurance.campaign(root, steps=1700),
}


def _written(workdir: Path) -> str:
    """The report as Markdown."""
    rows = ["# What was broken on purpose", "", "`python -m faults`, from `tests/`.", ""]
    rows += ["| part | done | faults |", "|---|---|---|"]
    for part in PARTS:
        stored = workdir / f"{part}.json"
        if stored.is_file():
            done, faults = json.loads(stored.read_text())
            rows.append(f"| {part} | {done} | {len(faults)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m faults", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[*PARTS], metavar="PART")
    p.add_argument("--workdir", type=Path, required=True, metavar="W")
    p.add_argument("--seed", type=int, default=0, metavar="N")
    p.add_argument("--report", type=Path, metavar="FILE", help="as Markdown")
    args = p.parse_args()
    # A shell's background job ignores Ctrl-C, and so would all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worst = 0
    for part in args.parts:
        root = args.workdir / part
        root.mkdir(parents=True)
        report = PARTS[part](root, args.seed)
        (args.workdir / f"{part}.json").write_text(json.dumps(report))
        print(f"{part}: {report.done}: {len(report.faults)} faults", *report.faults, sep="\n")
        worst = max(worst, len(report.faults))
    if args.report is not None:
        args.report.write_text(_written(args.workdir))
    sys.exit(bool(worst))


if __name__ == "__main__":
    main()
