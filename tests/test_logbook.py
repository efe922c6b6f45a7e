"""The log of a training: what is damaged in it is left out, and said; nothing else changes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from deepsum_jax.training.logbook import Logbook

EARLIER = b'{"stage": "sisrnet", "step": 1, "loss": 0.5}\n'  # without a checksum


def logged(workdir: Path, steps: int = 3) -> list[bytes]:
    log = Logbook(workdir)
    for step in range(1, steps + 1):
        log.scalars("regnet", step, {"loss": step / 7, "accuracy": float("nan")})
    log.close()
    return (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)


def opened(workdir: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[bytes], list[str]]:
    """The lines that are left when the log is opened again, and what is said."""
    capsys.readouterr()
    Logbook(workdir).close()
    said = [line for line in capsys.readouterr().err.splitlines() if "TensorBoard" not in line]
    return (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True), said


def test_records_are_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = logged(tmp_path)
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records] == [1, 2, 3]
    assert records[1]["loss"] == 2 / 7 and records[1]["accuracy"] is None
    assert opened(tmp_path, capsys) == (lines, [])


def test_every_damaged_byte_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = logged(tmp_path)
    start = len(lines[0])
    for place in range(len(lines[1]) - 1):  # a damaged line end takes the next line with it
        broken = bytearray(b"".join(lines))
        broken[start + place] ^= 1 << place * 5 % 8
        (tmp_path / "metrics.jsonl").write_bytes(broken)
        left, said = opened(tmp_path, capsys)
        key = b'"crc32"' in lines[1] and lines[1].index(b'"crc32"') <= place < lines[1].index(
            b'"crc32"'
        ) + len('"crc32": ')
        if left != [lines[0], lines[2]]:
            assert key and b'"loss": 0.2857' in left[1], place  # the record itself is as it was
            continue
        assert len(said) == 1 and str(tmp_path / "metrics.jsonl") in said[0], place


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\x00\n",
        b"[1, 2]\n",
        b"3\n",
        b"{}\n",
        b'{"stage": "regnet"}\n',
        b'{"stage": "regnet", "step": "x"}\n',
        b'{"stage": 3, "step": 1}\n',
        b"[" * 10**5 + b"\n",
        b"\n",
    ],
)
def test_what_is_no_record_is_left_out(
    damage: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [EARLIER, *logged(tmp_path)]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
    left, (said,) = opened(tmp_path, capsys)
    assert left == lines
    assert said == f"note: {tmp_path / 'metrics.jsonl'}: is damaged; left out 1 of its lines"


def test_the_cut_end_of_a_killed_run_is_no_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = logged(tmp_path)
    for end in (1, 9, len(lines[2]) - 1):
        (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:end])
        assert opened(tmp_path, capsys) == (lines[:2], [])


def test_what_came_after_a_state_is_forgotten(tmp_path: Path) -> None:
    logged(tmp_path)
    log = Logbook(tmp_path)
    log.scalars("deepsum", 1, {"loss": 1.0})
    log.rewind("regnet", 2, ("deepsum",))
    log.close()
    records = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [(r["stage"], r["step"]) for r in records] == [("regnet", 1), ("regnet", 2)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """That of the log, and TensorBoard's, at the next write or at the end."""
    log = Logbook(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        log.scalars("regnet", 1, {"loss": 0.5})
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").unlink()
    assert log._board is not None
    log._board._records._writer.close()
    log._board._records._writer = open("/dev/full", "wb")  # noqa: SIM115
    log.scalars("regnet", 1, {"loss": 0.5})
    for end in (log._board.show, log.close):
        with pytest.raises(OSError, match="No space left") as caught:
            end()
        assert "tensorboard/events.out.tfevents." in caught.value.filename


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    log = Logbook(tmp_path)
    log.scalars("regnet", 3, {"loss": 0.5, "accuracy": float("nan")})
    log.image("regnet", 3, "validation", np.zeros((4, 5, 3), np.uint8))
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    stored, events = path.read_bytes(), []
    while stored:  # a length and its checksum, an event and its checksum
        (length,) = struct.unpack("<Q", stored[:8])
        events.append(Event.FromString(stored[12 : 12 + length]))
        stored = stored[16 + length :]
    version, loss, picture = events
    assert version.file_version == "brain.Event:2" and loss.step == picture.step == 3
    assert [(v.tag, v.simple_value) for v in loss.summary.value] == [("regnet/loss", 0.5)]
    assert picture.summary.value[0].image.height == 4
