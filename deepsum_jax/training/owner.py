"""One owner: a working directory is trained in by one process at a time."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepsum_jax.locks import locked


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Within it, no other process trains in a folder, which is made where there is none.

    A folder of which nothing came, not even settings to go on from, is taken away again.

    Raises:
      ValueError: another process holds it.
      OSError: it cannot be made or written to.
    """
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "training in it", "use another --workdir"):
        try:
            yield
        except BaseException:
            if made and not (folder / "config.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # not empty: no longer ours alone
                    for path in made[1:]:
                        path.rmdir()
            raise
