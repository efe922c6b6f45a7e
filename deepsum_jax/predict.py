"""From a raw stack of low-resolution images to one super-resolved image.

python -m deepsum_jax.predict --params DIR --output FILE INPUT…
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from deepsum_jax import alongside, cli, sample
from deepsum_jax.bundle import Bundle
from deepsum_jax.chosen import add_system_arguments, chosen_bundle, chosen_compute
from deepsum_jax.config import Compute
from deepsum_jax.data import kelvins
from deepsum_jax.data.frames import MAX_FRAMES, reference_frame
from deepsum_jax.data.scene import check_stack, with_channels
from deepsum_jax.data.stackfile import check_output, read_input, write_output
from deepsum_jax.inference import check_predictor
from deepsum_jax.prediction import Prediction, prediction_of
from deepsum_jax.radiometry import Normalize
from deepsum_jax.rasters import options, xarrays
from deepsum_jax.tiling.source import ArraySource


@overload
def predict(
    params: Bundle,
    stack: Any,
    masks: Any = None,
    *,
    reference: int | str | None = ...,
    return_details: Literal[False] = ...,
    max_frames: int | None = ...,
    normalize: Normalize | None = ...,
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
    normalize: Normalize | None = ...,
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
    normalize: Normalize | None = None,
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
      normalize: for systems that carry their training's normalisation: "stack" maps each band's
        mean and deviation onto training's and the image back. None takes the stack as it is.
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
        result, valid = prediction_of(labelled, params, reference, max_frames, normalize, compute)
        result = _labelled(stack, result, valid, params.config.scale, order)
    else:
        lr, clear = check_stack(stack, masks)
        source = ArraySource(with_channels(lr, 3), clear)
        result, _ = prediction_of(source, params, reference, max_frames, normalize, compute)
        if lr.ndim == 3:
            error = result.standard_error
            result = dataclasses.replace(
                result,
                image=result.image[..., 0],
                standard_error=None if error is None else error[..., 0],
            )
    return result if return_details else result.image


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


_RULES = ("clearest", "first")


def _reference(text: str) -> int | str | Path:
    if text in _RULES:
        return text
    return int(text) if text.lstrip("-").isdigit() else Path(text)


# Files of the readers of their own; whatever else GDAL may know is a raster.
_NO_RASTERS = (".npy", ".npz", ".png", "")


def _are_rasters(inputs: Sequence[Path]) -> bool:
    """Whether inputs are for GDAL: by their names, since it reads PNGs too.

    Raises:
      ValueError: some are, and some are not; a folder of them.
    """
    for path in inputs:
        held = sorted(path.glob("*.[tT][iI][fF]*")) if path.is_dir() else []
        if held:
            raise ValueError(
                f"{path}: found a folder of rasters, expected the files, as "
                f"{path}/*{held[0].suffix}"
            )
    are = [path.suffix.lower() not in _NO_RASTERS and not path.is_dir() for path in inputs]
    if any(are) and not all(are):
        raise ValueError(
            f"{inputs[are.index(False)]}: found it beside the raster {inputs[are.index(True)]}, "
            "expected inputs of one kind"
        )
    return all(are)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "deepsum predict",
        "Super-resolve a stack of low-resolution images of one place.",
        """examples:
  predict --output sr.tif --preview p.png sample                   ten real dates, shipped
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
    p.add_argument(
        "--normalize",
        choices=("stack",),
        help="for parameters that go with their training's units: map each band's mean and "
        "deviation onto training's, and the image back; the default needs none",
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
    if args.output.suffix.lower() in (".tif", ".tiff") and sample.is_meant(args.inputs):
        args.inputs = sample.sample_rasters()
    if _are_rasters(args.inputs):
        _predict_rasters(args)
        return
    unused = options.given(args)
    if unused:
        raise ValueError(f"{unused[0]}: found {args.inputs[0]}, expected rasters with it")
    if isinstance(args.reference, Path):
        raise ValueError(  # noqa: TRY004 (a wrong word, not a wrong type, for whoever wrote it)
            f"--reference: found {str(args.reference)!r}, expected 'clearest', 'first' or a "
            "frame's index"
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
        normalize=args.normalize,
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
