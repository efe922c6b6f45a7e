"""What users get wrong: every command says so in one line, and leaves every folder as it was."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import Refused, contents, random_bundle, refuser
from PIL import Image

from deepsum_jax import Bundle, cli, evaluate, files, save_params, simulate, tf_import
from deepsum_jax import train as training
from deepsum_jax.config import SimulationConfig, preset
from deepsum_jax.data import kelvins
from deepsum_jax.predict import main as predict_main
from deepsum_jax.simulation.dataset import write_dataset
from deepsum_jax.training import run as training_run
from deepsum_jax.training.state import StateKeeper

SIMULATION = SimulationConfig(
    scenes=4, test_scenes=1, seed=0, lr_size=16, min_frames=4, max_frames=5
)
SCENE = "train/NIR/imgset0594"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small training scenes and a test scene in `data`, a network in `bundle`."""
    root = tmp_path_factory.mktemp("template")
    write_dataset(root / "data", SIMULATION)
    save_params(root / "bundle", random_bundle())
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A copy of the template, with a space and an umlaut in its path."""
    shutil.copytree(template, tmp_path / "zwei Würfe")
    return tmp_path / "zwei Würfe"


@pytest.fixture
def refused(root: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """As `helpers.refuser`, and nothing under `root` may change."""
    refuse = refuser(capsys)

    def unchanged(main: Any, *arguments: Any) -> str:
        before = contents(root)
        message = refuse(main, *arguments)
        assert contents(root) == before
        return message

    return unchanged


def png8(path: Path) -> None:
    Image.new("L", (16, 16), 9).save(path)


def rgb(path: Path) -> None:
    Image.new("RGB", (16, 16)).save(path)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_to_ten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:10])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("no picture\n")


def jpeg(path: Path) -> None:
    Image.new("L", (16, 16)).save(path, format="JPEG")


def tiff(path: Path) -> None:
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(path, format="TIFF")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def smaller(path: Path) -> None:
    kelvins.write_png16(path, np.zeros((15, 16)))


def gone(path: Path) -> None:
    path.unlink()


# --- data that train and evaluate share

FAULTS: list[tuple[str, Callable[[Path], None], str]] = [
    *[("LR001.png", fault, "expected a grey PNG of 16 bits") for fault in
      (png8, rgb, cut_short, cut_to_ten, damaged)],
    *[("LR001.png", fault, "found a file that is not a PNG, expected a grey PNG of 16 bits")
      for fault in (emptied, text, jpeg, tiff)],
    ("LR001.png", folder, "found no such file, expected it beside QM001.png"),
    *[("HR.png", fault, "expected a grey PNG of 16 bits") for fault in (png8, rgb, cut_short)],
    *[("QM002.png", fault, "expected a grey PNG of 1 or 8 or 16") for fault in (rgb, text)],
    ("LR001.png", smaller, "found a size of (15, 16), expected (16, 16)"),
    ("HR.png", smaller, "expected (15, 16) like HR.png"),
    ("LR001.png", gone, "expected it beside QM001.png"),
    ("QM001.png", gone, "expected it beside LR001.png"),
    ("SM.png", gone, "expected it beside HR.png"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fault", "words"), FAULTS)
def test_broken_scene(
    name: str, fault: Callable[[Path], None], words: str, root: Path, refused: Refused
) -> None:
    fault(root / "data" / SCENE / name)
    if fault is smaller and name == "HR.png":
        name = "SM.png"
    data = ["--data", root / "data"]
    for message in (
        refused(training.main, "--workdir", root / "w", *data, "--preset", "tiny"),
        refused(evaluate.main, "--params", root / "bundle", *data, "--json", root / "s.json"),
        refused(predict_main, "--params", root / "bundle", "--output", root / "sr.png",
                root / "data" / SCENE),
    ):  # fmt: skip
        assert str(root / "data" / SCENE / name) in message and words in message


def no_frames(data: Path) -> None:
    for path in (data / SCENE).glob("LR*"):
        path.unlink()


def other_scale(data: Path) -> None:
    kelvins.write_png16(data / SCENE / "HR.png", np.full((32, 32), 7000))
    kelvins.write_mask_png(data / SCENE / "SM.png", np.ones((32, 32)))


def no_multiple(data: Path) -> None:
    kelvins.write_png16(data / SCENE / "HR.png", np.full((40, 48), 7000))
    kelvins.write_mask_png(data / SCENE / "SM.png", np.ones((40, 48)))


def bad_norm(data: Path) -> None:
    (data / "norm.csv").write_text("imgset0594;45.2\n")


def binary_norm(data: Path) -> None:
    (data / "norm.csv").write_bytes(bytes(5000))


def no_hr(data: Path) -> None:
    for path in data.rglob("HR.png"):
        path.unlink()


def nothing(data: Path) -> None:
    shutil.rmtree(data)


def empty(data: Path) -> None:
    shutil.rmtree(data)
    data.mkdir()


def a_file(data: Path) -> None:
    shutil.rmtree(data)
    data.write_text("scenes")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (no_frames, "imgset0594: found no frame in it"),
        (other_scale, "imgset0594': found scale 2"),
        (no_multiple, "found HR of shape (40, 48), expected one integer multiple"),
        (bad_norm, "norm.csv, line 1: found 'imgset0594;45.2', expected"),
        (binary_norm, "norm.csv, line 1: found"),
        (no_hr, "HR.png"),
        (nothing, "data: found no such folder, expected {train,test}"),
        (empty, "data: found no scene, expected {train,test}"),
        (a_file, "data: found no such folder"),
    ],
)
def test_broken_data(
    fault: Callable[[Path], None], words: str, root: Path, refused: Refused
) -> None:
    fault(root / "data")
    data = ["--data", root / "data"]
    for message in (
        refused(training.main, "--workdir", root / "w", *data, "--preset", "tiny"),
        refused(evaluate.main, "--params", root / "bundle", *data),
    ):
        assert words in message and len(message) < 600


# --- train


def stopped(*_: Any, **__: Any) -> None:
    raise ValueError("far enough")


def test_scene_bad_by_content_is_skipped_named_and_counted(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_run, "run_stage", stopped)
    scene = kelvins.read_scene(root / "data" / SCENE)
    for path in (root / "data" / SCENE).glob("QM*.png"):
        kelvins.write_mask_png(path, np.zeros_like(scene.masks[0]))
    few = root / "data" / "train/NIR/imgset0595"
    for path in sorted(few.glob("??00[2-9].png")):
        path.unlink()
    with pytest.raises(SystemExit):
        cli.run(lambda: training.main([
            "--workdir", str(root / "w"), "--data", str(root / "data"), "--preset", "tiny",
        ]))  # fmt: skip
    shown = capsys.readouterr()
    assert "1 training and 1 validation scenes" in shown.out
    assert "skipped scene imgset0594: 0 usable frames, 3 needed" in shown.err
    assert "skipped scene imgset0595: 2 usable frames, 3 needed" in shown.err
    assert "2 scenes skipped" in shown.err
    stored = json.loads((root / "w" / "data.json").read_text())
    assert [name for name, _ in stored["skipped"]] == ["imgset0594", "imgset0595"]


def test_no_scene_left(root: Path, refused: Refused) -> None:
    for path in (root / "data" / "train").rglob("SM.png"):
        kelvins.write_mask_png(path, np.zeros((48, 48)))
    command = ["--workdir", root / "w", "--data", root / "data", "--preset", "tiny"]
    message = refused(training.main, *command)
    assert "0 of 4 scenes can train, expected at least 2" in message
    assert "imgset0594: HR has no reliable pixel" in message


def test_only_test_scenes(root: Path, refused: Refused) -> None:
    shutil.rmtree(root / "data" / "train")
    message = refused(training.main, "--workdir", root / "w", "--data", root / "data")
    assert "found only test scenes, expected scenes to train on" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "demmo"], "unknown preset 'demmo'; did you mean 'demo'?"),
        (["--stages", "regnett"], "unknown stage 'regnett'; did you mean 'regnet'?"),
        (["--set", "model.feature=3"], "no field 'feature'; did you mean 'features'?"),
        (["--set", "mdel.features=3"], "no field 'mdel'; did you mean 'model'?"),
        (["--set", "model=3"], "expected one of its fields"),
        (["--set", "seed.x=3"], "'seed' has no fields"),
        (["--set", "model.features"], "expected section.field=value"),
        (["--set", "model.features=many"], "found 'many', expected int"),
        (["--set", "model.num_frames=4"], "found 4, expected odd"),
        (["--set", "data.band=BLUE"], "found 'BLUE', but the data has NIR"),
        (["--set", "data.patch_size=30", "--set", "model.scale=4"], "multiple of the scale 4"),
        (["--init", "nowhere"], "nowhere: no such folder, expected a parameter bundle"),
    ],
)
def test_unusable_settings(arguments: list[str], words: str, root: Path, refused: Refused) -> None:
    command = ["--workdir", root / "w", "--data", root / "data"]
    preset = [] if "--preset" in arguments else ["--preset", "tiny"]
    assert words in refused(training.main, *command, *preset, *arguments)


def test_batch_that_devices_cannot_share(root: Path, refused: Refused) -> None:
    devices = jax.device_count()
    if devices == 1:
        pytest.skip("one device can share any batch")
    for stage in ("regnet", "deepsum"):
        size = ["--set", f"{stage}.batch_size={devices + 1}"]
        message = refused(training.main, "--workdir", root / "w", "--preset", "tiny", *size)
        assert f"{stage}: found batch_size {devices + 1}, expected a multiple" in message


def test_workdir_that_is_a_file(root: Path, refused: Refused) -> None:
    (root / "w").write_text("mine")
    for command in (["--preset", "tiny"], ["--data", root / "data"], []):
        message = refused(training.main, "--workdir", root / "w", *command)
        assert f"{root / 'w'}: is a file, expected a folder" in message
    assert str(root / "w") in refused(training.main, "--workdir", root / "w" / "deeper")


def test_workdir_of_another_run(
    root: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "run_stage", stopped)
    command = ["--workdir", root / "w", "--data", root / "data", "--preset", "tiny"]
    with pytest.raises(ValueError, match="far enough"):
        training.main([str(a) for a in command])
    message = refused(training.main, *command, "--set", "model.features=5")
    assert f"{root / 'w'}: belongs to another configuration" in message
    assert "model.features is 4 there and 5 here" in message
    shutil.copytree(root / "data", root / "other")
    kelvins.write_png16(root / "other" / SCENE / "LR000.png", np.full((16, 16), 7000))
    command[3] = root / "other"
    with pytest.raises(ValueError, match=r"w: belongs to other data .*use another --workdir"):
        training.main([str(a) for a in command])


# --- params


def newer(bundle: Path) -> None:
    described = files.read_json(bundle / "bundle.json")
    described.update(format=99, package_version="7.0")
    files.write_json(bundle / "bundle.json", described)


def unknown_field(bundle: Path) -> None:
    described = files.read_json(bundle / "bundle.json")
    described["model"]["featuers"] = 4
    files.write_json(bundle / "bundle.json", described)


def no_json(bundle: Path) -> None:
    (bundle / "bundle.json").write_text("{")


def no_description(bundle: Path) -> None:
    (bundle / "bundle.json").write_text("[1]")


def other_shapes(bundle: Path) -> None:
    described = files.read_json(bundle / "bundle.json")
    described["model"]["features"] = 8
    files.write_json(bundle / "bundle.json", described)


def largest_file(bundle: Path) -> Path:
    return max((bundle / "params").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())


def flipped(bundle: Path) -> None:
    damaged(largest_file(bundle))


def halved(bundle: Path) -> None:
    cut_short(largest_file(bundle))


def no_params(bundle: Path) -> None:
    shutil.rmtree(bundle / "params")


def lost_file(bundle: Path) -> None:
    largest_file(bundle).unlink()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (nothing, "bundle: no such folder, expected a parameter bundle or a workdir"),
        (empty, "bundle: found no bundle.json, expected a parameter bundle"),
        (a_file, "bundle: found no bundle.json"),
        (newer, "bundle.json: found format 99 (written by deepsum_jax 7.0), expected at most 1"),
        (
            unknown_field,
            "bundle.json: ModelConfig has no field 'featuers'; did you mean 'features'",
        ),
        (no_json, "bundle.json: expected JSON"),
        (no_description, "bundle.json: found no format number"),
        (other_shapes, "bundle: parameter"),
        (flipped, "params: found other files than were saved, damaged or incomplete; expected"),
        (halved, "params: found other files than were saved"),
        (lost_file, "params: found other files than were saved"),
        (no_params, "params: found no folder, expected orbax"),
    ],
)
def test_unusable_params(
    fault: Callable[[Path], None], words: str, root: Path, refused: Refused
) -> None:
    fault(root / "bundle")
    for message in (
        refused(predict_main, "--params", root / "bundle", "--output", root / "sr.npy",
                root / "data" / SCENE),
        refused(evaluate.main, "--params", root / "bundle", "--data", root / "data"),
        refused(training.main, "--workdir", root / "w", "--preset", "tiny",
                "--init", root / "bundle"),
    ):  # fmt: skip
        assert words in message and str(root) in message


def test_half_a_network(root: Path, refused: Refused) -> None:
    whole = random_bundle()
    save_params(root / "half", Bundle({"sisrnet": whole.params["sisrnet"]}, whole.config))
    message = refused(
        predict_main, "--params", root / "half", "--output", root / "sr.npy", root / "data" / SCENE
    )
    assert "the bundle has no regnet, fusionnet; it can start a training (--init)" in message
    message = refused(evaluate.main, "--params", root / "half", "--data", root / "data")
    assert "the bundle has no regnet, fusionnet" in message


def test_workdir_without_parameters_yet(root: Path, refused: Refused) -> None:
    (root / "w").mkdir()
    files.write_json(root / "w" / "config.json", preset("tiny").to_dict())
    message = refused(evaluate.main, "--params", root / "w", "--data", root / "data")
    assert "found a workdir without any saved parameters yet" in message


def test_bundle_is_not_written_over_something_else(root: Path) -> None:
    before = contents(root)
    for path in (root / "data", root / "data" / "norm.csv"):
        with pytest.raises(ValueError, match="exists and is not a parameter bundle"):
            save_params(path, random_bundle())
    assert contents(root) == before


def test_damaged_training_state(tmp_path: Path) -> None:
    state = {"weights": np.arange(8.0)}
    keeper = StateKeeper(tmp_path)
    keeper.save(4, state, {"data": {}, "best": None})
    keeper.close()
    cut_short(max((tmp_path / "4" / "state").rglob("_METADATA"), key=os.path.getsize))
    keeper = StateKeeper(tmp_path)
    with pytest.raises(ValueError, match=r"4: is damaged \(state/_METADATA .*; remove "):
        keeper.restore(state)
    keeper.close()


# --- evaluate


@pytest.mark.parametrize("option", ["--json", "--panel"])
def test_evaluate_checks_its_outputs_first(option: str, root: Path, refused: Refused) -> None:
    command = ["--params", root / "nowhere", "--data", root / "data", option]
    assert "found a folder, expected a file" in refused(evaluate.main, *command, root / "data")
    below = root / "data" / "norm.csv" / "scores"
    assert f"{root / 'data' / 'norm.csv'} is a file" in refused(evaluate.main, *command, below)
    assert f"{option} /dev/null: found a device" in refused(evaluate.main, *command, "/dev/null")


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_that_the_bundle_does_not_have(split: str, root: Path, refused: Refused) -> None:
    command = ["--params", root / "bundle", "--data", root / "data", "--split", split]
    assert f"no scene with HR of the split '{split}'" in refused(evaluate.main, *command)


# --- predict


@pytest.fixture
def predict_refused(root: Path, refused: Refused) -> Refused:
    command = ["--params", root / "bundle", "--output", root / "sr.npy"]
    return lambda *inputs: refused(predict_main, *command, *inputs)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("sr.tif", "found suffix '.tif', expected .png or .npy"),
        ("sr", "found suffix '', expected .png or .npy"),
        ("data", "data: found a folder, expected a file"),
        ("data/norm.csv/sr.npy", "norm.csv is a file, expected a folder"),
    ],
)
def test_unusable_output(output: str, words: str, root: Path, refused: Refused) -> None:
    command = ["--params", root / "nowhere", "--output", root / output, root / "data" / SCENE]
    message = refused(predict_main, *command)
    assert words in message and f"--output {root / output}" in message


def test_output_is_not_begun_before_all_is_well(root: Path, refused: Refused) -> None:
    command = ["--params", root / "nowhere", "--output", root / "new" / "sr.npy"]
    refused(predict_main, *command, root / "data" / SCENE)


def test_several_bands_need_npy(root: Path, refused: Refused) -> None:
    np.save(root / "stack.npy", np.full((3, 8, 8, 2), 7000))
    command = ["--params", root / "bundle", "--output", root / "sr.png", root / "stack.npy"]
    assert "a .png holds one band, found 2; use .npy" in refused(predict_main, *command)


def pickled(path: Path) -> None:
    np.save(path, np.array([{"stack": 1}], dtype=object))


def saved(array: Any) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        np.save(path, array)

    save.__name__ = f"{np.asarray(array).dtype}{np.shape(array)}"
    return save


def huge(path: Path) -> None:
    """A header that promises more than any memory holds."""
    header = {"descr": "<f8", "fortran_order": False, "shape": (3, 8, 10**13)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (pickled, "found pickled objects, or no array at all, expected arrays of numbers"),
        (text, "found pickled objects, or no array at all"),
        (emptied, "cut short or damaged"),
        (huge, "cut short or damaged"),
        (saved(np.zeros((0, 8, 8))), "found frames of shape (0, 8, 8), expected at least one"),
        (saved(np.zeros((8, 8))), "found frames of shape (8, 8), expected [T, h, w]"),
        (saved(7.0), "found frames of shape ()"),
        (saved(np.zeros((3, 8, 8), complex)), "found dtype complex128, expected real numbers"),
        (saved(np.full((3, 8, 8), "x")), "found dtype <U1, expected real numbers"),
        (saved(np.full((3, 8, 8), np.nan)), "found 192 non-finite pixels that the mask calls"),
        (saved(np.full((3, 8, 8), -3.4e38)), "found 192 pixels beyond ±1e+15"),
    ],
)
def test_unusable_npy(
    make: Callable[[Path], None], words: str, root: Path, predict_refused: Refused
) -> None:
    path = root / "stack.npy"
    path.touch()
    make(path)
    message = predict_refused(path)
    assert words in message and str(path) in message


def test_npy_cut_short(root: Path, predict_refused: Refused) -> None:
    np.save(root / "stack.npy", np.full((3, 8, 8), 7000.0))
    cut_short(root / "stack.npy")
    assert "stack.npy: found a file that is cut short" in predict_refused(root / "stack.npy")


def test_unusable_npz(root: Path, predict_refused: Refused) -> None:
    path = root / "stack.npz"
    np.savez(path, frames=np.zeros((3, 8, 8)))
    assert "found the arrays frames, expected one named 'stack'" in predict_refused(path)
    np.savez(path)
    assert "found the arrays none" in predict_refused(path)
    np.savez(path, stack=np.full((3, 8, 8), 7000), masks=np.ones((3, 8, 9)))
    message = predict_refused(path)
    assert f"{path}: found masks of shape (3, 8, 9), expected (3, 8, 8)" in message
    np.savez(path, stack=np.full((3, 8, 8), 7000), masks=np.full((3, 8, 8), 7))
    assert "stack.npz: masks: found the value 7" in predict_refused(path)
    np.savez(path, stack=np.array([None]))
    assert "found pickled objects" in predict_refused(path)
    np.savez_compressed(path, stack=np.random.default_rng(0).integers(0, 9999, (3, 40, 40)))
    for fault in (damaged, cut_short):
        fault(path)
        assert "cut short or damaged" in predict_refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stack.npy", "no array")
    assert "stack.npz" in predict_refused(path)


def frame(root: Path, name: str, height: int = 8) -> Path:
    kelvins.write_png16(root / name, np.full((height, 8), 7000))
    return root / name


def test_unusable_frames(root: Path, predict_refused: Refused) -> None:
    a, b, small = frame(root, "a.png"), frame(root, "b.png"), frame(root, "small.png", 7)
    mask = root / "mask.png"
    kelvins.write_mask_png(mask, np.ones((8, 8)))
    message = predict_refused(a, small)
    assert f"{small}: found 7×8 pixels, expected 8×8 like {a}" in message
    message = predict_refused(a, b, a, "--masks", mask, mask)
    assert "--masks: found 2 files for 3 frames" in message
    kelvins.write_mask_png(root / "mask7.png", np.ones((7, 8)))
    message = predict_refused(a, b, "--masks", mask, root / "mask7.png")
    assert f"{root / 'mask7.png'}: found 7×8 pixels, expected 8×8" in message
    message = predict_refused(a, b, "--masks", root / "mask7.png", root / "mask7.png")
    assert "masks of shape (2, 7, 8), expected (2, 8, 8)" in message
    assert "nowhere.png: no such file" in predict_refused(a, root / "nowhere.png")
    assert "nowhere.png: no such file" in predict_refused(a, "--masks", root / "nowhere.png")
    folders = predict_refused(root / "data" / SCENE, root / "data" / SCENE)
    assert "expected one scene folder, one .npy or .npz stack, or 16-bit .png frames" in folders
    message = predict_refused(root / "data" / SCENE, "--masks", mask)
    assert "--masks" in message and "has its own masks" in message
    kelvins.write_mask_png(mask, np.zeros((8, 8)))
    assert "no reliable pixel in any of 1" in predict_refused(a, "--masks", mask)


@pytest.mark.parametrize(
    ("name", "make"), [("a.tif", tiff), ("a.jpg", jpeg), ("a.png", jpeg), ("a.png", tiff)]
)
def test_other_kinds_of_images(
    name: str, make: Callable[[Path], None], root: Path, predict_refused: Refused
) -> None:
    make(root / name)
    message = predict_refused(root / name)
    assert str(root / name) in message and "expected" in message
    assert (".png" if name == "a.png" else "for rasters") in message
    assert str(root / name) in predict_refused(frame(root, "first.png"), root / name)


def test_data_set_in_place_of_a_scene(root: Path, predict_refused: Refused) -> None:
    assert f"{root / 'data'}: found no frame in it" in predict_refused(root / "data")


def test_reference_that_is_not_there(root: Path, predict_refused: Refused) -> None:
    message = predict_refused(frame(root, "a.png"), "--reference", "-1")
    assert "reference: found -1, expected 0 to 0" in message
    message = predict_refused(frame(root, "a.png"), "--reference", "best")
    assert "reference: found 'best', expected 'clearest'" in message


def test_image_beyond_what_is_read_at_once(
    root: Path, predict_refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    message = predict_refused(frame(root, "a.png"))
    assert "a.png: found a PNG" in message and "64 pixels" in message


# --- simulate and tf_import


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenes", "0"], "found 0 scenes"),
        (["--scenes", "-1"], "scenes: found -1"),
        (["--scenes", "1", "--seed", "-1"], "seed: found -1"),
        (["--scenes", "1", "--size", "8"], "lr_size: found 8, expected 16 to 4096"),
        (["--scenes", "1", "--min-frames", "0"], "min_frames: found 0"),
        (["--scenes", "1", "--max-frames", "3"], "max_frames: found 3, expected 9"),
    ],
)
def test_unusable_simulation(
    arguments: list[str], words: str, root: Path, refused: Refused
) -> None:
    assert words in refused(simulate.main, "--output", root / "new", "--seed", 0, *arguments)


def test_simulation_does_not_touch_what_is_there(root: Path, refused: Refused) -> None:
    for path in (root / "data", root / "data" / "norm.csv"):
        message = refused(simulate.main, "--output", path, "--scenes", 1, "--seed", 0)
        assert f"{path}: found it there already, expected a new or empty folder" in message
    below = root / "data" / "norm.csv" / "new"
    message = refused(simulate.main, "--output", below, "--scenes", 1, "--seed", 0)
    assert "norm.csv" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "nowhere/model.ckpt-1"], "nowhere/model.ckpt-1.index: no such file"),
        (["--sisrnet", "nowhere/model.ckpt-1"], "expected a checkpoint prefix such as"),
        ([], "expected either --checkpoint, or --sisrnet and --regnet"),
        (["--checkpoint", "a", "--regnet", "b"], "expected either --checkpoint"),
    ],
)
def test_unusable_checkpoint(
    arguments: list[str], words: str, root: Path, refused: Refused
) -> None:
    command = ["--band", "NIR", "--output", root / "new"]
    assert words in refused(tf_import.main, *command, *arguments)


# --- in a process of its own


def run(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", *(str(a) for a in arguments)],
        capture_output=True, text=True, encoding="utf-8", errors="replace", check=False,
        cwd=Path(__file__).parents[1], env={**os.environ, **environment},
    )  # fmt: skip


def test_whole_commands(root: Path) -> None:
    command = ["deepsum_jax.predict", "--params", root / "bundle", "--output", root / "sr.npy"]
    done = run(*command, root / "data" / SCENE, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "48?48 from" in done.stdout and (root / "sr.npy").exists()
    before = contents(root)
    flipped(root / "bundle")
    done = run(*command, root / "data" / SCENE)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert {k: v for k, v in contents(root).items() if k in before}.keys() == before.keys()


# --- files


def test_a_link_stays_and_what_it_points_at_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("real.json")
    files.write_json(tmp_path / "link.json", [1])
    assert (tmp_path / "link.json").is_symlink()
    assert files.read_json(tmp_path / "real.json") == [1]
    save_params(tmp_path / "real", random_bundle())
    (tmp_path / "link").symlink_to("real")
    save_params(tmp_path / "link", random_bundle(seed=1))
    assert (tmp_path / "link").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "link.json", "real", "real.json"]


def test_leftovers_of_a_killed_process_do_no_harm(tmp_path: Path) -> None:
    # In containers the next process often has the same number.
    for end in ("tmp", "old"):
        (tmp_path / f".bundle.{os.getpid()}.{end}" / "params").mkdir(parents=True)
    for _ in range(2):
        save_params(tmp_path / "bundle", random_bundle())
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_failure_leaves_what_stood_there(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", [1])
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", float("nan"))
    with pytest.raises(KeyboardInterrupt), files.written_aside(tmp_path / "new") as aside:
        aside.mkdir()
        (aside / "half").write_text("")
        raise KeyboardInterrupt
    with pytest.raises(FileExistsError, match="device"), files.written_aside("/dev/null"):
        pass
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (PermissionError(13, "Permission denied", "/data/x"), 2, "/data/x: Permission denied"),
        (ValueError("two\n  lines"), 2, "two lines"),
        (ValueError(), 2, "ValueError"),
        (ValueError("\x1b[31mred\x07 \u202e\udcff"), 2, "?[31mred? ??"),
        (ValueError("x" * 9999), 2, f"{'x' * 340} … {'x' * 157}"),
    ],
)
def test_errors_become_one_line(
    error: Exception, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    assert stopped.value.code == status
    assert capsys.readouterr().err == f"error: {words}\n"


class Elsewhere(Exception):
    """Of another library."""


def wrapped() -> Exception:
    error = Elsewhere("reading failed")
    error.__cause__ = MemoryError("no room")
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n[tf-allocator…]"),
        jax.errors.JaxRuntimeError("INTERNAL: std::bad_alloc"),
        Elsewhere("Failed to allocate 9 bytes"),
        OSError(12, "Cannot allocate memory"),
        wrapped(),
    ],
)
def test_out_of_memory_of_any_kind(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: out of memory (") and shown.count("\n") == 1
    assert "take fewer or smaller frames" in shown


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("two\nlines\x1b", UserWarning, stacklevel=1)

    cli.run(main)
    assert capsys.readouterr().err == "warning: two lines?\n"


COMMANDS = (predict_main, evaluate.main, training.main, simulate.main, tf_import.main)


@pytest.mark.parametrize("main", COMMANDS, ids=lambda main: main.__module__)
def test_debug_shows_where_an_error_arose(
    main: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every command: its help has it, and `run` honours it, this time alone."""
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--debug" in capsys.readouterr().out

    def fails(*arguments: str) -> str:
        parser = sys.modules[main.__module__].parser()
        monkeypatch.setattr(parser, "error", lambda message: None)  # other arguments are missing

        def command() -> None:
            parser.parse_args(arguments)
            raise ValueError("the cause")

        with pytest.raises(SystemExit) as stopped:
            cli.run(command)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    shown = fails("--debug")
    assert shown.startswith("Traceback") and 'raise ValueError("the cause")' in shown
    assert shown.endswith("\nerror: the cause\n")
    assert fails() == "error: the cause\n"


def test_debug_of_a_whole_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--params", str(root / "nowhere"), "--output", str(root / "sr.npy"), "--debug"]
    with pytest.raises(SystemExit):
        cli.run(lambda: predict_main([*command, str(root / "data" / SCENE)]))
    shown = capsys.readouterr().err
    assert "in find_bundle" in shown and "nowhere: no such folder" in shown.splitlines()[-1]


def test_faults_of_ours_keep_their_traceback() -> None:
    def main() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli.run(main)


def test_terminals_without_our_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    cli.run(lambda: print("48×48 …"))
    terminal.flush()
    assert terminal.buffer.getvalue() == b"48?48 ?\n"
