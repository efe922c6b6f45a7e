"""Flips single bits in the files of a working directory, and listens to whoever reads them next."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from deepsum_jax import files, load_params, trees
from deepsum_jax.config import TrainConfig
from deepsum_jax.data.dataset import prepare_dataset
from deepsum_jax.training import run, workdir
from deepsum_jax.training.logbook import Logbook
from deepsum_jax.training.state import StateKeeper


class Flip(NamedTuple):
    """One bit of one file."""

    path: Path
    byte: int
    bit: int


@contextlib.contextmanager
def flipped(flip: Flip) -> Iterator[None]:
    """Within it, the bit is another one."""
    stored = flip.path.read_bytes()
    changed = bytearray(stored)
    changed[flip.byte] ^= 1 << flip.bit
    flip.path.write_bytes(bytes(changed))
    try:
        yield
    finally:
        flip.path.parent.mkdir(parents=True, exist_ok=True)
        flip.path.write_bytes(stored)


def draw(folder: Path, count: int, rng: random.Random) -> list[Flip]:
    """Bits of every file in turn: of each one, then of each another, until there are enough.

    Not of TensorBoard's: no part of the package reads them, and what does checks them.
    """
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size and "tensorboard" not in path.parts
    ]
    flips: list[Flip] = []
    while len(flips) < count:
        rng.shuffle(paths)
        flips += [Flip(p, rng.randrange(p.stat().st_size), rng.randrange(8)) for p in paths]
    return flips[:count]


def state_below(folder: Path) -> Any:
    """A stage's newest state, as a tree that others can be read like."""
    newest = max((p for p in folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    return trees.read(newest / "state")


def told(place: Path, path: Path, config: TrainConfig, like: dict[str, Any]) -> str:
    """What is said, by an error or on stderr, when what reads a file of a working directory does.

    Args:
      place: the working directory.
      path: the file.
      config: of the training.
      like: a state per stage.
    """
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard):
        try:
            _read(place, path.relative_to(place).parts, config, like)
        except (ValueError, OSError) as error:
            print(error, file=heard)
    return heard.getvalue()


def _read(place: Path, parts: Sequence[str], config: TrainConfig, like: dict[str, Any]) -> None:
    if parts[0] == "data":
        run.simulated_scenes(config, place)
    elif parts[0] == "cache":
        prepare_dataset(workdir.own_data(place), config.model, config.data, place / "cache")
    elif parts == ("metrics.jsonl",):
        Logbook(place).close()
    elif parts[1:2] == ("checkpoints",):
        with contextlib.closing(StateKeeper(place / parts[0] / "checkpoints")) as keeper:
            keeper.restore(like[parts[0]])
    elif parts[1:2] in (("best",), ("last",)):
        load_params(place / parts[0] / parts[1])
    elif parts[0].endswith(".json"):
        files.read_json(place / parts[0])
    elif parts[0].endswith(".png"):
        with Image.open(place / parts[0]) as picture:
            try:
                picture.verify()
            except SyntaxError as error:
                raise ValueError(f"{place / parts[0]}: {error}") from None
    else:
        raise AssertionError(f"{parts}: nothing reads it")
