"""Tiles that are done: in memory, or in a folder beside the output, where a killed run goes on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Store(Protocol):
    """Arrays by name; each is there whole or not at all."""

    def has(self, name: str) -> bool: ...
    def save(self, name: str, array: np.ndarray) -> None: ...
    def load(self, name: str) -> np.ndarray:
        """The array; of a file it is read where it is looked at."""
        ...

    def forget(self, name: str) -> None:
        """Nobody will ask again in this run."""
        ...


class Memory:
    """For results that fit."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def has(self, name: str) -> bool:
        return name in self._arrays

    def save(self, name: str, array: np.ndarray) -> None:
        self._arrays[name] = array

    def load(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def forget(self, name: str) -> None:
        self._arrays.pop(name, None)


class Folder:
    """On disk, until the output stands.

    Args:
      path: of the folder; one that belongs to another run, or is damaged, begins anew.
      run: what the results depend on, as JSON has it.
    """

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self._path = path
        told = json.dumps(run, sort_keys=True)
        about = path / "run.json"
        try:
            same = about.read_text(encoding="utf-8") == told
        except (OSError, UnicodeDecodeError):
            same = False
        if not same:
            if path.is_symlink() or not path.is_dir():
                self.sweep()
            path.mkdir(parents=True, exist_ok=True)
            for left in [about, *path.glob("*.npy")]:
                left.unlink(missing_ok=True)
            self._put("run.json", lambda file: file.write(told.encode()))

    def _place(self, name: str) -> Path:
        return self._path / f"{name}.npy"

    def _put(self, name: str, write: Any) -> None:
        aside = self._path / f".{name}.tmp"
        try:
            with open(aside, "wb") as file:
                write(file)
            os.replace(aside, self._path / name)
        except OSError as error:  # numpy's own tells neither the file nor why
            free = shutil.disk_usage(self._path).free / 1e6
            reason = f"{error.strerror or error}; {free:.0f} MB are free on its disk"
            raise OSError(f"{self._path}: found that it cannot be written ({reason})") from error

    def has(self, name: str) -> bool:
        """Whether a whole result is there; one that cannot be read is none."""
        if not self._place(name).is_file():
            return False
        try:
            self.load(name)
        except (OSError, ValueError, EOFError):
            return False
        return True

    def save(self, name: str, array: np.ndarray) -> None:
        self._put(f"{name}.npy", lambda file: np.save(file, array, allow_pickle=False))

    def load(self, name: str) -> np.ndarray:
        return np.asarray(np.load(self._place(name), mmap_mode="r", allow_pickle=False))

    def forget(self, name: str) -> None:
        """Keeps it: a run that is killed later starts from there."""

    @property
    def begun(self) -> bool:
        """Whether an earlier run left results."""
        return any(self._path.glob("*.npy"))

    def sweep(self) -> None:
        """Removes all of it."""
        if self._path.is_dir() and not self._path.is_symlink():
            shutil.rmtree(self._path)
        elif self._path.exists() or self._path.is_symlink():
            self._path.unlink()
