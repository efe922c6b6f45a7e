"""What a driver did, and what went wrong."""

from __future__ import annotations

from typing import NamedTuple


class Report(NamedTuple):
    """Of one driver, for people."""

    done: str  # one line
    faults: list[str]  # none, where all held
