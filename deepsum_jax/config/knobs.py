"""Every knob, declared once with its unit and range. A module receives only its own part."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal

from deepsum_jax.config.machinery import Section, Settings


@dataclasses.dataclass(frozen=True)
class Normalization(Section):
    """Standardisation constants in raw counts, one value or one per channel.

    Inputs are (x − lr_mean) / lr_std, outputs and targets (y − hr_mean) / hr_std. The defaults
    are the published ones for PROBA-V NIR.
    """

    lr_mean: float | tuple[float, ...] = 7754.664
    lr_std: float | tuple[float, ...] = 2316.3408  # 1e-15..1e15
    hr_mean: float | tuple[float, ...] = 7754.664
    hr_std: float | tuple[float, ...] = 596.982

    def check(self) -> None:
        for field in ("lr_std", "hr_std"):
            value = getattr(self, field)
            values = value if isinstance(value, tuple) else (value,)
            self._require(
                all(1e-15 <= v <= 1e15 for v in values), field, "values above 0, 1e-15..1e15"
            )


NORMALIZATIONS: Mapping[str, Normalization] = types.MappingProxyType(
    {
        "NIR": Normalization(),
        "RED": Normalization(
            lr_mean=4913.2173, lr_std=2468.3372, hr_mean=4913.2173, hr_std=490.37793
        ),
    }
)
"""The published constants per PROBA-V band."""


Backend = Literal["auto", "plain", "cpu", "accelerator"]


@dataclasses.dataclass(frozen=True)
class Compute(Section):
    """What a run computes with; no part of a network, and any value fits any parameters."""

    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"  # of the computation
    param_dtype: Literal["float32", "float64"] = "float32"
    precision: Literal["highest", "high", "default"] = "highest"  # of every convolution and dot
    # Formulation of the operators; all give equal values. "plain" runs without `kernels`.
    backend: Backend = "auto"
    rematerialize: bool = False  # training computes layers again in place of keeping them
    self_ensemble: bool = False  # prediction takes the mean over flips and quarter turns


_COMPUTE = tuple(f.name for f in dataclasses.fields(Compute))


Hidden = Literal["published", "filled"]
# RegNet proposes filters or shifts; or shifts are given: whole ones, or those of robust
# back-projection, to a fraction of a pixel, which then masks what disagrees with the reference too.
Registration = Literal["regnet", "shifts", "correlation", "agreement", "none"]


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The network. `ModelConfig()` is the reference network for PROBA-V NIR.

    `system` names an entry of the table of systems, and `options` are that system's own; the
    table checks both.
    """

    MOVED = types.MappingProxyType({name: f"it is compute.{name} now" for name in _COMPUTE})

    num_frames: int = 9  # N, odd, 3–63: FusionNet loses two frames a layer
    scale: int = 3  # r, HR pixels per LR pixel, 1–8
    features: int = 64  # F, 1–1024
    filter_size: int = 9  # K, odd, 1–63: RegNet reaches ±(K − 1)/2 HR pixels
    channels: int = 1  # C, 1–256, bands that are super-resolved jointly
    sisrnet_layers: int = 8  # depth of SISRNet, 1–64
    neighbours: int = 0  # k, 0–256, alike pixels that graph layers gather; 0: convolutions only
    norm: Literal["instance", "batch"] = "instance"  # of SISRNet's and FusionNet's layers
    system: str = "deepsum"  # a name in `systems.table`
    registration: Registration = "regnet"  # where the dynamic filters come from
    inpainting: Literal["after_registration", "before_registration", "none"] = "after_registration"
    global_residual: bool = True  # the mean of the registered inputs is added at the end
    mask_alignment: Literal["filters", "shifts"] = "filters"  # how masks reach frame 0's grid
    mask_threshold: float = 0.9  # a filtered mask is reliable from this fraction on, (0, 1]
    residual_init: Literal["glorot", "zeros"] = "glorot"  # FusionNet's last layer
    hidden: Hidden = "published"  # what stands under masks; see `data.fill`
    psf_sigma: float = 0.37  # LR pixels, 0–2, of the Gaussian that IBP takes the sensor to have
    normalization: Normalization = Normalization()
    options: Settings = Settings()  # of the system; left out, they take its defaults

    def check(self) -> None:
        for field, least, most in (("num_frames", 3, 63), ("filter_size", 1, 63)):
            value = getattr(self, field)
            self._require(
                value % 2 == 1 and least <= value <= most, field, f"odd, {least} to {most}"
            )
        ranges: dict[str, tuple[float, float]] = {
            "scale": (1, 8),
            "features": (1, 1024),
            "channels": (1, 256),
            "sisrnet_layers": (1, 64),
            "neighbours": (0, 256),
        }
        self._require_within(ranges)
        self._require(0 < self.mask_threshold <= 1, "mask_threshold", "in (0, 1]")
        self._require(0 < self.psf_sigma <= 2, "psf_sigma", "above 0, at most 2")
        for constant in dataclasses.fields(Normalization):
            value = getattr(self.normalization, constant.name)
            if isinstance(value, tuple) and len(value) not in (1, self.channels):
                raise ValueError(
                    f"Normalization.{constant.name}: found {len(value)} values, "
                    f"expected 1 or one per channel ({self.channels})"
                )

    @classmethod
    def migrated(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without what a run computes with, which once stood here."""
        old = {k: v for k, v in data.items() if k in _COMPUTE}
        Compute.from_dict(old)  # a wrong value is still an error
        return {k: v for k, v in data.items() if k not in old}

    @property
    def learns_registration(self) -> bool:
        """Whether there is a RegNet: one that proposes filters, or one that proposes shifts."""
        return self.registration in ("regnet", "shifts")

    @property
    def takes_shifts(self) -> bool:
        """Whether frames are registered by shifts that are given with them."""
        return self.registration in ("correlation", "agreement")

    @property
    def takes_agreement(self) -> bool:
        """Whether what of a frame disagrees with the reference is masked."""
        return self.registration == "agreement"

    @property
    def takes_registered_masks(self) -> bool:
        """Whether masks come on frame 0's grid, and not on their own frames'."""
        return self.mask_alignment == "shifts"

    @property
    def fusionnet_layers(self) -> int:
        """3-D layers that take N frames to one."""
        return (self.num_frames - 1) // 2


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Which scenes train the network, and how they become patches."""

    band: str = ""  # NIR, RED, any other band folder, or all; "" is the only band there is
    validation_fraction: float = 0.3  # of the training scenes of each band, (0, 1)
    split_seed: int = 1  # of the one shuffle that splits them, ≥ 0
    reference: Literal["clearest", "first", "given"] = "clearest"  # given: by reference.txt
    patch_size: int = 96  # 8–4096, on the upsampled grid, a multiple of the scale
    patches_per_scene: int = 100  # at most; 1–100 000
    max_value: int = 60000  # LR frames with a greater value are dropped; 0 keeps all, ≥ 0
    max_shift: int = 4  # HR pixels, 0–64; frames shifted further are dropped from training
    min_lr_clearance: float = 0.7  # of a frame on a training patch
    min_hr_clearance: float = 0.85  # of HR on a training patch
    registration: Literal["masked", "plain"] = "masked"  # cross-correlation
    normalization: Literal["measured", "published", "model"] = "measured"
    augment: bool = False  # flips and 90° rotations
    clouded_shifts: bool = False  # RegNet learns from shifted images under real clouds
    fewer_frames: float = 0.0  # chance of an aligned record to lose some of its frames, 0..1
    ground: Literal["steady", "changing"] = "steady"  # of scenes that are simulated
    workers: int = 0  # 0–256, grain worker processes; scenes lie in memory, 0 is fastest
    cache: bool = True  # keep prepared scenes in the working directory

    def check(self) -> None:
        self._require(0 < self.validation_fraction < 1, "validation_fraction", "in (0, 1)")
        ranges: dict[str, tuple[float, float]] = {
            "patch_size": (8, 4096),
            "patches_per_scene": (1, 100_000),
            "max_shift": (0, 64),
            "workers": (0, 256),
        }
        self._require_within(ranges)
        for field in ("split_seed", "max_value"):
            self._require(getattr(self, field) >= 0, field, "≥ 0")
        self._require(0 <= self.min_lr_clearance < 1, "min_lr_clearance", "from 0 to below 1")
        self._require(0 <= self.min_hr_clearance < 1, "min_hr_clearance", "from 0 to below 1")
        self._require(0 <= self.fewer_frames <= 1, "fewer_frames", "0 to 1")


@dataclasses.dataclass(frozen=True)
class SimulationConfig(Section):
    """Simulated scenes: how many, and what they look like. Counts are raw units, 14 bits."""

    scenes: int = 48  # per band; of a training's, split into training and validation. 0..10^6
    test_scenes: int = 24  # per band, 0..10^6
    seed: int = 0  # >= 0
    lr_size: int = 128  # LR pixels, height and width of a frame, >= 16
    scale: int = 3  # r, 1..8
    min_frames: int = 9  # frames of a scene, >= 1
    max_frames: int = 14  # >= min_frames; the number is uniform between the two
    bands: tuple[str, ...] = ("NIR",)  # of NIR, RED
    shift_sigma: float = 0.9  # HR pixels, per axis; clipped at 2. 0..2
    outlier_fraction: float = 0.025  # of frames that are shifted by 3..6 HR pixels, 0..1
    lr_psf_sigma: float = 0.42  # LR pixels, Gaussian, before integration over the pixel, 0.1..1
    hr_psf_sigma: float = 0.5  # HR pixels, likewise, 0.1..1
    read_noise: float = 10.0  # counts, standard deviation, 0..500
    shot_noise: float = 0.02  # counts of variance per count of signal, 0..10
    gain_sigma: float = 0.02  # relative, between frames, 0..0.2
    offset_sigma: float = 60.0  # counts, between frames, 0..1000
    change: float = 0.2  # of the ground between dates, in units of its contrast, 0..1
    contrast: float = 1.0  # of the ground, relative to that of its band, 0.1..2
    clear_fraction: float = 0.33  # of frames that have no cloud at all, 0..1
    max_clouded: float = 0.38  # masked fraction of the cloudiest frame, 0..0.4
    max_hr_clouded: float = 0.2  # masked fraction of the cloudiest HR, 0..0.25

    def check(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "scenes": (0, 10**6),
            "test_scenes": (0, 10**6),
            "lr_size": (16, 4096),
            "scale": (1, 8),
            "min_frames": (1, 1000),
            "max_frames": (self.min_frames, 1000),
            "shift_sigma": (0, 2),
            "outlier_fraction": (0, 1),
            "lr_psf_sigma": (0.1, 1),
            "hr_psf_sigma": (0.1, 1),
            "read_noise": (0, 500),
            "shot_noise": (0, 10),
            "gain_sigma": (0, 0.2),
            "offset_sigma": (0, 1000),
            "change": (0, 1),
            "contrast": (0.1, 2),
            "clear_fraction": (0, 1),
            "max_clouded": (0, 0.4),
            "max_hr_clouded": (0, 0.25),
        }
        self._require_within(ranges)
        self._require(self.seed >= 0, "seed", "≥ 0")
        known = bool(self.bands) and set(self.bands) <= {"NIR", "RED"}
        once = len(set(self.bands)) == len(self.bands)
        self._require(known and once, "bands", "NIR, RED or both")


@dataclasses.dataclass(frozen=True)
class StageConfig(Section):
    """One of the three training stages."""

    steps: int = 1000  # at most 10⁹; 0 leaves the stage out
    batch_size: int = 8  # over all devices, 1–65536
    learning_rate: float = 1e-4  # of Adam, at its peak
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0  # linear, before the schedule
    clip_norm: float = 0.0  # global gradient norm; 0 does not clip
    regnet_rate: float = 1.0  # RegNet's learning rate, as a fraction of the others'
    validate_every: int = 500  # steps
    checkpoint_every: int = 500  # steps
    log_every: int = 20  # steps
    max_rise: float = 1000.0  # of the loss over its first, or 1: above is unsound; ≥ 10
    max_unsound: int = 10  # steps in a row, 1–1000, after which training stops

    def check(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "steps": (0, 10**9),
            "batch_size": (1, 65536),
            "warmup_steps": (0, 10**9),
            "validate_every": (1, 10**9),
            "checkpoint_every": (1, 10**9),
            "log_every": (1, 10**9),
            "max_unsound": (1, 1000),
        }
        self._require_within(ranges)
        self._require(self.learning_rate > 0, "learning_rate", "above 0")
        self._require(self.clip_norm >= 0, "clip_norm", "≥ 0")
        self._require(0 <= self.regnet_rate <= 1, "regnet_rate", "0 to 1")
        self._require(self.max_rise >= 10, "max_rise", "≥ 10")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """Everything a training run depends on; kept as `config.json` in its working directory."""

    seed: int = 0
    border: int = 3  # d, 0–64, of the alignment search in the loss
    model: ModelConfig = ModelConfig()
    compute: Compute = Compute()
    data: DataConfig = DataConfig()
    # The scenes of a training without data. Their scale is the model's.
    simulation: SimulationConfig = SimulationConfig(lr_size=64, max_frames=12)
    sisrnet: StageConfig = StageConfig()
    regnet: StageConfig = StageConfig()
    deepsum: StageConfig = StageConfig()

    def check(self) -> None:
        self._require(0 <= self.seed < 2**31, "seed", "0 to 2³¹ − 1")
        sim = self.simulation
        sim._require(sim.scenes >= 2, "scenes", "≥ 2 (one validates)")
        sim._require(sim.test_scenes >= 1, "test_scenes", "≥ 1")
        self._require(0 <= self.border <= 64, "border", "0 to 64")
        if self.data.patch_size % self.model.scale:
            raise ValueError(
                f"DataConfig.patch_size: found {self.data.patch_size}, expected a multiple of "
                f"the scale {self.model.scale}"
            )
        if self.data.patch_size <= max(2 * self.border, self.model.filter_size):
            raise ValueError(
                f"DataConfig.patch_size: found {self.data.patch_size}, expected more than "
                f"{max(2 * self.border, self.model.filter_size)} (border and filter size)"
            )

    @classmethod
    def migrated(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """`preset` was a note without effect, and what a run computes with stood in `model`; the
        digest that signs a stored file is no setting."""
        new = {k: v for k, v in data.items() if k not in ("preset", "file_sha256")}
        model = new.get("model")
        if isinstance(model, Mapping) and "compute" not in new:
            new["compute"] = {k: v for k, v in model.items() if k in _COMPUTE}
        return new
