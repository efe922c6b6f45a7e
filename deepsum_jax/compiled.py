"""Compiled programs that are kept between commands, in a folder that only their user can write.

What lies there is machine code that the next command runs: whoever can write it can run anything.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import jax


def keep_compiled() -> None:
    """Keeps compiled programs in the user's cache, so that a command compiles once per size.

    JAX's own settings come first: JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false.
    Where somebody else could write the folder, nothing is kept, and a line on stderr says so.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(home):  # the specification ignores such, and there may be no home
        return
    folder = Path(home, "deepsum_jax")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fault = _fault(folder)
    except OSError:  # read-only homes are common, and no reason to stop
        return
    if fault is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    else:
        print(f"note: {folder}: compiled programs are not kept there, {fault}", file=sys.stderr)


def _fault(folder: Path) -> str | None:
    """Who else could put files into a folder, in words; None where nobody could."""
    if not hasattr(os, "geteuid"):  # Windows: homes are private there
        return None
    mine, place = os.geteuid(), Path(os.path.realpath(folder))
    for path in (place, *place.parents):
        status = os.stat(path)
        if status.st_uid != mine and (path == place or status.st_uid != 0):
            return f"{path} belongs to another user"
        # In a sticky folder, such as /tmp, nobody can replace what belongs to others.
        sticky = path != place and status.st_mode & stat.S_ISVTX
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            return f"others can write {path}; chmod go-w it"
    return None
