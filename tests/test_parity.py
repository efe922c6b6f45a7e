"""The network against numbers that independent programs printed: the reference implementation.

The two small files lie beside the tests; the large ones are read from the folder that the
environment variable DEEPSUM_GOLDEN names, and their tests are skipped where it is absent.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepsum_jax import losses, metrics
from deepsum_jax.config import TINY, ModelConfig
from deepsum_jax.deepsum import DeepSUM, from_output, init_params
from deepsum_jax.tf_import import params_from_variables, reference_names

SMALL = Path(__file__).parent / "golden"
LARGE = Path(os.environ.get("DEEPSUM_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))

Golden = dict[str, np.ndarray]


def reference_shapes() -> dict[str, tuple[int, ...]]:
    """Every variable of the published network; kernels are five-dimensional throughout."""
    kernels: dict[str, tuple[int, ...]] = {}
    for i in range(8):
        kernels[f"conv_up_{i}"] = (1, 3, 3, 64 if i else 1, 64)
    kernels |= {"Rconv1b": (2, 3, 3, 64, 128), "Rconv2b": (1, 3, 3, 128, 64)}
    kernels |= {"Rconv3b": (1, 3, 3, 64, 64), "Rconv4b": (1, 3, 3, 64, 64)}
    kernels |= {"Rconv7_b": (1, 3, 3, 64, 81), "conv_fuse_4": (1, 1, 1, 64, 1)}
    for i in range(4):
        kernels[f"conv_fuse_{i}"] = (3, 3, 3, 64, 64)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, kernel in kernels.items():
        shapes |= {f"{name}/W": kernel, f"{name}/b": kernel[-1:]}
    for name in [f"up_{i}" for i in range(8)] + [f"fuse_{i}" for i in range(4)]:
        shapes |= {f"inst_norm_{name}/gamma": (64,), f"inst_norm_{name}/beta": (64,)}
    return shapes


def seeded_variables(seed: int) -> Golden:
    """The recipe by which the small files' parameters were made: no one's weights."""
    rng = np.random.default_rng(seed)
    variables = {}
    for name, shape in sorted(reference_shapes().items()):
        z = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("/W"):
            variables[name] = z * np.float32(np.sqrt(1.6 / np.prod(shape[:-1])))
        else:
            variables[name] = 1 + np.float32(0.1) * z if "gamma" in name else np.float32(0.05) * z
    variables["Rconv7_b/b"] = variables["Rconv7_b/b"] * 40
    return variables


def intermediates(model: DeepSUM, images: jax.Array, masks: jax.Array) -> dict[str, jax.Array]:
    """What the published order computes on its way, and the network's output itself."""
    features = model.encode(images)
    filters = model.propose_filters(features)
    out = model(images, masks, masks_registered=True)
    return {
        "sisr_features": features,
        "log_filters": jax.nn.log_softmax(model.regnet(features)),
        "features_filled": model.inpaint(model.register(features, filters), masks),
        "inputs_filled": model.inpaint(model.register(images, filters), masks),
        "filters": out.filters,
        "masks": out.masks,
        "residual_base": out.base,
        "sr": out.sr,
    }


def evaluator(config: ModelConfig, golden: Golden) -> Callable[[Any], tuple]:
    """Compiled: parameters → loss, and what lies on the way to it."""
    hr, hr_mask = golden["y"][:, 0], golden["mask_y"][:, 0]

    def evaluate(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        out = DeepSUM(config).apply(
            {"params": params}, golden["x"], golden["mask"], method=intermediates
        )
        return losses.registered_mse(out["sr"], hr, hr_mask).mean(), out

    return evaluate


def cpsnr(golden: Golden, sr: np.ndarray) -> float:
    """Mean cPSNR over the batch, in raw units."""
    norm = ModelConfig().normalization
    hr = from_output(golden["y"][:, 0], norm)
    return float(metrics.cpsnr(from_output(sr, norm), hr, golden["mask_y"][:, 0]).mean())


def difference(out: Any, expected: np.ndarray) -> float:
    assert out.shape == expected.shape
    return float(np.abs(np.asarray(out) - expected).max())


# --- the small files: seeded parameters


@pytest.fixture(scope="module")
def seeded() -> tuple[Golden, float, Golden]:
    golden = dict(np.load(SMALL / "reference_seeded_24.npz"))
    params = params_from_variables(seeded_variables(int(golden["seed"])))
    loss, out = jax.jit(evaluator(ModelConfig(), golden))(params)
    return golden, float(loss), jax.device_get(out)


def test_seeded_filters(seeded: tuple[Golden, float, Golden]) -> None:
    golden, _, out = seeded
    assert difference(out["filters"], golden["filters"]) < 2e-5
    assert golden["filters"].max() > 10 / 81  # far from uniform: frames do move


def test_seeded_inputs_filled(seeded: tuple[Golden, float, Golden]) -> None:
    golden, _, out = seeded
    assert difference(out["inputs_filled"], golden["inputs_filled"]) < 5e-5
    assert not golden["mask"].all()


def test_seeded_sr(seeded: tuple[Golden, float, Golden]) -> None:
    golden, _, out = seeded
    assert difference(out["sr"], golden["sr"][:, 0]) < 5e-5
    np.testing.assert_array_equal(out["masks"], golden["mask"])


def test_seeded_loss_and_cpsnr(seeded: tuple[Golden, float, Golden]) -> None:
    golden, loss, out = seeded
    assert loss == pytest.approx(float(golden["loss"]), rel=1e-5)
    assert cpsnr(golden, out["sr"]) == pytest.approx(float(golden["cpsnr"]), abs=1e-4)


def test_released_graph_inpaints_before_registration(
    seeded: tuple[Golden, float, Golden],
) -> None:
    """The graph stored with the final weights fills first; the published order gives other SR."""
    golden = dict(np.load(SMALL / "released_graph_seeded_24.npz"))
    params = params_from_variables(seeded_variables(int(golden["seed"])))
    config = ModelConfig(inpainting="before_registration")
    loss, out = jax.jit(evaluator(config, golden))(params)
    assert difference(out["filters"], golden["filters"]) < 2e-5
    assert difference(out["sr"], golden["sr"][:, 0]) < 5e-5
    assert float(loss) == pytest.approx(float(golden["loss"]), rel=1e-5)
    # In the published order RegNet sees the unfilled features.
    assert difference(
        np.exp(out["log_filters"]).reshape(out["filters"].shape), golden["filters"]
    ) > (1e-3)


# --- the large files: pretrained SISRNet and RegNet, features, gradients, training steps


# One file in double precision, where nothing hides behind rounding, and one in single.
CASES = [("reference_forward_32", "float64"), ("reference_forward_48_cloudy", "float32")]


class Forward(NamedTuple):
    golden: Golden
    out: Golden
    gradients: Golden  # by reference name
    trajectory: list[float]  # the loss before each of three Adam steps, and after them
    dtype: str


@pytest.fixture(scope="module", params=CASES, ids=[name for name, _ in CASES])
def forward(request: pytest.FixtureRequest) -> Forward:
    name, dtype = request.param
    files = [LARGE / "reference_params.npz", LARGE / f"{name}.npz"]
    for file in files:
        if not file.exists():
            pytest.skip(f"no golden values at {file}; DEEPSUM_GOLDEN names their folder")
    with jax.enable_x64(dtype == "float64"):
        golden = {key: np.asarray(value, dtype) for key, value in np.load(files[1]).items()}
        golden["mask"] = golden["mask"].astype(bool)
        params = params_from_variables(dict(np.load(files[0])))
        params = jax.tree.map(lambda value: jnp.asarray(value, dtype), params)
        evaluate = jax.jit(
            jax.value_and_grad(
                evaluator(ModelConfig(dtype=dtype, param_dtype=dtype), golden), has_aux=True
            ),
            compiler_options={"xla_backend_optimization_level": 0},  # compiles in half the time
        )
        adam = optax.adam(float(golden["adam_lr"]))
        update = jax.jit(adam.update)
        state, trajectory = adam.init(params), []
        (loss, out), gradient = evaluate(params)
        first = by_reference_name(gradient)
        for _ in range(3):
            trajectory.append(float(loss))
            step, state = update(gradient, state)
            params = optax.apply_updates(params, step)
            (loss, _), gradient = evaluate(params)
        return Forward(golden, jax.device_get(out), first, [*trajectory, float(loss)], dtype)


def by_reference_name(tree: Any) -> Golden:
    variables = {}
    for name, path in reference_names().items():
        leaf = tree
        for key in path:
            leaf = leaf[key]
        variables[name] = np.asarray(leaf).reshape(reference_shapes()[name])
    return variables


@pytest.mark.parametrize("name", ["sisr_features", "features_filled"])
def test_features(forward: Forward, name: str) -> None:
    golden, out = forward.golden, forward.out
    every = 64 // golden[name].shape[-1]
    assert difference(out[name][..., ::every], golden[name]) < 2e-4


def test_filter_logits(forward: Forward) -> None:
    golden, out = forward.golden, forward.out
    expected = np.asarray(jax.nn.log_softmax(golden["filter_logits"]))
    assert difference(out["log_filters"], expected) < 2e-4


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("filters", 2e-5), ("inputs_filled", 5e-5), ("residual_base", 5e-5), ("sr", 5e-5)],
)
def test_outputs(forward: Forward, name: str, tolerance: float) -> None:
    golden, out = forward.golden, forward.out
    expected = golden[name][:, 0] if name in ("residual_base", "sr") else golden[name]
    assert difference(out[name], expected) < tolerance


def test_loss_and_cpsnr(forward: Forward) -> None:
    golden = forward.golden
    assert forward.trajectory[0] == pytest.approx(float(golden["loss"]), rel=1e-5)
    assert cpsnr(golden, forward.out["sr"]) == pytest.approx(float(golden["cpsnr"]), abs=1e-4)


def vanishes(name: str) -> bool:
    """Biases whose gradient is zero in exact arithmetic: instance norm or the loss removes them."""
    return name.startswith("conv_") and name.endswith("/b")


def test_gradient_norms(forward: Forward) -> None:
    names = [name for name in forward.gradients if not vanishes(name)]
    assert len(names) == 60 - 13
    ours = {name: float(np.linalg.norm(forward.gradients[name])) for name in names}
    theirs = {name: float(forward.golden[f"gradnorm/{name}"]) for name in names}
    assert ours == pytest.approx(theirs, rel=1e-4 if forward.dtype == "float64" else 1e-2)


def test_gradients(forward: Forward) -> None:
    """In float32 rounding moves values across the kink of leaky ReLU, a few parts in 1000."""
    tolerance = 5e-4 if forward.dtype == "float64" else 1e-2
    names = [key.removeprefix("grad/") for key in forward.golden if key.startswith("grad/")]
    assert len(names) == 5
    for name in names:
        expected = forward.golden[f"grad/{name}"]
        error = np.linalg.norm(forward.gradients[name] - expected)
        assert error < tolerance * np.linalg.norm(expected), name


def test_adam_trajectory(forward: Forward) -> None:
    np.testing.assert_allclose(forward.trajectory, forward.golden["adam_losses"], rtol=1e-3)


# --- parameters


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    tree = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves}


def test_parameter_count() -> None:
    counts = {"sisrnet": 0, "regnet": 0, "fusionnet": 0}
    for path, shape in parameter_shapes(ModelConfig()).items():
        counts[path.split("/")[0]] += int(np.prod(shape))
    assert counts == {"sisrnet": 260_160, "regnet": 341_969, "fusionnet": 443_201}
    assert sum(counts.values()) == 1_045_330


def test_parameter_paths_and_shapes() -> None:
    """Paths are an interface: stored parameters and imported ones rely on every one of them."""
    pinned: dict[str, tuple[int, ...]] = {
        "sisrnet/conv0/kernel": (3, 3, 1, 64),
        "sisrnet/conv1/kernel": (3, 3, 64, 64),
        "sisrnet/conv2/kernel": (3, 3, 64, 64),
        "sisrnet/conv3/kernel": (3, 3, 64, 64),
        "sisrnet/conv4/kernel": (3, 3, 64, 64),
        "sisrnet/conv5/kernel": (3, 3, 64, 64),
        "sisrnet/conv6/kernel": (3, 3, 64, 64),
        "sisrnet/conv7/kernel": (3, 3, 64, 64),
        "regnet/conv0/kernel": (2, 3, 3, 64, 128),
        "regnet/conv1/kernel": (3, 3, 128, 64),
        "regnet/conv2/kernel": (3, 3, 64, 64),
        "regnet/conv3/kernel": (3, 3, 64, 64),
        "regnet/conv4/kernel": (3, 3, 64, 81),
        "fusionnet/conv0/kernel": (3, 3, 3, 64, 64),
        "fusionnet/conv1/kernel": (3, 3, 3, 64, 64),
        "fusionnet/conv2/kernel": (3, 3, 3, 64, 64),
        "fusionnet/conv3/kernel": (3, 3, 3, 64, 64),
        "fusionnet/conv_out/kernel": (1, 1, 64, 1),
    }
    biases = {path.replace("kernel", "bias"): shape[-1:] for path, shape in pinned.items()}
    norms = [f"sisrnet/norm{i}" for i in range(8)] + [f"fusionnet/norm{i}" for i in range(4)]
    scales = {f"{norm}/{name}": (64,) for norm in norms for name in ("scale", "bias")}
    assert parameter_shapes(ModelConfig()) == {**pinned, **biases, **scales}


def test_every_parameter_has_a_reference_name() -> None:
    names = reference_names()
    assert set(names) == set(reference_shapes()) and len(names) == 60
    assert {"/".join(path) for path in names.values()} == set(parameter_shapes(ModelConfig()))


def test_every_product_runs_at_highest_precision() -> None:
    """A CPU cannot show it: accelerators round float32 products unless told otherwise."""
    config = TINY.model
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    images, masks = jnp.zeros((1, 3, 8, 8, 1)), jnp.ones((1, 3, 8, 8, 1), bool)

    def total(params: Any) -> jax.Array:
        return DeepSUM(config).apply({"params": params}, images, masks).sr.sum()

    found = products(jax.make_jaxpr(jax.grad(total))(params).jaxpr)
    assert len(found) > 12
    highest = jax.lax.Precision.HIGHEST
    assert all(precision in (highest, (highest, highest)) for precision in found)


def products(jaxpr: Any) -> list[Any]:
    """The precision of every convolution and dot in a jaxpr and in those inside it."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            found.append(equation.params["precision"])
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += products(inner)
    return found
