"""How rasters are read: what `deepsum predict` asks, and what the answers mean."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from deepsum_jax.tiling.mosaic import MEMORY


@dataclasses.dataclass(frozen=True)
class Quality:
    """What a mask file's values say: which of them are reliable.

    Attributes:
      clear: class numbers that are reliable, of a scene classification.
      bad_bits: bits that hide a pixel where they are set.
      bad_pairs: (lower bit, value) of two-bit numbers that hide a pixel from that value on.
      most: a probability above it hides a pixel.
    """

    clear: tuple[int, ...] = ()
    bad_bits: tuple[int, ...] = ()
    bad_pairs: tuple[tuple[int, int], ...] = ()
    most: float | None = None

    def reliable(self, values: np.ndarray) -> np.ndarray:
        """Which of the values of a mask file are reliable; without a rule, those that are not 0."""
        if self.clear:
            return np.isin(values, self.clear)
        if self.most is not None:
            return np.asarray(values <= self.most)  # NaN is not
        if not (self.bad_bits or self.bad_pairs):
            return np.asarray((values != 0) & (values == values))
        codes = np.nan_to_num(values, nan=-1).astype(np.int64)  # of −1 all bits are set
        bad = np.zeros(values.shape, bool)
        for bit in self.bad_bits:
            bad |= (codes >> bit) & 1 == 1
        for bit, least in self.bad_pairs:
            bad |= (codes >> bit) & 3 >= least
        return ~bad


PRESETS = {
    # Fill, cloud, and what is a cloud, its shadow or cirrus with high confidence.
    "landsat-c1": Quality(bad_bits=(0, 4), bad_pairs=((5, 3), (7, 3), (11, 3))),
    # Fill, dilated cloud, cirrus, cloud, cloud shadow.
    "landsat-c2": Quality(bad_bits=(0, 1, 2, 3, 4)),
    # Sentinel-2: vegetation, bare soil, water, unclassified, snow.
    "scl": Quality(clear=(4, 5, 6, 7, 11)),
}


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How dates are read.

    Attributes:
      bands: names or numbers from 1 on; none for all that every date has.
      bounds: left, bottom, right, top in the reference's CRS.
      window: row, column, height, width in the reference's pixels.
      warp: whether dates on other grids are resampled.
      nodata: in place of what the files say.
      masks: one file a date, or one for all.
      mask_pattern: (text, text): in a date's file name the first becomes the second.
      quality: what the mask files' values mean.
      buffer: LR pixels by which what masks hide is widened.
    """

    bands: tuple[str, ...] = ()
    bounds: tuple[float, float, float, float] | None = None
    window: tuple[int, int, int, int] | None = None
    warp: bool = False
    nodata: float | None = None
    masks: tuple[Path, ...] = ()
    mask_pattern: tuple[str, str] | None = None
    quality: Quality = Quality()
    buffer: int = 0


def add_arguments(p: argparse.ArgumentParser) -> None:
    """What only rasters have."""
    group = p.add_argument_group(
        "rasters",
        "GeoTIFFs and whatever else GDAL reads, one file a date (A+B: bands of one date in two "
        "files); the output is a cloud-optimised GeoTIFF",
    )
    group.add_argument(
        "--bands",
        type=_names,
        default=(),
        metavar="1,2,…",
        help="bands to super-resolve, by number or name (default: all)",
    )
    area = group.add_mutually_exclusive_group()
    area.add_argument(
        "--bounds",
        nargs=4,
        type=float,
        metavar=("LEFT", "BOTTOM", "RIGHT", "TOP"),
        help="only this area, in units of the reference's CRS",
    )
    area.add_argument(
        "--window",
        nargs=4,
        type=int,
        metavar=("ROW", "COLUMN", "HEIGHT", "WIDTH"),
        help="only this part, in pixels of the reference",
    )
    group.add_argument(
        "--warp",
        action="store_true",
        help="resample dates of another CRS, pixel size or rotation to the reference's grid; that "
        "takes from them much of what super-resolution feeds on",
    )
    group.add_argument(
        "--nodata", type=float, metavar="V", help="this value is none (default: as the files say)"
    )
    group.add_argument(
        "--mask-pattern",
        type=_pattern,
        metavar="OLD=NEW",
        help="the mask of a date lies in the file with NEW for OLD in its name, as _B4=_BQA",
    )
    meaning = group.add_mutually_exclusive_group()
    meaning.add_argument(
        "--qa",
        choices=sorted(PRESETS),
        help="masks are quality bands of Landsat collection 1 or 2, or Sentinel-2's scene "
        "classification (clear: 4, 5, 6, 7, 11)",
    )
    meaning.add_argument(
        "--clear", type=_numbers, metavar="4,5,…", help="masks hold classes, and these are reliable"
    )
    meaning.add_argument(
        "--bad-bits", type=_bits, metavar="0,3,…", help="masks hold bits, and these hide a pixel"
    )
    meaning.add_argument(
        "--max-probability",
        type=float,
        metavar="P",
        help="masks hold a probability of cloud, and more than this hides a pixel",
    )
    group.add_argument(
        "--mask-buffer",
        type=_whole,
        default=0,
        metavar="N",
        help="widen what masks hide by N pixels (default: 0)",
    )
    group.add_argument(
        "--dtype", metavar="NAME", help="of the output, as float32 (default: the input's)"
    )
    group.add_argument(
        "--memory",
        type=_amount,
        default=MEMORY,
        metavar="GB",
        help="memory for tiles; decides how many run at once, never what comes out "
        f"(default: {MEMORY:g})",
    )


def given(args: argparse.Namespace) -> list[str]:
    """Those of the options that were used, for inputs that are no rasters."""
    names = (
        "bands", "bounds", "window", "warp", "nodata", "mask_pattern", "qa", "clear", "bad_bits",
        "max_probability", "mask_buffer", "dtype",
    )  # fmt: skip
    unused: dict[str, Any] = {"bands": (), "warp": False, "mask_buffer": 0}
    return [_option(n) for n in names if getattr(args, n) != unused.get(n)]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse(args: argparse.Namespace) -> ReadOptions:
    """The options that `add_arguments` asked for.

    Raises:
      ValueError: what masks mean, or their buffer, without masks; masks named twice.
    """
    if args.qa:
        quality = PRESETS[args.qa]
    else:
        quality = Quality(args.clear or (), args.bad_bits or (), most=args.max_probability)
    if args.masks and args.mask_pattern:
        raise ValueError("--mask-pattern: found --masks besides, expected one of the two")
    about = {"--qa", "--clear", "--bad-bits", "--max-probability", "--mask-buffer"}
    if not (args.masks or args.mask_pattern):
        for option in given(args):
            if option in about:
                raise ValueError(
                    f"{option}: found no mask files, expected --masks or --mask-pattern to name "
                    "them"
                )
    return ReadOptions(
        bands=tuple(args.bands),
        bounds=None if args.bounds is None else tuple(args.bounds),
        window=None if args.window is None else tuple(args.window),
        warp=args.warp,
        nodata=args.nodata,
        masks=tuple(args.masks),
        mask_pattern=args.mask_pattern,
        quality=quality,
        buffer=args.mask_buffer,
    )


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected names or numbers, as 1,2,3")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (-1,)
    if min(numbers) < 0 or max(numbers) > 2**31:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected whole numbers, as 4,5,6")
    return numbers


def _bits(text: str) -> tuple[int, ...]:
    bits = _numbers(text)
    if max(bits) > 62:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected bits, 0 to 62")
    return bits


def _pattern(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not old or not equals or old == new:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected OLD=NEW, as _B4=_BQA")
    return old, new


def _whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, 0 to 1000")
    return value


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected GB, more than 0")
    return value
