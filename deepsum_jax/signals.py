"""Signals that ask a command to end: SIGTERM, SIGHUP, SIGUSR1 (Slurm's warning), and Ctrl-C.

The first one ends what runs in good order, the second at once. Most work is simply left, by an
exception, and whatever is half written goes; work that has something to save holds signals back
and asks for them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STATUS = 143  # what a shell calls SIGTERM: a failure, so that nothing goes on with half a model
_AGAIN = 0.02  # seconds
_ENDING = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT")
    if hasattr(signal, name)  # Windows has two of them
)


class Stopped(SystemExit):
    """A signal asked to end. Uncaught, it ends the process with status 143, and says nothing."""

    def __init__(self, message: str) -> None:
        super().__init__(STATUS)
        self.message = message

    def __str__(self) -> str:
        return self.message


class _Asked:
    """What has been asked for, and whether somebody holds it back."""

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self.raised: BaseException | None = None
        self.held = 0

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.by = signal.Signals(number)
        for one in _ENDING:  # the second ends at once, even where Python does not get to run
            if signal.getsignal(one) is self:
                signal.signal(one, signal.SIG_DFL)
        if not self.held:
            self.raised = ending(f"stopped by {self.by.name}")
            raise self.raised

    def again(self) -> None:
        """Sends the signal to this process once more, when whoever forgot it is through."""
        if self.by is not None:
            signal.signal(self.by, self)
            threading.Timer(_AGAIN, self._send, [self.by]).start()

    def _send(self, number: signal.Signals) -> None:
        if self.by == number:
            os.kill(os.getpid(), number)


_asked = _Asked()


def asked() -> signal.Signals | None:
    """The signal that asked to end; None where none has."""
    return _asked.by


def ending(message: str) -> BaseException:
    """What to raise for the signal that asked to end: KeyboardInterrupt for Ctrl-C, else
    `Stopped`."""
    return KeyboardInterrupt(message) if _asked.by == signal.SIGINT else Stopped(message)


@contextmanager
def heard() -> Iterator[None]:
    """Within it, signals end what runs; afterwards they mean what they meant before.

    To be entered after whatever sets handlers of its own. A signal that is ignored stays ignored,
    as SIGHUP under nohup. Only the main thread can set handlers; in another this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.getsignal(one) for one in _ENDING}
    outermost = all(handler is not _asked for handler in before.values())
    show, hook = sys.unraisablehook, _forgotten(sys.unraisablehook)
    if outermost:
        sys.unraisablehook = hook
    try:
        for one, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(one, _asked)
        yield
    finally:
        for one, handler in before.items():
            # A handler that was not set by Python cannot be put back by it; and within another
            # `heard`, where one signal has come, the next still ends at once.
            ended = _asked.by is not None and handler is _asked
            if handler is not signal.SIG_IGN and handler is not None and not ended:
                signal.signal(one, handler)
        if outermost:
            _asked.by = _asked.raised = None
            if sys.unraisablehook is hook:
                sys.unraisablehook = show


def _forgotten(show: Callable[[Any], object]) -> Callable[[Any], None]:
    """What takes exceptions that nobody can catch, as those within callbacks of the garbage
    collector: that of a signal is neither shown nor forgotten."""

    def hook(what: Any) -> None:
        if what.exc_value is None or what.exc_value is not _asked.raised:
            show(what)
        else:
            _asked.again()

    return hook


@contextmanager
def held() -> Iterator[Callable[[], signal.Signals | None]]:
    """Within it, signals wait: it yields what tells which one does, for work that then saves and
    raises `ending`. One that still waits at the end is raised there. They come to the main thread,
    so in others this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    _asked.held += 1
    try:
        yield asked
    finally:
        _asked.held -= 1
    _raise_if_asked()


@contextmanager
def heeded() -> Iterator[None]:
    """Within it, in work that holds signals, they end at once what can be done again."""
    before, _asked.held = _asked.held, 0
    try:
        _raise_if_asked()
        yield
    finally:
        _asked.held = before


def _raise_if_asked() -> None:
    if _asked.by is not None and not _asked.held:
        raise ending(f"stopped by {_asked.by.name}")
