"""What the commands share: argument parsers that teach, and errors of one line."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import jax

from deepsum_jax import signals
from deepsum_jax.compiled import keep_compiled

_asked_to_debug = False  # by the command that runs
_LONGEST, _HEAD = 500, 340  # characters of a message; where a longer one is cut
_EXHAUSTED = re.compile(
    r"RESOURCE_EXHAUSTED|out of memory|bad_alloc|(unable to|failed to|cannot) allocate"
    r"|can't start new thread",
    re.IGNORECASE,
)


class _Debug(argparse.Action):
    """Sets what `run` goes by, whichever parser of a command meets the option."""

    def __call__(self, *_: Any) -> None:
        global _asked_to_debug
        _asked_to_debug = True


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def parser(prog: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser whose help keeps the layout of its examples, with the options of all commands."""
    p = _Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "--debug",
        action=_Debug,
        nargs=0,
        default=argparse.SUPPRESS,
        help="show where in the code an error arose",
    )
    return p


def positive(text: str) -> int:
    """An argument that is a whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return value


def one_line(text: str) -> str:
    """Any text as one line of at most 500 characters that a terminal shows as they are.

    Files, and names of files, may hold what moves a cursor, sets colours or turns text around.
    """
    line = " ".join(part.strip() for part in text.splitlines())
    line = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in line)
    return line if len(line) <= _LONGEST else f"{line[:_HEAD]} … {line[_HEAD + 3 - _LONGEST :]}"


def _one_line_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {one_line(str(message))}", file=sys.stderr)


def _one_line(error: BaseException) -> str:
    """What went wrong, in one line; errors of the operating system name the file first."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return one_line(f"{error.filename}: {error.strerror}")
    return one_line(str(error)) or type(error).__name__


def _out_of_memory(error: BaseException) -> str | None:
    """One line for memory that has run out, whoever noticed: Python, numpy, the operating system,
    XLA, C++. None for another error."""
    one: BaseException | None = error
    while one is not None:
        short = isinstance(one, OSError) and one.errno == errno.ENOMEM
        # XLA has no kind of its own for it, and others wrap what they met.
        if isinstance(one, MemoryError) or short or _EXHAUSTED.search(str(one)):
            return (
                f"out of memory ({_one_line(one)[:200]}); take fewer or smaller frames "
                "(--max-frames), smaller batches (--set STAGE.batch_size=…), or a machine with more"
            )
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return None


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


def _fail(error: Exception, message: str) -> NoReturn:
    if _asked_to_debug:
        traceback.print_exception(error)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def run(main: Callable[[], None]) -> None:
    """Runs a command: an error of the input, or of JAX's backend, becomes one line and status 2.

    With `--debug` its traceback stands before that line. A signal that asks it to end becomes one
    line and status 143, Ctrl-C 130; see `signals`.
    """
    global _asked_to_debug
    _asked_to_debug = False
    warnings.showwarning = _one_line_warning
    keep_compiled()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # terminals without × or … get a question mark
    try:
        with signals.heard():
            _check_platforms()
            main()
    except signals.Stopped as stopped:
        print(stopped.message, file=sys.stderr)
        raise
    except BrokenPipeError:  # whoever read has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        message = _out_of_memory(error)
        if message is None and isinstance(error, RuntimeError):
            message = _no_backend(error)
        if message is None and isinstance(error, (ValueError, TypeError, OSError)):
            message = _one_line(error)
        if message is None:
            raise
        _fail(error, message)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        sys.exit(130)
