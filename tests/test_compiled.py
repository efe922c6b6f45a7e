"""Compiled programs are kept where only their user can write, or nowhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import pytest

from deepsum_jax import compiled


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where programs are to be kept; the settings of JAX stay as they are."""
    found: list[Path] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings: Any = jax.config
    monkeypatch.setattr(compiled, "jax", Settings(found))
    assert not settings.jax_compilation_cache_dir
    return found


class Settings:
    """As `jax`, with a cache that is enabled and no folder for it."""

    jax_compilation_cache_dir, jax_enable_compilation_cache = None, True

    def __init__(self, found: list[Path]) -> None:
        self.config, self._found = self, found

    def update(self, name: str, value: str) -> None:
        assert name == "jax_compilation_cache_dir"
        self._found.append(Path(value))


def test_a_folder_of_ones_own(kept: list[Path], tmp_path: Path) -> None:
    compiled.keep_compiled()
    assert kept == [tmp_path / "cache" / "deepsum_jax"]
    assert os.stat(kept[0]).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
@pytest.mark.parametrize("place", ["cache/deepsum_jax", "cache"])
def test_one_that_others_can_write(
    place: str, mode: int, kept: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache" / "deepsum_jax").mkdir(parents=True)
    (tmp_path / place).chmod(mode)
    compiled.keep_compiled()
    assert not kept
    assert f"others can write {tmp_path / place}; chmod go-w it" in capsys.readouterr().err
    (tmp_path / "cache").chmod(0o1777)  # as /tmp
    (tmp_path / "cache" / "deepsum_jax").chmod(0o755)
    compiled.keep_compiled()
    assert len(kept) == 1


def test_one_that_belongs_to_another(
    kept: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    someone = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: someone)
    compiled.keep_compiled()
    assert not kept and "belongs to another user" in capsys.readouterr().err


def test_a_link_to_where_others_can_write(kept: list[Path], tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "mine").mkdir(mode=0o700)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "deepsum_jax").symlink_to(tmp_path / "open" / "mine")
    compiled.keep_compiled()
    assert not kept


def test_no_home_no_cache(kept: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    compiled.keep_compiled()
    assert not kept and not Path("relative").exists()
