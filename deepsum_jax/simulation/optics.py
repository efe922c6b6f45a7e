"""The sensor of a simulated frame: anisotropic blur, any position, rotation and scale.

The ground is blurred in the frequency domain, once per frame, and looked up between its samples
by cubic splines, whose prefilter is part of the same multiplication.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import scipy.fft
import scipy.ndimage

PAD = 3  # pixels around a frame that is to be resampled


@dataclasses.dataclass(frozen=True)
class Blur:
    """A Gaussian before the integration over the pixel."""

    major: float  # deviation along the long axis, in the sensor's own pixels
    minor: float  # across it
    angle: float  # radians, of the long axis, from x towards y


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where an image lies on the scene's grid.

    It shows at (y, x) what the grid has at c + zoom * R (y - c, x - c) + shift, c the centre.
    """

    shift: tuple[float, float] = (0.0, 0.0)  # (dy, dx), HR pixels
    rotation: float = 0.0  # radians; R = [[cos, -sin], [sin, cos]] on (y, x)
    zoom: float = 1.0


def transfer(side: int, pitch: int, blur: Blur) -> np.ndarray:
    """What a sensor of `pitch` samples a pixel does to each frequency, [side, side // 2 + 1].

    It includes the prefilter of the cubic spline that `sample` looks values up with.
    """
    fy = scipy.fft.fftfreq(side).astype(np.float32)[:, None]
    fx = scipy.fft.rfftfreq(side).astype(np.float32)
    cos, sin = np.float32(math.cos(blur.angle)), np.float32(math.sin(blur.angle))
    along = np.float32(pitch * blur.major) * (fx * cos + fy * sin)
    across = np.float32(pitch * blur.minor) * (fy * cos - fx * sin)
    gaussian = np.exp(np.float32(-2 * np.pi**2) * (along**2 + across**2))

    def axis(f: np.ndarray) -> np.ndarray:
        spline = (2 + np.cos(2 * np.pi * f)) / 3
        return np.asarray(np.sinc(pitch * f) / spline, np.float32)

    return np.asarray(gaussian * axis(fy) * axis(fx))


def sample(
    spectrum: np.ndarray,
    response: np.ndarray,
    count: int,
    pixel: int,
    fine: int,
    margin: int,
    pose: Pose,
    extra: tuple[float, float] = (0.0, 0.0),
    pad: int = 0,
) -> np.ndarray:
    """What a sensor sees of the ground, float32 [count + 2 * pad] squared.

    Args:
      spectrum: `scipy.fft.rfft2` of the ground [S, S], S even.
      response: from `transfer`.
      count: pixels of the image in both axes, less the padding.
      pixel: HR pixels per pixel of the image.
      fine: samples of the ground per HR pixel.
      margin: samples of ground before the scene's first HR pixel.
      pose: of the image.
      extra: (dy, dx) in the image's own pixels by which its samples lie further on.
      pad: pixels around it.
    """
    side = len(spectrum)
    blurred = scipy.fft.irfft2(spectrum * response, s=(side, side))
    cos, sin = math.cos(pose.rotation), math.sin(pose.rotation)
    turn = pose.zoom * np.array([[cos, -sin], [sin, cos]])
    centre = np.full(2, count * pixel / 2)
    first = pixel * (0.5 + np.asarray(extra) - pad)
    start = centre + np.asarray(pose.shift) + turn @ (first - centre)
    # Sample k of the ground covers [k, k + 1); its centre has the index k, hence the half.
    offset = margin + fine * start - 0.5
    size = count + 2 * pad
    return np.asarray(
        scipy.ndimage.affine_transform(
            blurred, fine * pixel * turn, offset, output_shape=(size, size), order=3,
            mode="grid-wrap", prefilter=False,
        )
    )  # fmt: skip


def _taps(at: float) -> tuple[int, np.ndarray]:
    """Cubic convolution between samples, at position `at`: the first of four, and weights."""
    base = math.floor(at)
    d = np.abs(at - base - np.arange(-1, 3))
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return base - 1, np.where(d <= 1, near, np.where(d < 2, far, 0)).astype(np.float32)


def resample(image: np.ndarray, count: int, extra: tuple[float, float]) -> np.ndarray:
    """An image of `sample`, padded by `PAD`, brought back onto its pose by cubic convolution."""
    for axis, back in enumerate(extra):
        first, weights = _taps(PAD - back)
        parts = [
            w * (image[first + k :][:count] if axis == 0 else image[:, first + k :][:, :count])
            for k, w in enumerate(weights)
        ]
        image = sum(parts[1:], start=parts[0])
    return image
