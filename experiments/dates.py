"""Real dates of one place, as experiments are given them: a folder of GeoTIFFs, one a date."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_dates(p: argparse.ArgumentParser) -> None:
    """`--dates DIR`."""
    p.add_argument(
        "--dates", type=Path, required=True, metavar="DIR", help="GeoTIFFs of one place, one a date"
    )


def rasters(folder: Path) -> list[Path]:
    """The folder's GeoTIFFs by name, and so in the order of time.

    Raises:
      FileNotFoundError: there is none.
    """
    paths = sorted(folder.glob("*.tif"))
    if not paths:
        raise FileNotFoundError(f"{folder}: found no .tif, expected one a date")
    return paths
