"""The network against numbers that independent programs printed: the reference implementation.

The two small files lie beside the tests; the large ones are read from the folder that the
environment variable DEEPSUM_GOLDEN names, and their tests are skipped where it is absent.
"""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepsum_jax import losses, metrics
from deepsum_jax.config import Compute, ModelConfig, preset
from deepsum_jax.model.deepsum import DeepSUM, Output
from deepsum_jax.model.layers import apply
from deepsum_jax.model.regnet import filters_from_logits
from deepsum_jax.systems.table import param_shapes
from deepsum_jax.tf_import import params_from_variables, reference_names
from deepsum_jax.units import from_output

SMALL = Path(__file__).parent / "golden"
LARGE = Path(os.environ.get("DEEPSUM_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))

# Compiles in half the time, which is most of the time here.
QUICK = {"xla_backend_optimization_level": 0}

registered_mse = jax.jit(losses.registered_mse)

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


def cpsnr(golden: Golden, sr: Any) -> float:
    """Mean cPSNR over the batch, in raw units."""
    norm = ModelConfig().normalization
    hr = from_output(golden["y"][:, 0], norm)
    return float(
        metrics.cpsnr(from_output(np.asarray(sr), norm), hr, golden["mask_y"][:, 0]).mean()
    )


def difference(out: Any, expected: np.ndarray) -> float:
    assert out.shape == expected.shape
    return float(np.abs(np.asarray(out) - expected).max())


# --- the small files: seeded parameters


def whole(model: DeepSUM, images: jax.Array, masks: jax.Array) -> tuple[Output, jax.Array]:
    """The network's output, and the registered and filled inputs by the published order."""
    out = model(images, masks, masks_registered=True)
    return out, model.inpaint(model.register(images, out.filters), masks)


@functools.partial(jax.jit, static_argnames="network", compiler_options=QUICK)
def evaluate(network: DeepSUM, params: Any, x: Any, mask: Any) -> Any:
    return network.apply({"params": params}, x, mask, method=whole)


def run(
    config: ModelConfig, golden: Golden, compute: Compute = Compute()
) -> tuple[Output, jax.Array, float]:
    """Output, filled inputs and loss of the seeded network."""
    params = params_from_variables(seeded_variables(int(golden["seed"])))
    out, filled = evaluate(DeepSUM(config, compute), params, golden["x"], golden["mask"])
    loss = registered_mse(out.sr, golden["y"][:, 0], golden["mask_y"][:, 0])
    return out, filled, float(loss.mean())


def test_published_order_frame_by_frame() -> None:
    """As `predict` runs large images: in loops, and bands of a frame where it is large."""
    golden = dict(np.load(SMALL / "reference_seeded_24.npz"))
    params = params_from_variables(seeded_variables(int(golden["seed"])))
    network = DeepSUM(ModelConfig(), Compute(backend="cpu"), frame_by_frame=True)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def evaluate(params: Any, x: Any, mask: Any) -> Output:
        return apply(network, params, x, mask, True)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("loops", "convolution"):
            # Not by its dotted name: `kernels` has a function of that name as well.
            loops = importlib.import_module(f"deepsum_jax.kernels.{module}")
            patch.setattr(loops, "STEP_PIXELS", 200)
        out = evaluate(params, golden["x"], golden["mask"])
    assert difference(out.filters, golden["filters"]) < 2e-5
    assert difference(out.sr, golden["sr"][:, 0]) < 5e-5


def test_published_order() -> None:
    golden = dict(np.load(SMALL / "reference_seeded_24.npz"))
    out, filled, loss = run(ModelConfig(), golden)
    assert difference(out.filters, golden["filters"]) < 2e-5
    assert golden["filters"].max() > 10 / 81 and not golden["mask"].all()  # there is work to do
    assert difference(filled, golden["inputs_filled"]) < 5e-5
    assert difference(out.sr, golden["sr"][:, 0]) < 5e-5
    np.testing.assert_array_equal(out.masks, golden["mask"])
    assert loss == pytest.approx(float(golden["loss"]), rel=1e-5)
    assert cpsnr(golden, out.sr) == pytest.approx(float(golden["cpsnr"]), abs=1e-4)
    norm = ModelConfig().normalization
    # Both means are the same.
    base = filled.mean(1) * (np.asarray(norm.lr_std) / np.asarray(norm.hr_std))
    np.testing.assert_allclose(out.base, base, atol=5e-5)


def test_order_of_the_released_graph() -> None:
    """The graph stored with the final weights inpaints first, and the order matters."""
    golden = dict(np.load(SMALL / "released_graph_seeded_24.npz"))
    config = ModelConfig(inpainting="before_registration")
    out, _, loss = run(config, golden, Compute(backend="accelerator"))
    assert difference(out.filters, golden["filters"]) < 2e-5
    assert difference(out.sr, golden["sr"][:, 0]) < 5e-5
    assert loss == pytest.approx(float(golden["loss"]), rel=1e-5)
    published, _, _ = run(ModelConfig(), golden)
    assert difference(published.filters, golden["filters"]) > 1e-3
    assert difference(published.sr, golden["sr"][:, 0]) > 1e-2


# --- the large files: pretrained SISRNet and RegNet, features, gradients, training steps


def stepwise(model: DeepSUM, images: jax.Array, masks: jax.Array) -> dict[str, jax.Array]:
    """The published order, step by step."""
    features = model.encode(images)
    logits = model.regnet(features)
    filters = filters_from_logits(logits)
    features_filled = model.inpaint(model.register(features, filters), masks)
    inputs_filled = model.inpaint(model.register(images, filters), masks)
    base = model.residual_base(inputs_filled)
    return {
        "sisr_features": features,
        "filter_logits": logits,
        "filters": filters,
        "features_filled": features_filled,
        "inputs_filled": inputs_filled,
        "residual_base": base,
        "sr": model.fuse(features_filled) + base,
    }


# One file in double precision, where nothing hides behind rounding, and one in single, in both
# formulations.
CASES = [
    ("reference_forward_32", "float64", "cpu"),
    ("reference_forward_48_cloudy", "float32", "accelerator"),
    ("reference_forward_48_cloudy", "float32", "cpu"),
]

ADAM_STEPS = 3  # as many as the files know


class Forward(NamedTuple):
    golden: Golden
    out: Golden
    gradients: Golden  # by reference name
    trajectory: list[float]  # the loss before the first Adam step, and after each
    dtype: str


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case) for case in CASES])
def forward(request: pytest.FixtureRequest) -> Forward:
    name, dtype, backend = request.param
    files = [LARGE / "reference_params.npz", LARGE / f"{name}.npz"]
    for file in files:
        if not file.exists():
            pytest.skip(f"no golden values at {file}; DEEPSUM_GOLDEN names their folder")
    with jax.enable_x64(dtype == "float64"):
        golden = {key: np.asarray(value, dtype) for key, value in np.load(files[1]).items()}
        params = params_from_variables(dict(np.load(files[0])))
        params = jax.tree.map(lambda value: jnp.asarray(value, dtype), params)
        compute = Compute(dtype=dtype, param_dtype=dtype, backend=backend)
        model = DeepSUM(ModelConfig(), compute)

        def evaluate(params: Any, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, Any]:
            out: Any = model.apply({"params": params}, x, mask, method=stepwise)
            hr, clear = jnp.asarray(golden["y"][:, 0]), jnp.asarray(golden["mask_y"][:, 0])
            loss = losses.registered_mse(out["sr"], hr, clear)
            return loss.mean(), out

        options = QUICK if dtype == "float64" else None  # the other one runs more than it compiles
        differentiate = jax.jit(
            jax.value_and_grad(evaluate, has_aux=True), compiler_options=options
        )
        adam = optax.adam(float(golden["adam_lr"]))  # epsilon 1e-8, as published

        @jax.jit
        def advance(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
            step, state = adam.update(gradient, state)
            return optax.apply_updates(params, step), state

        (loss, out), first = differentiate(params, golden["x"], golden["mask"] > 0)
        trajectory, gradient, state = [float(loss)], first, adam.init(params)
        for _ in range(ADAM_STEPS):
            params, state = advance(params, state, gradient)
            (loss, _), gradient = differentiate(params, golden["x"], golden["mask"] > 0)
            trajectory.append(float(loss))
    gradients = by_reference_name(first)
    return Forward(golden, jax.device_get(out), gradients, trajectory, dtype)


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
    assert difference(out["filter_logits"], golden["filter_logits"]) < 2e-4


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
    expected = forward.golden["adam_losses"][: len(forward.trajectory)]
    np.testing.assert_allclose(forward.trajectory, expected, rtol=1e-3)


# --- parameters


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    tree = param_shapes(config)
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
    config = preset("tiny").model
    params = param_shapes(config)
    images, masks = jnp.zeros((1, 3, 8, 8, 1)), jnp.ones((1, 3, 8, 8, 1), bool)

    def total(params: Any) -> jax.Array:
        return apply(DeepSUM(config), params, images, masks).sr.sum()

    found = products(jax.make_jaxpr(jax.grad(total))(params))
    assert len(found) > 30  # forwards and backwards, and in every formulation
    highest = jax.lax.Precision.HIGHEST
    assert all(precision in (highest, (highest, highest)) for precision in found)


def products(inside: Any) -> list[Any]:
    """The precision of every convolution and dot of a jaxpr, branches and loops included."""
    found = []
    for equation in getattr(inside, "jaxpr", inside).eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            found.append(equation.params["precision"])
        for leaf in jax.tree.leaves(list(equation.params.values())):
            if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"):
                found += products(leaf)
    return found
