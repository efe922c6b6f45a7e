"""Every knob, declared once: frozen dataclasses, their checks, overrides, and the named presets.

A module receives only its own part. Sections are plain data: hashable, comparable, and written
to JSON by `to_dict` and read back, strictly, by `from_dict`.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

T = TypeVar("T", bound="Section")


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for an error message: the valid name nearest to a wrong one, or all of them."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(names)}"


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; an int passes for a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(repr(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_describe(a) for a in args)
    if origin is tuple:
        return f"a list of {_describe(args[0])}"
    return "null" if hint is type(None) else hint.__name__


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the configuration whose fields are checked against their types."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            if not _fits(value, hints[field.name]):
                raise ValueError(
                    f"{type(self).__name__}.{field.name}: found {value!r}, "
                    f"expected {_describe(hints[field.name])}"
                )
            values = value if isinstance(value, tuple) else (value,)
            if any(isinstance(v, float) and not math.isfinite(v) for v in values):
                raise ValueError(
                    f"{type(self).__name__}.{field.name}: found {value!r}, expected finite numbers"
                )
        self.check()

    def check(self) -> None:
        """Raises ValueError where a value is outside its range."""

    def _require(self, condition: bool, field: str, expected: str) -> None:
        if not condition:
            found = getattr(self, field)
            raise ValueError(f"{type(self).__name__}.{field}: found {found!r}, expected {expected}")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
        """The inverse of `to_dict`. Fields left out take their defaults.

        Raises:
          ValueError: an unknown field (naming the nearest valid one) or a value of a wrong type.
        """
        if not isinstance(data, Mapping):
            raise ValueError(  # noqa: TRY004 (one kind of error for a wrong file)
                f"{cls.__name__}: found {data!r}, expected a mapping"
            )
        hints = typing.get_type_hints(cls)
        names = [f.name for f in dataclasses.fields(cls)]
        values = {}
        for key, value in data.items():
            if key not in names:
                raise ValueError(f"{cls.__name__} has no field {key!r}; {nearest(key, names)}")
            hint = hints[key]
            if isinstance(hint, type) and issubclass(hint, Section):
                value = hint.from_dict(value)
            values[key] = value
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Normalization(Section):
    """Standardisation constants in raw counts, one value or one per channel.

    Inputs are (x − lr_mean) / lr_std, outputs and targets (y − hr_mean) / hr_std. The defaults
    are the published ones for PROBA-V NIR.
    """

    lr_mean: float | tuple[float, ...] = 7754.664
    lr_std: float | tuple[float, ...] = 2316.3408
    hr_mean: float | tuple[float, ...] = 7754.664
    hr_std: float | tuple[float, ...] = 596.982

    def check(self) -> None:
        for field in ("lr_std", "hr_std"):
            value = getattr(self, field)
            values = value if isinstance(value, tuple) else (value,)
            self._require(all(v > 0 for v in values), field, "values above 0")


NORMALIZATIONS: Mapping[str, Normalization] = types.MappingProxyType(
    {
        "NIR": Normalization(),
        "RED": Normalization(
            lr_mean=4913.2173, lr_std=2468.3372, hr_mean=4913.2173, hr_std=490.37793
        ),
    }
)
"""The published constants per PROBA-V band."""


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The network. `ModelConfig()` is the reference network for PROBA-V NIR."""

    num_frames: int = 9  # N, odd, ≥ 3: FusionNet loses two frames a layer
    scale: int = 3  # r, HR pixels per LR pixel, 1–8
    features: int = 64  # F
    filter_size: int = 9  # K, odd: RegNet reaches ±(K − 1)/2 HR pixels
    channels: int = 1  # C, bands that are super-resolved jointly
    sisrnet_layers: int = 8  # depth of SISRNet
    neighbours: int = 0  # k, alike pixels that SISRNet's graph layers gather; 0: convolutions only
    norm: Literal["instance", "batch"] = "instance"  # of SISRNet's and FusionNet's layers
    system: Literal["deepsum", "duf", "sisr", "sisr_mean", "ibp", "bicubic_mean"] = "deepsum"
    registration: Literal["regnet", "shifts", "correlation", "none"] = "regnet"
    inpainting: Literal["after_registration", "before_registration", "none"] = "after_registration"
    global_residual: bool = True  # the mean of the registered inputs is added at the end
    mask_alignment: Literal["filters", "shifts"] = "filters"  # how masks reach frame 0's grid
    mask_threshold: float = 0.9  # a filtered mask is reliable from this fraction on, (0, 1]
    residual_init: Literal["glorot", "zeros"] = "glorot"  # FusionNet's last layer
    psf_sigma: float = 0.37  # LR pixels, 0–2, of the Gaussian that IBP takes the sensor to have
    normalization: Normalization = Normalization()
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"  # of the computation
    param_dtype: Literal["float32", "float64"] = "float32"
    precision: Literal["highest", "high", "default"] = "highest"  # of every convolution and dot
    backend: Literal["auto", "cpu", "accelerator"] = "auto"  # formulation; all give equal values
    rematerialize: bool = False  # training computes layers again in place of keeping them

    def check(self) -> None:
        self._require(self.num_frames >= 3 and self.num_frames % 2 == 1, "num_frames", "odd, ≥ 3")
        self._require(1 <= self.scale <= 8, "scale", "1 to 8")
        self._require(self.features >= 1, "features", "≥ 1")
        self._require(self.filter_size >= 1 and self.filter_size % 2 == 1, "filter_size", "odd")
        self._require(self.channels >= 1, "channels", "≥ 1")
        self._require(self.sisrnet_layers >= 1, "sisrnet_layers", "≥ 1")
        self._require(0 <= self.neighbours <= 112, "neighbours", "0 to 112 (of an 11×11 window)")
        self._require(0 < self.mask_threshold <= 1, "mask_threshold", "in (0, 1]")
        self._require(0 < self.psf_sigma <= 2, "psf_sigma", "above 0, at most 2")
        for field in dataclasses.fields(Normalization):
            value = getattr(self.normalization, field.name)
            if isinstance(value, tuple) and len(value) not in (1, self.channels):
                raise ValueError(
                    f"Normalization.{field.name}: found {len(value)} values, "
                    f"expected 1 or one per channel ({self.channels})"
                )

    @property
    def learns_registration(self) -> bool:
        """Whether there is a RegNet: one that proposes filters, or one that proposes shifts."""
        return self.system == "deepsum" and self.registration in ("regnet", "shifts")

    @property
    def takes_shifts(self) -> bool:
        """Whether frames are registered by shifts that are given with them."""
        return self.system == "deepsum" and self.registration == "correlation"

    @property
    def fusionnet_layers(self) -> int:
        """3-D layers that take N frames to one."""
        return (self.num_frames - 1) // 2


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Which scenes train the network, and how they become patches."""

    band: str = ""  # NIR, RED, any other band folder, or all; "" is the only band there is
    validation_fraction: float = 0.3  # of the training scenes of each band, (0, 1)
    split_seed: int = 1  # of the one shuffle that splits them
    reference: Literal["clearest", "first", "given"] = "clearest"  # given: by reference.txt
    patch_size: int = 96  # on the upsampled grid, a multiple of the scale
    patches_per_scene: int = 100  # at most
    max_value: int = 60000  # LR frames with a greater value are dropped; 0 keeps all
    max_shift: int = 4  # HR pixels; frames shifted further are dropped from training
    min_lr_clearance: float = 0.7  # of a frame on a training patch
    min_hr_clearance: float = 0.85  # of HR on a training patch
    registration: Literal["masked", "plain"] = "masked"  # cross-correlation
    normalization: Literal["measured", "published", "model"] = "measured"
    augment: bool = False  # flips and 90° rotations
    clouded_shifts: bool = False  # RegNet learns from shifted images under real clouds
    workers: int = 0  # grain worker processes; scenes lie in memory, 0 is fastest
    cache: bool = True  # keep prepared scenes in the working directory

    def check(self) -> None:
        self._require(0 < self.validation_fraction < 1, "validation_fraction", "in (0, 1)")
        self._require(self.patch_size >= 8, "patch_size", "≥ 8")
        self._require(self.patches_per_scene >= 1, "patches_per_scene", "≥ 1")
        self._require(self.max_shift >= 0, "max_shift", "≥ 0")
        self._require(0 <= self.min_lr_clearance < 1, "min_lr_clearance", "from 0 to below 1")
        self._require(0 <= self.min_hr_clearance < 1, "min_hr_clearance", "from 0 to below 1")
        self._require(self.workers >= 0, "workers", "≥ 0")


@dataclasses.dataclass(frozen=True)
class SimulatedDataConfig(Section):
    """The scenes that are simulated when training is given no data."""

    scenes: int = 48  # split into training and validation
    test_scenes: int = 24
    lr_size: int = 64  # pixels
    seed: int = 0
    min_frames: int = 9
    max_frames: int = 12

    def check(self) -> None:
        self._require(self.scenes >= 2, "scenes", "≥ 2")
        self._require(self.test_scenes >= 1, "test_scenes", "≥ 1")
        self._require(self.lr_size >= 8, "lr_size", "≥ 8")
        self._require(self.min_frames >= 1, "min_frames", "≥ 1")
        self._require(self.max_frames >= self.min_frames, "max_frames", "at least min_frames")


@dataclasses.dataclass(frozen=True)
class StageConfig(Section):
    """One of the three training stages."""

    steps: int = 1000  # 0 leaves the stage out
    batch_size: int = 8  # over all devices
    learning_rate: float = 1e-4  # of Adam, at its peak
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0  # linear, before the schedule
    clip_norm: float = 0.0  # global gradient norm; 0 does not clip
    regnet_rate: float = 1.0  # RegNet's learning rate, as a fraction of the others'
    validate_every: int = 500  # steps
    checkpoint_every: int = 500  # steps
    log_every: int = 20  # steps

    def check(self) -> None:
        self._require(self.steps >= 0, "steps", "≥ 0")
        self._require(self.batch_size >= 1, "batch_size", "≥ 1")
        self._require(self.learning_rate > 0, "learning_rate", "above 0")
        self._require(self.warmup_steps >= 0, "warmup_steps", "≥ 0")
        self._require(self.clip_norm >= 0, "clip_norm", "≥ 0")
        self._require(0 <= self.regnet_rate <= 1, "regnet_rate", "0 to 1")
        for field in ("validate_every", "checkpoint_every", "log_every"):
            self._require(getattr(self, field) >= 1, field, "≥ 1")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """Everything a training run depends on; kept as `config.json` in its working directory."""

    preset: str = "reference"
    seed: int = 0
    border: int = 3  # d, of the alignment search in the loss
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    simulation: SimulatedDataConfig = SimulatedDataConfig()
    sisrnet: StageConfig = StageConfig()
    regnet: StageConfig = StageConfig()
    deepsum: StageConfig = StageConfig()

    def check(self) -> None:
        self._require(0 <= self.seed < 2**31, "seed", "0 to 2³¹ − 1")
        self._require(self.border >= 0, "border", "≥ 0")
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


REFERENCE = TrainConfig(
    preset="reference",
    data=DataConfig(registration="plain", normalization="published"),
    sisrnet=StageConfig(steps=11_400, batch_size=16, learning_rate=5e-5),
    regnet=StageConfig(steps=6_000, batch_size=16, learning_rate=1e-3),
    deepsum=StageConfig(steps=969_000, batch_size=8, learning_rate=5e-6, validate_every=5_000),
)

_DEMO_STAGE = StageConfig(
    batch_size=8, schedule="cosine", warmup_steps=20, clip_norm=1.0, checkpoint_every=100
)
DEMO = TrainConfig(
    preset="demo",
    model=ModelConfig(features=24, sisrnet_layers=4, residual_init="zeros"),
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

_TINY_STAGE = StageConfig(
    steps=4, batch_size=4, learning_rate=1e-3, validate_every=2, checkpoint_every=2, log_every=1
)
TINY = TrainConfig(
    preset="tiny",
    model=ModelConfig(
        num_frames=3, features=4, filter_size=5, sisrnet_layers=2, residual_init="zeros"
    ),
    data=DataConfig(patch_size=24, patches_per_scene=4, augment=True, max_shift=2),
    simulation=SimulatedDataConfig(scenes=4, test_scenes=2, lr_size=16, min_frames=5, max_frames=6),
    sisrnet=_TINY_STAGE,
    regnet=_TINY_STAGE,
    deepsum=_TINY_STAGE,
)

PRESETS: Mapping[str, TrainConfig] = types.MappingProxyType(
    {"reference": REFERENCE, "demo": DEMO, "tiny": TINY}
)


def preset(name: str) -> TrainConfig:
    """The named preset: `reference` (the paper's), `demo` (minutes on a CPU) or `tiny` (tests).

    Raises:
      ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]


def _parse(text: str, hint: Any) -> Any:
    """The value that a command-line text means for a field of type `hint`."""
    args = typing.get_args(hint) or (hint,)
    if str in args or (typing.get_origin(hint) is Literal and text in args):
        return text
    lowered = text.lower()
    if bool in args and lowered in ("true", "false"):
        return lowered == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole and hint is int else value


def override(config: TrainConfig, assignments: Iterable[str]) -> TrainConfig:
    """Applies `section.field=value` texts, as `--set` takes them.

    Raises:
      ValueError: no '=', an unknown section or field (naming the nearest valid one), a section
        given whole, or a value of a wrong type or range.
    """
    values = config.to_dict()
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment}: expected section.field=value")
        path = path.strip()
        _assign(type(config), values, path.split("."), text.strip(), path)
    # Checked once, so that fields which depend on each other may come in any order.
    return TrainConfig.from_dict(values)


def _assign(
    section: type[Section], values: dict[str, Any], keys: list[str], text: str, path: str
) -> None:
    """Puts a text's value in its place among a section's plain values."""
    hints = {f.name: typing.get_type_hints(section)[f.name] for f in dataclasses.fields(section)}
    key, rest = keys[0], keys[1:]
    if key not in hints:
        raise ValueError(f"--set {path}: no field {key!r}; {nearest(key, hints)}")
    hint = hints[key]
    if isinstance(hint, type) and issubclass(hint, Section):
        if not rest:
            first = dataclasses.fields(hint)[0].name
            raise ValueError(f"--set {path}: expected one of its fields, as {path}.{first}=…")
        _assign(hint, values[key], rest, text, path)
    elif rest:
        raise ValueError(f"--set {path}: {key!r} has no fields")
    else:
        values[key] = _parse(text, hint)
