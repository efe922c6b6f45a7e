"""Trainings and commands that are ended at random moments go on as if they had not been."""

from __future__ import annotations

import os
from pathlib import Path

from faults.kills import campaign


def test_kills(tmp_path: Path) -> None:
    long = os.environ.get("DEEPSUM_FAULTS") == "long"
    seed = int(os.environ.get("DEEPSUM_SEED", "0"))
    trainings, kills, others = (40, 4, 3) if long else (1, 2, 0)
    done, faults = campaign(tmp_path, seed, trainings, kills, others)
    assert done.startswith(f"{(trainings + 4 * others) * kills} kills")
    assert not faults, "\n".join(faults)
