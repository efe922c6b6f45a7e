"""The house: what a package file may import, how long it may be, and what imports cost.

Read off the source of every file, so that a rule is broken where somebody breaks it.
"""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import TINY

import deepsum_jax
from deepsum_jax import DeepSUM
from deepsum_jax.model.layers import apply
from deepsum_jax.systems.table import SYSTEMS, init_params

PACKAGE = Path(deepsum_jax.__file__).parent
FILES = {
    ".".join((deepsum_jax.__name__, *file.relative_to(PACKAGE).with_suffix("").parts)): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
MODULES = {name.removesuffix(".__init__"): file for name, file in FILES.items()}
HEAVY = ("grain", "optax", "orbax", "matplotlib")


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def statements(node: ast.AST, within_functions: bool) -> Iterator[ast.AST]:
    """Everything that runs: when a module is imported, or at any time."""
    for child in ast.iter_child_nodes(node):
        deferred = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if is_type_checking(child) or (deferred and not within_functions):
            continue
        yield child
        yield from statements(child, within_functions)


def imports(module: str, within_functions: bool = True) -> set[str]:
    """Modules that a module imports, those of the package by their full names."""
    found: set[str] = set()
    for node in statements(tree(module), within_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: a relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def belongs(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def reached(module: str) -> set[str]:
    """Whatever is loaded when a module of the package is imported."""
    seen, waiting = {module}, [module]
    while waiting:
        for other in imports(waiting.pop(), within_functions=False) - seen:
            seen.add(other)
            if other in MODULES:
                waiting.append(other)
    return seen


def importers(room: str) -> set[str]:
    """Modules outside a room that import something of it, at any time."""
    return {
        module
        for module in MODULES
        if not belongs(module, room) and any(belongs(other, room) for other in imports(module))
    }


# --- who knows whom


def test_the_files_are_read() -> None:
    assert len(MODULES) > 50
    assert "deepsum_jax.kernels" in imports("deepsum_jax.model.ops")
    assert any(belongs(m, "grain") for m in imports("deepsum_jax.data.patches"))
    assert any(belongs(m, "optax") for m in reached("deepsum_jax.train"))
    assert "deepsum_jax.config.knobs" in reached("deepsum_jax.predict")
    assert "deepsum_jax.data.patches" in imports("deepsum_jax.systems.pretraining")
    assert "deepsum_jax.data.patches" not in imports("deepsum_jax.systems.pretraining", False)


def test_only_operators_know_kernels() -> None:
    assert importers("deepsum_jax.kernels") == {"deepsum_jax.model.ops"}


def test_kernels_know_nothing_but_the_configuration() -> None:
    for module in MODULES:
        if belongs(module, "deepsum_jax.kernels"):
            for other in imports(module):
                if belongs(other, "deepsum_jax") and other != "deepsum_jax":
                    rooms = ("deepsum_jax.kernels", "deepsum_jax.config")
                    assert any(belongs(other, room) for room in rooms), f"{module}: {other}"


@pytest.mark.parametrize("above", ["model", "systems", "training", "scoring", "kernels"])
def test_data_knows_nothing_above_it(above: str) -> None:
    climbers = importers(f"deepsum_jax.{above}")
    assert not {module for module in climbers if belongs(module, "deepsum_jax.data")}


@pytest.mark.parametrize(
    ("room", "above"),
    [
        ("config", ("data", "model", "systems", "training", "scoring", "kernels")),
        ("model", ("systems", "training", "scoring")),
        ("systems", ("training", "scoring", "predict", "bundle", "tiling", "rasters")),
        ("tiling", ("training", "scoring", "predict", "prediction", "rasters")),
        ("rasters", ("training", "scoring", "predict", "prediction")),
        ("scoring", ("training",)),
    ],
)
def test_a_room_knows_only_what_stands_below(room: str, above: tuple[str, ...]) -> None:
    for name in above:
        climbers = importers(f"deepsum_jax.{name}")
        assert not {module for module in climbers if belongs(module, f"deepsum_jax.{room}")}


def test_prediction_knows_no_training() -> None:
    """Nor anything that only training or pictures need, not even through what it imports."""
    loaded = reached("deepsum_jax.predict")
    for room in ("deepsum_jax.training", *(h for h in HEAVY if h != "orbax")):
        assert not {module for module in loaded if belongs(module, room)}
    for module in loaded & set(MODULES):
        # Neither within functions: those two never meet.
        assert not {m for m in imports(module) if belongs(m, "deepsum_jax.training")}, module


# --- what a file may be


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 400


def names_compared(source: ast.AST) -> set[str]:
    """Names of systems that a module compares something with, by an operator or by `match`."""
    compared: list[ast.AST] = []
    for node in ast.walk(source):
        if isinstance(node, ast.Compare):
            compared += [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            compared.append(node.value)
    found = {
        leaf.value
        for part in compared
        for leaf in ast.walk(part)
        if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
    }
    return found & set(SYSTEMS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('if model.system == "duf": pass', {"duf"}),
        ('x = 1 if name in ("ibp", "other") else 2', {"ibp"}),
        ('match system:\n    case "sisr" | "x": pass', {"sisr"}),
        ('label = {"duf": 1}["duf"]; stage == "regnet"', set()),
    ],
)
def test_comparisons_are_found(text: str, found: set[str]) -> None:
    assert names_compared(ast.parse(text)) == found


@pytest.mark.parametrize("module", MODULES)
def test_only_the_table_asks_which_system(module: str) -> None:
    if module != "deepsum_jax.systems.table":
        assert not names_compared(tree(module))


# --- what importing costs, and what may be missing


def python(script: str, *arguments: str) -> str:
    """What a script prints in an interpreter of its own, which finds the tests as well."""
    here = os.pathsep.join((str(PACKAGE.parent), str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": here}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


LOADED = "import sys; {}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"


def test_importing_the_package_loads_little() -> None:
    loaded = python(LOADED.format("import deepsum_jax")).split()
    assert "deepsum_jax" in loaded
    assert not {*HEAVY, "jax", "flax", "numpy"} & set(loaded)


def test_what_is_shipped_costs_nothing_until_it_is_read() -> None:
    for room in ("pretrained", "sample"):
        known = {m for m in imports(f"deepsum_jax.{room}") if belongs(m, "deepsum_jax")}
        assert not known, room
        loaded = python(LOADED.format(f"import deepsum_jax.{room}")).split()
        assert not {*HEAVY, "jax", "numpy"} & set(loaded)


def test_importing_prediction_loads_no_training() -> None:
    loaded = python(LOADED.format("from deepsum_jax import predict; predict.predict")).split()
    assert "jax" in loaded and not {"grain", "matplotlib"} & set(loaded)


def tiny_forward() -> np.ndarray:
    """A tiny network on fixed numbers, with the default choice of formulations."""
    params = init_params(TINY, jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.standard_normal((1, 3, 12, 10, 1)).astype(np.float32)
    masks = rng.random((1, 3, 12, 10, 1)) < 0.7
    return np.asarray(jax.jit(functools.partial(apply, DeepSUM(TINY)))(params, images, masks).sr)


WITHOUT_KERNELS = """
import sys
sys.modules["deepsum_jax.kernels"] = None
import numpy as np
from test_house import tiny_forward
np.save(sys.argv[1], tiny_forward())
print(*[name for name, m in sys.modules.items() if m and name.startswith("deepsum_jax.kernels")])
"""


def test_without_kernels(tmp_path: Path) -> None:
    """The same values, to float32's rounding, where `deepsum_jax.kernels` cannot be imported."""
    file = tmp_path / "sr.npy"
    assert python(WITHOUT_KERNELS, str(file)).strip() == ""
    expected = tiny_forward()
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(np.load(file), expected, rtol=0, atol=1e-5)
