"""Commands as users run them, each in a process of its own, with one cache of compiled programs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
UNFIT = re.compile(r"Traceback|Exception ignored|Fatal Python error")


def start(cache: Path, module: str, *arguments: object, **more: str) -> subprocess.Popen[str]:
    """A command.

    Args:
      cache: folder of compiled programs.
      module: of the package, as `predict`.
      more: environment variables.
    """
    return subprocess.Popen(
        [sys.executable, "-m", f"deepsum_jax.{module}", *map(str, arguments)],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={
            **os.environ,
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **more,
        },
    )  # fmt: skip


def run(cache: Path, module: str, *arguments: object, **more: str) -> tuple[int, str]:
    """Its status, and what it says on both streams."""
    process = start(cache, module, *arguments, **more)
    output, _ = process.communicate(timeout=3600)
    return process.returncode, output


def told_in_a_line(status: int, output: str) -> str | None:
    """The one line of a refusal; None where it is none."""
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    return errors[0] if status == 2 and len(errors) == 1 and not UNFIT.search(output) else None
