"""One owner of a working directory: who holds it is said, and what is no lock holds nobody."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepsum_jax import locks
from deepsum_jax.config import preset
from deepsum_jax.training.owner import owned
from deepsum_jax.training.run import train

HERE = f"found process {os.getpid()} on {socket.gethostname()} training in it"


@pytest.fixture(params=["locks", "no locks"])
def folder(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """On a file system with locks, and on one without."""
    if request.param == "no locks":

        def refused(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(locks.fcntl, "flock", refused)
    (tmp_path / "w").mkdir()
    return tmp_path / "w"


def test_the_second_is_told_who_is_first(folder: Path) -> None:
    with owned(folder):
        with pytest.raises(ValueError, match=HERE) as caught, owned(folder):
            raise AssertionError("not reached")
        assert "\n" not in str(caught.value)
        with pytest.raises(ValueError, match=HERE):
            train(folder, preset("tiny"))
    assert not list(folder.iterdir())
    with owned(folder):  # and then it is free
        pass


def write_lock(folder: Path, **about: Any) -> None:
    path = folder / "lock"
    path.touch()
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "inode": path.stat().st_ino}
    path.write_text(json.dumps({**mine, **about}))


def dead() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_locks_of_the_dead_are_none(folder: Path) -> None:
    write_lock(folder, pid=dead())
    with owned(folder):
        pass
    write_lock(folder)  # this process's number, of one before it
    with owned(folder):
        pass
    assert not list(folder.iterdir())


def test_a_copied_lock_is_none(folder: Path) -> None:
    with owned(folder):
        shutil.copytree(folder, folder.parent / "copy")
        assert (folder.parent / "copy" / "lock").exists()
        with owned(folder.parent / "copy"):
            pass
    folder.rename(folder.parent / "moved")
    with owned(folder.parent / "moved"):
        pass


def test_another_host_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    write_lock(tmp_path, host="elsewhere", pid=7)
    with (
        pytest.raises(ValueError, match=r"process 7 on elsewhere .* remove .*lock"),
        owned(tmp_path),
    ):
        pass
    assert (tmp_path / "lock").exists()


def test_a_folder_of_which_nothing_came(tmp_path: Path) -> None:
    with pytest.raises(KeyError), owned(tmp_path / "new" / "w"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), owned(tmp_path / "new" / "w"):
        (tmp_path / "new" / "w" / "config.json").touch()
        raise KeyError
    assert [p.name for p in (tmp_path / "new" / "w").iterdir()] == ["config.json"]
