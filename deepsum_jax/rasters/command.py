"""`deepsum predict` on rasters: own dates in, a trustworthy raster out."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rasterio

from deepsum_jax import files
from deepsum_jax.bundle import Bundle, package_version
from deepsum_jax.chosen import chosen_compute
from deepsum_jax.locks import locked
from deepsum_jax.radiometry import Radiometry
from deepsum_jax.rasters import layers, options, output, preview
from deepsum_jax.rasters.source import RasterSource
from deepsum_jax.systems.table import system_of
from deepsum_jax.tiling.mosaic import Mosaic, Plan, choose_reference, make_plan
from deepsum_jax.tiling.overview import Overview, look_over
from deepsum_jax.tiling.store import Folder

_CACHE = 64 * 2**20  # bytes


def run(args: argparse.Namespace, bundle: Bundle) -> None:
    """Super-resolves the rasters `args.inputs` into `args.output`, and what was asked for besides.

    Args:
      args: of the command `predict`.
      bundle: the system.

    Raises:
      ValueError, FileNotFoundError: rasters that do not go together, or files that could not be
        written; nothing is written then.
    """
    _check_outputs(args)
    chosen_compute(args)  # raises what is wrong with it before the work
    read = options.parse(args)
    rule = args.reference if args.reference is not None else bundle.info.reference
    if rule == "given":
        raise ValueError(
            "--reference: found none, expected a date's file or number: these parameters were "
            "trained with given reference frames"
        )
    # GDAL would keep a part of the machine's memory full of what it has read.
    with (
        rasterio.Env(GDAL_CACHEMAX=_CACHE),
        contextlib.closing(RasterSource(args.inputs, read, rule)) as source,
    ):
        _check_apart(args, source)
        _check_size(source, bundle)
        _layers(args, source, bundle)  # raises what is wrong with them
        overview = look_over(source)
        if rule == "clearest":
            overview = _onto(source, overview, choose_reference(source, overview, bundle))
        plan = _planned(args, source, bundle, overview)
        if source.reference != plan.reference:  # the first choice cannot serve
            overview = _onto(source, overview, plan.reference)
            plan = _planned(args, source, bundle, overview)
        wanted = _layers(args, source, bundle)
        _say(source, overview, plan, bundle.config.scale)
        _write(args, source, bundle, plan, wanted)


def _onto(source: RasterSource, overview: Overview, reference: int) -> Overview:
    """Makes a date the reference, whose grid is the output's."""
    if source.reference == reference:
        return overview
    source.onto(reference)
    return look_over(source)


def _planned(
    args: argparse.Namespace, source: RasterSource, bundle: Bundle, overview: Overview
) -> Plan:
    return make_plan(
        bundle, source, source.reference, explicit=isinstance(args.reference, (int, Path)),
        max_frames=args.max_frames, overview=overview, normalize=args.normalize,
    )  # fmt: skip


# --- before the work


def _check_outputs(args: argparse.Namespace) -> None:
    """Raises ValueError for files that could not be written."""
    for name in ("output", "uncertainty", "frames"):
        path = getattr(args, name)
        if path is None:
            continue
        files.check_target(path, f"--{name}")
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise ValueError(
                f"--{name} {path}: found suffix {path.suffix!r} for rasters ({args.inputs[0]} …), "
                "expected .tif"
            )


def _check_apart(args: argparse.Namespace, source: RasterSource) -> None:
    """Raises ValueError for an output that is one of the files that are read."""
    inputs = {os.path.realpath(p) for p in source.paths}
    for name in ("output", "uncertainty", "frames", "preview"):
        path = getattr(args, name)
        if path is not None and os.path.realpath(path) in inputs:
            raise ValueError(f"--{name} {path}: found one of the inputs, expected another file")


def _check_size(source: RasterSource, bundle: Bundle) -> None:
    config = bundle.config
    least = max(16, -(-(config.filter_size // 2 + 1) // config.scale))
    if min(source.height, source.width) < least:
        raise ValueError(
            f"{source.names[source.reference]}: found {source.height}×{source.width} pixels, "
            f"expected at least {least}×{least}"
        )
    if config.channels not in (1, source.channels):
        raise ValueError(
            f"--bands: found {source.channels}, expected the parameters' {config.channels}"
        )


def _layers(args: argparse.Namespace, source: RasterSource, bundle: Bundle) -> list[layers.Layer]:
    scale, place = bundle.config.scale, source.georeference
    wanted = [layers.image(args.output, place, scale, args.dtype, source.colours)]
    if args.uncertainty is not None:
        wanted.append(layers.standard_error(args.uncertainty, place, scale))
    if args.frames is not None:
        wanted.append(layers.frames(args.frames, place, scale))
    return wanted


def _say(source: RasterSource, overview: Overview, plan: Plan, scale: int) -> None:
    """What is known of each date, a line each."""
    hidden = source.why_hidden(overview.samples(None))
    print("date, reliable, shift from the reference in pixels:", file=sys.stderr)
    shifts = plan.field.whole.shifts / scale
    for n, name in enumerate(source.names):
        why = [f"{100 * share:.0f} % {what}" for what, share in hidden[n].items() if share > 0.005]
        line = f"  {name}: {100 * overview.clearance[n]:.0f} %"
        line += f" ({', '.join(why)})" if why else ""
        if n == plan.reference:
            line += ", the reference"
        elif n in plan.chosen.kept:
            y, x = shifts[plan.chosen.kept.index(n)]
            line += f", {y:+.2f} {x:+.2f}"
        else:
            line += f", left out: {plan.chosen.serving.left_out.get(n, 'no reliable pixel')}"
        print(line, file=sys.stderr)


# --- the work


def _write(
    args: argparse.Namespace, source: RasterSource, bundle: Bundle, plan: Plan,
    wanted: Sequence[layers.Layer],
) -> None:  # fmt: skip
    partial = _partial(args.output)
    if partial.is_symlink() or not partial.is_dir():
        files.remove(partial)
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial, f"writing {args.output}", "name another --output"):
        store = Folder(partial, _run(args, source, bundle, plan))
        if store.begun:
            print(f"going on from {partial}", file=sys.stderr)
        try:
            _compute(args, source, bundle, plan, wanted, store)
        except (ValueError, TypeError, OSError):  # which another run would meet again
            store.sweep()
            raise
        store.sweep()


def _compute(
    args: argparse.Namespace, source: RasterSource, bundle: Bundle, plan: Plan,
    wanted: Sequence[layers.Layer], store: Folder,
) -> None:  # fmt: skip
    mosaic = Mosaic(
        bundle, source, plan, compute=chosen_compute(args), memory=args.memory, store=store,
        progress=True,
    )  # fmt: skip
    crop = None
    if args.preview is not None:
        part = preview.telling_part(source, plan.reference, _drawn(source))
        crop = preview.Crop(part, bundle.config.scale, source.channels)
    tags: dict[str, str] = {}
    with output.written(wanted, tags) as write:
        for strip in mosaic.strips():
            write(strip)
            if crop is not None:
                crop.take(strip)
        tags.update(_provenance(source, bundle, plan, mosaic.shares))
    if crop is not None:
        _draw(args.preview, source, plan, bundle, crop)
    place = source.georeference.finer(bundle.config.scale)
    used = sum(share > 0 for share in mosaic.shares)
    print(
        f"{args.output}: {place.height}×{place.width}×{source.channels} from {used} of "
        f"{len(source.names)} dates, on the grid of {source.names[plan.reference]}"
    )


def _partial(path: Path) -> Path:
    real = Path(os.path.realpath(path))
    return real.with_name(f".{real.name}.partial")


def params_hash(bundle: Bundle) -> str:
    """A digest of a bundle's parameters and what computes with them."""
    digest = hashlib.sha256(json.dumps(bundle.config.to_dict(), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(bundle.params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _run(
    args: argparse.Namespace, source: RasterSource, bundle: Bundle, plan: Plan
) -> dict[str, Any]:
    """What the tiles depend on."""
    stats = [(os.path.realpath(p), os.stat(p)) for p in source.paths]
    return {
        "version": package_version(),
        "parameters": params_hash(bundle),
        "compute": [str(args.assignments), jax.local_device_count()],
        "inputs": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats],
        "options": repr(source.options),
        "frames": [plan.chosen.kept, args.max_frames],
        "normalize": args.normalize,
        "tiles": repr(plan.tiles),
    }


def _provenance(
    source: RasterSource, bundle: Bundle, plan: Plan, shares: np.ndarray
) -> dict[str, str]:
    """How the raster came about: nothing that another run would not say too."""
    scale, kept = bundle.config.scale, plan.chosen.kept
    dates = {
        source.names[n]: {
            "weight": round(float(shares[n]), 4),
            "shift": [round(float(s) / scale, 3) for s in plan.field.whole.shifts[k]],
        }
        for k, n in enumerate(kept)
    }
    units = plan.units
    normalized = {} if units is None else {"DEEPSUM_NORMALIZED": _linear(units)}
    left_out = {source.names[n]: why for n, why in sorted(plan.chosen.serving.left_out.items())}
    return {
        "TIFFTAG_SOFTWARE": f"deepsum_jax {package_version()}",
        "DEEPSUM_SYSTEM": bundle.config.system,
        "DEEPSUM_SCALE": str(scale),
        "DEEPSUM_PSF_SIGMA": f"{bundle.config.psf_sigma:g}",
        "DEEPSUM_PARAMETERS": f"sha256:{params_hash(bundle)}",
        "DEEPSUM_REFERENCE": source.names[plan.reference],
        # Each date's share in the image, and its shift (y, x) from the reference in input pixels.
        "DEEPSUM_DATES": json.dumps(dates),
        "DEEPSUM_LEFT_OUT": json.dumps(left_out),
        **normalized,
    }


def _linear(units: Radiometry) -> str:
    """How values were mapped onto training's before the system saw them, band by band."""
    return json.dumps({name: values.tolist() for name, values in units._asdict().items()})


def _draw(path: Path, source: RasterSource, plan: Plan, bundle: Bundle, crop: preview.Crop) -> None:
    from deepsum_jax import alongside  # and with it matplotlib, for those who draw

    n, part = plan.reference, crop.part
    lr, masks = source.read(part)
    where = ""
    if (part.height, part.width) != (source.height, source.width):
        where = f"\n{part.height}×{part.width} pixels from row {part.row}, column {part.column}"
    alongside.draw(
        path, lr[n], masks[n], crop.image, crop.standard_error,
        f"reference, {source.names[n]}{where}",
        f"{system_of(bundle.config).label} ×{bundle.config.scale}",
        _drawn(source),
    )  # fmt: skip


def _drawn(source: RasterSource) -> tuple[int, ...]:
    """The bands that a preview shows."""
    names = [
        name or colour for name, colour in zip(source.georeference.descriptions, source.colours)
    ]
    return preview.drawn_bands(names)
