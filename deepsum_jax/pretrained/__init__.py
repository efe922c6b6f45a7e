"""The parameters that the package ships, and where they lie: one bundle a scale, `x2/`, `x3/`, …

README.md beside them says what they were trained on and what to expect of them.
"""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT = "default"
"""What `load_params`, `--params` and `--init` call them. A folder of that name is "./default"."""

PLACE = Path(__file__).parent
_SCALE = 3  # where none is asked for


def place(text: str) -> str | Path:
    """An argument that says where parameters are: `DEFAULT`, or a folder.

    Paths forget a leading "./", so this comes before them.
    """
    return DEFAULT if text == DEFAULT else Path(text)


def is_default(path: str | os.PathLike[str]) -> bool:
    """Whether the shipped parameters are meant; a `Path` always is a folder."""
    return isinstance(path, str) and path == DEFAULT


def scales() -> tuple[int, ...]:
    """The scales that parameters are shipped for, ascending."""
    found = (p.parent.name.removeprefix("x") for p in PLACE.glob("x*/bundle.json"))
    return tuple(sorted(int(name) for name in found if name.isdecimal()))


def shipped(scale: int | None = None, what: str = "scale") -> Path:
    """The folder of the shipped bundle of a scale.

    Args:
      scale: output pixels per input pixel; None is 3.
      what: the argument that gives it, for the message.

    Raises:
      FileNotFoundError: the installed package has none at all.
      ValueError: none of that scale.
    """
    known, wanted = scales(), _SCALE if scale is None else scale
    if not known:
        raise FileNotFoundError(
            f"{DEFAULT}: found no parameters in the package ({PLACE}), expected those that it "
            "ships; name a folder of parameters, or use a system that needs none"
        )
    if wanted not in known:
        names = [str(n) for n in known]
        listed = " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
        raise ValueError(f"{what}: found {wanted}, expected {listed}, which the package ships")
    return PLACE / f"x{int(wanted)}"
