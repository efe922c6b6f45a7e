"""A system as one file that JAX alone runs, on CPU, GPU and TPU, without this package.

python -m deepsum_jax.export --output FILE

The file is what `jax.export` serialises, parameters within:

    run = jax.export.deserialize(bytearray(open(FILE, "rb").read())).call
    image, standard_error = run(frames, masks, shifts, blur)

frames float32 [N, h, w] raw, the reference first; masks bool [N, h, w], True = reliable; shifts
float32 [N, 2] that register the frames, HR pixels (see `data.sensor`), to about a pixel; blur
float32 [], deviation of the sensor's Gaussian in LR pixels, 0 being that of the parameters; image
and standard error float32 [r·h, r·w], raw. `load` wraps it in checks, takes fewer frames and finds
shifts. A file serves JAX of the version that made it and, as JAX promises, later ones for half a
year.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from deepsum_jax import cli, files
from deepsum_jax.bundle import Bundle
from deepsum_jax.chosen import add_system_arguments, chosen_bundle, chosen_compute
from deepsum_jax.config import Compute, ModelConfig
from deepsum_jax.data.scene import check_stack
from deepsum_jax.inference import check_predictor, super_resolve
from deepsum_jax.sample import sample_stack
from deepsum_jax.systems.system import Stack
from deepsum_jax.systems.table import SYSTEMS, system_of
from deepsum_jax.systems.unrolling.alignment import align

PLATFORMS = ("cpu", "cuda", "tpu")
_LEAST = 8  # pixels of a side
_FRAMES, _SIDE = 11, 128  # where none are asked for
# Of the image's deviation and of the standard error: what prediction may differ by, in float32 and
# in half its digits.
_ALIKE, _ROUGHLY_ALIKE = 0.01, 0.1


class Size(NamedTuple):
    """What an exported function is fixed to."""

    frames: int
    height: int  # LR pixels
    width: int


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """An exported system: (frames, masks, shifts, blur) → (image, standard error)."""

    exported: jax.export.Exported

    @property
    def size(self) -> Size:
        """The most frames, and the only height and width."""
        return Size(*self.exported.in_avals[0].shape)

    @property
    def scale(self) -> int:
        """HR pixels per LR pixel."""
        return int(self.exported.out_avals[0].shape[0]) // self.size.height

    @property
    def platforms(self) -> tuple[str, ...]:
        """What it runs on."""
        return tuple(self.exported.platforms)

    def __str__(self) -> str:
        frames, height, width = self.size
        return (
            f"×{self.scale} of {frames} frames of {height}×{width} on {', '.join(self.platforms)}"
        )

    def __call__(
        self, frames: Any, masks: Any = None, shifts: Any = None, blur: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Super-resolves a stack of one band.

        Args:
          frames: [n, h, w] raw, any real dtype, n ≥ 1 up to the function's; the first is the
            reference, on whose grid the image lies. What an array calls missing counts as masked.
          masks: [n, h, w] or [h, w], as `predict` takes them.
          shifts: [n, 2], HR pixels; None finds them, as `predict` does.
          blur: deviation of the sensor's Gaussian, LR pixels, up to 2; 0 is the parameters' own.

        Returns:
          Image and standard error, float32 [r·h, r·w] each, raw.

        Raises:
          TypeError, ValueError: as `check_stack`; frames of another size or too many; a reference
            that hides everything, shifts of another shape, or a blur out of range.
        """
        lr, clear = check_stack(frames, masks, "frames")
        size, count = self.size, len(lr)
        if lr.ndim != 3 or lr.shape[1:] != size[1:] or count > size.frames:
            raise ValueError(
                f"frames: found shape {lr.shape}, expected [n, {size.height}, {size.width}] with n "
                f"up to {size.frames}"
            )
        if not clear[0].any():
            raise ValueError("frames: found a first frame without a reliable pixel, expected some")
        if not 0 <= blur <= 2:
            raise ValueError(f"blur: found {blur}, expected 0 to 2 LR pixels")
        if shifts is None:
            shifts = align(lr[..., None], clear, self.scale, blur or ModelConfig.psf_sigma).shifts
        elif np.shape(shifts) != (count, 2):
            raise ValueError(f"shifts: found shape {np.shape(shifts)}, expected ({count}, 2)")
        given = [lr.astype(np.float32), clear, np.asarray(shifts, np.float32)]
        room = [np.zeros((size.frames - count, *x.shape[1:]), x.dtype) for x in given]
        whole = [np.concatenate(pair) for pair in zip(given, room)]
        image, error = self.exported.call(*whole, np.float32(blur))
        return np.asarray(image), np.asarray(error)


def load(path: str | os.PathLike[str]) -> Function:
    """Reads an exported function.

    Raises:
      FileNotFoundError: no such file.
      ValueError: none of `deepsum export`'s, or no `flatbuffers` to read it with.
    """
    _check_flatbuffers()
    data = bytearray(Path(path).read_bytes())
    try:
        function = Function(jax.export.deserialize(data))
        whole = len(function.exported.in_avals) == 4 and function.size.frames > 0
    except Exception as error:  # noqa: BLE001 (flatbuffers raises many kinds for damaged files)
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"{path}: found no exported function ({reason})") from None
    if not whole:
        raise ValueError(f"{path}: found another function than `deepsum export` writes")
    return function


def _check_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError("exported functions need flatbuffers: pip install 'deepsum_jax[export]'")


def exported(
    bundle: Bundle, frames: int, height: int, width: int, compute: Compute = Compute()
) -> bytes:
    """A bundle's system at a fixed size, as the bytes of a file; the module says what is in them.

    Raises:
      ValueError: a system that is no function of a stack, sides below 8, a mean over turns, or no
        `flatbuffers`.
    """
    _check_flatbuffers()
    check_predictor(bundle)
    system = system_of(bundle.config)
    if system.standalone is None:
        able = ", ".join(s.label for s in SYSTEMS.values() if s.standalone is not None)
        raise ValueError(f"params: found {system.label}, expected what can be exported: {able}")
    if compute.self_ensemble:
        raise ValueError("compute.self_ensemble: found true, expected false: it is not exported")
    for name, side in (("height", height), ("width", width)):
        if side < _LEAST:
            raise ValueError(f"{name}: found {side}, expected at least {_LEAST} LR pixels")
    run = system.standalone(bundle.params, bundle.config, compute)
    given = (
        jax.ShapeDtypeStruct((frames, height, width), jnp.float32),
        jax.ShapeDtypeStruct((frames, height, width), jnp.bool_),
        jax.ShapeDtypeStruct((frames, 2), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    with _without_places():
        return bytes(jax.export.export(jax.jit(run), platforms=PLATFORMS)(*given).serialize())


@contextmanager
def _without_places() -> Iterator[None]:
    """Programs that are lowered here do not name the files that they come from: those of this
    machine are nobody's business, and no part of what is computed."""
    settings: Any = jax.config
    wanted = {
        "jax_hlo_source_file_canonicalization_regex": ".*",
        "jax_include_full_tracebacks_in_locations": False,
    }
    before = {name: getattr(settings, name) for name in wanted}
    for name, value in wanted.items():
        settings.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            settings.update(name, value)


# --- held against prediction ---------------------------------------------------------------------


class Difference(NamedTuple):
    """The most that two results differ by."""

    image: float  # of its deviation
    error: float  # of the standard error


def difference(function: Function, bundle: Bundle, compute: Compute = Compute()) -> Difference:
    """An exported function against the bundle on a trial: the shipped stack under clouds, in the
    function's size."""
    lr, masks = _trial(function.size)
    expected = super_resolve(bundle, Stack(lr[..., None], masks), compute)
    assert expected.standard_error is not None
    shifts = align(lr[..., None], masks, bundle.config.scale, bundle.config.psf_sigma).shifts
    image, error = function(lr, masks, shifts)
    away = np.abs(image - expected.image[..., 0]).max() / expected.image.std()
    ratio = error / expected.standard_error[..., 0]
    return Difference(float(away), float(np.abs(ratio - 1).max()))


def _trial(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """The shipped stack, mirrored to a size, each frame with a cloud and a hot pixel of its own."""
    stack, _ = sample_stack()
    sides = [max(0, want - have) for want, have in zip(size[1:], stack.shape[1:])]
    room = np.pad(stack, ((0, 0), (0, sides[0]), (0, sides[1])), mode="symmetric")
    lr = room[np.arange(size.frames) % len(stack), : size.height, : size.width].copy()
    masks = np.ones(lr.shape, bool)
    rng = np.random.default_rng(0)
    for frame, mask in zip(lr, masks):
        y, x, hot_y, hot_x = (int(f * n) for f, n in zip(rng.random(4), 2 * size[1:]))
        frame[hot_y, hot_x] = 255
        cloud = (slice(y, y + size.height // 4), slice(x, x + size.width // 4))
        mask[cloud], frame[cloud] = False, 255
    return lr, masks


# --- the command ---------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "deepsum export",
        "Write a system as one file that JAX alone runs on CPU, GPU and TPU, at a fixed size:\n"
        "(frames, masks, shifts, blur) → (image, standard error).",
        """examples:
  export --output sr.jax                                       the shipped parameters
  export --scale 2 --frames 6 --height 256 --width 256 --output sr.jax
In Python: deepsum_jax.export.load("sr.jax")(frames, masks)""",
    )
    add_system_arguments(p)
    p.add_argument("--output", required=True, type=Path, metavar="FILE", help="the file")
    for name, value, what in (
        ("frames", _FRAMES, "the most frames that it takes"),
        ("height", _SIDE, "of the frames, pixels"),
        ("width", _SIDE, "of the frames, pixels"),
    ):
        p.add_argument(
            f"--{name}",
            type=cli.positive,
            default=value,
            metavar=name[0].upper(),
            help=f"{what} (default: {value})",
        )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    files.check_target(args.output, "--output")
    bundle, compute = chosen_bundle(args), chosen_compute(args)
    data = exported(bundle, args.frames, args.height, args.width, compute)
    with files.written_aside(args.output) as aside:
        aside.write_bytes(data)
        function = load(aside)
        found = difference(function, bundle, compute)
        most = _ALIKE if compute.dtype == "float32" else _ROUGHLY_ALIKE
        if not max(found) <= most:
            raise ValueError(
                f"{args.output}: found an image {found.image:.1g} of its deviation and a standard "
                f"error {found.error:.1g} of itself away from prediction, expected {most} at most"
            )
    print(
        f"{args.output}: {system_of(bundle.config).label} {function}, {len(data) / 1e6:.1f} MB; "
        f"its image differs from predict's by {found.image:.1g} of the deviation at most, its "
        f"standard error by {found.error:.1g} of itself"
    )


if __name__ == "__main__":
    cli.run(main)
