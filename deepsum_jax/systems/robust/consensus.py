"""Consensus: which frame of a stack should be the reference.

Masks say which frame is clearest, where they say anything; but a cloud that no mask knows, or a
frame of another place, makes a reference that all others disagree with. So frames are compared in
pairs, and one that agrees with hardly any other steps back, however clear its mask.

Among those that are equally clear the one leads that lies nearest to the others in brightness.
Nobody has asked for its date rather than another's, so it had better show what most dates show:
agreement of edges tells places apart, but among years it would lead to the most contrasted one.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from deepsum_jax.data import resample
from deepsum_jax.data.fill import fill_hidden
from deepsum_jax.data.registration import MaskedCorrelation
from deepsum_jax.data.scene import check_stack
from deepsum_jax.data.sensor import PSF_SIGMA, check_parameters
from deepsum_jax.systems.robust import agreement

_PARTNERS = 10  # frames that each is compared with; more tell little
_OVERLAP = 16  # pixels in common, the fewest for a comparison
_LOCAL = 2.0  # LR pixels, deviation of the window of local correlation
_CONTRAST = 2.0  # of the noise; ground of less contrast tells little
# A frame steps back that agrees half as much as the better frames, or much less than their spread
# would have it: in a stack of like frames a small cloud tells, among years nothing so fine does.
_OUTLYING, _SPREADS, _LEAST_SPREAD = 0.5, 2.5, 0.03
# By so much less than the better frames agrees a frame that masks prefer by a few pixels, and is
# given up; real and simulated references that nothing spoilt agree more. And the least of theirs,
# for them to show one place.
_CONTRADICTED, _ONE_PLACE = 0.4, 0.2
# Of the stack's contrast; what differs by more, clouds, counts as the first.
_FARTHEST, _NEAREST = 2.0, 1e-4


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceChoice:
    """Frames in the order in which they should be the reference.

    Attributes:
      order: indices of the frames that can serve, the best first.
      agreement: float64 [N], 0..1: how much of a frame agrees with the half of its partners
        that it agrees with best; 0 for frames left out.
      distance: float64 [N]: root mean square difference of a frame from a partner, but for their
        levels, as part of the stack's contrast; geometric mean over partners, infinite for frames
        left out.
      clearance: float64 [N], share of reliable pixels.
      left_out: (index, reason) of the frames that cannot serve.
    """

    order: tuple[int, ...]
    agreement: np.ndarray
    distance: np.ndarray
    clearance: np.ndarray
    left_out: tuple[tuple[int, str], ...]

    @property
    def best(self) -> int:
        return self.order[0]

    def contradicts(self, index: int) -> bool:
        """Whether the other frames show one place, and this one hardly anything of it."""
        usual = float(np.quantile(self.agreement[list(self.order)], 0.75))
        return usual > _ONE_PLACE and bool(self.agreement[index] < _CONTRADICTED * usual)


def unusable(frame: np.ndarray, mask: np.ndarray) -> str:
    """Why a frame [h, w, C] cannot serve whatever the others show; "" if it can."""
    if not mask.any():
        return "blank: no reliable pixel"
    values = frame[mask]
    return "" if np.ptp(values, axis=0).any() else "constant"


def _partners(count: int) -> list[tuple[int, int]]:
    """Pairs of frames: all, or so many that each has `_PARTNERS`, near and far in time."""
    strides = list(range(1, count // 2 + 1))
    if len(strides) > _PARTNERS // 2:
        strides = sorted({round(s) for s in np.geomspace(1, count // 2, _PARTNERS // 2)})
    pairs = {
        (min(n, m), max(n, m))
        for n, stride in itertools.product(range(count), strides)
        if (m := (n + stride) % count) != n
    }
    return sorted(pairs)


class _Pair(NamedTuple):
    """How two frames compare."""

    agreement: float  # up to 1
    distance: float  # mean square, as part of the stack's contrast


def _compare(
    frames: tuple[np.ndarray, np.ndarray], masks: tuple[np.ndarray, np.ndarray],
    shift: tuple[int, int], noise: np.ndarray, contrast: np.ndarray,
) -> _Pair:  # fmt: skip
    """Compares two frames [h, w, C] once the second is moved by whole pixels."""
    second = np.moveaxis(resample.translate(np.moveaxis(frames[1], -1, 0), shift), 0, -1)
    ok = masks[0] & resample.translate(masks[1], shift, False)
    if np.count_nonzero(ok) < _OVERLAP:
        return _Pair(0.0, _FARTHEST**2)
    away = frames[0][ok] - second[ok]
    away = np.clip((away - np.median(away, axis=0)) / contrast, -_FARTHEST, _FARTHEST)
    # A frame that is there twice is as far from itself as its noise would have it.
    least = max(float(np.mean(np.square(noise / contrast))), _NEAREST**2)
    distance = max(float(np.mean(np.square(away))), least)
    return _Pair(_pair_agreement(frames[0], second, ok, noise), distance)


def _pair_agreement(
    first: np.ndarray, second: np.ndarray, ok: np.ndarray, noise: np.ndarray
) -> float:
    """How alike two registered frames [h, w, C] are, up to 1.

    The mean local coefficient of correlation, over ground whose contrast stands out of the noise:
    fields change their brightness between years, but edges stay where they were.
    """
    known = ok[..., None].astype(np.float32)
    count = np.maximum(_smooth(known), 1e-3)

    def mean(x: np.ndarray) -> np.ndarray:
        return _smooth(known * x) / count

    a, b = first - mean(first), second - mean(second)
    var_a, var_b, floor = mean(a * a), mean(b * b), np.square(_CONTRAST * noise)
    alike = mean(a * b) / np.sqrt((var_a + floor) * (var_b + floor))
    tells = known * np.sqrt(var_a * var_b / ((var_a + floor) * (var_b + floor)))
    return float((tells * alike).sum() / max(float(tells.sum()), 1e-6))


def _smooth(x: np.ndarray) -> np.ndarray:
    return np.asarray(scipy.ndimage.gaussian_filter(x, (_LOCAL, _LOCAL, 0), mode="nearest"))


def _consensus(frames: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of each frame [N, h, w, C] agrees with the better half of its partners, [N], and
    how far it lies from all of them, [N]."""
    count = len(frames)
    if count == 1:
        return np.ones(1), np.zeros(1)
    noise = np.median([agreement.noise_of_frame(f, m) for f, m in zip(frames, masks)], axis=0)
    contrast = np.median([agreement.contrast(f, m) for f, m in zip(frames, masks)], axis=0)
    noise = np.where(np.isfinite(noise), noise, contrast)  # where masks leave no calm part
    contrast = np.maximum(contrast, np.maximum(noise, 1e-12))
    grey = frames.mean(axis=-1)
    found: list[list[_Pair]] = [[] for _ in frames]
    correlations = [MaskedCorrelation(g, m) for g, m in zip(grey, masks)]
    for first, second in _partners(count):
        shift = correlations[first].shift_of(correlations[second])
        pair = _compare(
            (frames[first], frames[second]), (masks[first], masks[second]), shift, noise, contrast
        )
        found[first].append(pair)
        found[second].append(pair)
    agreements = [np.mean(sorted(p.agreement for p in row)[len(row) // 2 :]) for row in found]
    distances = [np.exp(np.mean([np.log(p.distance) for p in row]) / 2) for row in found]
    return np.array(agreements), np.array(distances)


def choose_reference(
    lr: np.ndarray, masks: np.ndarray, scale: int, psf_sigma: float = PSF_SIGMA
) -> ReferenceChoice:
    """Ranks frames as references: those that agree with others, the clearest first.

    A frame that agrees far less than the stack's frames usually do steps behind all others.
    Among the rest the share of reliable pixels decides, and where that is equal, which frame lies
    nearest to the others.

    Args:
      lr: [N, h, w, C] raw; non-finite only where masked.
      masks: [N, h, w] bool, True = reliable.
      scale: r.
      psf_sigma: deviation of the sensor's Gaussian, LR pixels.

    Raises:
      TypeError: not arrays of real numbers.
      ValueError: shapes that do not belong together, non-finite reliable values, a parameter out
        of range, or no frame that can serve.
    """
    check_parameters(scale, psf_sigma)
    lr, masks = check_stack(lr, masks)
    if lr.ndim != 4:
        raise ValueError(f"lr: found shape {lr.shape}, expected [N, h, w, C]")
    left_out = [(n, why) for n in range(len(lr)) if (why := unusable(lr[n], masks[n]))]
    kept = [n for n in range(len(lr)) if n not in dict(left_out)]
    if not kept:
        raise ValueError(
            f"lr: found {len(lr)} frames, all blank or constant, expected one that is not"
        )
    agreements, distances = np.zeros(len(lr)), np.full(len(lr), np.inf)
    agreements[kept], distances[kept] = _consensus(fill_hidden(lr[kept], masks[kept]), masks[kept])
    clearance = masks.mean(axis=(1, 2))
    low, usual = np.quantile(agreements[kept], (0.25, 0.75))
    enough = max(_OUTLYING * usual, usual - _SPREADS * (usual - low + _LEAST_SPREAD))
    order = sorted(
        kept,
        key=lambda n: (agreements[n] < enough, -clearance[n], distances[n]),
    )
    return ReferenceChoice(tuple(order), agreements, distances, clearance, tuple(left_out))
