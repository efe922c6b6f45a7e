"""Trees of arrays on disk: what cannot be written is one line."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepsum_jax import trees

FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from deepsum_jax import trees

tree = {f"k{n}": {"kernel": np.random.default_rng(n).random((40, 50)), "bias": np.zeros(3)}
        for n in range(60)}
trees._check_room = lambda *_: None  # as where a disk is full from one moment to the next
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    trees.write(Path(sys.argv[1]), tree)
except OSError as error:
    print(f"{error.filename}: {error.strerror}")
"""


@pytest.mark.skipif(os.name != "posix", reason="limits files as POSIX does")
@pytest.mark.parametrize("size", [200, 20000])
def test_what_cannot_be_written_is_one_line(size: int, tmp_path: Path) -> None:
    """Nor do the writes beside the first one that fails say anything, in threads of their own."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "t"), str(size)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{tmp_path / 't'}: File too large\n", "")
    assert not (tmp_path / "t").exists()


def test_threads_that_write_at_once(tmp_path: Path) -> None:
    """As a training does, of a state in the background and of its best parameters."""
    written = [{f"k{m}": np.full((9, 9), n + m) for m in range(8)} for n in range(12)]
    paths = [tmp_path / str(n) for n in range(len(written))]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(trees.write, paths, written))
    for path, tree in zip(paths, written):
        np.testing.assert_equal(trees.read(path), tree)
