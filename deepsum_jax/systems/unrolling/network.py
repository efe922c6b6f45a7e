"""The network of unrolled back-projection: one frame first, the others by their weights alone.

    reference ──→ its own image y ───────────────────────────────┐
                       │ seen through each frame's sensor        ↓
    other frames ──→ differences ──→ weights w ──→ back-projection of all, then what it
                                                   leaves ──→ y + gate · correction, σ

All convolutions work on the LR grid, where an HR image is r² channels. A frame enters through
w · (g − A y) and through nothing else, and the correction is gated by how many frames spoke, so
where none does the image is the reference's own, exactly. What the reference saw stays true of
both at the end, within its noise.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from deepsum_jax.config import Compute
from deepsum_jax.model import ops
from deepsum_jax.model.layers import Conv, LinearParams
from deepsum_jax.systems.robust.reference_image import SEEN
from deepsum_jax.systems.unrolling.back_projection import back_projected, share_of
from deepsum_jax.systems.unrolling.optics import (
    Optics,
    enlarge_axis,
    inside,
    make_optics,
    shuffle,
    smooth_axis,
    unshuffle,
)

Array = jax.Array

REGISTERED = 3  # Gauss-Newton steps of the shifts on the reference's own image
FIRST_STEPS = 3  # weighted back-projections before the last such step, on their image
OWN_STEPS = 8  # of the reference alone, before the network corrects it
LAST_STEPS = 6  # of the reference, after the network
_HEARD = 0.4  # of the noise; what the reference shows beyond it is made true
_GATE = 0.15  # frames; so many that spoke open the gate half
_SMOOTH = 4.0  # LR pixels; brightness is matched locally where it changes as slowly
_DETAIL = 0.2  # of what the own image added to the bicubic one: what a frame may differ by
_FAR = 0.5  # HR pixels, the most that a step may move a frame
_FLOOR = 1e-3  # of the contrast, the least noise


class Output(NamedTuple):
    """What the network makes of a stack, in units of the reference's contrast about its level."""

    sr: Array  # [H, W]
    own: Array  # [H, W], of the reference alone
    log_variance: Array  # [H, W], of the error to be expected
    weights: Array  # [N, h, w], 0..1, of each frame's pixels
    spoke: Array  # [H, W], how many frames spoke


class Trunk(nn.Module):
    """Residual blocks on the LR grid, and what leaves them.

    [B, h, w, C] → features [B, h, w, F] and an HR image's channels [B, h, w, r²].
    """

    features: int
    blocks: int
    leaving: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = Conv(self.features, 3, self.compute, name="enter")(x)
        if self.blocks:
            # One body for all blocks: it is compiled once.
            x, _ = lax.scan(functools.partial(_block, self.compute), x, self._stacked())
        x = nn.relu(x)
        return x, Conv(self.leaving, 3, self.compute, name="leave")(x)

    def _stacked(self) -> tuple[Array, ...]:
        """Kernels and biases of the blocks' first and second convolutions, each [blocks, …]."""
        shape = (3, 3, self.features, self.features)
        layers = [
            [LinearParams(shape, self.compute, name=f"{which}{n}")() for n in range(self.blocks)]
            for which in ("first", "second")
        ]
        return tuple(jnp.stack(parts) for layer in layers for parts in zip(*layer))


def _block(compute: Compute, x: Array, layers: tuple[Array, ...]) -> tuple[Array, None]:
    """A residual block: [B, h, w, F], and kernels and biases of its two convolutions."""
    first, first_bias, second, second_bias = (part.astype(compute.dtype) for part in layers)
    convolve = functools.partial(ops.conv2d, precision=compute.precision, backend=compute.backend)
    y = nn.relu(convolve(nn.relu(x), first) + first_bias)
    return x + convolve(y, second) + second_bias, None


class Agreement(nn.Module):
    """How far each pixel of a frame is believed.

    Evidence [N, h, w, C], and where there is any [N, h, w], → logits [N, h, w].
    """

    features: int
    compute: Compute

    @nn.compact
    def __call__(self, evidence: Array, use: Array) -> Array:
        x = nn.relu(Conv(self.features, 3, self.compute, name="first")(evidence))
        # What the whole frame is like tells of each pixel.
        count = jnp.maximum(use.sum(axis=(1, 2)), 1.0)[:, None]
        mean = jnp.einsum("nhwf,nhw->nf", x, use) / count
        whole = Conv(self.features, 1, self.compute, name="whole")(mean[:, None, None])
        x = nn.relu(Conv(self.features, 3, self.compute, name="second")(x) + whole)
        return Conv(1, 1, self.compute, name="leave")(x)[..., 0]


class Error(nn.Module):
    """How wrong the image is to be expected: [B, h, w, C] → log deviations [B, h, w, r²]."""

    features: int
    leaving: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(Conv(self.features, 3, self.compute, name="first")(x))
        return Conv(self.leaving, 3, self.compute, name="leave")(x)


class Unrolled(nn.Module):
    """One stack of one band.

    Attributes:
      scale: r.
      psf_sigma: that the sensor is taken to have, LR pixels; a scalar of a program too.
      momentum: whether weighted back-projection is the ν-method, and goes the further the more
        frames speak.
    """

    scale: int
    psf_sigma: float | Array
    features: int
    own_blocks: int
    blocks: int
    agreement_features: int
    iterations: int
    momentum: bool
    compute: Compute

    def setup(self) -> None:
        features, leaving, compute = self.features, self.scale**2, self.compute
        self.alone = Trunk(features, self.own_blocks, leaving, compute, name="own")
        self.agreement = Agreement(self.agreement_features, compute, name="agreement")
        self.fusion = Trunk(features, self.blocks, leaving, compute, name="fusion")
        self.error = Error(features // 2, leaving, compute, name="error")

    def __call__(
        self, frames: Array, masks: Array, shifts: Array, noise: Array, free: bool = False
    ) -> Output:
        """Args:
        frames: [N, h, w] in units of the reference's contrast about its level, in its
          brightness; finite. Frame 0 is the reference.
        masks: [N, h, w] bool.
        shifts: [N, 2], HR pixels; see `data.sensor`.
        noise: scalar, deviation in the same units.
        free: leaves images as the network makes them, for it to learn from: what is set right
          behind it tells it nothing of its own errors.
        """
        # Of the sensors' products too: half their digits would be lost on accelerators.
        with jax.default_matmul_precision(self.compute.precision):
            return self._image(frames, masks, shifts, noise, free)

    def reference_alone(self, frame: Array, mask: Array, noise: Array, free: bool = False) -> Array:
        """The own image [H, W] of a reference [h, w], as `__call__` makes it."""
        with jax.default_matmul_precision(self.compute.precision):
            shape = (frame.shape[0], frame.shape[1])
            optics = make_optics(shape, jnp.zeros((1, 2)), self.scale, self.psf_sigma)
            use, noise = mask.astype(frame.dtype), jnp.maximum(noise, _FLOOR)
            own, _, _ = self._own_image(frame, use, optics, noise)
            return own if free else self._true_to(own, frame, use, optics, noise)

    def _image(
        self, frames: Array, masks: Array, shifts: Array, noise: Array, free: bool
    ) -> Output:
        r, shape = self.scale, (frames.shape[1], frames.shape[2])
        use = (masks & inside(shape, shifts, r)).astype(frames.dtype)
        noise = jnp.maximum(noise, _FLOOR)

        def looking(shifts: Array) -> Optics:
            return make_optics(shape, shifts, r, self.psf_sigma)

        optics = looking(shifts)
        own, features, detail = self._own_image(frames[0], use[0], optics, noise)
        expected = self._expected(detail, optics, noise)
        for _ in range(REGISTERED):
            difference = self._differences(frames, use, own, expected, optics)
            belief = use / jnp.square(1 + jnp.square(difference / (3 * expected)))
            shifts = shifts + moves(own, difference, belief, optics)
            optics = looking(shifts)
        difference = self._differences(frames, use, own, expected, optics)
        weights = self._weights(difference, expected, use, optics, noise)
        if self.iterations:  # a sharper image registers better
            step = back_projected(difference, weights, optics, FIRST_STEPS, self.momentum)
            left = difference - optics.observe(step)
            shifts = shifts + moves(own + step, left, weights, optics)
            optics = looking(shifts)
            difference = self._differences(frames, use, own, expected, optics)
        output = self._fused(own, features, difference, weights, optics, detail, noise)
        if free:
            return output
        closer = functools.partial(
            self._true_to, frame=frames[0], use=use[0], optics=optics, noise=noise
        )
        return output._replace(sr=closer(output.sr), own=closer(own))

    def _own_image(
        self, frame: Array, use: Array, optics: Optics, noise: Array
    ) -> tuple[Array, Array, Array]:
        """The reference's own image [H, W], its features, and its detail squared [h, w]."""
        r = self.scale
        seen = optics.reference
        up = [jnp.asarray(enlarge_axis(n, r)) for n in frame.shape]
        plain = up[0] @ frame @ up[1].T
        share = share_of(seen.back_project(use[None]))

        def closer(image: Array, _: None) -> tuple[Array, None]:
            left = use * (frame - seen.observe(image)[0])
            return image + share * seen.back_project(left[None]), None

        image, _ = lax.scan(closer, plain, length=OWN_STEPS)
        level = jnp.full_like(frame, jnp.log(noise) / 3)
        given = jnp.concatenate(
            [
                unshuffle(image, r) - frame[..., None],
                unshuffle(plain, r) - frame[..., None],
                jnp.stack([use * (frame - seen.observe(image)[0]) / noise, use, level], axis=-1),
            ],
            axis=-1,
        )
        features, added = self.alone(given[None])
        own = image + shuffle(added[0], r)
        return own, features[0], box(unshuffle(jnp.square(own - plain), r).mean(axis=-1))

    def _true_to(
        self, image: Array, frame: Array, use: Array, optics: Optics, noise: Array
    ) -> Array:
        """An image [H, W] that shows the reference what it saw, within its noise.

        Of what the image leaves of the frame, the part above the noise, as of Wiener, is projected
        back; above a part of it, as noise that is measured on texture is too large.
        """
        seen = optics.reference
        share = share_of(seen.back_project(use[None]))
        known = jnp.maximum(box(use), 1 / 9)

        def closer(image: Array, _: None) -> tuple[Array, None]:
            left = use * (frame - seen.observe(image)[0])
            power = jnp.maximum(box(jnp.square(left)) / known, 1e-12)
            part = jax.nn.relu(1 - jnp.square(_HEARD * noise) / power)
            return image + share * seen.back_project((part * left)[None]), None

        return lax.scan(closer, image, length=LAST_STEPS)[0]

    def _expected(self, detail: Array, optics: Optics, noise: Array) -> Array:
        """How much a frame may differ from the own image, [N, h, w]."""
        spread = optics.observe(nearest(detail, self.scale))
        return jnp.sqrt(noise**2 + _DETAIL**2 * jnp.maximum(spread, 0))

    def _differences(
        self, frames: Array, use: Array, own: Array, expected: Array, optics: Optics
    ) -> Array:
        """What each frame shows besides the own image, less what changes smoothly: [N, h, w]."""
        difference = frames - optics.observe(own)
        size = jnp.sum(use * jnp.abs(difference), axis=(1, 2)) / (use.sum(axis=(1, 2)) + 1)
        width = 6 * expected + size[:, None, None]
        weight = use / (1 + jnp.square(difference / width))
        rows, columns = (jnp.asarray(smooth_axis(n, _SMOOTH)) for n in frames.shape[1:])

        def smoothed(x: Array) -> Array:
            return jnp.einsum("hk,nkl,wl->nhw", rows, x, columns, optimize="optimal")

        smooth = smoothed(weight * difference) / jnp.maximum(smoothed(weight), 1e-3)
        return difference - smooth.at[0].set(0.0)

    def _weights(
        self, difference: Array, expected: Array, use: Array, optics: Optics, noise: Array
    ) -> Array:
        """[N, h, w], the reference's being 1 where it is reliable."""
        if len(use) == 1:
            return use
        known = optics.observe(nearest(use[0], self.scale))
        square = box(use * jnp.square(difference)) / jnp.maximum(box(use), 1 / 18)
        ratio = square / jnp.square(expected)
        belief = 1 / (1 + ratio / 4)
        share = (use * belief).sum(axis=(1, 2)) / (use.sum(axis=(1, 2)) + 1)
        exists = use.any(axis=(1, 2)).at[0].set(False).astype(share.dtype)
        stack = (exists * share).sum() / jnp.maximum(exists.sum(), 1)
        whole = jnp.ones_like(difference)
        evidence = jnp.stack(
            [
                use * jnp.arcsinh(difference / expected),
                use * jnp.log1p(ratio),
                use * jnp.arcsinh(difference * 10),
                jnp.log(expected) / 3,
                known,
                use,
                whole * share[:, None, None],
                whole * stack,
                whole * jnp.log(noise) / 3,
            ],
            axis=-1,
        )
        logits = self.agreement(evidence[1:], use[1:]) + 2 - 2 * jnp.log1p(ratio[1:] / 4)
        return jnp.concatenate([use[:1], use[1:] * jax.nn.sigmoid(logits)])

    def _fused(
        self, own: Array, features: Array, difference: Array, weights: Array, optics: Optics,
        detail: Array, noise: Array,
    ) -> Output:  # fmt: skip
        r = self.scale
        others = optics.back_project(weights.at[0].set(0.0))
        whole = optics.back_project(weights)
        once = optics.reference.back_project(jnp.ones_like(weights[:1]))
        spoke, heard = whole / once, others / once
        step = back_projected(difference, weights, optics, self.iterations, self.momentum)
        left = difference - optics.observe(step)
        share = share_of(whole)
        remains = share * optics.back_project(weights * left)
        energy = optics.back_project((weights * jnp.square(left)).at[0].set(0.0))
        spread = jnp.sqrt(energy / jnp.maximum(others, SEEN * r**-2) + 1e-12)
        log_noise = jnp.full_like(detail, jnp.log(noise) / 3)
        given = jnp.concatenate(
            [
                features,
                unshuffle(step, r),
                unshuffle(remains, r),
                unshuffle(jnp.log1p(heard), r),
                unshuffle(jnp.arcsinh(spread / noise), r),
                jnp.stack([weights[0], log_noise, jnp.log(detail + noise**2) / 3], axis=-1),
            ],
            axis=-1,
        )
        hidden, added = self.fusion(given[None])
        correction = shuffle(added[0], r)
        gate = heard / (heard + _GATE)
        sr = own + gate * (step + correction)
        told = jnp.concatenate([hidden, given[None, ..., -3:], features[None]], axis=-1)
        log_error = self.error(told)[0]
        base = jnp.log(noise**2 + 0.25 * detail)
        log_variance = shuffle(base[..., None] + 2 * log_error, r)
        return Output(sr, own, log_variance, weights, spoke)


def moves(image: Array, difference: Array, weights: Array, optics: Optics) -> Array:
    """What a Gauss-Newton step adds to the frames' shifts [N, 2], HR pixels (Lucas, Kanade 1981).

    Args:
      image: [H, W], that frames are registered on.
      difference: [N, h, w], of the frames to it.
      weights: [N, h, w], of their pixels.
    """
    padded = jnp.pad(image, 1, mode="edge")
    slopes = jnp.stack(
        [
            optics.observe((padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2),
            optics.observe((padded[1:-1, 2:] - padded[1:-1, :-2]) / 2),
        ],
        axis=-1,
    )
    # A constant difference is brightness, no shift.
    total = jnp.maximum(weights.sum(axis=(1, 2)), 1.0)
    mean = jnp.einsum("nhw,nhwk->nk", weights, slopes) / total[:, None]
    slopes = slopes - mean[:, None, None]
    normal = jnp.einsum("nhw,nhwk,nhwl->nkl", weights, slopes, slopes)
    right = jnp.einsum("nhw,nhw,nhwk->nk", weights, difference, slopes)
    (a, b), (_, d) = (normal[:, 0, 0], normal[:, 0, 1]), (None, normal[:, 1, 1])
    damping = 1e-3 * (a + d) + 1e-6 * total
    a, d = a + damping, d + damping
    solved = jnp.stack(
        [d * right[:, 0] - b * right[:, 1], a * right[:, 1] - b * right[:, 0]], axis=-1
    )
    step = solved / jnp.maximum(a * d - b * b, 1e-12)[:, None]
    # Nothing is learned through the registration.
    return lax.stop_gradient(jnp.clip(step, -_FAR, _FAR).at[0].set(0.0))


def nearest(x: Array, scale: int) -> Array:
    """[h, w] → [H, W] by nearest neighbour."""
    return jnp.repeat(jnp.repeat(x, scale, 0), scale, 1)


def box(x: Array) -> Array:
    """Means over 3×3 pixels of [..., h, w], edge values going on."""
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9
