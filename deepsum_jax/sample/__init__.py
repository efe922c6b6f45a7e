"""A real stack that the package ships, to try things on; README.md beside it says what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

NAME = "sample"  # what `predict` takes for it
FILE = Path(__file__).with_name("naip.npz")
DATES = Path(__file__).with_name("dates")  # the same place as rasters, one a date


def is_meant(inputs: Sequence[Path]) -> bool:
    """Whether a command's inputs are the sample's name, and no file's."""
    return [str(path) for path in inputs] == [NAME] and not inputs[0].exists()


def sample_rasters() -> list[Path]:
    """The files of ten dates of one place: red, green, blue and near infrared, georeferenced."""
    return sorted(DATES.glob("*.tif"))


def sample_stack() -> tuple[np.ndarray, np.ndarray]:
    """The stack and its masks: ten summers of one place, raw.

    Returns:
      stack uint8 [10, 128, 128], near infrared; masks bool [10, 128, 128], True = reliable.
    """
    import numpy as np  # here, so that the name costs nothing

    with np.load(FILE, allow_pickle=False) as arrays:
        return arrays["stack"], arrays["masks"]
