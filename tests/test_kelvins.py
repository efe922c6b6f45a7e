"""The Kelvins layout: exact round trips, matching by suffix, and one line for every fault."""

from __future__ import annotations

import dataclasses
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepsum_jax.data import kelvins, submission
from deepsum_jax.data.scene import Scene

RNG = np.random.default_rng(0)


def make_scene(hr: bool = True, frames: tuple[int, ...] = (0, 3, 12)) -> Scene:
    rng = np.random.default_rng(1)
    return Scene(
        "imgset0594",
        rng.integers(0, 2**16, (len(frames), 6, 7)).astype(np.uint16),
        rng.random((len(frames), 6, 7)) < 0.7,
        frames=frames,
        band="NIR",
        hr=rng.integers(0, 2**16, (18, 21)).astype(np.uint16) if hr else None,
        hr_mask=rng.random((18, 21)) < 0.7,
    )


def assert_same(a: Scene, b: Scene) -> None:
    assert (a.name, a.band, a.frames) == (b.name, b.band, b.frames)
    for field in ("lr", "masks", "hr", "hr_mask"):
        left, right = getattr(a, field), getattr(b, field)
        if left is None:
            assert right is None
        else:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


def one_line(caught: pytest.ExceptionInfo[BaseException], *words: str) -> None:
    message = str(caught.value)
    assert "\n" not in message and "found" in message and "expected" in message
    for word in words:
        assert word in message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "train" / "NIR" / "imgset0594"
    kelvins.write_scene(path, make_scene())
    return path


@pytest.mark.parametrize("hr", [True, False])
def test_round_trip(tmp_path: Path, hr: bool) -> None:
    path = tmp_path / "NIR" / "imgset0594"
    kelvins.write_scene(path, make_scene(hr))
    assert (path / "LR012.png").exists() and (path / "QM003.png").exists()
    assert_same(kelvins.read_scene(path), make_scene(hr))
    assert [p.name for p in path.parent.iterdir()] == ["imgset0594"]


def test_reference_is_a_frame_by_name(folder: Path) -> None:
    scene = kelvins.read_scene(folder)
    assert scene.reference is None
    numbered = dataclasses.replace(scene, reference=scene.frames[1])
    kelvins.write_scene(folder, numbered, overwrite=True)
    assert (folder / "reference.txt").read_text() == f"LR{scene.frames[1]:03d}\n"
    assert kelvins.read_scene(folder).reference == scene.frames[1]
    (folder / "reference.txt").write_text("4")
    with pytest.raises(ValueError, match=r"reference\.txt: found '4', expected .*LR000"):
        kelvins.read_scene(folder)


def test_matched_by_suffix_not_by_order(folder: Path) -> None:
    # 12 comes before 3 in the order of names, were they not padded.
    (folder / "LR003.png").rename(folder / "LR3.png")
    (folder / "QM003.png").rename(folder / "QM3.png")
    (folder / "truth.json").write_text("{}")
    assert_same(kelvins.read_scene(folder), make_scene())


@pytest.mark.parametrize("name", ["QM003.png", "LR003.png", "SM.png"])
def test_missing_partner_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError) as caught:
        kelvins.read_scene(folder)
    one_line(caught, str(folder / name))


def test_sizes_that_disagree(folder: Path) -> None:
    kelvins.write_png16(folder / "LR003.png", np.zeros((6, 8)))
    with pytest.raises(ValueError) as caught:
        kelvins.read_scene(folder)
    one_line(caught, "LR003.png", "(6, 8)", "(6, 7)")


def test_hr_that_is_no_multiple(folder: Path) -> None:
    kelvins.write_png16(folder / "HR.png", np.zeros((18, 20)))
    kelvins.write_mask_png(folder / "SM.png", np.ones((18, 20)))
    with pytest.raises(ValueError) as caught:
        kelvins.read_scene(folder)
    one_line(caught, str(folder), "(18, 20)", "6 x 7")


def test_no_frames_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        kelvins.read_scene(tmp_path / "nowhere")
    one_line(caught, "nowhere")
    with pytest.raises(ValueError) as empty:
        kelvins.read_scene(tmp_path)
    one_line(empty, str(tmp_path))


@pytest.mark.parametrize(
    ("mode", "words"),
    [("RGB", "RGB"), ("RGBA", "RGBA"), ("P", "palette"), ("LA", "alpha"), ("L", "8 bits")],
)
def test_wrong_kind_of_png(tmp_path: Path, mode: str, words: str) -> None:
    path = tmp_path / "LR000.png"
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(ValueError) as caught:
        kelvins.read_png16(path)
    one_line(caught, str(path), words, "16 bits")
    if mode != "L":
        with pytest.raises(ValueError, match="1 or 8 or 16 bits") as mask:
            kelvins.read_mask_png(path)
        one_line(mask, str(path), words)


def test_not_a_png_and_missing(tmp_path: Path) -> None:
    path = tmp_path / "QM000.png"
    path.write_bytes(b"GIF89a" + bytes(50))
    with pytest.raises(ValueError, match="not a PNG") as caught:
        kelvins.read_mask_png(path)
    one_line(caught, str(path))
    with pytest.raises(FileNotFoundError) as missing:
        kelvins.read_png16(tmp_path / "LR000.png")
    one_line(missing, "LR000.png")


@pytest.mark.parametrize("keep", [9, 30, 40, 60, 0.5, 0.9])
def test_cut_short(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "LR000.png"
    kelvins.write_png16(path, RNG.integers(0, 2**16, (40, 40)))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(ValueError, match="cut short") as caught:
        kelvins.read_png16(path)
    one_line(caught, str(path))


@pytest.mark.parametrize("mode", ["1", "L", "I;16"])
def test_masks_of_any_depth(tmp_path: Path, mode: str) -> None:
    mask = RNG.random((5, 9)) < 0.5
    image = Image.fromarray(mask.astype(np.uint16) if mode == "I;16" else mask.astype(np.uint8))
    if mode == "1":
        image = Image.fromarray(mask)
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(kelvins.read_mask_png(tmp_path / "mask.png"), mask)


def test_written_masks_are_0_and_255(tmp_path: Path) -> None:
    kelvins.write_mask_png(tmp_path / "mask.png", np.array([[0, 1], [2, 0]]))
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.array(image), [[0, 255], [255, 0]])


@pytest.mark.parametrize("value", [-0.6, 65535.6, np.nan])
def test_values_that_do_not_fit(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError) as caught:
        kelvins.write_png16(tmp_path / "LR000.png", [[0.0, value]])
    one_line(caught, "0..65535")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    good = make_scene()
    kelvins.write_scene(tmp_path / "s", good)
    bad = Scene("s", good.lr - 1.0 * good.lr.max(), good.masks)
    with pytest.raises(ValueError, match="LR000"):
        kelvins.write_scene(tmp_path / "s", bad, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    np.testing.assert_array_equal(kelvins.read_scene(tmp_path / "s").lr, good.lr)


def test_overwrite_only_when_asked(folder: Path) -> None:
    fewer = make_scene(hr=False, frames=(1, 2))
    with pytest.raises(FileExistsError) as caught:
        kelvins.write_scene(folder, fewer)
    one_line(caught, str(folder))
    kelvins.write_scene(folder, fewer, overwrite=True)
    assert_same(kelvins.read_scene(folder), fewer)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_several_bands_do_not_fit_the_layout(tmp_path: Path) -> None:
    scene = Scene("s", np.zeros((1, 4, 4, 2)), np.ones((1, 4, 4), bool))
    with pytest.raises(ValueError, match="one image"):
        kelvins.write_scene(tmp_path / "s", scene)


def test_norm_round_trip(tmp_path: Path) -> None:
    norm = {"imgset0001": 45.123456789012345, "imgset0000": 1 / 3}
    kelvins.write_norm(tmp_path / "norm.csv", norm)
    assert kelvins.read_norm(tmp_path / "norm.csv") == norm
    assert (tmp_path / "norm.csv").read_text().startswith("imgset0000 0.333")


@pytest.mark.parametrize("row", ["imgset0001", "imgset0001 x", "a 1 2", "a nan", "imgset0000 46"])
def test_norm_rows_that_cannot_be_read(tmp_path: Path, row: str) -> None:
    (tmp_path / "norm.csv").write_text(f"imgset0000 45.5\n\n{row}\n")
    with pytest.raises(ValueError) as caught:
        kelvins.read_norm(tmp_path / "norm.csv")
    one_line(caught, "norm.csv", "line 3")


def test_norm_belongs_to_the_data_set(folder: Path) -> None:
    root = folder.parents[2]
    assert kelvins.read_norm_for(root) == {}
    kelvins.write_norm(root / "norm.csv", {"imgset0594": 45.0})
    for inner in (root, root / "train", root / "train" / "NIR", folder):
        assert kelvins.read_norm_for(inner) == {"imgset0594": 45.0}
    assert kelvins.read_scene(folder, 45.0).norm == 45.0


@pytest.mark.parametrize(
    ("place", "root", "band", "part"),
    [
        ("data/train/NIR/s", "data", "NIR", "train"),
        ("data/test/B04/s", "data", "B04", "test"),
        ("data/test/B04/s", "data/test", "B04", "test"),
        ("data/test/B04/s", "data/test/B04", "B04", "test"),
        ("data/test/B04/s", "data/test/B04/s", "B04", "test"),
        ("data/B04/s", "data", "B04", ""),
        ("data/RED/s", "data/RED/s", "RED", ""),
        ("data/s", "data", "", ""),
        ("data/s", "data/s", "", ""),
        ("data/train/s", "data", "", "train"),
    ],
)
def test_layouts(tmp_path: Path, place: str, root: str, band: str, part: str) -> None:
    kelvins.write_scene(tmp_path / place, make_scene())
    (found,) = kelvins.find_scenes(tmp_path / root)
    assert found == kelvins.SceneFolder(tmp_path / place, "s", band, part)
    assert kelvins.read_scene(found).band == band


def test_found_scenes_are_sorted_and_strangers_ignored(folder: Path) -> None:
    root = folder.parents[2]
    for place in ("train/RED/imgset0007", "test/NIR/imgset1306", "train/NIR/imgset0595"):
        shutil.copytree(folder, root / place)
    (root / "notes").mkdir()
    (root / "train" / "NIR" / ".hidden").mkdir()
    (root / "norm.csv").write_text("")
    names = [(s.part, s.band, s.name) for s in kelvins.find_scenes(root)]
    assert names == [
        ("test", "NIR", "imgset1306"),
        ("train", "NIR", "imgset0594"),
        ("train", "NIR", "imgset0595"),
        ("train", "RED", "imgset0007"),
    ]


def test_structural_faults(folder: Path, tmp_path: Path) -> None:
    empty = folder.with_name("imgset0600")
    empty.mkdir()
    with pytest.raises(ValueError) as caught:
        kelvins.find_scenes(folder.parents[2])
    one_line(caught, str(empty))
    with pytest.raises(FileNotFoundError) as missing:
        kelvins.find_scenes(tmp_path / "nowhere")
    one_line(missing, "nowhere")
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError) as none:
        kelvins.find_scenes(tmp_path / "void")
    one_line(none, "{train,test}/BAND/SCENE")


def test_submission(tmp_path: Path) -> None:
    images = {"imgset1307": np.array([[-5, 70000.0]]), "imgset1306": np.full((2, 3, 1), 7.6)}
    for name in ("a.zip", "b.zip"):
        submission.write_submission(tmp_path / name, images, expected_names=set(images))
        images = dict(reversed(images.items()))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["imgset1306.png", "imgset1307.png"]
        (tmp_path / "out.png").write_bytes(archive.read("imgset1307.png"))
        pixels = Image.open(io.BytesIO(archive.read("imgset1306.png")))
        np.testing.assert_array_equal(np.array(pixels), np.full((2, 3), 8))
    np.testing.assert_array_equal(kelvins.read_png16(tmp_path / "out.png"), [[0, 65535]])


@pytest.mark.parametrize(
    ("images", "expected", "words"),
    [
        ({}, None, "no image"),
        ({"imgset0001": [[1]]}, {"imgset0001", "imgset0002"}, "missing (imgset0002)"),
        ({"imgset0001": [[1]]}, set(), "extra (imgset0001)"),
        ({"a/b": [[1]]}, None, "'a/b'"),
        ({"imgset0001": [[np.nan]]}, None, "not finite"),
        ({"imgset0001": [1]}, None, "(1,)"),
    ],
)
def test_submission_refusals(
    tmp_path: Path, images: dict[str, object], expected: set[str] | None, words: str
) -> None:
    with pytest.raises(ValueError) as caught:
        submission.write_submission(tmp_path / "a.zip", images, expected_names=expected)
    one_line(caught, words)
    assert not list(tmp_path.iterdir())
