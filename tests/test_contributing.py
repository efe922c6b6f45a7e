"""The example of CONTRIBUTING.md: a system in one file and one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the example's file and line in it."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (module,) = re.findall(r"```python\n(.*?)```", text, re.S)
    (line,) = re.findall(r"```diff\n\+(.*?)```", text, re.S)
    name = re.search(r"`(deepsum_jax/systems/\w+\.py)`:", text)
    assert name is not None
    root = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "deepsum_jax", root / "deepsum_jax", ignore=ignored)
    (root / name[1]).write_text(module)
    table = root / "deepsum_jax/systems/table.py"
    place, imports = "            bicubic_mean.BICUBIC_MEAN,\n", "import bicubic_mean, "
    code = table.read_text()
    assert place in code and imports in code
    added = code.replace(place, place + line).replace(imports, f"{imports}nearest_mean, ")
    table.write_text(added)
    return root


def run(package: Path, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment, cwd=package, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_know_it(package: Path, tmp_path: Path) -> None:
    stack = np.random.default_rng(0).uniform(1000, 2000, (3, 8, 10))
    np.save(tmp_path / "stack.npy", stack)
    run(
        package, "-m", "deepsum_jax.predict", "--system", "nearest_mean",
        "--output", tmp_path / "sr.npy", tmp_path / "stack.npy",
    )  # fmt: skip
    expected = stack.mean(axis=0).repeat(3, axis=0).repeat(3, axis=1)
    np.testing.assert_allclose(np.load(tmp_path / "sr.npy"), expected, rtol=1e-6)


def test_its_options_are_checked(package: Path) -> None:
    code = """
import numpy as np
from deepsum_jax import Bundle, ModelConfig, predict
stack = np.full((1, 4, 4), 100.0)
image = predict(Bundle({}, ModelConfig(system="nearest_mean", options={"gain": 2.0})), stack)
assert (image == 200).all(), image
try:
    predict(Bundle({}, ModelConfig(system="nearest_mean", options={"gian": 2.0})), stack)
except ValueError as error:
    print(error)
"""
    assert "did you mean 'gain'?" in run(package, "-c", code)
