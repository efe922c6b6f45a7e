"""A few hundred mutated files; with DEEPSUM_FAULTS=long ten thousand, and a hundred commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LONG = os.environ.get("DEEPSUM_FAULTS") == "long"


def driven(*arguments: str) -> str:
    """What the driver prints, in a process without threads, which may fork."""
    done = subprocess.run(
        [sys.executable, "-m", "faults.mutations", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE)))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_mutated_files_are_read_as_written_or_refused() -> None:
    shown = driven("--count", "400", "--no-params")
    assert "400 files: 0 faults" in shown
    for name in (
        "a.png", "stack.npy", "packed.npz", "one.tif", "norm.csv", "any.json", "s.zip", "scene",
    ):  # fmt: skip
        assert re.search(rf"^{name}: refused \d+$", shown, re.MULTILINE)
    assert re.search(r"^\S+: read \d+$", shown, re.MULTILINE)


def test_mutated_bundles() -> None:
    assert "64 files: 0 faults" in driven("--count", "64")


@pytest.mark.skipif(not LONG, reason="DEEPSUM_FAULTS=long, about half an hour")
def test_ten_thousand_and_a_hundred_commands() -> None:
    shown = driven("--count", "10000", "--commands", "100", "--seed", "1")
    assert "10000 files: 0 faults" in shown and "100 commands: 0 faults" in shown
