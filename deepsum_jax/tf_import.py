"""The authors' TensorFlow checkpoints become our parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from deepsum_jax.config import ModelConfig

_REGNET = ("Rconv1b", "Rconv2b", "Rconv3b", "Rconv4b", "Rconv7_b")


def reference_names(config: ModelConfig = ModelConfig()) -> dict[str, tuple[str, ...]]:
    """Every variable of the reference network and the path of our parameter that holds it."""
    names: dict[str, tuple[str, ...]] = {}

    def conv(reference: str, *path: str) -> None:
        names[f"{reference}/W"] = (*path, "kernel")
        names[f"{reference}/b"] = (*path, "bias")

    def norm(reference: str, *path: str) -> None:
        names[f"{reference}/gamma"] = (*path, "scale")
        names[f"{reference}/beta"] = (*path, "bias")

    for i in range(config.sisrnet_layers):
        conv(f"conv_up_{i}", "sisrnet", f"conv{i}")
        norm(f"inst_norm_up_{i}", "sisrnet", f"norm{i}")
    for i, reference in enumerate(_REGNET):
        conv(reference, "regnet", f"conv{i}")
    for i in range(config.fusionnet_layers):
        conv(f"conv_fuse_{i}", "fusionnet", f"conv{i}")
        norm(f"inst_norm_fuse_{i}", "fusionnet", f"norm{i}")
    conv(f"conv_fuse_{config.fusionnet_layers}", "fusionnet", "conv_out")
    return names
