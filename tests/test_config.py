"""The configuration: strict, hashable, and the same after a trip through JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest

from deepsum_jax.config import (
    NORMALIZATIONS,
    PRESETS,
    Compute,
    DataConfig,
    ModelConfig,
    Normalization,
    Section,
    Settings,
    SimulationConfig,
    StageConfig,
    TrainConfig,
    override,
    preset,
)

PER_CHANNEL = Normalization(lr_mean=(1.0, 2.5), lr_std=(3.0, 4.0), hr_mean=7, hr_std=(0.5,))
OPTIONS = Settings({"iterations": 3})
UNUSUAL = TrainConfig(
    seed=2**31 - 1,
    border=0,
    model=ModelConfig(channels=2, scale=2, normalization=PER_CHANNEL, options=OPTIONS),
    compute=Compute(precision="default", dtype="bfloat16"),
    data=DataConfig(band="B08", augment=True, cache=False, max_value=0, min_lr_clearance=0),
    regnet=StageConfig(steps=0, schedule="cosine", clip_norm=0.5),
)
EVERY: list[Section] = [
    *PRESETS.values(), UNUSUAL, PER_CHANNEL, StageConfig(), ModelConfig(), DataConfig(),
    SimulationConfig(bands=("RED", "NIR"), seed=3), Compute(backend="plain"),
]  # fmt: skip


# --- what is documented


def test_default_model_is_the_reference_network() -> None:
    expected = {
        "num_frames": 9,
        "scale": 3,
        "features": 64,
        "filter_size": 9,
        "channels": 1,
        "sisrnet_layers": 8,
        "neighbours": 0,
        "norm": "instance",
        "psf_sigma": 0.37,
        "inpainting": "after_registration",
        "mask_alignment": "filters",
        "mask_threshold": 0.9,
        "system": "deepsum",
        "registration": "regnet",
        "global_residual": True,
        "residual_init": "glorot",
        "hidden": "published",
        "options": {},
    }
    found = ModelConfig().to_dict()
    normalization = found.pop("normalization")
    assert found == expected
    assert normalization == {
        "lr_mean": 7754.664,
        "lr_std": 2316.3408,
        "hr_mean": 7754.664,
        "hr_std": 596.982,
    }
    assert Compute().to_dict() == {
        "dtype": "float32",
        "param_dtype": "float32",
        "precision": "highest",
        "backend": "auto",
        "rematerialize": False,
        "self_ensemble": False,
    }
    assert ModelConfig().fusionnet_layers == 4
    assert [ModelConfig(num_frames=n).fusionnet_layers for n in (3, 5, 7)] == [1, 2, 3]


def test_published_normalizations() -> None:
    assert set(NORMALIZATIONS) == {"NIR", "RED"}
    assert NORMALIZATIONS["NIR"] == ModelConfig().normalization
    red = NORMALIZATIONS["RED"]
    assert (red.lr_mean, red.lr_std) == (4913.2173, 2468.3372)
    assert (red.hr_mean, red.hr_std) == (4913.2173, 490.37793)


def test_presets() -> None:
    assert list(PRESETS) == ["reference", "demo", "unrolled", "tiny"]
    assert all(preset(name) is config for name, config in PRESETS.items())
    with pytest.raises(ValueError, match=r"'refrence'.*'reference'"):
        preset("refrence")
    with pytest.raises(ValueError, match="reference, demo, unrolled, tiny"):
        preset("x")


def test_reference_preset_is_as_published() -> None:
    config = preset("reference")
    assert config.model == ModelConfig() and config.border == 3 and config.compute == Compute()
    data = config.data
    assert (data.patch_size, data.patches_per_scene, data.max_shift) == (96, 100, 4)
    assert (data.min_lr_clearance, data.min_hr_clearance, data.max_value) == (0.7, 0.85, 60000)
    assert (data.validation_fraction, data.split_seed, data.augment) == (0.3, 1, False)
    assert (data.registration, data.normalization) == ("plain", "published")
    stages = [
        (stage.learning_rate, stage.batch_size, stage.steps)
        for stage in (config.sisrnet, config.regnet, config.deepsum)
    ]
    assert stages == [(5e-5, 16, 11_400), (1e-3, 16, 6_000), (5e-6, 8, 969_000)]


# --- to and from plain data


@pytest.mark.parametrize("config", EVERY, ids=lambda config: type(config).__name__)
def test_round_trip_through_json(config: Section) -> None:
    text = json.dumps(config.to_dict(), allow_nan=False)
    again = type(config).from_dict(json.loads(text))
    assert again == config and hash(again) == hash(config)
    assert json.dumps(again.to_dict()) == text


def test_left_out_fields_take_their_defaults() -> None:
    config = TrainConfig.from_dict({"seed": 3, "model": {"features": 8}})
    assert config == TrainConfig(seed=3, model=ModelConfig(features=8))
    assert TrainConfig.from_dict({}) == TrainConfig()


def test_plain_data_is_a_copy() -> None:
    config = ModelConfig()
    config.to_dict()["normalization"]["lr_mean"] = 0
    assert config == ModelConfig() and config.normalization.lr_mean == 7754.664


@pytest.mark.parametrize(
    ("kind", "data", "named"),
    [
        (ModelConfig, {"feature": 64}, r"ModelConfig.*'feature'.*'features'"),
        (ModelConfig, {"normalisation": {}}, r"'normalisation'.*'normalization'"),
        (TrainConfig, {"model": {"num_frame": 9}}, r"ModelConfig.*'num_frame'.*'num_frames'"),
        (TrainConfig, {"model": {"normalization": {"lr_men": 1}}}, r"Normalization.*'lr_mean'"),
        (StageConfig, {"qqqq": 1}, r"'qqqq'.*steps, batch_size"),
        (ModelConfig, {"normalization": 3}, r"Normalization.*3"),
        (TrainConfig, {"model": None}, r"ModelConfig.*None"),
        (TrainConfig, {"data": ["band"]}, r"DataConfig.*band"),
        (TrainConfig, [("seed", 1)], r"TrainConfig.*seed"),
    ],
)
def test_from_dict_is_strict(kind: type[Section], data: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kind.from_dict(data)


# --- types and ranges


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *[(ModelConfig, "num_frames", value) for value in (8, 1, 9.0, "9", True, None)],
        *[(ModelConfig, "scale", value) for value in (0, 9, 2.5)],
        *[(ModelConfig, "features", value) for value in (0, -1, 64.0)],
        *[(ModelConfig, "filter_size", value) for value in (8, 0, -1)],
        *[(ModelConfig, "channels", value) for value in (0, "1")],
        (ModelConfig, "sisrnet_layers", 0),
        (ModelConfig, "inpainting", "after"),
        (ModelConfig, "mask_alignment", None),
        *[(ModelConfig, "mask_threshold", value) for value in (0, 1.1, float("nan"), "0.9", True)],
        (ModelConfig, "residual_init", "ones"),
        (ModelConfig, "normalization", {}),
        (ModelConfig, "neighbours", -1),
        *[(ModelConfig, "system", value) for value in (None, 3)],
        *[(ModelConfig, "options", value) for value in (None, 3, "search")],
        *[(Compute, "dtype", value) for value in ("int32", 32)],
        (Compute, "param_dtype", "bfloat16"),
        (Compute, "precision", "HIGHEST"),
        (Compute, "backend", "gpu"),
        (Compute, "rematerialize", 1),
        *[(Normalization, "lr_std", value) for value in (0, -1.0, (1.0, 0.0), ("1",), (True,))],
        *[(Normalization, "hr_std", value) for value in (0.0, float("nan"), None)],
        *[(Normalization, "lr_mean", value) for value in ("0", None, ("a",))],
        *[(DataConfig, "validation_fraction", value) for value in (0, 1, -0.1)],
        *[(DataConfig, "patch_size", value) for value in (7, 96.0)],
        (DataConfig, "patches_per_scene", 0),
        (DataConfig, "max_shift", -1),
        *[(DataConfig, "min_lr_clearance", value) for value in (-0.1, 1.1)],
        *[(DataConfig, "min_hr_clearance", value) for value in (-0.1, 85)],
        *[(DataConfig, "augment", value) for value in (1, "true", None)],
        (DataConfig, "workers", -1),
        (DataConfig, "band", None),
        (DataConfig, "registration", "phase"),
        (DataConfig, "normalization", "NIR"),
        *[(SimulationConfig, "scenes", value) for value in (-1, 2.0)],
        (SimulationConfig, "test_scenes", -1),
        (SimulationConfig, "lr_size", 7),
        (SimulationConfig, "seed", -1),
        *[(SimulationConfig, "bands", value) for value in ((), ("BLUE",), ("NIR", "NIR"))],
        (StageConfig, "steps", -1),
        (StageConfig, "batch_size", 0),
        *[(StageConfig, "learning_rate", value) for value in (0, -1e-3, float("nan"))],
        (StageConfig, "schedule", "linear"),
        (StageConfig, "warmup_steps", -1),
        (StageConfig, "clip_norm", -0.1),
        *[(StageConfig, every, 0) for every in ("validate_every", "checkpoint_every", "log_every")],
        *[(TrainConfig, "seed", value) for value in (-1, 2**31, 1.0)],
        (TrainConfig, "border", -1),
        (TrainConfig, "model", DataConfig()),
    ],
)
def test_wrong_values_are_named(kind: type[Section], field: str, value: Any) -> None:
    """The message has section, field and value."""
    with pytest.raises(ValueError) as error:
        kind(**{field: value})
    assert f"{kind.__name__}.{field}" in str(error.value) and repr(value) in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        {"min_frames": 12, "max_frames": 9},
        {"min_frames": 0},
        {"min_frames": -3, "max_frames": -1},
    ],
)
def test_simulated_frame_counts_make_a_range(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="frames"):
        SimulationConfig(**config)


@pytest.mark.parametrize(("field", "value"), [("scenes", 0), ("scenes", 1), ("test_scenes", 0)])
def test_a_training_needs_scenes(field: str, value: int) -> None:
    """One to train on, one to validate, one to report; a simulation by itself may have fewer."""
    few = SimulationConfig(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"SimulationConfig\.{field}: found {value}, expected ≥"):
        TrainConfig(simulation=few)


def test_options_are_plain_immutable_and_hashable() -> None:
    """They are the system's; here they only have to survive."""
    config = ModelConfig(system="ibp", options={"step": 1.5, "order": [3, 1]})  # type: ignore[arg-type]
    assert config.options == {"order": (3, 1), "step": 1.5}
    assert hash(config) == hash(ModelConfig(system="ibp", options=config.options))
    assert config != ModelConfig(system="ibp")
    with pytest.raises(TypeError):
        config.options["step"] = 2  # type: ignore[index]
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)


# --- dictionaries of earlier versions

EARLIER = {
    "preset": "demo",
    "seed": 3,
    "model": {
        "features": 24,
        "dtype": "bfloat16",
        "param_dtype": "float64",
        "precision": "high",
        "backend": "accelerator",
        "rematerialize": True,
    },
    "simulation": {
        "scenes": 48,
        "test_scenes": 24,
        "lr_size": 64,
        "seed": 0,
        "min_frames": 9,
        "max_frames": 12,
    },
}


def test_dictionaries_of_earlier_versions_load() -> None:
    """`preset` was a note, what a run computes with stood in `model`, and there were fewer knobs
    of the simulation, with the same values for the others."""
    expected = TrainConfig(
        seed=3,
        model=ModelConfig(features=24),
        compute=Compute("bfloat16", "float64", "high", "accelerator", True),
    )
    assert TrainConfig.from_dict(EARLIER) == expected
    assert TrainConfig.from_dict(expected.to_dict()) == expected
    assert ModelConfig.from_dict(EARLIER["model"]) == ModelConfig(features=24)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"backend": "gpu"}, r"Compute\.backend: found 'gpu'"),
        ({"dtype": 32}, r"Compute\.dtype: found 32"),
        ({"dtyp": "float32"}, r"ModelConfig has no field 'dtyp'"),
    ],
)
def test_wrong_values_of_earlier_versions_are_named(model: dict[str, Any], named: str) -> None:
    for load in (ModelConfig.from_dict, lambda m: TrainConfig.from_dict({"model": m})):
        with pytest.raises(ValueError, match=named):
            load(model)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_constants_are_finite(value: float) -> None:
    """Infinity and NaN make no sense here, and no JSON that others can read."""
    for field in ("lr_mean", "lr_std", "hr_mean", "hr_std"):
        with pytest.raises(ValueError, match=field):
            Normalization(**{field: value})
    with pytest.raises(ValueError, match="learning_rate"):
        StageConfig(learning_rate=value)


def test_normalization_per_channel() -> None:
    three = Normalization(lr_mean=(1.0, 2.0, 3.0))
    assert ModelConfig(channels=3, normalization=three).normalization == three
    for normalization in (three, Normalization(hr_std=(1.0, 2.0)), Normalization(lr_std=())):
        with pytest.raises(ValueError, match="Normalization"):
            ModelConfig(channels=1, normalization=normalization)
    as_list: Any = [1.0, 2.0, 3.0]
    assert Normalization(lr_mean=as_list) == three and hash(Normalization(lr_mean=as_list))


@pytest.mark.parametrize(
    ("data", "others"),
    [
        ({"patch_size": 97}, {}),
        ({"patch_size": 96}, {"model": ModelConfig(scale=5)}),
        ({"patch_size": 9}, {}),
        ({"patch_size": 96}, {"border": 48}),
    ],
)
def test_patches_fit_the_network(data: dict[str, Any], others: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"patch_size.*{data['patch_size']}"):
        TrainConfig(data=DataConfig(**data), **others)


def test_sections_are_frozen_and_hashable() -> None:
    for config in EVERY:
        assert config in {config}
        name = dataclasses.fields(config)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, getattr(config, name))
    assert len({ModelConfig(), ModelConfig(), ModelConfig(features=8)}) == 2


# --- overrides


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("seed=7", 7),
        ("border = 2", 2),
        ("model.features=16", 16),
        ("model.mask_threshold=0.75", 0.75),
        ("model.mask_threshold=1", 1),
        ("model.inpainting=before_registration", "before_registration"),
        ("compute.precision=high", "high"),
        ("compute.backend=plain", "plain"),
        ("model.options.search=7", 7),
        ("model.options.step=1.5", 1.5),
        ("model.options.momentum=true", True),
        ("model.options.momentum=False", False),
        ("simulation.change=0.5", 0.5),
        ("model.normalization.lr_mean=812.5", 812.5),
        ("model.normalization.lr_mean=(812.5,)", (812.5,)),
        ("model.normalization.hr_std=[4]", (4,)),
        ("data.band=RED", "RED"),
        ("data.band=12", "12"),
        ("data.band=", ""),
        ("data.augment=true", True),
        ("data.cache=False", False),
        ("data.min_lr_clearance=0", 0),
        ("simulation.lr_size=32", 32),
        ("deepsum.learning_rate=3e-6", 3e-6),
        ("deepsum.steps=1e5", 100_000),
        ("sisrnet.schedule=cosine", "cosine"),
        ("regnet.clip_norm=2.5", 2.5),
    ],
)
def test_override(assignment: str, expected: Any) -> None:
    config = override(TrainConfig(), [assignment])
    found: Any = config
    path = assignment.partition("=")[0].strip().split(".")
    for key in path:
        found = found[key] if isinstance(found, Mapping) else getattr(found, key)
    assert found == expected and type(found) is type(expected)
    # Everything else is as before.
    before, after = TrainConfig().to_dict(), config.to_dict()
    inner = [before, after]
    for key in path[:-1]:
        inner = [data[key] for data in inner]
    assert inner[1].pop(path[-1]) == expected
    inner[0].pop(path[-1], None)  # options that are left out are not there
    assert before == after


def test_overrides_come_in_order() -> None:
    config = override(preset("tiny"), ["seed=1", "model.features=8", "seed=2"])
    assert config.seed == 2 and config.model.features == 8
    assert config.model.num_frames == 3
    assert override(preset("tiny"), []) == preset("tiny")


@pytest.mark.parametrize(
    "assignments",
    [
        ["model.scale=5", "data.patch_size=50"],
        ["data.patch_size=50", "model.scale=5"],
        ["border=60", "data.patch_size=150"],
        ["simulation.max_frames=5", "simulation.min_frames=4"],
    ],
)
def test_fields_that_depend_on_each_other(assignments: list[str]) -> None:
    """What counts is the configuration that results, in whichever order it was written."""
    for order in (assignments, assignments[::-1]):
        config = override(TrainConfig(), order)
        assert config == override(TrainConfig(), order[::-1])


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("model.features", "section.field=value"),
        ("", "section.field=value"),
        ("modle.features=1", r"'modle'.*'model'"),
        ("model.feature=1", r"'feature'.*'features'"),
        ("model.normalization.lr_men=1", r"'lr_men'.*'lr_mean'"),
        ("zzz=1", "valid: seed, border"),
        ("preset=demo", r"no field 'preset'"),
        ("model.backend=cpu", r"no field 'backend'; it is compute\.backend now"),
        ("model.dtype=float32", r"no field 'dtype'; it is compute\.dtype now"),
        ("model.options=3", r"model\.options\.NAME"),
        ("model.options.search.x=3", r"model\.options"),
        ("simulation.scenes=1", r"SimulationConfig\.scenes: found 1"),
        ("model=8", r"model\.num_frames"),
        ("model.normalization=NIR", r"model\.normalization\.lr_mean"),
        ("seed.x=1", "'seed' has no fields"),
        ("model..features=1", "''"),
        ("=1", "''"),
        ("model.features=many", r"ModelConfig\.features.*'many'"),
        ("model.features=2.5", r"ModelConfig\.features.*2\.5"),
        ("model.features=True", r"ModelConfig\.features.*True"),
        ("model.features=", r"ModelConfig\.features.*''"),
        ("model.features=0", r"ModelConfig\.features.*0"),
        ("model.inpainting=first", r"ModelConfig\.inpainting.*'first'.*'after_registration'"),
        ("data.augment=1", r"DataConfig\.augment.*1"),
        ("data.augment=yes", r"DataConfig\.augment.*'yes'"),
        ("data.patch_size=50", r"patch_size.*50"),
        ("deepsum.learning_rate=-1", r"learning_rate.*-1"),
        ("sisrnet.steps=1e400", r"StageConfig\.steps"),
        ("sisrnet.steps={[]: 1}", r"StageConfig\.steps"),
    ],
)
def test_override_errors(assignment: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        override(TrainConfig(), ["seed=3", assignment])


def test_a_signed_file_read_as_plain_json() -> None:
    """Whoever reads `config.json` by other means need not know what signs it."""
    stored = {**TrainConfig().to_dict(), "file_sha256": 64 * "0"}
    assert TrainConfig.from_dict(stored) == TrainConfig()
