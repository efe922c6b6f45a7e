"""From a raw stack of low-resolution images to one super-resolved image.

python -m deepsum_jax.predict --params DIR --output FILE INPUT…
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from deepsum_jax import alongside, cli
from deepsum_jax.bundle import Bundle
from deepsum_jax.chosen import add_system_arguments, chosen_bundle, chosen_compute
from deepsum_jax.config import Compute, ModelConfig
from deepsum_jax.data import kelvins
from deepsum_jax.data.doubts import doubts
from deepsum_jax.data.frames import MAX_FRAMES, reference_frame
from deepsum_jax.data.resample import nearest_upsample
from deepsum_jax.data.scene import check_stack, with_channels
from deepsum_jax.data.stackfile import check_output, read_input, write_output
from deepsum_jax.inference import check_predictor, frames_in_use, super_resolve_bands
from deepsum_jax.rasters import options, xarrays
from deepsum_jax.systems.system import Stack
from deepsum_jax.systems.table import system_of
from deepsum_jax.tiling.mosaic import Mosaic, make_plan
from deepsum_jax.tiling.overview import WHOLE
from deepsum_jax.tiling.source import ArraySource, Rect, Source


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """A super-resolved image and how it came about."""

    image: np.ndarray  # float32 [r·h, r·w] or [r·h, r·w, C], raw units
    reference_index: int  # in the stack; the image lies on this frame's grid
    frames_used: tuple[int, ...]  # indices in the stack, clearest first after the reference
    weights: np.ndarray  # float32 [len(frames_used)], each frame's share; sums to one
    # Where the system has them:
    standard_error: np.ndarray | None = None  # as `image`, root-mean-square error to be expected
    frames_per_pixel: np.ndarray | None = None  # float32 [r·h, r·w], how many frames spoke


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


@overload
def predict(
    params: Bundle,
    stack: Any,
    masks: Any = None,
    *,
    reference: int | str | None = ...,
    return_details: Literal[False] = ...,
    max_frames: int | None = ...,
    compute: Compute = ...,
) -> np.ndarray: ...


@overload
def predict(
    params: Bundle,
    stack: Any,
    masks: Any = None,
    *,
    reference: int | str | None = ...,
    return_details: Literal[True],
    max_frames: int | None = ...,
    compute: Compute = ...,
) -> Prediction: ...


def predict(
    params: Bundle,
    stack: Any,
    masks: Any = None,
    *,
    reference: int | str | None = None,
    return_details: bool = False,
    max_frames: int | None = None,
    compute: Compute = Compute(),
) -> np.ndarray | Prediction:
    """Super-resolves a stack of images of one place.

    Any number of frames will do. Frames are taken by clearance (see `select_frames`), but for those
    that cannot serve, which are left out with a warning (see `data.serving`). With more
    than the network's N, a window of N moves by one frame, each window's image is registered on
    the first by whole pixels, and the images are averaged (slides, "Testing with more images");
    with fewer, the clearest is repeated. Frames of more than 512×512 pixels are super-resolved
    tile by tile, see `tiling.mosaic`.

    Args:
      params: a bundle, from `load_params`.
      stack: [T, h, w] or [T, h, w, C], T ≥ 1, any real dtype, raw units as in training. C is the
        bundle's, or the bundle has one channel and bands run one by one.
        A list of frames, masked arrays and dask arrays will do as well, and xarray's DataArrays
        (time, y, x) or (time, band, y, x) and Datasets of bands, of which large ones are read
        window by window; what they call missing counts as masked.
      masks: [T, h, w], or one [h, w] for all frames; bool, 0/1 or 0/255, True = reliable, shared
        by the bands; None trusts all pixels but those that `stack` itself calls missing.
        What they hide has no say, except in networks trained as published, which saw clouds
        (`ModelConfig.hidden`); NaN and no-data values have none there either.
      reference: frame whose grid the image lies on: "clearest" (the earliest of a tie), "first"
        or an index; by default as in training, which is the clearest unless set otherwise.
      return_details: return a `Prediction` instead of the image alone.
      max_frames: how many of the clearest frames to use at most; 1 uses the reference alone. By
        default 15, or the network's N if that is more.
      compute: what to compute with: dtype, precision, formulation of the operators; and whether
        to take the mean over flips and quarter turns, at eight times the cost.

    Returns:
      float32 [r·h, r·w], or [r·h, r·w, C] for a stack with channels; raw units, unclipped. For
      xarray's stacks one of their kind on the finer grid, (y, x) or (band, y, x), with their
      coordinates, CRS, attributes and encoding.

    Raises:
      TypeError: not a bundle, or not an array of real numbers.
      ValueError: a wrong rank or shape, no frame, non-finite values that the masks call reliable,
        no reliable pixel at all, a `reference=k` that cannot serve, another number of channels,
        frames too small for the network, a bundle without all parts of the network, or an image
        that would not be finite.

    Warns of a stack that looks wrong (see `data.doubts`): masks that seem inverted, levels that
    jump between frames, values far from those of training.
    """
    check_predictor(params)
    if max_frames is not None and (not isinstance(max_frames, (int, np.integer)) or max_frames < 1):
        raise ValueError(f"max_frames: found {max_frames!r}, expected a whole number above 0")
    if xarrays.is_labelled(stack):
        labelled = xarrays.as_source(stack, masks)
        order = [int(n) for n in labelled.order]
        if isinstance(reference, (int, np.integer)) and reference in order:
            reference = order.index(int(reference))
        result, valid = _of(labelled, params, reference, max_frames, compute)
        result = _labelled(stack, result, valid, params.config.scale, order)
    else:
        lr, clear = check_stack(stack, masks)
        source = ArraySource(with_channels(lr, 3), clear)
        result, _ = _of(source, params, reference, max_frames, compute)
        if lr.ndim == 3:
            error = result.standard_error
            result = dataclasses.replace(
                result,
                image=result.image[..., 0],
                standard_error=None if error is None else error[..., 0],
            )
    return result if return_details else result.image


def _of(
    source: Source, bundle: Bundle, reference: int | str | None, max_frames: int | None,
    compute: Compute,
) -> tuple[Prediction, np.ndarray]:  # fmt: skip
    """What a bundle makes of a source, and where any frame was reliable [r·h, r·w]."""
    config, height, width = bundle.config, source.height, source.width
    if config.channels not in (1, source.channels):
        raise ValueError(
            f"stack: found {source.channels} channels, expected the bundle's {config.channels}"
        )
    least = max(2, config.filter_size // 2 + 1)
    if min(height, width) * config.scale < least:
        raise ValueError(
            f"stack: found frames of {height}×{width} pixels, expected at least "
            f"{-(-least // config.scale)}×{-(-least // config.scale)}"
        )
    index = _reference_index(reference, len(source.names), bundle.info.reference)
    explicit = isinstance(reference, (int, np.integer))
    if height * width > WHOLE:
        result, valid = _by_tiles(bundle, source, index, explicit, max_frames, compute)
    else:
        lr, clear = check_stack(*source.read(Rect(0, 0, height, width)))
        result = _at_once(bundle, lr, clear, index, explicit, max_frames, compute)
        valid = np.any(nearest_upsample(clear, config.scale), axis=0)
    broken = np.count_nonzero(~np.isfinite(result.image))
    if broken:
        raise ValueError(
            f"params: found {broken} of {result.image.size} pixels of the image not finite, "
            "expected numbers: these parameters cannot serve this stack; check its values and units"
        )
    return result, valid


def _labelled(
    stack: Any, result: Prediction, valid: np.ndarray, scale: int, order: Sequence[int]
) -> Prediction:
    """A result with the stack's labels; indices are those of the stack as it was given."""
    error, spoke = result.standard_error, result.frames_per_pixel
    return Prediction(
        xarrays.labelled_like(stack, result.image, scale, valid),
        order[result.reference_index],
        tuple(order[n] for n in result.frames_used),
        result.weights,
        None if error is None else xarrays.standard_error(stack, error, scale, valid),
        None if spoke is None else xarrays.frames(stack, spoke, scale),
    )


def _at_once(
    bundle: Bundle, lr: np.ndarray, masks: np.ndarray, reference: int | None, explicit: bool,
    max_frames: int | None, compute: Compute,
) -> Prediction:  # fmt: skip
    """A stack [T, h, w, C] as a whole."""
    for doubt in doubts(lr, masks):
        warnings.warn(doubt, UserWarning, stacklevel=4)
    chosen = frames_in_use(bundle, lr, masks, reference, max_frames, explicit)
    for line in chosen.warnings():
        warnings.warn(line, UserWarning, stacklevel=4)
    if bundle.params and not system_of(bundle.config).any_units:
        _warn_if_unlike_training(lr, masks, bundle.config)
    kept = chosen.kept
    result = super_resolve_bands(bundle, Stack(lr[kept], masks[kept]), compute)
    return Prediction(
        result.image, kept[0], tuple(kept), result.weights, result.standard_error,
        result.frames_per_pixel,
    )  # fmt: skip


def _by_tiles(
    bundle: Bundle, source: Source, reference: int | None, explicit: bool,
    max_frames: int | None, compute: Compute,
) -> tuple[Prediction, np.ndarray]:  # fmt: skip
    """A large source, tile by tile; and where any frame was reliable."""
    plan = make_plan(bundle, source, reference, explicit=explicit, max_frames=max_frames)
    if bundle.params and not system_of(bundle.config).any_units:
        _warn_if_unlike_training(*source.read(plan.overview.samples(None)[0]), bundle.config)
    mosaic = Mosaic(bundle, source, plan, compute=compute)
    strips = list(mosaic.strips())

    def joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if known else None

    kept = plan.chosen.kept
    prediction = Prediction(
        np.concatenate([strip.image for strip in strips]),
        kept[0],
        tuple(kept),
        mosaic.shares[kept].astype(np.float32),
        joined([strip.standard_error for strip in strips]),
        joined([strip.frames_per_pixel for strip in strips]),
    )
    return prediction, np.concatenate([strip.valid for strip in strips])


_RULES = ("clearest", "first")


def _reference(text: str) -> int | str | Path:
    if text in _RULES:
        return text
    return int(text) if text.lstrip("-").isdigit() else Path(text)


# Files of the readers of their own; whatever else GDAL may know is a raster.
_NO_RASTERS = (".npy", ".npz", ".png", "")


def _are_rasters(inputs: Sequence[Path]) -> bool:
    """Whether inputs are for GDAL: by their names, since it reads PNGs too."""
    return all(path.suffix.lower() not in _NO_RASTERS and not path.is_dir() for path in inputs)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "deepsum predict",
        "Super-resolve a stack of low-resolution images of one place.",
        """examples:
  predict --output sr.png sample                                   a real stack, shipped
  predict --output sr.png data/test/NIR/imgset1306                 a Kelvins scene folder
  predict --scale 2 --output sr.npy stack.npy                      [T, h, w] or [T, h, w, C]
  predict --params W --output sr.png a.png b.png c.png --masks am.png bm.png cm.png
  predict --system ibp --scale 2 --output sr.npy stack.npy         without training
  predict --output sr.npy --uncertainty se.npy --preview p.png stack.npy
  predict --output sr.tif --uncertainty se.tif 2024*.tif           rasters, one file a date
  predict --output sr.tif --mask-pattern _B4=_BQA --qa landsat-c1 --nodata 0 *_B4.TIF""",
    )
    add_system_arguments(p)
    p.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help=".png: 16-bit, rounded and clipped; .npy: float32, exact; .tif, of rasters: "
        "cloud-optimised, georeferenced",
    )
    p.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="a scene folder, one .npy or .npz (stack, masks), PNG frames, rasters, or sample, a "
        "real stack that the package ships",
    )
    p.add_argument(
        "--masks",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="masks of the frames, or one for all, non-zero = reliable; default: all reliable",
    )
    p.add_argument(
        "--reference",
        type=_reference,
        metavar="clearest|first|K|FILE",
        help="the frame whose grid the image lies on (default: as in training, the clearest)",
    )
    p.add_argument(
        "--max-frames",
        type=cli.positive,
        metavar="M",
        help=f"use at most the M clearest frames (default: {MAX_FRAMES}, or as many as the "
        "network takes); 1 uses the reference alone",
    )
    alongside.add_arguments(p)
    options.add_arguments(p)
    return p


def _predict_rasters(args: argparse.Namespace) -> None:
    try:
        from deepsum_jax.rasters import command
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{args.inputs[0]}: found a raster, for which {error.name} is missing; expected the "
            "extra: pip install 'deepsum_jax[geo]'"
        ) from None
    alongside.check_arguments(args, rasters=True)
    bundle = chosen_bundle(args)
    alongside.check_system(args, bundle)
    command.run(args, bundle)


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if _are_rasters(args.inputs):
        _predict_rasters(args)
        return
    unused = options.given(args)
    if unused:
        raise ValueError(f"{unused[0]}: found {args.inputs[0]}, expected rasters with it")
    if isinstance(args.reference, Path):
        raise ValueError(  # noqa: TRY004 (a wrong word, not a wrong type, for whoever wrote it)
            f"--reference: found {args.reference}, expected clearest, first or a frame's number"
        )
    stack, masks = read_input(args.inputs, args.masks)
    channels = stack.shape[-1] if stack.ndim == 4 else 1
    check_output(args.output, channels)
    alongside.check_arguments(args, channels)
    bundle = chosen_bundle(args)
    alongside.check_system(args, bundle)
    reference = args.reference
    if reference is None and bundle.info.reference == "given" and args.inputs[0].is_dir():
        reference = reference_frame(kelvins.read_scene(args.inputs[0]), "given")
    result = predict(
        bundle,
        stack,
        masks,
        reference=reference,
        return_details=True,
        max_frames=args.max_frames,
        compute=chosen_compute(args),
    )
    write_output(args.output, result.image)
    alongside.write(args, stack, masks, result, bundle)
    size = "×".join(str(n) for n in result.image.shape)
    print(
        f"{args.output}: {size} from {len(result.frames_used)} of {len(stack)} frames, on the grid "
        f"of frame {result.reference_index}"
    )


class _CallableModule(types.ModuleType):
    """`deepsum_jax.predict` is this module and the function in it, whichever came first."""

    __call__ = staticmethod(predict)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    cli.run(main)
