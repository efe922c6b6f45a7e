"""What killed processes, disks and hands did to a working directory, before a run goes on with it.

States look after themselves (`state`), and so does the log (`logbook`).
"""

from __future__ import annotations

import sys
from pathlib import Path

from deepsum_jax import files
from deepsum_jax.bundle import Damaged, load_params
from deepsum_jax.training import stages
from deepsum_jax.training.workdir import has_begun


def sweep(workdir: Path) -> None:
    """Removes what killed processes left half written."""
    for place in (workdir, workdir / "cache", *(workdir / stage for stage in stages.NAMES)):
        files.sweep(place)


def mend(workdir: Path) -> None:
    """Notices at the start of a run what is missing or damaged of what came before.

    A stage whose last parameters are damaged, and which has states, ends once more from these.

    Raises:
      ValueError: something that nothing makes anew; it says what to do.
    """
    for stage in filter(lambda name: has_begun(workdir, name), stages.NAMES):
        for name in ("config.json", "data.json"):
            if not (workdir / name).exists():
                raise ValueError(
                    f"{workdir / name}: found none, and that {stage} has begun; put it back, or "
                    "use another --workdir"
                )
        _check_bundle(workdir / stage / "best", "remove that folder to go on without")
        last = workdir / stage / "last"
        try:
            _check_bundle(last, "nor is there a state of the stage to make it anew from")
        except Damaged as error:
            if not any((workdir / stage / "checkpoints").glob("[0-9]*")):
                raise
            print(f"note: {str(error).partition(';')[0]}; made anew from a state", file=sys.stderr)
            files.remove(last)


def _check_bundle(folder: Path, advice: str) -> None:
    """Raises Damaged where there is a bundle that is not whole."""
    if not folder.exists():
        return
    if not (folder / "bundle.json").is_file():
        raise Damaged(f"{folder}: found no bundle.json; {advice}")
    try:
        load_params(folder)
    except Damaged as error:
        raise Damaged(f"{str(error).partition(';')[0]}; {advice}") from None
