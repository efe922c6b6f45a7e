"""The systems that the experiments compare: how each is configured, trained and tested.

Every learned system sees the same scenes, patches and batch sizes. Networks over stacks get the
preset's end-to-end steps behind whatever pretraining they have; systems of a single stage (SISR,
DUF) get the steps of SISRNet's pretraining and of the end-to-end stage together.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from deepsum_jax.config import ModelConfig, StageConfig, TrainConfig, override
from deepsum_jax.systems.table import system_of
from deepsum_jax.training.stages import NAMES as STAGES


@dataclasses.dataclass(frozen=True)
class Row:
    """One system, as it is trained and tested.

    Attributes:
      name: of its cells.
      label: in tables.
      settings: overrides of the experiment's configuration, as `--set` takes them.
      trained_as: name of the row whose parameters it uses; itself by default.
      steps: factor of all stages' steps.
      max_frames: at test; 0 takes the experiment's.
      gain, haze: test frames are gain times what they are, plus haze in deviations of the
        training frames.
      many: trained and tested on scenes of many frames.
      against: name of the row that it is held against.
    """

    name: str
    label: str
    settings: tuple[str, ...] = ()
    trained_as: str = ""
    steps: float = 1.0
    max_frames: int = 0
    gain: float = 1.0
    haze: float = 0.0
    many: bool = False
    against: str = "deepsum"


BICUBIC = Row("bicubic_mean", "Bicubic+Mean", ("model.system=bicubic_mean",))
IBP = Row("ibp", "IBP", ("model.system=ibp",))
ROBUST_IBP = Row("robust_ibp", "robust IBP", ("model.system=robust_ibp",))
SISR = Row("sisr", "SISR", ("model.system=sisr",))
SISR_MEAN = Row("sisr_mean", "SISR+Mean", ("model.system=sisr_mean",), trained_as="sisr")
DUF = Row("duf", "DUF", ("model.system=duf",))
DEEPSUM = Row("deepsum", "DeepSUM")

UNREGISTERED = Row("no_registration", "DeepSUM without RegNet", ("model.registration=none",))
CORRELATION = Row(
    "correlation", "cross-correlation, fixed kernel", ("model.registration=correlation",)
)
SHIFTS = Row("shifts", "learned shifts, fixed kernel", ("model.registration=shifts",))

# Its filters share no shift that the search in the loss would forgive.
AGREEMENT = Row("agreement", "DeepSUM by agreement", ("model.registration=agreement",))

BATCH_NORM = Row("batch_norm", "batch norm", ("model.norm=batch",))
NONLOCAL = Row("nonlocal", "non-local SISRNet", ("model.neighbours=8",))
ABLATIONS = (
    Row("no_inpainting", "no mutual inpainting", ("model.inpainting=none",)),
    Row("inpainting_before", "inpainting before registration",
        ("model.inpainting=before_registration",)),
    Row("mask_shifts", "masks aligned by integer shifts", ("model.mask_alignment=shifts",)),
    Row("no_residual", "no global residual", ("model.global_residual=false",)),
    # A RegNet that starts fresh has to learn at the others' rate.
    Row("no_pretraining", "no pretraining",
        ("sisrnet.steps=0", "regnet.steps=0", "deepsum.regnet_rate=1")),
    BATCH_NORM,
    NONLOCAL,
)  # fmt: skip

GAINS = (0.5, 0.7, 1.0, 1.4, 2.0)
HAZES = (-2.0, -1.0, 0.0, 1.0, 2.0)
TEST_FRAMES = (9, 10, 11, 12, 13, 14, 15, 1000)  # the last is all
TRAIN_FRAMES = (3, 5, 7, 9, 11, 13)
STEP_FACTORS = (0.3, 1.0, 3.0)
PSF_SIGMAS = (0.2, 0.3, ModelConfig.psf_sigma, 0.42, 0.5, 0.6)  # LR pixels
REFERENCES = ("clearest", "first", "given")


def _tested_under(row: Row, condition: str, **change: float) -> Row:
    """A trained row whose tests alone are changed."""
    source = row.trained_as or row.name
    changes: dict[str, Any] = {"name": f"{row.name}_{condition}", "trained_as": source, **change}
    return dataclasses.replace(row, **changes)


def at_gain(row: Row, gain: float) -> Row:
    """A trained row on frames of another gain: brightness and contrast together."""
    return row if gain == 1 else _tested_under(row, f"gain{gain:g}", gain=gain)


def in_haze(row: Row, haze: float) -> Row:
    """A trained row on frames of another brightness and the same contrast."""
    return row if haze == 0 else _tested_under(row, f"haze{haze:g}", haze=haze)


def with_frames(frames: int) -> Row:
    """DeepSUM for so many frames, on scenes that have them."""
    return Row(
        f"frames{frames}", f"DeepSUM, N = {frames}", (f"model.num_frames={frames}",),
        max_frames=frames, many=True, against="frames9",
    )  # fmt: skip


def tested_with(frames: int) -> Row:
    """DeepSUM for nine frames, given up to so many."""
    if frames == 9:
        return with_frames(9)
    return Row(
        f"frames9_of{frames}", f"DeepSUM, up to {frames} frames", trained_as="frames9",
        max_frames=frames, many=True, against="frames9",
    )  # fmt: skip


def with_steps(row: Row, factor: float) -> Row:
    """A learned row with a multiple of the steps."""
    if factor == 1:
        return row
    name = f"{row.name}_steps{factor:g}"
    against = "deepsum" if row is DEEPSUM else f"deepsum_steps{factor:g}"
    return dataclasses.replace(row, name=name, steps=factor, against=against)


def with_psf(sigma: float) -> Row:
    """IBP that takes the sensor to be so blurred."""
    if sigma == ModelConfig.psf_sigma:
        return IBP
    settings = (*IBP.settings, f"model.psf_sigma={sigma:g}")
    return Row(f"ibp_psf{sigma:g}", f"IBP, blur {sigma:g}", settings)


def on_reference(row: Row, rule: str) -> Row:
    """A system whose reference frame is picked by another rule, in training as in tests."""
    if rule == "clearest":
        return row
    return dataclasses.replace(
        row, name=f"{row.name}_{rule}", label=f"{row.label}, {rule} frame",
        settings=(*row.settings, f"data.reference={rule}"), against=f"deepsum_{rule}",
    )  # fmt: skip


def scaled(config: TrainConfig, factor: float) -> TrainConfig:
    """A configuration with all stages' steps times a factor; no stage that has steps loses all."""

    def scale(stage: StageConfig) -> StageConfig:
        steps = max(1, round(stage.steps * factor)) if stage.steps else 0
        return dataclasses.replace(stage, steps=steps)

    scaled_stages: dict[str, Any] = {name: scale(getattr(config, name)) for name in STAGES}
    return dataclasses.replace(config, **scaled_stages)


def row_config(row: Row, base: TrainConfig, seed: int) -> TrainConfig:
    """What a row trains with."""
    config = override(base, [*row.settings, f"seed={seed}"])
    plan = system_of(config.model).stages(config.model)
    if len(plan) == 1:
        both = base.sisrnet.steps + base.deepsum.steps
        config = override(config, [f"{plan[0].name}.steps={both}"])
    return scaled(config, row.steps)


def pretraining(config: TrainConfig) -> TrainConfig:
    """A configuration as the stages before the last see it.

    What only the last stage reads stands at its default, so rows that differ in nothing else
    have one pretraining.
    """
    plain, model = type(config.model)(), config.model
    last = ("inpainting", "global_residual", "mask_alignment", "mask_threshold", "residual_init")
    settings: dict[str, Any] = {name: getattr(plain, name) for name in last}
    if not model.learns_registration:
        settings["registration"] = "none"
    return dataclasses.replace(
        config, model=dataclasses.replace(model, **settings), deepsum=StageConfig()
    )
