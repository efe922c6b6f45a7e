"""The Colab notebook runs from its first cell to its last, here on the CPU and the tiny preset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "experiments" / "colab.ipynb"


# In a process of its own: Jupyter closes its sockets and event loops late, which is none of ours.
RUNNER = """
import sys, nbclient, nbformat
source, target, folder = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
resources = {"metadata": {"path": folder}}
try:
    nbclient.NotebookClient(
        notebook, kernel_name="this", timeout=300, resources=resources
    ).execute()
finally:
    nbformat.write(notebook, target)
"""


def environment(folder: Path) -> dict[str, str]:
    """Settings of the run. Jupyter's only kernel is the running Python, its files in `folder`."""
    spec = folder / "jupyter" / "kernels" / "this" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "this", "language": "python"}))
    homes = ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        **{name: str(folder / name.lower()) for name in homes},
        "JUPYTER_PATH": str(folder / "jupyter"),
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_PLATFORMS": "cpu",
        "DEEPSUM_PRESET": "tiny",
        # The two pretraining stages have tests of their own; without them it takes half the time.
        "DEEPSUM_SETTINGS": "sisrnet.steps=0 regnet.steps=0 deepsum.steps=2",
        "DEEPSUM_WORKDIR": str(folder / "work"),
    }


def test_notebook_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    assert "/" not in notebook.metadata.kernelspec.name
    assert NOTEBOOK.stat().st_size < 20_000


def test_notebook_runs(tmp_path: Path) -> None:
    target = tmp_path / "executed.ipynb"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNNER, str(NOTEBOOK), str(target), str(tmp_path)],
        env=environment(tmp_path), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    notebook = nbformat.read(target, as_version=4)
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert [c.execution_count for c in cells.values()] == list(range(1, len(cells) + 1))

    def pictures(name: str) -> int:
        return sum("image/png" in output.get("data", {}) for output in cells[name].outputs)

    def text(name: str) -> str:
        return "".join(o.text for o in cells[name].outputs if o.output_type == "stream")

    assert [pictures(name) for name in ("panels", "filters", "curves", "own")] == [2, 1, 1, 1]
    assert "cpu" in text("devices") and text("install") == ""
    assert "Bicubic+Mean" in text("train") and "deepsum: 100%" in text("train")
    assert "grid of frame" in text("predict") and "float32" in text("own")
    assert not [o for c in cells.values() for o in c.outputs if "Warning" in o.get("text", "")]
    assert (tmp_path / "work" / "deepsum" / "best" / "bundle.json").is_file()
