"""What a training run tells while it works: `metrics.jsonl`, and TensorBoard where installed."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from deepsum_jax import files

_SHOWN_EVERY = 30  # seconds, to those who look at TensorBoard


def _is_record(line: bytes) -> bool:
    """Whether a line is a record as it was written; those of earlier versions have no checksum."""
    told, separator, checksum = line.rpartition(b', "crc32": ')
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not line.endswith(b"}\n") or (separator and checksum != b"%d}\n" % zlib.crc32(told)):
        return False
    return (
        isinstance(record, dict)
        and isinstance(record.get("stage"), str)
        and isinstance(record.get("step"), int)
    )


class _Board:
    """A file of TensorBoard's records, written by whoever calls: the writer that comes with it has
    a thread, which a full disk ends in a traceback, and for which all calls wait from then on.

    Raises:
      ImportError: it is not installed.
      OSError: the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import RecordWriter

        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._path, self._event = folder / name, Event
        with files.naming(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(str(self._path))
        self._write(file_version="brain.Event:2")
        self._shown = time.monotonic()

    def _write(self, **fields: Any) -> None:
        with files.naming(self._path):
            event = self._event(wall_time=time.time(), **fields)
            self._records.write(event.SerializeToString())

    def scalars(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step=step, summary=scalar(name, value))
        if time.monotonic() > self._shown + _SHOWN_EVERY:
            self.show()

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        from tensorboardX.summary import image

        self._write(step=step, summary=image(name, pixels, dataformats="HWC"))

    def show(self) -> None:
        """Has on the disk what was written."""
        with files.naming(self._path):
            self._records.flush()
        self._shown = time.monotonic()

    def close(self) -> None:
        with files.naming(self._path):
            self._records.close()


class Logbook:
    """Appends records to `metrics.jsonl` and mirrors them to TensorBoard.

    Args:
      workdir: of the run.
      active: False writes nothing (all processes but the first).
    """

    def __init__(self, workdir: Path, active: bool = True) -> None:
        self.path, self.active = workdir / "metrics.jsonl", active
        self._board: _Board | None = None
        if not active:
            return
        self._mend()
        try:
            self._board = _Board(workdir / "tensorboard")
        except ImportError:
            print(
                "note: TensorBoard is not installed (extra `tensorboard`); logging to "
                f"{self.path} only",
                file=sys.stderr,
            )

    def rewind(self, stage: str, step: int, later: tuple[str, ...]) -> None:
        """Forgets what was written after the step that a run resumes from."""
        if not self.active or not self.path.exists():
            return
        kept = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            record = json.loads(line)
            if record["stage"] in later or (record["stage"] == stage and record["step"] > step):
                continue
            kept.append(line)
        self._write(kept)

    def _write(self, lines: list[bytes]) -> None:
        with files.written_aside(self.path) as aside:
            aside.write_bytes(b"".join(lines))

    def _mend(self) -> None:
        """Leaves out what is no record; but for the end of a killed run, it says so."""
        if not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _is_record(line)]
        cut = bool(lines) and not lines[-1].endswith(b"\n")
        if len(kept) + cut < len(lines):
            lost = len(lines) - len(kept) - cut
            print(f"note: {self.path}: is damaged; left out {lost} of its lines", file=sys.stderr)
        if len(kept) < len(lines):
            self._write(kept)

    def scalars(self, stage: str, step: int, values: dict[str, float]) -> None:
        """One record: {"stage", "step", name: value …}; what is not finite becomes null."""
        if not self.active:
            return
        plain = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        told = json.dumps({"stage": stage, "step": step, **plain})[:-1]
        with files.naming(self.path), open(self.path, "a") as file:
            file.write(f'{told}, "crc32": {zlib.crc32(told.encode())}}}\n')
        if self._board is not None:
            known = {f"{stage}/{k}": v for k, v in plain.items() if v is not None}
            self._board.scalars(step, known)

    def image(self, stage: str, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture for TensorBoard: uint8 [height, width, 3]."""
        if self._board is not None:
            self._board.image(step, f"{stage}/{name}", pixels)
            self._board.show()

    @property
    def wants_images(self) -> bool:
        """Whether drawing a picture is worth it."""
        return self._board is not None

    def close(self) -> None:
        """Flushes what TensorBoard still holds."""
        if self._board is not None:
            self._board.close()
