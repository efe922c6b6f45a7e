"""Results stay: what fixed parameters give, as the version before the packages gave it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from deepsum_jax import Bundle, ModelConfig, predict
from deepsum_jax.config import preset
from deepsum_jax.systems.table import init_params, param_shapes

# The presets of 0.1.0 saw clouds under masks, as the published one does.
TINY = dataclasses.replace(preset("tiny").model, hidden="published")
DEMO = dataclasses.replace(preset("demo").model, hidden="published")
# Of the image: four pixels, the mean and the deviation, raw. Of deepsum_jax 0.1.0 at d97f38a, flat.
IMAGES: dict[str, tuple[ModelConfig, int, tuple[float, ...]]] = {
    name: (config, frames, values)
    for name, config, frames, values in [
        (
            "published",
            preset("reference").model,
            5,
            (7615.2217, 8613.6084, 8119.0513, 6908.1841, 8121.0347, 632.73651),
        ),
        (
            "demo",
            DEMO,
            11,
            (8599.1152, 9815.6289, 8478.1494, 9317.8906, 8995.334, 775.43262),
        ),
        ("tiny", TINY, 6, (9138.1338, 9956.2275, 9596.4727, 9375.7754, 9542.6357, 388.35196)),
        ("tiny, few", TINY, 2, (9142.4678, 9896.9854, 9585.084, 9330.0781, 9539.0664, 396.91647)),
        (
            "shifts",
            dataclasses.replace(TINY, registration="shifts"),
            6,
            (9305.8809, 10038.394, 9469.4199, 9279.0312, 9598.043, 426.66064),
        ),
        (
            "correlation",
            dataclasses.replace(TINY, registration="correlation"),
            6,
            (8590.5469, 10491.457, 9656.8125, 8557.6006, 9488.5645, 968.0451),
        ),
        (
            "none",
            dataclasses.replace(TINY, registration="none", inpainting="none"),
            6,
            (8592.9219, 10488.827, 9651.9453, 8560.2344, 9488.9727, 968.02948),
        ),
        (
            "as the authors'",
            dataclasses.replace(TINY, inpainting="before_registration", mask_alignment="shifts"),
            6,
            (9123.957, 9958.4707, 9603.6279, 9380.6758, 9544.1357, 389.48276),
        ),
        (
            "graph",
            dataclasses.replace(TINY, neighbours=4, norm="batch"),
            6,
            (9058.4961, 10342.867, 9644.1162, 9178.3857, 9642.3467, 574.32983),
        ),
        (
            "bare",
            dataclasses.replace(TINY, global_residual=False),
            6,
            (9138.96, 8670.7812, 9005.6836, 9226.459, 8933.9736, 300.04428),
        ),
        (
            "duf",
            dataclasses.replace(TINY, system="duf"),
            6,
            (7931.3818, 9312.8955, 8569.9434, 8679.8965, 8435.1523, 565.133),
        ),
        (
            "sisr",
            dataclasses.replace(TINY, system="sisr"),
            6,
            (3286.6836, 10827.869, 8047.7476, 5789.3809, 7551.0469, 2604.2383),
        ),
        (
            "sisr_mean",
            dataclasses.replace(TINY, system="sisr_mean"),
            6,
            (3386.4016, 10891.888, 7788.4727, 5537.7827, 7549.9253, 2593.1567),
        ),
        (
            "ibp",
            # Since 0.2.0: what masks hide has no say, and matching knows no outliers.
            dataclasses.replace(TINY, system="ibp"),
            6,
            (6789.616, 8919.324, 8447.526, 7141.4683, 8338.049, 869.1264),
        ),
        (
            "bicubic_mean",
            dataclasses.replace(TINY, system="bicubic_mean"),  # likewise
            6,
            (7600.2065, 8977.9375, 8380.163, 7739.0854, 8336.912, 589.39545),
        ),
    ]
}
# Sums of the magnitudes of freshly drawn parameters, likewise.
FRESH = {"published": 27406.3792, "demo": 5457.8743, "tiny": 255.7011, "shifts": 202.5972,
         "graph": 309.5423, "duf": 1275.8436, "sisr": 34.9202}  # fmt: skip


def drawn(shapes: Any) -> Any:
    """Parameters that depend on their names and shapes alone."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    names = sorted(jax.tree_util.keystr(path) for path, _ in leaves)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        rng = np.random.default_rng([5, names.index(jax.tree_util.keystr(path))])
        fan = max(1, np.prod(leaf.shape[:-1]))
        values = rng.standard_normal(leaf.shape) / np.sqrt(fan)
        positive = path[-1].key in ("scale", "variance")
        return (1 + 0.1 * np.abs(values) if positive else values).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def frames(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:8, :8]
    ground = 7754 + 900 * np.sin(y / 2.1) * np.cos(x / 1.7) + 1500 * (x > y)
    stack = ground + 60 * rng.standard_normal((count, 8, 8))
    masks = rng.random(stack.shape) < 0.95
    stack[1][~masks[1]] = np.nan
    return stack, masks


@pytest.mark.parametrize("name", IMAGES)
def test_images_stay(name: str) -> None:
    config, count, expected = IMAGES[name]
    image = predict(Bundle(drawn(param_shapes(config)), config), *frames(count))
    places = image[[0, 3, 12, 23], [0, 17, 5, 23]]
    found = [*places, image.mean(), image.std()]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", FRESH)
def test_fresh_parameters_stay(name: str) -> None:
    """The same seed starts the same training."""
    params = init_params(IMAGES[name][0], jax.random.key(3))
    total = sum(np.abs(leaf.astype(np.float64)).sum() for leaf in jax.tree.leaves(params))
    np.testing.assert_allclose(total, FRESH[name], rtol=1e-6)
