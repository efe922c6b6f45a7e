"""The importer: every reference variable lands where the published description says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import contents

from deepsum_jax import load_params, tf_import
from deepsum_jax.config import NORMALIZATIONS, ModelConfig
from deepsum_jax.systems.table import param_shapes
from deepsum_jax.tf_import import (
    head_from_variables,
    import_checkpoints,
    params_from_variables,
    subtree_from_variables,
)

Variables = dict[str, np.ndarray]
Place = tuple[str, str, str]


def table() -> dict[str, tuple[tuple[int, ...], Place, tuple[int, ...]]]:
    """By reference name: its shape there, the place of our parameter, and its shape here."""
    rows: dict[str, tuple[tuple[int, ...], Place, tuple[int, ...]]] = {}

    def kernel(name: str, tree: str, layer: str, there: tuple[int, ...], axes: int) -> None:
        # Where we have no depth the reference keeps one of 1.
        rows[f"{name}/W"] = there, (tree, layer, "kernel"), there[5 - axes :]
        rows[f"{name}/b"] = there[-1:], (tree, layer, "bias"), there[-1:]

    def norm(name: str, tree: str, layer: str) -> None:
        rows[f"{name}/gamma"] = (64,), (tree, layer, "scale"), (64,)
        rows[f"{name}/beta"] = (64,), (tree, layer, "bias"), (64,)

    for i in range(8):
        kernel(f"conv_up_{i}", "sisrnet", f"conv{i}", (1, 3, 3, 64 if i else 1, 64), 4)
        norm(f"inst_norm_up_{i}", "sisrnet", f"norm{i}")
    kernel("Rconv1b", "regnet", "conv0", (2, 3, 3, 64, 128), 5)  # frame n, then frame 0
    kernel("Rconv2b", "regnet", "conv1", (1, 3, 3, 128, 64), 4)
    kernel("Rconv3b", "regnet", "conv2", (1, 3, 3, 64, 64), 4)
    kernel("Rconv4b", "regnet", "conv3", (1, 3, 3, 64, 64), 4)
    kernel("Rconv7_b", "regnet", "conv4", (1, 3, 3, 64, 81), 4)
    for i in range(4):
        kernel(f"conv_fuse_{i}", "fusionnet", f"conv{i}", (3, 3, 3, 64, 64), 5)
        norm(f"inst_norm_fuse_{i}", "fusionnet", f"norm{i}")
    kernel("conv_fuse_4", "fusionnet", "conv_out", (1, 1, 1, 64, 1), 4)
    return rows


TABLE = table()


def random_variables(*trees: str) -> Variables:
    """Arrays for the named sub-networks, or for all."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(there, dtype=np.float32)
        for name, (there, place, _) in TABLE.items()
        if not trees or place[0] in trees
    }


VARIABLES = random_variables()


def assert_placed(params: Any, variables: Mapping[str, np.ndarray], *trees: str) -> None:
    """Each variable's values at its place, and nothing else anywhere."""
    rows = {k: v for k, v in TABLE.items() if not trees or v[1][0] in trees}
    for name, (_, (tree, layer, leaf), shape) in rows.items():
        found = params[tree][layer][leaf]
        assert type(found) is np.ndarray and found.dtype == np.float32, name
        assert found.shape == shape, name
        variable = variables[name]
        expected = variable[0] if variable.ndim > found.ndim else variable
        np.testing.assert_array_equal(found, expected, err_msg=name)
    assert len(jax.tree.leaves(params)) == len(rows)


def test_every_name_lands_in_its_place() -> None:
    assert len(TABLE) == 60 and sum(v.size for v in VARIABLES.values()) == 1_045_330
    params = params_from_variables(VARIABLES)
    assert_placed(params, VARIABLES)
    wanted = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), param_shapes(ModelConfig()))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == wanted


def test_kernels_tap_by_tap() -> None:
    """The axes of a kernel, told apart by values that name their place."""
    variables = dict(VARIABLES)
    for name in ("conv_up_3/W", "Rconv1b/W", "Rconv7_b/W", "conv_fuse_2/W"):
        d, y, x, i, o = np.indices(VARIABLES[name].shape, np.float32)
        variables[name] = np.asarray(1e6 * d + 3e5 * y + 1e5 * x + 200 * i + o, np.float32)
    params = params_from_variables(variables)

    def value(d: int, y: int, x: int, i: int, o: int) -> float:
        return 1e6 * d + 3e5 * y + 1e5 * x + 200 * i + o

    assert params["sisrnet"]["conv3"]["kernel"][2, 1, 5, 63] == value(0, 2, 1, 5, 63)
    assert params["regnet"]["conv0"]["kernel"][0, 2, 1, 5, 127] == value(0, 2, 1, 5, 127)
    assert params["regnet"]["conv0"]["kernel"][1, 0, 2, 63, 7] == value(1, 0, 2, 63, 7)
    assert params["regnet"]["conv4"]["kernel"][1, 2, 63, 80] == value(0, 1, 2, 63, 80)
    assert params["fusionnet"]["conv2"]["kernel"][2, 0, 1, 4, 60] == value(2, 0, 1, 4, 60)


def test_names_as_variables_have_them() -> None:
    assert_placed(params_from_variables({f"{k}:0": v for k, v in VARIABLES.items()}), VARIABLES)


def test_what_else_a_checkpoint_holds_is_ignored() -> None:
    more: dict[str, Any] = {
        "global_step": np.int64(5999),
        "beta1_power": np.float32(0.9),
        "beta2_power:0": np.float32(0.999),
        "conv_up_8/W": np.ones((1, 1, 1, 64, 1), np.float32),
        "conv_up_8/b": np.ones(1, np.float32),
    }
    for name, value in VARIABLES.items():
        more[f"{name}/Adam"] = more[f"{name}/Adam_1:0"] = np.zeros_like(value)
    assert_placed(params_from_variables({**more, **VARIABLES}), VARIABLES)
    assert_placed(params_from_variables({**VARIABLES, **more}), VARIABLES)


def test_other_containers_become_float32() -> None:
    variables: dict[str, Any] = {k: v.astype(np.float64) for k, v in VARIABLES.items()}
    variables["conv_up_0/b"] = VARIABLES["conv_up_0/b"].tolist()
    assert_placed(params_from_variables(variables), VARIABLES)


def test_callers_arrays_are_not_shared_with_training() -> None:
    """Writing to the parameters must not write to the checkpoint's variables."""
    variables = {k: v.copy() for k, v in VARIABLES.items()}
    for leaf in jax.tree.leaves(params_from_variables(variables)):
        leaf[...] = 0
    for name, value in variables.items():
        np.testing.assert_array_equal(value, VARIABLES[name], err_msg=name)


def test_everything_missing_or_misshapen_is_named() -> None:
    variables = dict(VARIABLES)
    del variables["conv_up_3/W"], variables["inst_norm_fuse_2/beta"], variables["Rconv7_b/b"]
    variables["Rconv1b/W"] = np.zeros((1, 3, 3, 128, 128), np.float32)
    variables["conv_up_0/W"] = variables["conv_up_0/W"][0]  # without the depth
    variables["conv_fuse_4/b"] = np.zeros((), np.float32)
    with pytest.raises(ValueError) as caught:
        params_from_variables(variables)
    head, _, faults = str(caught.value).partition(": ")
    assert head == "reference variables"
    assert set(faults.split("; ")) == {
        "missing conv_up_3/W",
        "missing inst_norm_fuse_2/beta",
        "missing Rconv7_b/b",
        "Rconv1b/W has shape (1, 3, 3, 128, 128), expected (2, 3, 3, 64, 128)",
        "conv_up_0/W has shape (3, 3, 1, 64), expected (1, 3, 3, 1, 64)",
        "conv_fuse_4/b has shape (), expected (1,)",
    }


def test_each_variable_is_needed() -> None:
    def faults(variables: Variables) -> list[str]:
        with pytest.raises(ValueError) as caught:
            params_from_variables(variables)
        return sorted(str(caught.value).removeprefix("reference variables: ").split("; "))

    assert faults({}) == sorted(f"missing {name}" for name in TABLE)
    assert faults({name: v[..., None] for name, v in VARIABLES.items()}) == sorted(
        f"{name} has shape {(*there, 1)}, expected {there}" for name, (there, _, _) in TABLE.items()
    )


def test_without_fusionnet_there_is_no_network() -> None:
    with pytest.raises(ValueError) as caught:
        params_from_variables(random_variables("sisrnet", "regnet"))
    message = str(caught.value)
    fusion = [name for name, (_, place, _) in TABLE.items() if place[0] == "fusionnet"]
    assert len(fusion) == 18 and all(f"missing {name}" in message for name in fusion)
    assert message.count("missing") == 18


# --- sub-networks of pretraining checkpoints


@pytest.mark.parametrize("tree", ["sisrnet", "regnet"])
def test_sub_network(tree: str) -> None:
    variables = random_variables(tree)
    params = subtree_from_variables({f"{k}:0": v for k, v in variables.items()}, tree)
    assert_placed({tree: params}, variables, tree)
    other = "regnet" if tree == "sisrnet" else "sisrnet"
    with pytest.raises(ValueError, match=r"reference variables: missing \w+"):
        subtree_from_variables(variables, other)


def test_pretraining_head() -> None:
    rng = np.random.default_rng(1)
    kernel = rng.standard_normal((1, 1, 1, 64, 1), dtype=np.float32)
    head = {"conv_up_8/W:0": kernel, "conv_up_8/b": np.array([0.5], np.float32)}
    found = head_from_variables({**random_variables("sisrnet"), **head})
    assert found is not None and found["conv"]["kernel"].shape == (1, 1, 64, 1)
    np.testing.assert_array_equal(found["conv"]["kernel"], kernel[0])
    np.testing.assert_array_equal(found["conv"]["bias"], [0.5])
    assert head_from_variables(VARIABLES) is None


class Store:
    """Checkpoints by prefix, instead of TensorFlow's files."""

    def __init__(self, **checkpoints: Variables) -> None:
        self.checkpoints = checkpoints

    def __call__(self, prefix: Path) -> Variables:
        return self.checkpoints[str(prefix)]


HEAD = {
    "conv_up_8/W": np.full((1, 1, 1, 64, 1), 0.25, np.float32),
    "conv_up_8/b": np.ones(1, np.float32),
}


@pytest.mark.parametrize("band", ["NIR", "RED"])
def test_final_weights(band: str) -> None:
    """They were trained with inpainting first and masks moved by integers."""
    bundle = import_checkpoints(band, checkpoint=Path("a"), read=Store(a=VARIABLES))
    assert_placed(bundle.params, VARIABLES)
    assert bundle.config == ModelConfig(
        inpainting="before_registration",
        mask_alignment="shifts",
        normalization=NORMALIZATIONS[band],
    )
    assert bundle.config.normalization.hr_std == {"NIR": 596.982, "RED": 490.37793}[band]
    assert (bundle.info.bands, bundle.info.stage) == ((band,), "deepsum")
    assert bundle.info.reference == "clearest"


def test_pretraining_weights() -> None:
    store = Store(s={**random_variables("sisrnet"), **HEAD}, r=random_variables("regnet"))
    both = import_checkpoints("NIR", sisrnet=Path("s"), regnet=Path("r"), read=store)
    assert set(both.params) == {"sisrnet", "regnet", "sisr_head"}
    head = both.params.pop("sisr_head")
    assert (head["conv"]["kernel"] == 0.25).all() and head["conv"]["bias"].tolist() == [1]
    variables = {**store.checkpoints["s"], **store.checkpoints["r"]}
    assert_placed(both.params, variables, "sisrnet", "regnet")
    assert both.config == ModelConfig(normalization=NORMALIZATIONS["NIR"])
    assert (both.info.bands, both.info.stage) == (("NIR",), "regnet")
    first = import_checkpoints("RED", sisrnet=Path("s"), read=store)
    assert set(first.params) == {"sisrnet", "sisr_head"} and first.info.stage == "sisrnet"
    second = import_checkpoints("RED", regnet=Path("r"), read=store)
    assert set(second.params) == {"regnet"} and second.info.stage == "regnet"
    assert second.config.normalization == NORMALIZATIONS["RED"]


# --- the command


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle without FusionNet says what it is good for; a failure leaves nothing."""
    store = Store(s={**random_variables("sisrnet"), **HEAD}, w=VARIABLES)
    original: Any = import_checkpoints

    def imported(*arguments: Any) -> Any:
        return original(*arguments, read=store)

    monkeypatch.setattr(tf_import, "import_checkpoints", imported)
    output = tmp_path / "new" / "bundle"
    tf_import.main(["--checkpoint", "w", "--band", "RED", "--output", str(output)])
    told = capsys.readouterr().out
    assert f"{output}: sisrnet, regnet, fusionnet" in told and "cannot predict" not in told
    assert_placed(load_params(output).params, VARIABLES)
    assert load_params(output).config.normalization == NORMALIZATIONS["RED"]
    tf_import.main(["--sisrnet", "s", "--band", "NIR", "--output", str(output)])
    told = capsys.readouterr().out
    assert "without FusionNet it cannot predict" in told and f"train --init {output}" in told
    assert set(load_params(output).params) == {"sisrnet", "sisr_head"}
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"missing Rconv1b/W"):
        tf_import.main(["--regnet", "s", "--band", "NIR", "--output", str(tmp_path / "other")])
    assert contents(tmp_path) == before


NO_TENSORFLOW = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tf_keras", "keras"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Refuse())
import numpy as np
from deepsum_jax import tf_import
from deepsum_jax.systems.table import param_shapes

shapes = param_shapes(tf_import.ModelConfig())
variables = {}
for name, path in tf_import.reference_names().items():
    shape = shapes
    for key in path:
        shape = shape[key]
    depth = (1,) * (5 - len(shape.shape)) if name.endswith("/W") else ()
    variables[name] = np.zeros(depth + shape.shape, np.float32)
tf_import.params_from_variables(variables)
assert "tensorflow" not in sys.modules
print("done")
"""


def test_tensorflow_is_not_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NO_TENSORFLOW],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_reading_a_checkpoint_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.ckpt-1\.index: no such file"):
        tf_import.read_checkpoint(tmp_path / "model.ckpt-1")
    (tmp_path / "model.ckpt-1.index").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as where it is not installed
    with pytest.raises(ValueError, match=r"pip install 'deepsum_jax\[tf\]'"):
        tf_import.read_checkpoint(tmp_path / "model.ckpt-1")
