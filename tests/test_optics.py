"""The dense sensor of JAX against the sparse one of numpy, and its slopes against differences."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import landscape

from deepsum_jax.data import sensor
from deepsum_jax.data.resample import bicubic_upsample
from deepsum_jax.systems.unrolling.optics import (
    Optics,
    axis_matrix,
    enlarge_axis,
    inside,
    make_optics,
    shuffle,
    smooth_axis,
    unshuffle,
)

# Whole ones, fractions, and some that look beyond the border with all they see.
SHIFTS = np.array([(0, 0), (1, -2), (0.4, -1.3), (-7.6, 3.2), (60, -70)], np.float32)
SCALES = pytest.mark.parametrize("scale", [2, 3, 4])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def optics(shape: tuple[int, int], scale: int, psf_sigma: float = 0.37) -> Optics:
    return make_optics(shape, jnp.asarray(SHIFTS), scale, psf_sigma)


@pytest.mark.parametrize(
    ("shape", "scale", "psf_sigma"),
    [((7, 10), 2, 0.37), ((1, 5), 3, 0.37), ((12, 3), 3, 0.2), ((7, 10), 4, 0.9), ((6, 6), 1, 0.5)],
)
def test_it_sees_what_the_sensor_sees(shape: tuple[int, int], scale: int, psf_sigma: float) -> None:
    rng = np.random.default_rng(0)
    hr = rng.standard_normal((scale * shape[0], scale * shape[1])).astype(np.float32)
    lr = rng.standard_normal((len(SHIFTS), *shape)).astype(np.float32)
    dense = optics(shape, scale, psf_sigma)
    seen = dense.observe(jnp.asarray(hr))
    assert seen.shape == lr.shape
    back = np.zeros_like(hr)
    for n, shift in enumerate(SHIFTS):
        one = sensor.make_sensor(shape, shift, scale, psf_sigma)
        # The sparse one cuts the Gaussian off at four deviations.
        np.testing.assert_allclose(seen[n], one.observe(hr), atol=5e-4, err_msg=str(shift))
        back += one.back_project(lr[n])
        np.testing.assert_array_equal(
            inside(shape, jnp.asarray(SHIFTS), scale)[n], one.inside, err_msg=str(shift)
        )
    np.testing.assert_allclose(dense.back_project(jnp.asarray(lr)), back, atol=5e-3)


@SCALES
def test_rows_sum_to_one(scale: int) -> None:
    for axis in optics((9, 6), scale):
        np.testing.assert_allclose(axis.sum(axis=-1), 1, atol=1e-5)
        assert float(axis.min()) >= -1e-6


@SCALES
def test_back_projection_is_the_adjoint(scale: int) -> None:
    rng = np.random.default_rng(1)
    hr = jnp.asarray(rng.standard_normal((7 * scale, 9 * scale)), jnp.float32)
    lr = jnp.asarray(rng.standard_normal((len(SHIFTS), 7, 9)), jnp.float32)
    seen = optics((7, 9), scale)
    there, back = (seen.observe(hr) * lr).sum(), (seen.back_project(lr) * hr).sum()
    np.testing.assert_allclose(there, back, rtol=1e-4, atol=1e-3)


@SCALES
@pytest.mark.parametrize("shift", [0.0, 0.7, -2.0])
def test_slopes_in_the_shift(scale: int, shift: float) -> None:
    """The derivative of what a frame shows, against central differences in double precision."""
    hr = landscape(8 * scale, 8 * scale)[0]
    weights = np.random.default_rng(2).standard_normal(8)

    with jax.enable_x64(True):

        @jax.jit
        def shown(s: jax.Array) -> jax.Array:
            return weights @ (axis_matrix(8, scale, s, 0.37) @ hr)

        at = jnp.asarray(shift, jnp.float64)
        slope = jax.jit(jax.grad(shown))(at)
        quotient = (shown(at + 1e-4) - shown(at - 1e-4)) / 2e-4
    assert abs(float(quotient)) > 0.1
    np.testing.assert_allclose(slope, quotient, rtol=1e-5)


@SCALES
def test_enlargement_is_bicubic(scale: int) -> None:
    frame = np.random.default_rng(3).standard_normal((5, 8)).astype(np.float32)
    rows, columns = (enlarge_axis(n, scale) for n in frame.shape)
    assert rows.shape == (5 * scale, 5) and rows.dtype == np.float32
    expected = bicubic_upsample(frame, scale, clip=False)
    np.testing.assert_allclose(rows @ frame @ columns.T, expected, atol=1e-5)


def test_smoothing_keeps_what_is_constant_and_spreads_a_point() -> None:
    matrix = smooth_axis(40, 4.0)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    away = np.arange(40) - 20
    np.testing.assert_allclose((matrix[20] * away**2).sum() ** 0.5, 4, rtol=0.01)


@SCALES
def test_unshuffled_pixels_lie_in_their_lr_pixel(scale: int) -> None:
    hr = np.random.default_rng(4).standard_normal((4 * scale, 5 * scale)).astype(np.float32)
    channels = np.asarray(unshuffle(jnp.asarray(hr), scale))
    assert channels.shape == (4, 5, scale**2)
    for i, j, y, x in itertools.product(range(4), range(5), range(scale), range(scale)):
        assert channels[i, j, scale * y + x] == hr[scale * i + y, scale * j + x]
    np.testing.assert_array_equal(shuffle(jnp.asarray(channels), scale), hr)
