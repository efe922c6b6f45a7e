"""Units: raw counts and what networks see of them (standardisation, `Normalization`).

For numpy's arrays as for JAX's, in their own dtype.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from deepsum_jax.config import Normalization

A = TypeVar("A", bound=Any)  # an array of either library


def _constant(value: float | tuple[float, ...], dtype: Any) -> np.ndarray:
    return np.atleast_1d(np.asarray(value, np.float64)).astype(dtype)


def to_input(x: A, norm: Normalization) -> A:
    """Raw counts [..., C] → standardised inputs."""
    return (x - _constant(norm.lr_mean, x.dtype)) / _constant(norm.lr_std, x.dtype)


def from_input(x: A, norm: Normalization) -> A:
    """Standardised inputs [..., C] → raw counts."""
    return x * _constant(norm.lr_std, x.dtype) + _constant(norm.lr_mean, x.dtype)


def to_target(y: A, norm: Normalization) -> A:
    """Raw HR counts [..., C] → standardised targets."""
    return (y - _constant(norm.hr_mean, y.dtype)) / _constant(norm.hr_std, y.dtype)


def from_output(sr: A, norm: Normalization) -> A:
    """Standardised SR [..., C] → raw counts."""
    return sr * _constant(norm.hr_std, sr.dtype) + _constant(norm.hr_mean, sr.dtype)


def input_to_output(x: A, norm: Normalization) -> A:
    """From the inputs' standardisation to the outputs': the global residual's change of units."""
    lr_mean, lr_std, hr_mean, hr_std = (
        np.atleast_1d(np.asarray(v, np.float64))
        for v in (norm.lr_mean, norm.lr_std, norm.hr_mean, norm.hr_std)
    )
    factor, offset = lr_std / hr_std, (lr_mean - hr_mean) / hr_std
    return x * factor.astype(x.dtype) + offset.astype(x.dtype)
