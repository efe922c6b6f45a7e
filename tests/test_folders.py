"""Scene folders as people leave them: other files beside a scene's own, capitals, val/."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from deepsum_jax import Bundle, ModelConfig
from deepsum_jax.bundle import BundleInfo
from deepsum_jax.config import DataConfig, SimulationConfig
from deepsum_jax.data import kelvins
from deepsum_jax.data.dataset import (
    fingerprint,
    fingerprint_scene,
    prepare_dataset,
    training_folders,
)
from deepsum_jax.scoring.splits import select_scenes
from deepsum_jax.simulation.dataset import write_dataset

LOOKS = SimulationConfig(scenes=3, test_scenes=1, lr_size=16, min_frames=3, max_frames=3)
MODEL = ModelConfig(num_frames=3)
DATA = DataConfig(patch_size=24, max_shift=24, min_lr_clearance=0, min_hr_clearance=0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data", LOOKS)
    return tmp_path / "data"


def first(data: Path) -> Path:
    return kelvins.find_scenes(data)[-1].path  # test comes first


def own(data: Path) -> Bundle:
    """A bundle that was trained on the data."""
    dataset = prepare_dataset(data, MODEL, DATA)
    names = (
        [f"{s.band}/{s.name}" for s in dataset.train],
        [f"{s.band}/{s.name}" for s in dataset.validation],
    )
    info = BundleInfo(
        bands=("NIR",), data_fingerprint=dataset.fingerprint, train_scenes=tuple(names[0]),
        validation_scenes=tuple(names[1]),
    )  # fmt: skip
    return Bundle({}, ModelConfig(system="ibp"), info)


def test_the_fingerprint_of_a_tidy_folder_is_that_of_all_its_pngs(data: Path) -> None:
    digest = hashlib.sha256()
    for path in sorted(first(data).glob("*.png")):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    assert fingerprint_scene(first(data)) == digest.hexdigest()


@pytest.mark.parametrize(
    "name", ["sr.png", "SR.png", "._LR000.png", "quicklook.PNG", "LR000_up.png", "LR_mean.png",
             "HR_pred.png", "preview.jpg", "Thumbs.db", "QM.png"],
)  # fmt: skip
def test_what_lies_beside_a_scene_is_not_the_scenes(data: Path, name: str) -> None:
    bundle, before = own(data), fingerprint(training_folders(data))
    scene = kelvins.read_scene(first(data))
    for folder in kelvins.find_scenes(data):
        (folder.path / name).write_bytes(b"no scene's image")
    assert fingerprint(training_folders(data)) == before
    np.testing.assert_array_equal(kelvins.read_scene(first(data)).lr, scene.lr)
    assert select_scenes(bundle, data, "auto")[0] == "test"
    alone = data.parent / "alone" / "other"
    alone.mkdir(parents=True)
    (alone / name).write_bytes(b"no scene's image")
    with pytest.raises(ValueError, match="found no scene"):
        kelvins.find_scenes(alone.parent)


def test_suffixes_in_capitals(data: Path) -> None:
    bundle = own(data)
    scenes = [kelvins.read_scene(f) for f in kelvins.find_scenes(data)]
    for folder in kelvins.find_scenes(data)[1:]:
        for path in list(folder.path.glob("*.png")):
            path.rename(path.with_suffix(".PNG"))
    again = [kelvins.read_scene(f) for f in kelvins.find_scenes(data)]
    assert [s.name for s in again] == [s.name for s in scenes]
    for one, other in zip(scenes, again):
        np.testing.assert_array_equal(one.lr, other.lr)
        assert one.hr is not None and other.hr is not None
        np.testing.assert_array_equal(one.hr, other.hr)
    assert select_scenes(bundle, data, "auto")[0] == "test"
    assert len(select_scenes(bundle, data, "all")[1]) == 4
    assert prepare_dataset(data, MODEL, DATA).fingerprint == bundle.info.data_fingerprint


def test_one_in_capitals_among_others_is_not_lost(data: Path) -> None:
    scene = kelvins.read_scene(first(data))
    for name in ("LR001", "QM001"):
        path = first(data) / f"{name}.png"
        path.rename(path.with_suffix(".PNG"))
    again = kelvins.read_scene(first(data))
    assert again.frames == scene.frames
    np.testing.assert_array_equal(again.lr, scene.lr)
    shutil.copy(first(data) / "LR000.png", first(data) / "LR000.PNG")
    with pytest.raises(ValueError, match=r"LR000\.png twice"):
        kelvins.read_scene(first(data))


def test_val_beside_train_and_test(data: Path) -> None:
    scenes = data / "val" / "NIR"
    scenes.mkdir(parents=True)
    bundle = own(data)
    shutil.copytree(first(data), scenes / "imgset0700")
    shutil.copytree(first(data), data / "val" / "RED" / "imgset0007")
    found = kelvins.find_scenes(data)
    assert [f.part for f in found].count("val") == 2
    assert {f.band for f in found if f.part == "val"} == {"NIR", "RED"}
    assert {f.part for f in training_folders(data)} == {"train"}
    names = [s.name for s in prepare_dataset(data, MODEL, DATA).train]
    assert "imgset0700" not in names
    validation = {f.name for f in select_scenes(bundle, data, "val")[1]}
    assert {"imgset0700", "imgset0007"} < validation
    assert len(validation) == 2 + len(bundle.info.validation_scenes)
    assert len(select_scenes(bundle, data, "train")[1]) == len(bundle.info.train_scenes)
    assert select_scenes(bundle, data, "auto")[0] == "test"
    shutil.rmtree(data / "test")
    split, chosen = select_scenes(bundle, data, "auto")
    assert split == "val" and {f.band for f in chosen} == {"NIR"}
    shutil.rmtree(data / "train")
    with pytest.raises(ValueError, match="found only val scenes"):
        prepare_dataset(data, MODEL, DATA)
    untrained = Bundle({}, ModelConfig(system="ibp"))
    assert len(select_scenes(untrained, data, "val")[1]) == 2


def test_a_folder_that_an_archive_left(data: Path) -> None:
    before = kelvins.find_scenes(data)
    for place in (data / "__MACOSX", data / "train" / "__MACOSX"):
        (place / "imgset0001").mkdir(parents=True)
        (place / "imgset0001" / "._LR000.png").write_bytes(b"x")
    assert kelvins.find_scenes(data) == before
