"""IBP: iterative back-projection (Irani & Peleg 1991) of registered frames.

Irani and Peleg, "Improving resolution by image registration", CVGIP: Graphical Models and Image
Processing 53(3). A guess of the HR image is looked at through a model of the sensor, once per
frame; what the real frames show beyond that is projected back onto the guess, averaged over the
frames that see a pixel, and so on.

The sensor A_n that makes frame n of the HR image is that of `sensor`. The back-projection kernel is
that same sensor, transposed. With w_n = 1 where frame n is reliable and looks at the HR grid, one
iteration is

    hr ← hr + step · Σ_n A_nᵀ w_n (g_n − A_n hr) / Σ_n A_nᵀ w_n.

As the A_n are non-negative and their rows sum to one, the residual Σ_n |w_n (g_n − A_n hr)|² falls
at every iteration for 0 < step < 2 (this is SIRT; Gregor & Benson 2008). The g_n are the frames in
the reference's brightness and contrast.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import numpy as np

from deepsum_jax.config import Compute, ModelConfig, Section
from deepsum_jax.data import resample
from deepsum_jax.data.fill import fill_hidden, without_outliers
from deepsum_jax.data.registration import register_frames
from deepsum_jax.data.scene import check_stack
from deepsum_jax.data.sensor import PSF_SIGMA, Sensor, check_parameters, make_sensor
from deepsum_jax.data.survey import Survey
from deepsum_jax.systems.bicubic_mean import filled_mean, on_grid
from deepsum_jax.systems.system import Params, Stack, SuperResolved, System, equal_weights

_OVERLAP = 16  # pixels in common, the fewest that tell two frames' contrast or shift
_REFINEMENTS = 3  # Gauss-Newton steps; further ones move shifts by less than 0.01 HR pixels
_DELTA = 0.5  # HR pixels, of the difference quotients
_MATCHES = 3  # fits of brightness and contrast, each without the outliers of the one before
_OUTLIER = 6  # robust deviations from a fit, from which on a pixel has no part in it


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Chosen on simulated scenes. More iterations sharpen further, noise too."""

    step: float = 1.8  # how much of the mean back-projected difference is added, 0..2, exclusive
    iterations: int = 20  # at most, 0–1000

    def check(self) -> None:
        self._require(0 < self.step < 2, "step", "more than 0 and less than 2")
        self._require(0 <= self.iterations <= 1000, "iterations", "0 to 1000")


class BackProjection(NamedTuple):
    """A super-resolved image and how it came about."""

    image: np.ndarray  # float32 [H, W, C], raw units of the reference
    residuals: np.ndarray  # [iterations + 1, C] RMS over what counts, raw units of the reference
    shifts: np.ndarray  # [N, 2] HR pixels: registered(y, x) = frame(y − s_y, x − s_x)
    gains: np.ndarray  # [N, C]; gain · frame + offset has the reference's brightness and contrast
    offsets: np.ndarray  # [N, C] raw units


# --- frames on common terms


def _levels(lr: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Medians of each frame's reliable pixels, float64 [N, C]; the clearest frame's for a frame
    without any."""
    clear = masks.sum(axis=(1, 2))
    shown = [n if clear[n] else int(clear.argmax()) for n in range(len(lr))]
    return np.stack([np.median(lr[n][masks[n]].astype(np.float64), axis=0) for n in shown])


def _spread(x: np.ndarray) -> np.ndarray:
    """Robust deviation of values [pixels, …]: of the median absolute deviation."""
    return 1.4826 * np.median(np.abs(x - np.median(x, axis=0)), axis=0)


def _match_values(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Gain and offset that give values b [pixels] the brightness and contrast of a.

    From means and deviations: a least-squares gain would come out too small, for there is noise
    in both. Pixels that the match does not explain are left out of it and it is made anew, so that
    a hot pixel, or ground that differs, does not change the rest.
    """
    used = np.ones(len(a), bool)
    gain, offset = 1.0, float(np.median(a) - np.median(b))
    wide = _spread(a), _spread(b)
    if min(wide) > 0:
        gain = float(wide[0] / wide[1])
        offset = float(np.median(a) - gain * np.median(b))
    for _ in range(_MATCHES):
        error = a - gain * b - offset
        limit = _OUTLIER * _spread(error)
        used = np.abs(error - np.median(error)) <= limit if limit > 0 else np.ones(len(a), bool)
        if used.sum() < _OVERLAP:
            break
        x, y = a[used], b[used]
        mean_x, mean_y, std_x, std_y = x.mean(), y.mean(), x.std(), y.std()
        # Frames that show different things, or nothing, do not tell their contrast.
        alike = ((x - mean_x) * (y - mean_y)).mean() > 0.5 * std_x * std_y
        gain = float(std_x / std_y) if alike else 1.0
        offset = float(mean_x - gain * mean_y)
    return gain, offset


def _match(images: np.ndarray, clear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gains and offsets [N, C] that give frames the reference's brightness and contrast, from the
    pixels [N, H, W] that a frame and the reference both show."""
    gains = np.ones((len(images), images.shape[-1]))
    offsets = np.zeros_like(gains)
    for n in range(1, len(images)):
        both = clear[0] & clear[n]
        if both.sum() < _OVERLAP:
            continue
        a, b = (x[both].astype(np.float64) for x in (images[0], images[n]))  # [pixels, C]
        for c in range(a.shape[-1]):
            gains[n, c], offsets[n, c] = _match_values(a[:, c], b[:, c])
    return gains, offsets


def _fit(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least-squares coefficients of columns [pixels, K] beside a constant, without outliers."""
    used = np.ones(len(values), bool)
    for _ in range(2):
        centre = columns[used].mean(axis=0), values[used].mean()  # the constant's part
        a, b = columns[used] - centre[0], values[used] - centre[1]
        coefficients = np.linalg.lstsq(a.T @ a, a.T @ b, rcond=None)[0]
        error = values - centre[1] - (columns - centre[0]) @ coefficients
        limit = _OUTLIER * _spread(error)
        within = np.abs(error - np.median(error)) <= limit
        if not limit or within.sum() < _OVERLAP or within.all():
            break
        used = within
    return coefficients


def _refine(
    reference: np.ndarray, clear: np.ndarray, frame: np.ndarray, mask: np.ndarray,
    shift: np.ndarray, scale: int, psf_sigma: float,
) -> np.ndarray:  # fmt: skip
    """A frame's shift to a fraction of an HR pixel, by Gauss-Newton through the sensor.

    Minimises Σ (frame − gain · A(s) reference − offset)² over s, gain and offset, as in Irani &
    Peleg's registration, but on the LR grid. A search that leads further than half an LR pixel
    (or one HR pixel) away has gone astray, and the whole-pixel shift is kept.

    Args:
      reference: [H, W], the upsampled reference, grey.
      clear: [H, W], its mask.
      frame, mask: [h, w].
      shift: [2], the whole-pixel shift.
    """
    found = np.array(shift, np.float64)
    limit = max(1.0, scale / 2)
    for _ in range(_REFINEMENTS):
        sensor = make_sensor(frame.shape, found, scale, psf_sigma)
        seen = mask & sensor.inside & (sensor.observe(clear.astype(np.float32)) > 0.99)
        if seen.sum() < _OVERLAP:
            return shift
        views = [
            make_sensor(frame.shape, found + d, scale, psf_sigma).observe(reference)[seen]
            for d in _DELTA * np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
        ]
        slopes = [(views[0] - views[1]) / (2 * _DELTA), (views[2] - views[3]) / (2 * _DELTA)]
        columns = np.stack([*slopes, sensor.observe(reference)[seen]], axis=1).astype(np.float64)
        *move, gain = _fit(columns, frame[seen].astype(np.float64))
        if gain <= 0:
            return shift
        found += np.array(move) / gain
        if np.abs(found - shift).max() > limit:
            return shift
    return found


def _register(
    frames: np.ndarray, images: np.ndarray, masks: np.ndarray, scale: int, psf_sigma: float
) -> np.ndarray:
    """Shifts [N, 2] on frame 0: masked cross-correlation, refined below a pixel."""
    up = resample.nearest_upsample(masks, scale)
    shifts = register_frames(images, up).astype(np.float64)
    reference, grey = images[0].mean(axis=-1), frames.mean(axis=-1)
    for n in range(1, len(frames)):
        shifts[n] = _refine(reference, up[0], grey[n], masks[n], shifts[n], scale, psf_sigma)
    return shifts


# --- the iteration


def _iterate(
    image: np.ndarray, frames: np.ndarray, weights: np.ndarray, sensors: Sequence[Sensor],
    step: float, iterations: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Back-projects until the residual of no channel falls any more, or `iterations` are done.

    Args:
      image: [H, W, C], the first guess.
      frames: [N, h, w, C] in the reference's units.
      weights: [N, h, w, 1], 1 where a frame counts, else 0.

    Returns:
      image [H, W, C] and residuals [≤ iterations + 1, C].
    """
    seen = sum(s.back_project(w) for s, w in zip(sensors, weights))  # [H, W, 1]
    # A pixel that only the tails of the sensor reach is not seen.
    share = np.where(seen > 1e-3, step / np.maximum(seen, 1e-3), 0).astype(np.float32)
    count = max(float(weights.sum()), 1.0)

    def look(guess: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        missing = [w * (f - s.observe(guess)) for s, f, w in zip(sensors, frames, weights)]
        square = sum(np.square(d).sum(axis=(0, 1), dtype=np.float64) for d in missing)
        return missing, np.sqrt(square / count)

    missing, residual = look(image)
    residuals = [residual]
    for _ in range(iterations):
        guess = image + share * sum(s.back_project(d) for s, d in zip(sensors, missing))
        missing, residual = look(guess)
        if not (residual < residuals[-1]).any():
            break
        image = guess
        residuals.append(residual)
    return image, np.stack(residuals)


@overload
def ibp(
    lr: np.ndarray,
    masks: np.ndarray,
    scale: int,
    *,
    shifts: np.ndarray | None = ...,
    survey: Survey | None = ...,
    psf_sigma: float = ...,
    step: float = ...,
    iterations: int = ...,
    return_details: Literal[False] = ...,
) -> np.ndarray: ...


@overload
def ibp(
    lr: np.ndarray,
    masks: np.ndarray,
    scale: int,
    *,
    shifts: np.ndarray | None = ...,
    survey: Survey | None = ...,
    psf_sigma: float = ...,
    step: float = ...,
    iterations: int = ...,
    return_details: Literal[True],
) -> BackProjection: ...


def ibp(
    lr: np.ndarray,
    masks: np.ndarray,
    scale: int,
    *,
    shifts: np.ndarray | None = None,
    survey: Survey | None = None,
    psf_sigma: float = PSF_SIGMA,
    step: float = Options.step,
    iterations: int = Options.iterations,
    return_details: bool = False,
) -> np.ndarray | BackProjection:
    """Iterative back-projection onto frame 0's grid, from Bicubic+Mean on.

    What lies under a mask has no influence. HR pixels that no frame sees keep the first guess.

    Args:
      lr: [N, h, w, C] raw, frame 0 the reference; non-finite only where masked.
      masks: [N, h, w] bool, True = reliable.
      scale: r.
      shifts: [N, 2], HR pixels, that register the frames, if known: registered(y, x) =
        frame(y − s_y, x − s_x). By default they are found, to a fraction of a pixel.
      survey: of the large stack that the frames are a part of: their shifts and brightness. A part
        alone would find others, and show it at its borders.
      psf_sigma: deviation of the sensor's Gaussian, LR pixels; its pixel integrates besides.
      step: how much of the mean back-projected difference is added, above 0 and below 2.
      iterations: at most; fewer are done once the residual no longer falls.
      return_details: return a `BackProjection` instead of the image alone.

    Returns:
      float32 [r·h, r·w, C], raw units of the reference frame, unclipped.

    Raises:
      TypeError: not arrays of real numbers.
      ValueError: shapes that do not belong together, non-finite reliable values, no reliable
        pixel at all, or a parameter out of range.
    """
    lr, masks = check_stack(lr, masks)
    _check(lr, masks, scale, shifts, psf_sigma, step, iterations)
    # Each frame about its own level: float32 then holds the contrast of any brightness.
    levels = _levels(lr, masks)  # [N, C]
    centred = np.where(masks[..., None], lr, 0) - levels[:, None, None]
    frames = fill_hidden(centred, masks)
    tame = without_outliers(centred, masks)
    likely = frames if (tame == masks).all() else fill_hidden(centred, tame)
    images = resample.upsample(likely, scale)  # [N, H, W, C]
    if shifts is None:
        shifts = (
            _register(likely, images, tame, scale, psf_sigma) if survey is None else survey.shifts
        )
    shifts = np.asarray(shifts, np.float64)

    images, clear = on_grid(images, tame, np.rint(shifts).astype(int), scale)
    if survey is None:
        gains, offsets = _match(images, clear)
    else:  # about each frame's level, as the frames are
        gains = survey.gains
        offsets = survey.offsets + gains * levels - levels[0]
    gain, offset = (x[:, None, None].astype(np.float32) for x in (gains, offsets))
    sensors = [make_sensor(lr.shape[1:3], s, scale, psf_sigma) for s in shifts]
    weights = np.stack([m & s.inside for m, s in zip(masks, sensors)])[..., None]
    image, residuals = _iterate(
        filled_mean(gain * images + offset, clear),
        gain * frames + offset,
        weights.astype(np.float32),
        sensors,
        step,
        iterations,
    )
    image = (image + levels[0]).astype(np.float32)
    if not return_details:
        return image
    return BackProjection(image, residuals, shifts, gains, offsets + levels[0] - gains * levels)


def _check(
    lr: np.ndarray, masks: np.ndarray, scale: int, shifts: np.ndarray | None, psf_sigma: float,
    step: float, iterations: int,
) -> None:  # fmt: skip
    check_parameters(scale, psf_sigma)
    if lr.ndim != 4:
        raise ValueError(f"lr: found shape {lr.shape}, expected [N, h, w, C]")
    if not masks.any():
        raise ValueError(f"masks: found no reliable pixel in any of {len(masks)} frames")
    if shifts is not None and (
        np.shape(shifts) != (len(lr), 2) or not np.isfinite(np.asarray(shifts)).all()
    ):
        raise ValueError(
            f"shifts: found shape {np.shape(shifts)}, expected {(len(lr), 2)}, all finite"
        )
    if not 0 < step < 2:
        raise ValueError(f"step: found {step}, expected more than 0 and less than 2")
    if operator.index(iterations) < 0:
        raise ValueError(f"iterations: found {iterations}, expected a whole number from 0")


def super_resolve(
    params: Params, stack: Stack, config: ModelConfig, compute: Compute
) -> SuperResolved:
    options = Options.from_dict(config.options)
    image = ibp(
        stack.lr, stack.masks, config.scale, survey=stack.survey,
        psf_sigma=config.psf_sigma, step=options.step, iterations=options.iterations,
    )  # fmt: skip
    return SuperResolved(image, equal_weights(len(stack.lr)))


IBP = System(name="ibp", label="IBP", options=Options, super_resolve=super_resolve)
