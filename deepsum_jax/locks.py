"""One owner: a folder is worked in by one process at a time, which holds its lock.

The lock is that of the operating system on `DIR/lock`, gone with its process however it ends; in
the file stand host and process, for those who find it held. Where a file system has no such locks,
the file alone is one, unless the process that it names is dead or it was copied with its folder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepsum_jax import files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_mine: set[int] = set()  # inodes of locks that this process holds by their files alone


class _NoLocks(OSError):
    """The file system has no locks."""


class _Held(Exception):
    """Another process holds a lock file; what stands in it."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.about = about


@contextmanager
def locked(folder: Path, doing: str, instead: str) -> Iterator[None]:
    """Within it, no other process holds a folder, which exists.

    Args:
      doing, instead: what its owner does, and what others may do; for their message.

    Raises:
      ValueError: another process holds it; one line that says which.
      OSError: the lock cannot be written.
    """
    path = folder / _NAME
    try:
        try:
            descriptor = _flock(path)
        except _NoLocks:
            descriptor = _alone(path)
    except _Held as held:
        about = held.about
        who = f"process {about.get('pid', '?')} on {about.get('host', 'an unknown host')}"
        raise ValueError(
            f"{folder}: found {who} {doing}, expected none; wait for its end, or {instead} (if it "
            f"is dead for certain, remove {path})"
        ) from None
    inode = os.fstat(descriptor).st_ino
    _mine.add(inode)
    try:
        with files.naming(path):
            _write(descriptor, inode)
        yield
    finally:
        _mine.discard(inode)
        with contextlib.suppress(OSError):  # the folder may be gone, or another's by now
            if os.stat(path).st_ino == inode:
                path.unlink()
        os.close(descriptor)


def _flock(path: Path) -> int:
    """Opens and locks the file. Raises _NoLocks, or _Held."""
    if fcntl is None:
        raise _NoLocks
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        except FileNotFoundError:
            pass  # its owner took it away while this opened it
        except BlockingIOError:
            os.close(descriptor)
            raise _Held(_read(path)) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                if os.fstat(descriptor).st_size == 0:
                    path.unlink(missing_ok=True)  # made here, and no lock
                os.close(descriptor)
                raise _NoLocks from None
            os.close(descriptor)
            raise
        os.close(descriptor)


def _alone(path: Path) -> int:
    """Makes the file, which only one can. Raises _Held where another process has."""
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            about = _read(path)
            with contextlib.suppress(FileNotFoundError):
                if not _stale(about, os.stat(path).st_ino):
                    raise _Held(about) from None
                path.unlink()


def _stale(about: dict[str, Any], inode: int) -> bool:
    """Whether a lock file is none: a copy, or of a process that is dead."""
    if about.get("inode") != inode:
        return bool(about)  # an empty one is being written
    if about.get("host") != socket.gethostname():
        return False  # nobody here can know
    if about.get("pid") == os.getpid():
        return inode not in _mine  # an earlier process of this number, as in containers
    return not _lives(about.get("pid"))


def _lives(pid: Any) -> bool:
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


def _write(descriptor: int, inode: int) -> None:
    about = {"host": socket.gethostname(), "pid": os.getpid(), "inode": inode}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(about) + "\n").encode(), 0)


def _read(path: Path) -> dict[str, Any]:
    """What stands in a lock file; nothing where it holds nothing that makes sense."""
    try:
        about = json.loads(path.read_bytes()[:4096])
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}
