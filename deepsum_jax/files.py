"""Files and folders that appear whole or not at all, and say when they are no longer what was
written."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepsum_jax.reading import parse_json, read_bytes

SUMS = "SHA256SUMS"  # of a folder, as `sha256sum -c` reads them
_SUM = re.compile(rb"([0-9a-f]{64})  (.+)")
_SIGNATURE, _UNSIGNED = "file_sha256", "0" * 64  # of JSON: over its bytes, with zeros in its place
_writing: set[Path] = set()  # of this process, at the moment
_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<process>\d{1,9})\.(?P<kind>tmp|old)")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Removes a file or folder that is whole until it is gone."""
    aside = _aside(path, "tmp")  # nothing that would come back, should this be killed
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, aside)
        _remove(aside)


# --- written aside, then renamed ------------------------------------------------------------------


def check_target(path: str | os.PathLike[str], what: str) -> None:
    """Refuses a file name that could not be written, before the work is done.

    Args:
      path: the file, whose folders may be missing.
      what: the argument that names it, for the message.

    Raises:
      ValueError: a folder, a device, or a place where nothing can be written.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise ValueError(f"{what} {path}: found a folder, expected a file")
    if target.exists() and not target.is_file():
        raise ValueError(f"{what} {path}: found a device or pipe, expected a file")
    above = next(p for p in target.parents if p.exists())
    if not above.is_dir():
        raise ValueError(f"{what} {path}: found that {above} is a file, expected a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{what} {path}: found no permission to write to {above}")


def _aside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


def _writes(process: int, path: Path) -> bool:
    """Whether a process of this number may be writing a file or folder."""
    if process == os.getpid():  # in containers the next process often has the same number
        return path in _writing
    if os.name != "posix":
        return True  # there is no asking
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def sweep(folder: Path, name: str | None = None) -> None:
    """Removes what processes that no longer live were writing into a folder.

    What one of them had set aside without putting its own in its place comes back.

    Args:
      folder: which may be missing.
      name: of the file or folder that they were writing; default any.
    """
    folder = Path(os.path.realpath(folder))
    try:
        found = [_ASIDE.fullmatch(entry) for entry in os.listdir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return
    for match in found:
        if match is None or name not in (None, match["name"]):
            continue
        left, path = folder / match[0], folder / match["name"]
        if _writes(int(match["process"]), path):
            continue
        if match["kind"] == "old" and not path.exists():
            os.replace(left, path)
        else:
            _remove(left)


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        function = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an older C library
        return None
    place = (ctypes.c_int, ctypes.c_char_p)
    function.argtypes = (*place, *place, ctypes.c_uint)
    return function


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names at one instant; False where the system or the file system cannot."""
    rename, here, exchange = _renameat2(), -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename is None:
        return False
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _replace(aside: Path, path: Path) -> None:
    """Gives what is written its name; what had it is gone, or stands aside."""
    if not (aside.is_dir() and path.exists()):
        os.replace(aside, path)
    elif not _exchange(aside, path):  # a folder that is not empty cannot be replaced
        old = _aside(path, "old")
        os.replace(path, old)
        try:
            os.replace(aside, path)
        except OSError:
            os.replace(old, path)
            raise
        _remove(old)


def _settle(*paths: Path) -> None:
    """Has the bytes of files, and the names in folders, on the disk."""
    for path in paths:
        if path.is_symlink() or (os.name != "posix" and path.is_dir()):
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # cannot be asked
                raise
        finally:
            os.close(descriptor)


def _name(error: OSError, aside: Path, path: Path) -> OSError:
    """An error of writing `aside` names what it was to become."""
    if type(error) is OSError and error.errno is None:  # numpy's, of a full disk
        return OSError(errno.EIO, str(error), str(path))
    if error.filename is None:
        error.filename = str(path)
    elif isinstance(error.filename, (str, os.PathLike)):
        inside = Path(error.filename)
        if inside == aside or aside in inside.parents:
            error.filename, error.filename2 = str(path / inside.relative_to(aside)), None
    return error


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within it, errors of the system that name no file name `path`."""
    try:
        yield
    except OSError as error:
        raise _name(error, Path(path), Path(path)) from None


@contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a name beside `path` for a file or folder that takes the place of `path` at the end.

    A reader never meets half a file, a failure leaves what stood there before, and so does a
    machine that stops: what is written is on the disk before it gets its name. What killed
    processes left of writing the same is swept. A symbolic link stays, and what it points at is
    replaced.

    Raises:
      OSError: it cannot be written; errors name `path`.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(f"{path}: found a device or pipe, expected a file or folder")
    # What is written aside as a whole settles as a whole.
    part = any(_ASIDE.fullmatch(folder) for folder in path.parent.parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path, "tmp")
    if part:
        _remove(aside)
    else:
        sweep(path.parent, path.name)
    _writing.add(path)
    try:
        yield aside
        if not part:
            _settle(*aside.rglob("*"), aside)
        _replace(aside, path)
    except OSError as error:
        raise _name(error, aside, path) from None
    finally:
        _writing.discard(path)
        _remove(aside)
    if not part:
        with contextlib.suppress(PermissionError):  # a folder that may be written to, not read
            _settle(path.parent)


@contextlib.contextmanager
def folder_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder beside `path`, for what is needed on the way to it; gone at the end.

    What killed processes left of the same is swept.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = path.with_name(f"{path.name}.parts")
    sweep(path.parent, parts.name)
    aside = _aside(parts, "tmp")
    aside.mkdir()
    _writing.add(parts)
    try:
        yield aside
    finally:
        _writing.discard(parts)
        _remove(aside)


# --- what was written -----------------------------------------------------------------------------


def digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a folder's files."""
    whole = hashlib.sha256()
    for name, one in _digests(folder):
        whole.update(name.encode() + b"\0")
        whole.update(bytes.fromhex(one))
    return whole.hexdigest()


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and SHA-256 of a folder's files, sorted."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        yield path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()


def write_sums(folder: Path) -> None:
    """Writes the digests of a folder's files into it, which is then complete."""
    lines = [f"{one}  {name}\n" for name, one in _digests(folder)]
    (folder / SUMS).write_bytes(os.fsencode("".join(lines)))


def fault_of_sums(folder: Path) -> str | None:
    """What is not as it was when the digests were written, in words that name the file; None where
    nothing is. Files that came later are no fault.

    Raises:
      FileNotFoundError: no digests there.
    """
    *lines, rest = (folder / SUMS).read_bytes().split(b"\n")
    for line in lines or [b""]:
        match = _SUM.fullmatch(line)
        if match is None or rest:
            return f"{SUMS} has other bytes than were written"
        name = os.fsdecode(match[2])
        if not (folder / name).is_file():
            return f"{name!r} is missing"
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != match[1].decode():
            return f"{name} has other bytes than were written"
    return None


def _json_text(data: Any) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Writes indented JSON. Raises ValueError for NaN and infinity, which JSON has no words for."""
    with written_aside(path) as aside:
        aside.write_text(_json_text(data), encoding="utf-8")


def write_signed(path: str | os.PathLike[str], data: dict[str, Any]) -> None:
    """Writes JSON, as `write_json`, with a digest of its own by which damage is noticed."""
    text = _json_text({**data, _SIGNATURE: _UNSIGNED})
    write_json(path, {**data, _SIGNATURE: hashlib.sha256(text.encode()).hexdigest()})


def _signs(key: str) -> bool:
    """Whether a key is that of a signature, or was but for one damaged character."""
    return len(key) == len(_SIGNATURE) and sum(map(str.__ne__, key, _SIGNATURE)) < 2


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads JSON, without the digest that signs it.

    Raises:
      FileNotFoundError: no such file.
      ValueError: as `reading.parse_json`, or other contents than were signed; it names the file.
    """
    data, fault = read_signed(path)
    if fault is not None:
        raise ValueError(fault)
    return data


def read_signed(path: str | os.PathLike[str]) -> tuple[Any, str | None]:
    """As `read_json`, and what to say where it holds other than was signed: whoever can tell what
    is wrong in it says that first."""
    stored = read_bytes(path, "JSON")
    data = parse_json(stored, path)
    if not isinstance(data, dict) or not any(map(_signs, data)):
        return data, None
    signature = str(data.pop(_SIGNATURE, ""))
    unsigned = stored.replace(signature.encode(), _UNSIGNED.encode())
    if signature == hashlib.sha256(unsigned).hexdigest():
        return data, None
    return data, (
        f"{path}: found other contents than were written, damaged or edited; expected those of its "
        f"{_SIGNATURE} (take that line away to keep an edit)"
    )
