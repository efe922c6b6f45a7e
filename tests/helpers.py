"""What tests of the commands share: tiny bundles, small data, and commands that must refuse."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from deepsum_jax import Bundle, ModelConfig, cli
from deepsum_jax.config import Compute, Settings
from deepsum_jax.systems.table import init_params

TINY = ModelConfig(num_frames=3, features=4, filter_size=5, sisrnet_layers=2)
UNROLLED = ModelConfig(
    system="unrolled",
    num_frames=3,
    options=Settings(
        {
            "features": 6,
            "own_blocks": 1,
            "blocks": 1,
            "agreement_features": 4,
            "iterations": 2,
            "momentum": True,
            "truth": "grid",
        }
    ),
)
FAST = Compute(backend="plain")  # compiles in a third of the time of the CPU's formulations


def random_bundle(config: ModelConfig = TINY, seed: int = 0) -> Bundle:
    return Bundle(init_params(config, jax.random.key(seed)), config)


def delta_bundle(config: ModelConfig = TINY, shift: tuple[int, int] = (0, 0)) -> Bundle:
    """A network that adds nothing to the mean of its registered inputs.

    RegNet proposes the filter that translates by `shift`, HR pixels, for every frame but frame 0.
    """
    params = jax.tree.map(np.zeros_like, init_params(config, jax.random.key(0)))
    taps = np.zeros((config.filter_size, config.filter_size), np.float32)
    centre = config.filter_size // 2
    taps[centre - shift[0], centre - shift[1]] = 200  # logits: the others' share underflows
    params["regnet"]["conv4"]["bias"] = taps.reshape(-1)
    return Bundle(params, config)


def landscape(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random image, 60 ± 20."""
    spectrum = np.fft.fft2(np.random.default_rng(seed).standard_normal((height, width)))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    image = np.fft.ifft2(spectrum / (0.04 + np.hypot(y, x)) ** 1.5).real
    return 60 + 20 * (image - image.mean()) / image.std()


def fields(side: int, seed: int = 0) -> np.ndarray:
    """Fields with sharp edges on smooth relief, 6000 ± 600."""
    rng = np.random.default_rng(seed)
    parcels = np.kron(rng.normal(0, 500, (side // 9 + 2, side // 9 + 2)), np.ones((9, 9)))
    return 6000 + 10 * (landscape(side, side, seed) - 60) + parcels[3 : 3 + side, 2 : 2 + side]


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below `folder`, hidden ones too, and a digest of its bytes."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        if p.is_file()
        else "folder"
        for p in folder.rglob("*")
    }


Refused = Callable[..., str]


def refuser(capsys: pytest.CaptureFixture[str]) -> Refused:
    """A function that runs a command and asserts that it refuses, in one line, with status 2.

    It returns that line. Progress bars may stand before it, anything else may not.
    """

    def refused(main: Callable[[Sequence[str]], None], *arguments: Any) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.run(lambda: main([str(a) for a in arguments]))
        assert stopped.value.code == 2
        *before, message = capsys.readouterr().err.splitlines()
        assert re.fullmatch(r"error: \S[^\n]*", message)
        assert not [line for line in before if line.strip() and "%|" not in line]
        return message

    return refused
