"""What is killed while it saves leaves the last state that was complete, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
KILLS = 200 if os.environ.get("DEEPSUM_FAULTS") == "long" else 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_kills_within_saves(tmp_path: Path) -> None:
    seed = os.environ.get("DEEPSUM_SEED", "0")
    done = subprocess.run(
        [sys.executable, "-m", "faults.saves", str(tmp_path), seed, str(KILLS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE)))},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    *faults, last = done.stdout.splitlines()
    print(last)
    assert not faults, done.stdout + done.stderr
    assert last.startswith(f"{KILLS} kills within saves")
