"""The notebooks run from their first cells to their last, here on the CPU and the tiny preset."""

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
pytest.importorskip("rasterio", reason="needs the extra geo")
pytest.importorskip("rioxarray", reason="needs the extra geo")

ROOT = Path(__file__).parent.parent
COLAB, OWN_STACK = (ROOT / "experiments" / f"{name}.ipynb" for name in ("colab", "own_stack"))


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


class Executed:
    """A notebook that ran in `folder`, and what its cells gave."""

    def __init__(self, notebook: Path, folder: Path) -> None:
        target = folder / "executed.ipynb"
        run = [sys.executable, "-W", "ignore", "-c", RUNNER, str(notebook), str(target)]
        done = subprocess.run(
            [*run, str(folder)], env=environment(folder), capture_output=True, text=True,
            timeout=1200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        cells = nbformat.read(target, as_version=4).cells
        self._cells = {cell.id: cell for cell in cells if cell.cell_type == "code"}
        counts = [cell.execution_count for cell in self._cells.values()]
        assert counts == list(range(1, len(counts) + 1))
        assert "Warning" not in "".join(map(self.text, self._cells))

    def pictures(self, name: str) -> int:
        """How many a cell shows."""
        return sum("image/png" in o.get("data", {}) for o in self._cells[name].outputs)

    def text(self, name: str) -> str:
        """What a cell prints."""
        return "".join(o.text for o in self._cells[name].outputs if o.output_type == "stream")


@pytest.mark.parametrize("notebook", [COLAB, OWN_STACK], ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(notebook: Path) -> None:
    read = nbformat.read(notebook, as_version=4)
    nbformat.validate(read)
    for cell in read.cells:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    assert "/" not in read.metadata.kernelspec.name
    assert notebook.stat().st_size < 20_000


def test_colab(tmp_path: Path) -> None:
    done = Executed(COLAB, tmp_path)
    shown = [done.pictures(name) for name in ("panels", "filters", "curves", "own")]
    assert shown == [2, 1, 1, 1]
    assert "cpu" in done.text("devices") and done.text("install") == ""
    assert "Bicubic+Mean" in done.text("train") and "deepsum: 100%" in done.text("train")
    assert "grid of frame" in done.text("predict")
    assert "pixels of 100 m, EPSG:32631, uint16" in done.text("own")
    assert (tmp_path / "work" / "deepsum" / "best" / "bundle.json").is_file()


def test_own_stack(tmp_path: Path) -> None:
    done = Executed(OWN_STACK, tmp_path)
    assert [done.pictures(name) for name in ("preview", "look")] == [1, 1]
    assert "2009-08-18.tif: 100×100×4 pixels of 5 m from 485970 E" in done.text("dates")
    assert "300×300×4 from 10 of 10 dates, on the grid of" in done.text("predict")
    assert "EPSG:26914, pixels of 1.667 m" in done.text("map")
    assert "{'y': 300, 'x': 300}, EPSG:26914" in done.text("xarray")
