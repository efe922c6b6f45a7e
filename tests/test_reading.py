"""Files that others made: pipes, sizes that lie, bombs, and JSON without end."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import random_bundle, refuser
from PIL import Image

from deepsum_jax import ModelConfig, evaluate, files, load_params, save_params, simulate
from deepsum_jax import train as training
from deepsum_jax.data import chunks, png
from deepsum_jax.data.arrayfile import read_arrays
from deepsum_jax.data.kelvins import find_scenes, read_norm
from deepsum_jax.predict import main as predict_main
from deepsum_jax.systems.table import param_shapes


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG chunk whose checksum is right."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content)
    )  # fmt: skip


def a_png(
    raw: bytes, width: int = 8, height: int = 6, interlace: int = 0, end: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, interlace)
    return (
        chunks.START + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw) + end)
        + chunk(b"IEND", b"")
    )  # fmt: skip


RAW = b"".join(b"\0" + bytes(range(16)) for _ in range(6))  # filter, then 8 pixels of 16 bits


# --- PNG


def test_a_png_is_read_as_pillow_reads_it() -> None:
    expected = np.asarray(Image.open(io.BytesIO(a_png(RAW))))
    np.testing.assert_array_equal(png.decode(a_png(RAW), (16,)), expected)


def test_every_single_bit_counts() -> None:
    good = a_png(RAW)
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"PNG|colour"):
            png.decode(bytes(bad), (16,))
    for length in range(len(good)):
        with pytest.raises(ValueError, match="PNG"):
            png.decode(good[:length], (16,))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (a_png(RAW[:-17]), "pixel data of 85 bytes, where its header declares 102"),
        (a_png(RAW + b"\0"), "more than 102"),
        (a_png(bytes(10**8)), "more than 102"),
        (a_png(RAW, 60_000, 60_000), "a PNG of 60000×60000 pixels"),
        (a_png(RAW, 0), "a PNG of 6×0 pixels"),
        (a_png(RAW, 10_000, 10_000), "declares 200010000"),
        (a_png(RAW, end=b"more"), "bytes behind its pixel data"),
        (a_png(RAW) + b"x", "1 bytes behind its end"),
        (a_png(RAW)[:-12], "no end of the file"),
        (a_png(RAW).replace(chunk(b"IEND", b""), chunk(b"IHDR", b"") + chunk(b"IEND", b"")),
         "chunks out of order"),
        (a_png(RAW, interlace=2), "interlace 2"),
    ],
)  # fmt: skip
def test_what_is_no_whole_png(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        png.decode(data, (16,))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 3), (5, 5), (8, 8), (13, 9), (16, 1)])
def test_interlaced(width: int, height: int) -> None:
    """Sizes of the seven passes, counted pixel by pixel."""
    even, odd = "7 7 7 7 7 7 7 7", "5 6 5 6 5 6 5 6"
    passes = ["1 6 4 6 2 6 4 6", even, odd, even, "3 6 4 6 3 6 4 6", even, odd, even]
    size = 0
    for number in "1234567":
        for row in range(height):
            own = [passes[row % 8].split()[column % 8] for column in range(width)]
            size += own.count(number) * 2 + 1 if number in own else 0
    values = png.decode(a_png(bytes(size), width, height, interlace=1), (16,))
    assert values.shape == (height, width) and not values.any()


# --- arrays


def an_npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


HEADER = "{{'descr': '<f8', 'fortran_order': False, 'shape': {}}}"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (an_npy(HEADER.format("(3, 10**12)"), bytes(24)), "cut short or damaged"),
        (an_npy(HEADER.format((3, 10**12)), bytes(24)), "24 bytes of values, where its header"),
        (an_npy(HEADER.format((3,)), bytes(25)), "25 bytes of values, where its header"),
        (an_npy(HEADER.format((-1, -3)), bytes(24)), "cut short or damaged"),
        (an_npy(HEADER.format((3,)).replace("<f8", "|b1"), b"\0\1\2"), "neither 0 nor 1"),
        (an_npy(HEADER.format((3,)).replace("<f8", "|O"), bytes(24)), "pickled objects"),
        (an_npy("(" * 5000, bytes(24)), "cut short or damaged"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(24), "a header that is too long"),
        (b"\x93NUMPY\x09\x00" + bytes(24), "cut short or damaged"),
        (b"PK\x03\x04 and no more", "not a zip file"),
    ],
)
def test_what_is_no_array(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ValueError, match=words) as error:
        read_arrays(tmp_path / "a.npy", "arrays")
    assert str(error.value).startswith(f"{tmp_path / 'a.npy'}: found ")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["bool", "<u2", ">u2", "f4", ">f8", "f2"])
def test_arrays_are_read_as_numpy_reads_them(order: Any, dtype: str, tmp_path: Path) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 2, dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", a=array, empty=array[:0], one=array[0, 0, 1])
    found = read_arrays(tmp_path / "a.npz", "arrays")
    assert isinstance(found, dict) and found["empty"].shape == (0, 3, 4) and found["one"] == 1
    for one in (read_arrays(tmp_path / "a.npy", "arrays"), found["a"]):
        assert isinstance(one, np.ndarray) and one.dtype == array.dtype
        np.testing.assert_array_equal(one, array)
        one[0, 0, 0] = 1  # it may be written to


def test_bombs(tmp_path: Path) -> None:
    """Six megabytes that become six gigabytes, by what the zip says of itself."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, stack=np.zeros((3, 100, 100)))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="of 4294967294 bytes, where at most 1073741824 are read"):
        read_arrays(path, "arrays")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("stack.npy", bytes(100))
    with pytest.raises(ValueError, match=r"packed in a way .number 14"):
        read_arrays(path, "arrays")
    with zipfile.ZipFile(path, "w") as archive:
        for n in range(1001):
            archive.writestr(f"{n}.npy", b"")
    with pytest.raises(ValueError, match="1001 arrays, where at most 1000"):
        read_arrays(path, "arrays")


# --- text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "lists within lists, too deep"),
        ("9" * 5000, "a number of too many digits"),
        ('{"a": NaN}', "NaN, which is no number"),
        ("", "Expecting value"),
        ("[1,", "Expecting value"),
        ("\udcff", "can't decode byte"),
    ],
)
def test_what_is_no_json(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=words) as error:
        files.read_json(tmp_path / "a.json")
    assert str(error.value).startswith(f"{tmp_path / 'a.json'}: expected JSON, found ")


def test_texts_without_end(tmp_path: Path) -> None:
    with open(tmp_path / "norm.csv", "wb") as file:
        file.truncate(2**40)
    for read in (read_norm, files.read_json):
        with pytest.raises(ValueError, match=r"norm.csv: found more than 16777216 bytes"):
            read(tmp_path / "norm.csv")


def test_names_that_move_the_cursor(tmp_path: Path) -> None:
    (tmp_path / "NIR" / "imgset\x1b[2J").mkdir(parents=True)
    (tmp_path / "NIR" / "imgset\x1b[2J" / "LR000.png").write_bytes(a_png(RAW))
    with pytest.raises(ValueError, match="control characters in a scene's name"):
        find_scenes(tmp_path)


# --- pipes and devices


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png"])
def test_pipes_and_devices_are_not_opened(
    make: Callable[[Path], Path], suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = refuser(capsys)
    path = make(tmp_path / f"a{suffix}")
    (tmp_path / "b.png").write_bytes(a_png(RAW))
    command = ["--system", "bicubic_mean", "--output", tmp_path / "o.npy"]
    for arguments in ([path], [tmp_path / "b.png", "--masks", path]):
        message = refused(predict_main, *command, *arguments)
        assert f"{path}: found a device or pipe" in message
    if suffix != ".png":
        command = ["--output", tmp_path / "new", "--seed", 0, "--from", path]
        assert f"{path}: found a device or pipe" in refused(simulate.main, *command)


@pytest.mark.parametrize("make", [pipe, device])
def test_folders_that_are_pipes(
    make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused, path = refuser(capsys), make(tmp_path / "p")
    (tmp_path / "b.png").write_bytes(a_png(RAW))
    output = ["--output", tmp_path / "o.npy", tmp_path / "b.png"]
    assert str(path) in refused(predict_main, "--params", path, *output)
    assert str(path) in refused(evaluate.main, "--system", "ibp", "--data", path)
    assert str(path) in refused(training.main, "--workdir", tmp_path / "w", "--data", path)
    (tmp_path / "bundle").mkdir()
    make(tmp_path / "bundle" / "bundle.json")
    assert "bundle" in refused(predict_main, "--params", tmp_path / "bundle", *output)


@pytest.mark.parametrize("make", [pipe, device])
def test_a_bundle_with_a_pipe_in_it(make: Callable[[Path], Path], tmp_path: Path) -> None:
    save_params(tmp_path / "bundle", random_bundle())
    described = files.read_json(tmp_path / "bundle" / "bundle.json")
    described.pop("params_sha256")  # a bundle that another program made
    files.write_json(tmp_path / "bundle" / "bundle.json", described)
    part = next(p for p in (tmp_path / "bundle" / "params").rglob("*") if p.is_file())
    part.unlink()
    make(part)
    with pytest.raises(ValueError, match="found a device or pipe, expected orbax parameters"):
        load_params(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("field", "value"),
    [("features", 10**6), ("sisrnet_layers", 10**4), ("num_frames", 10**5 + 1), ("scale", 10**9),
     ("filter_size", 10**9 + 1), ("channels", 10**18), ("features", 10**400)],
)  # fmt: skip
def test_networks_without_end(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"ModelConfig.{field}: found 1000*.*, expected"):
        ModelConfig.from_dict({field: value})


def test_networks_too_large_as_a_whole() -> None:
    with pytest.raises(ValueError, match="found 1020097618 parameters, expected at most"):
        param_shapes(ModelConfig(features=1024, sisrnet_layers=8, num_frames=63))
