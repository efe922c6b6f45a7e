"""The dates that a user lists: their files, names and bands."""

from __future__ import annotations

import filecmp
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from deepsum_jax.config import nearest
from deepsum_jax.rasters.dates import Date


def split_names(inputs: Sequence[Path]) -> list[list[Path]]:
    """The files of each date: A+B are two of one, unless a file has that very name."""
    return [
        [path]
        if path.exists() or "+" not in str(path)
        else [Path(part) for part in str(path).split("+") if part]
        for path in inputs
    ]


def told_apart(dates: Sequence[Sequence[Path]]) -> tuple[str, ...]:
    """What messages call dates: their files' names, with as many folders as tell them apart."""
    parts = [paths[0].absolute().with_suffix("").parts for paths in dates]
    for taken in range(1, max(len(p) for p in parts)):
        names = tuple("/".join(p[-taken:]) for p in parts)
        if len(set(names)) == len(names):
            return names
    return tuple(str(paths[0]) for paths in dates)


def check_different(dates: Sequence[Sequence[Path]]) -> None:
    """Raises ValueError where a date is given twice: one file, by whatever name, or its copy."""
    seen: set[str] = set()
    sizes: dict[int, list[Path]] = {}
    for paths in dates:
        for path in paths:
            if not path.is_file():
                continue  # which `Date` says
            real = os.path.realpath(path)
            if real in seen:
                raise ValueError(f"{path}: found this file twice, expected each once")
            seen.add(real)
            alike = sizes.setdefault(path.stat().st_size, [])
            for other in alike:
                if filecmp.cmp(path, other, shallow=False):
                    raise ValueError(
                        f"{path}: found the same image as {other}, expected each date once"
                    )
            alike.append(path)


def chosen_bands(dates: Sequence[Date], asked: Sequence[str]) -> list[list[int]]:
    """The bands (from 0 on) of each date that are super-resolved: those asked for, or those that
    all dates have, by their names where they have such, or else by their numbers.

    Raises:
      ValueError: a band that a date does not have, one twice, or dates of more and fewer bands
        where nothing says which are the same.
    """
    if asked:
        return [_asked(date, asked) for date in dates]
    first, counts = dates[0], {date.count for date in dates}
    named = all(all(d.labels) and len({*d.labels}) == d.count for d in dates)
    shared = [label for label in first.labels if all(label in d.labels for d in dates)]
    if named and shared:
        if len(counts) == 1 and len(shared) < first.count:  # by mistake, it seems
            others = {label for date in dates for label in date.labels} - {*shared}
            warnings.warn(
                f"only {', '.join(shared)}: the bands {', '.join(sorted(others))} are not in all "
                "dates; --bands takes numbers too",
                UserWarning,
                stacklevel=3,
            )
        return [[date.labels.index(label) for label in shared] for date in dates]
    if len(counts) > 1:
        raise ValueError(
            f"{first.paths[0]}: found dates of {min(counts)} to {max(counts)} bands, expected as "
            "many of each; --bands says which"
        )
    return [[*range(first.count)] for _ in dates]


def _asked(date: Date, names: Sequence[str]) -> list[int]:
    found = [_band(date, name) for name in names]
    for n, band in enumerate(found):
        if band in found[:n]:
            raise ValueError(f"--bands: found {names[n]!r} twice, expected each band once")
    return found


def _band(date: Date, name: str) -> int:
    if name in date.labels:
        return date.labels.index(name)
    if name.isdecimal():
        if 1 <= int(name) <= date.count:
            return int(name) - 1
        raise ValueError(f"{date.paths[0]}: found no band {name}, expected 1 to {date.count}")
    known = [label for label in date.labels if label]
    hint = f"; {nearest(name, known)}" if known else ""
    raise ValueError(
        f"{date.paths[0]}: found no band {name!r}, expected a number from 1 to {date.count}"
        + (f" or one of {', '.join(known)}{hint}" if known else "")
    )
