"""The named presets."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping

from deepsum_jax.config.knobs import (
    DataConfig,
    ModelConfig,
    SimulationConfig,
    StageConfig,
    TrainConfig,
)
from deepsum_jax.config.machinery import Settings, nearest

REFERENCE = TrainConfig(
    data=DataConfig(registration="plain", normalization="published"),
    sisrnet=StageConfig(steps=11_400, batch_size=16, learning_rate=5e-5),
    regnet=StageConfig(steps=6_000, batch_size=16, learning_rate=1e-3),
    deepsum=StageConfig(steps=969_000, batch_size=8, learning_rate=5e-6, validate_every=5_000),
)

_DEMO_STAGE = StageConfig(
    batch_size=8, schedule="cosine", warmup_steps=20, clip_norm=1.0, checkpoint_every=100
)
DEMO = TrainConfig(
    model=ModelConfig(features=24, sisrnet_layers=4, residual_init="zeros", hidden="filled"),
    data=DataConfig(
        patch_size=42,
        patches_per_scene=40,
        validation_fraction=0.2,
        augment=True,
        clouded_shifts=True,
    ),
    sisrnet=dataclasses.replace(_DEMO_STAGE, steps=300, learning_rate=2e-3, validate_every=150),
    regnet=dataclasses.replace(_DEMO_STAGE, steps=1200, learning_rate=3e-3, validate_every=300),
    deepsum=dataclasses.replace(
        _DEMO_STAGE, steps=400, learning_rate=2e-3, regnet_rate=0.03, validate_every=100
    ),
)

# A system that takes any stack, trained on all sorts of ground (`experiments default`).
UNROLLED = TrainConfig(
    model=ModelConfig(
        system="unrolled",
        num_frames=11,
        psf_sigma=0.4,
        residual_init="zeros",
        hidden="filled",
        options=Settings({"iterations": 12, "momentum": True}),
    ),
    data=DataConfig(
        patch_size=96,
        patches_per_scene=4,
        validation_fraction=0.04,
        reference="given",
        max_value=0,
        min_lr_clearance=0.5,
        min_hr_clearance=0.5,
        augment=True,
        fewer_frames=0.35,
    ),
    # The reference's own image may be learned first; its steps then cost a quarter.
    sisrnet=dataclasses.replace(_DEMO_STAGE, steps=0, learning_rate=3e-3, warmup_steps=50),
    deepsum=dataclasses.replace(
        _DEMO_STAGE,
        steps=3600,
        learning_rate=1.5e-3,
        warmup_steps=50,
        validate_every=900,
        checkpoint_every=250,
    ),
)

_TINY_STAGE = StageConfig(
    steps=4, batch_size=4, learning_rate=1e-3, validate_every=2, checkpoint_every=2, log_every=1
)
TINY = TrainConfig(
    model=ModelConfig(
        num_frames=3,
        features=4,
        filter_size=5,
        sisrnet_layers=2,
        residual_init="zeros",
        hidden="filled",
    ),
    data=DataConfig(patch_size=24, patches_per_scene=4, augment=True, max_shift=2),
    simulation=SimulationConfig(scenes=4, test_scenes=2, lr_size=16, min_frames=5, max_frames=6),
    sisrnet=_TINY_STAGE,
    regnet=_TINY_STAGE,
    deepsum=_TINY_STAGE,
)

PRESETS: Mapping[str, TrainConfig] = types.MappingProxyType(
    {"reference": REFERENCE, "demo": DEMO, "unrolled": UNROLLED, "tiny": TINY}
)


def preset(name: str) -> TrainConfig:
    """The named preset: `reference` (the paper's), `demo` (minutes on a CPU), `unrolled` (the
    system that ships trained) or `tiny` (tests).

    Raises:
      ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]
