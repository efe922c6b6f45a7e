"""Figures: drawing them leaves the caller's matplotlib alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = """
import matplotlib
matplotlib.use({backend!r})
from deepsum_jax import figures
from deepsum_jax.scoring import report
assert matplotlib.get_backend() == {backend!r}, matplotlib.get_backend()
import numpy as np
figure = figures.grid([("a", [("b", np.eye(4))])])
figures.save(figure, {path!r})
assert figures.to_array(figure).ndim == 3
assert matplotlib.get_backend() == {backend!r}, matplotlib.get_backend()
"""


@pytest.mark.parametrize("backend", ["svg", "pdf"])
def test_the_backend_stays_as_it_was(backend: str, tmp_path: Path) -> None:
    """In a process of its own; either backend draws without a screen."""
    source = SOURCE.format(backend=backend, path=str(tmp_path / "a.png"))
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
