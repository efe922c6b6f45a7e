"""What the commands share: argument parsers that teach, and errors of one line."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax


def parser(prog: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser whose help keeps the layout of its examples."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def positive(text: str) -> int:
    """An argument that is a whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return value


def _one_line_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    """What went wrong, in one line; errors of the operating system name the file first."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__


def _keep_compiled() -> None:
    """Keeps compiled programs in the user's cache, so that a command compiles once per size.

    JAX's own settings come first: JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(home, "deepsum_jax"))


class NoBackend(RuntimeError):
    """JAX cannot start on the devices that it should."""


def _check_platforms() -> None:
    """Starts the backend that JAX_PLATFORMS asks for, so that a wrong one is said at once.

    Not where nothing is asked for or a CPU is: that one starts always, and later, when training
    has said how many devices it makes of it.

    Raises:
      NoBackend: it cannot start.
    """
    asked = {
        name.strip() for name in str(getattr(jax.config, "jax_platforms", "") or "").split(",")
    }
    if asked <= {"", "cpu"} or {"-h", "--help", "--version"} & set(sys.argv[1:]):
        return
    try:
        jax.devices()
    except Exception as error:  # noqa: BLE001 (a library that lacks its GPU raises many kinds)
        reason = str(error) and _one_line(error)
        raise NoBackend(reason or "no such device, or no support for it installed") from None


def _no_backend(error: Exception) -> str | None:
    """One line for a backend that cannot start; None for another error."""
    text = _one_line(error)
    if not isinstance(error, NoBackend) and not re.search(
        r"unable to initialize backend|unknown backend|no visible \w+ devices", text, re.IGNORECASE
    ):
        return None
    name = "JAX_PLATFORMS" if os.environ.get("JAX_PLATFORMS") else "JAX_PLATFORM_NAME"
    asked = f"{name}={os.environ[name]}: " if os.environ.get(name) else ""
    return f"{asked}JAX cannot start ({text[:200]}); set JAX_PLATFORMS=cpu, or leave it unset"


def run(main: Callable[[], None]) -> None:
    """Runs a command: an error of the input, or of JAX's backend, becomes one line and status 2."""
    warnings.showwarning = _one_line_warning
    _keep_compiled()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # terminals without × or … get a question mark
    try:
        _check_platforms()
        main()
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        backend = _no_backend(error)
        if backend is not None:
            print(f"error: {backend}", file=sys.stderr)
            sys.exit(2)
        # XLA has no kind of its own for it.
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"error: out of memory: {_one_line(error)[:200]}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; a training goes on where it was with the same command", file=sys.stderr)
        sys.exit(130)
