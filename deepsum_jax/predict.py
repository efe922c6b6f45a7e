"""From a raw stack of low-resolution images to one super-resolved image.

python -m deepsum_jax.predict --params DIR --output FILE INPUT…
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import jax
import numpy as np

from deepsum_jax import cli, deepsum, kelvins, ops, prepare, registration
from deepsum_jax.baselines.bicubic_mean import bicubic_mean
from deepsum_jax.baselines.ibp import ibp
from deepsum_jax.baselines.sisr import sisr_image, sisr_mean
from deepsum_jax.checkpoint import Bundle, load_params
from deepsum_jax.config import ModelConfig
from deepsum_jax.scene import check_stack
from deepsum_jax.stackfile import check_output, read_input, write_output
from deepsum_jax.step import Forward
from deepsum_jax.systems import PARAMETERLESS, param_shapes

# `python -m` finds this module imported by the package, for its public names, and worries.
warnings.filterwarnings(
    "ignore", r"'deepsum_jax\.predict' found in sys\.modules", category=RuntimeWarning
)

MAX_FRAMES = 15  # more of the clearest frames did not help (slides, "Quantitative Results")
_MAX_WINDOW_SHIFT = 4  # HR pixels; a window's image further off is left out of the average


class Prediction(NamedTuple):
    """A super-resolved image and how it came about."""

    image: np.ndarray  # float32 [r·h, r·w] or [r·h, r·w, C], raw units
    reference_index: int  # in the stack; the image lies on this frame's grid
    frames_used: tuple[int, ...]  # indices in the stack, clearest first after the reference
    weights: np.ndarray  # float32 [len(frames_used)], each frame's share; sums to one


def select_frames(
    masks: np.ndarray, frames: int, reference: int | None = None, max_frames: int = MAX_FRAMES
) -> list[int]:
    """The frames to use, reference first, then by clearance.

    Frames more than 90 % clear are kept, the bar being lowered by 5 points until `frames` remain
    (or all with any reliable pixel).

    Args:
      masks: [T, h, w] bool.
      frames: N.
      reference: index of frame 0; None takes the clearest (the earliest of a tie).
      max_frames: at most this many, but never fewer than N.

    Raises:
      ValueError: no frame has a reliable pixel.
    """
    clearance = masks.reshape(len(masks), -1).mean(axis=1)
    if not clearance.any():
        raise ValueError(f"masks: found no reliable pixel in any of {len(masks)} frames")
    order = [
        int(n)
        for n in prepare.reference_first(masks, reference)
        if clearance[n] > 0 or n == reference
    ]
    bar = 90
    kept: list[int] = []
    while bar > -5 and len(kept) < min(frames, len(order)):
        kept = [n for n in order if n == order[0] or clearance[n] * 100 > bar]
        bar -= 5
    return kept[: max(max_frames, frames)]


@functools.lru_cache(maxsize=8)
def compiled_forward(config: ModelConfig) -> Callable[..., Any]:
    """The jitted network of a configuration; it compiles once per image size."""
    return jax.jit(Forward(config), static_argnames="masks_registered")


class Windows(NamedTuple):
    """A scene's stack cut into windows of N frames, ready for the network."""

    members: tuple[tuple[int, ...], ...]  # per window, indices into the kept frames
    frames: np.ndarray  # [M, h, w, C] raw, finite: the kept frames
    masks: np.ndarray  # [M, h, w]
    shifts: np.ndarray | None  # [M, 2], on the first kept frame; only where they are needed


def make_windows(
    lr: np.ndarray, masks: np.ndarray, kept: list[int], config: ModelConfig
) -> Windows:
    """Windows of N frames, each moved by one; too few frames repeat the first."""
    count, size = len(kept), config.num_frames
    if count < size:
        members: tuple[tuple[int, ...], ...] = ((*range(count), *[0] * (size - count)),)
    else:
        members = tuple(tuple(range(n, n + size)) for n in range(count - size + 1))
    frames, masks = prepare.fill_hidden(lr[kept], masks[kept]), masks[kept]
    shifts = None
    if config.mask_alignment == "shifts" or config.takes_shifts:
        shifts = registration.register_frames(
            prepare.upsample(frames, config.scale), ops.nearest_upsample(masks, config.scale)
        )
    return Windows(members, frames, masks, shifts)


def run_window(params: Any, windows: Windows, window: int, config: ModelConfig) -> Any:
    """One window through the network: SR [H, W, C] raw and filters [N − 1, K, K], on the device."""
    members = list(windows.members[window])
    images = deepsum.to_input(
        prepare.upsample(windows.frames[members], config.scale), config.normalization
    )
    relative = np.zeros((len(members), 2), np.int32)
    if windows.shifts is not None:  # the window's own first frame is its reference
        relative = windows.shifts[members] - windows.shifts[members[0]]
    registered = config.mask_alignment == "shifts"
    masks = (
        prepare.aligned_masks(windows.masks[members], relative, config.scale)
        if registered
        else ops.nearest_upsample(windows.masks[members], config.scale)
    )
    sr, filters = compiled_forward(config)(
        params,
        np.asarray(images, np.float32)[None],
        masks[None, ..., None],
        masks_registered=registered,
        shifts=relative[None].astype(np.float32) if config.takes_shifts else None,
    )
    return sr[0], filters[0]


def average_windows(images: list[np.ndarray]) -> tuple[np.ndarray, list[bool]]:
    """Mean of the windows' images [H, W, C], each registered on the first by whole pixels.

    Returns:
      The mean, and which windows took part: those shifted by more than 4 pixels do not.
    """
    first = images[0]
    total, count = first.astype(np.float64), np.ones((*first.shape[:2], 1))
    part = [True]
    everywhere = np.ones(first.shape[:2], bool)
    correlation = registration.MaskedCorrelation(
        first.mean(axis=-1), everywhere, search=min(2 * _MAX_WINDOW_SHIFT, min(first.shape[:2]) - 1)
    )
    for image in images[1:]:
        shift = correlation.shift(image.mean(axis=-1), everywhere)
        part.append(max(abs(s) for s in shift) <= _MAX_WINDOW_SHIFT)
        if part[-1]:
            inside = ops.translate(everywhere, shift, fill=False)[..., None]
            moved = np.moveaxis(ops.translate(np.moveaxis(image, -1, 0), shift), 0, -1)
            total += np.where(inside, moved, 0)
            count += inside
    return (total / count).astype(np.float32), part


def _frame_weights(windows: Windows, part: list[bool]) -> np.ndarray:
    """Each kept frame's share in the average, repeats included."""
    weights = np.zeros(len(windows.frames))
    for members, used in zip(windows.members, part):
        if used:
            np.add.at(weights, list(members), 1.0)
    return (weights / weights.sum()).astype(np.float32)


def missing_parts(bundle: Bundle) -> list[str]:
    """Sub-trees that the bundle's system needs and the bundle lacks."""
    return [name for name in param_shapes(bundle.config) if name not in bundle.params]


def check_predictor(bundle: Bundle) -> None:
    """Raises where something is not a bundle, or not a whole network."""
    if not isinstance(bundle, Bundle):
        raise TypeError(
            f"params: found {type(bundle).__name__}, expected a Bundle as load_params returns it"
        )
    missing = missing_parts(bundle)
    if missing:
        raise ValueError(
            f"params: the bundle has no {', '.join(missing)}; it can start a training (--init) "
            "but not predict"
        )


def _reference_index(reference: int | str | None, frames: int, rule: str) -> int | None:
    if reference is None:
        if rule == "given":
            raise ValueError(
                "reference: found none, expected a frame's index: these parameters were trained "
                "with given reference frames"
            )
        reference = rule
    if isinstance(reference, str) and reference in ("clearest", "first"):
        return 0 if reference == "first" else None
    if isinstance(reference, (int, np.integer)) and not isinstance(reference, bool):
        if 0 <= reference < frames:
            return int(reference)
        raise ValueError(f"reference: found {reference}, expected 0 to {frames - 1}")
    raise ValueError(
        f"reference: found {reference!r}, expected 'clearest', 'first' or a frame's index"
    )


def _warn_if_unlike_training(lr: np.ndarray, masks: np.ndarray, config: ModelConfig) -> None:
    clear = lr[masks]
    norm = config.normalization
    for c in range(clear.shape[-1]):
        values = clear[:, c].astype(np.float64)
        mean = float(np.atleast_1d(norm.lr_mean)[c % np.size(norm.lr_mean)])
        std = float(np.atleast_1d(norm.lr_std)[c % np.size(norm.lr_std)])
        if abs(values.mean() - mean) > 3 * std or not std / 10 <= values.std() <= 10 * std:
            warnings.warn(
                f"the stack's values (mean {values.mean():.6g}, deviation {values.std():.3g}) are "
                f"far from those of training (mean {mean:.6g}, deviation {std:.3g}): scale them to "
                "the training units, or train on such data",
                UserWarning,
                stacklevel=3,
            )
            return


class SuperResolved(NamedTuple):
    """What `super_resolve` makes of the kept frames."""

    image: np.ndarray  # [H, W, C] float32, raw
    weights: np.ndarray  # [M] each kept frame's share
    filters: np.ndarray  # [N − 1, K, K], the first window's dynamic filters; [0, K, K] without


def super_resolve(
    bundle: Bundle, lr: np.ndarray, masks: np.ndarray, kept: list[int]
) -> SuperResolved:
    """What the bundle's system makes of the kept frames of a stack.

    Args:
      bundle: a whole system.
      lr: [T, h, w, C], C the bundle's.
      masks: [T, h, w].
      kept: indices of the frames to use, the reference first.
    """
    system, config = bundle.config.system, bundle.config
    if system in ("deepsum", "duf"):
        return _through_windows(bundle, lr, masks, kept)
    frames, clear = lr[kept], masks[kept]
    weights = np.full(len(kept), 1 / len(kept), np.float32)
    if system == "sisr":
        image = sisr_image(bundle.params, prepare.fill_hidden(frames, clear)[0], config)
        weights = np.eye(len(kept), dtype=np.float32)[0]
    elif system == "sisr_mean":
        image = sisr_mean(bundle.params, frames, clear, config)
    elif system == "ibp":
        image = ibp(frames, clear, config.scale, psf_sigma=config.psf_sigma)
    else:
        image = bicubic_mean(frames, clear, config.scale)
    filters = np.zeros((0, config.filter_size, config.filter_size), np.float32)
    return SuperResolved(image, weights, filters)


def _through_windows(
    bundle: Bundle, lr: np.ndarray, masks: np.ndarray, kept: list[int]
) -> SuperResolved:
    """The kept frames through all windows of a stack network."""
    windows = make_windows(lr, masks, kept, bundle.config)
    images, filters = [], []
    for n in range(len(windows.members)):
        sr, taps = run_window(bundle.params, windows, n, bundle.config)
        images.append(np.asarray(sr, np.float32))
        filters.append(np.asarray(taps, np.float32))
    image, part = average_windows(images)
    return SuperResolved(image, _frame_weights(windows, part), filters[0])


@overload
def predict(
    params: Bundle,
    stack: Any,
    masks: Any = None,
    *,
    reference: int | str | None = ...,
    return_details: Literal[False] = ...,
    max_frames: int = ...,
) -> np.ndarray: ...


@overload
def predict(
    params: Bundle,
    stack: Any,
    masks: Any = None,
    *,
    reference: int | str | None = ...,
    return_details: Literal[True],
    max_frames: int = ...,
) -> Prediction: ...


def predict(
    params: Bundle,
    stack: Any,
    masks: Any = None,
    *,
    reference: int | str | None = None,
    return_details: bool = False,
    max_frames: int = MAX_FRAMES,
) -> np.ndarray | Prediction:
    """Super-resolves a stack of images of one place.

    Any number of frames will do. Frames are taken by clearance (see `select_frames`). With more
    than the network's N, a window of N moves by one frame, each window's image is registered on
    the first by whole pixels, and the images are averaged (slides, "Testing with more images");
    with fewer, the clearest is repeated.

    Args:
      params: a bundle, from `load_params`.
      stack: [T, h, w] or [T, h, w, C], T ≥ 1, any real dtype, raw units as in training. C is the
        bundle's, or the bundle has one channel and bands run one by one.
      masks: [T, h, w], bool or 0/1, True = reliable, shared by the bands; None trusts all pixels.
        What they hide still counts in the network's statistics, as clouds did in training, but
        not where it is no measurement (see `prepare.fill_hidden`): NaN, or a no-data value.
      reference: frame whose grid the image lies on: "clearest" (the earliest of a tie), "first"
        or an index; by default as in training, which is the clearest unless set otherwise.
      return_details: return a `Prediction` instead of the image alone.
      max_frames: how many of the clearest frames to use at most (at least N are).

    Returns:
      float32 [r·h, r·w], or [r·h, r·w, C] for a stack with channels; raw units, unclipped.

    Raises:
      TypeError: not a bundle, or not an array of real numbers.
      ValueError: a wrong rank or shape, no frame, non-finite values that the masks call reliable,
        no reliable pixel at all, another number of channels, frames too small for the network, or
        a bundle without all parts of the network.
    """
    check_predictor(params)
    lr, clear = check_stack(stack, masks)
    channels, config = params.config.channels, params.config
    frames = prepare.with_channels(lr, 3)
    if channels not in (1, frames.shape[-1]):
        raise ValueError(
            f"stack: found {frames.shape[-1]} channels, expected the bundle's {channels}"
        )
    least = max(2, config.filter_size // 2 + 1)
    if min(frames.shape[1:3]) * config.scale < least:
        raise ValueError(
            f"stack: found frames of {frames.shape[1]}×{frames.shape[2]} pixels, expected at least "
            f"{-(-least // config.scale)}×{-(-least // config.scale)}"
        )
    if not isinstance(max_frames, (int, np.integer)) or max_frames < 1:
        raise ValueError(f"max_frames: found {max_frames!r}, expected a whole number above 0")
    kept = select_frames(
        clear,
        config.num_frames,
        _reference_index(reference, len(frames), params.info.reference),
        max_frames,
    )
    if params.params:
        _warn_if_unlike_training(frames, clear, config)
    if channels == frames.shape[-1]:
        image, weights, _ = super_resolve(params, frames, clear, kept)
    else:
        bands = [
            super_resolve(params, frames[..., [c]], clear, kept) for c in range(frames.shape[-1])
        ]
        image = np.concatenate([band.image for band in bands], axis=-1)
        weights = np.stack([band.weights for band in bands]).mean(axis=0)
    if lr.ndim == 3:
        image = image[..., 0]
    return Prediction(image, kept[0], tuple(kept), weights) if return_details else image


def _reference(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def add_system_arguments(p: argparse.ArgumentParser) -> None:
    """`--params`, or `--system` for what needs none."""
    either = p.add_mutually_exclusive_group(required=True)
    either.add_argument(
        "--params",
        type=Path,
        metavar="DIR",
        help="a parameter bundle, or the workdir of a training",
    )
    either.add_argument(
        "--system",
        choices=PARAMETERLESS,
        help="a system without parameters, in place of a trained one",
    )


def chosen_bundle(args: argparse.Namespace) -> Bundle:
    """The system that `add_system_arguments` asked for."""
    return load_params(args.params) if args.params else Bundle({}, ModelConfig(system=args.system))


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "python -m deepsum_jax.predict",
        "Super-resolve a stack of low-resolution images of one place.",
        """examples:
  predict --params W --output sr.png data/test/NIR/imgset1306      a Kelvins scene folder
  predict --params W --output sr.npy stack.npy                     [T, h, w] or [T, h, w, C]
  predict --params W --output sr.png a.png b.png c.png --masks am.png bm.png cm.png""",
    )
    add_system_arguments(p)
    p.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help=".png: 16-bit, rounded and clipped; .npy: float32, exact",
    )
    p.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="a scene folder, one .npy or .npz (stack, masks), or PNG frames",
    )
    p.add_argument(
        "--masks",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="masks of the frames, non-zero = reliable; default: all reliable",
    )
    p.add_argument(
        "--reference",
        type=_reference,
        metavar="clearest|first|K",
        help="the frame whose grid the image lies on (default: as in training, the clearest)",
    )
    p.add_argument(
        "--max-frames",
        type=cli.positive,
        default=MAX_FRAMES,
        metavar="M",
        help="use at most the M clearest frames (default: %(default)s)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    stack, masks = read_input(args.inputs, args.masks)
    check_output(args.output, stack.shape[-1] if stack.ndim == 4 else 1)
    bundle = chosen_bundle(args)
    reference = args.reference
    if reference is None and bundle.info.reference == "given" and args.inputs[0].is_dir():
        reference = prepare.reference_frame(kelvins.read_scene(args.inputs[0]), "given")
    result = predict(
        bundle,
        stack,
        masks,
        reference=reference,
        return_details=True,
        max_frames=args.max_frames,
    )
    write_output(args.output, result.image)
    size = "×".join(str(n) for n in result.image.shape)
    print(
        f"{args.output}: {size} from {len(result.frames_used)} of {len(stack)} frames, on the grid "
        f"of frame {result.reference_index}"
    )


if __name__ == "__main__":
    cli.run(main)
