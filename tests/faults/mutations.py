"""Mutated files through the readers, by seed, each in a process with limits.

    python -m faults.mutations --count 10000 --commands 100 --seed 0      from tests/

Every file is read as it is written or refused in one line that names it. PNGs, `.npz` and what has
a digest are never read as other values. No traceback, no hang over ten seconds, no memory over
2 GiB, no control character. What did not hold is printed, with the seed that makes it again.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import rastering
from PIL import Image

from deepsum_jax import Bundle, ModelConfig, cli, files, load_params, save_params
from deepsum_jax.config import SimulationConfig, TrainConfig, preset
from deepsum_jax.data import kelvins, png
from deepsum_jax.data.stackfile import read_input
from deepsum_jax.data.submission import check_submission, write_submission
from deepsum_jax.rasters.source import RasterSource
from deepsum_jax.simulation.dataset import write_dataset
from deepsum_jax.simulation.dates import read_dates
from deepsum_jax.systems.system import Params
from deepsum_jax.tiling.source import Rect

SECONDS, BYTES, LONGEST = 10, 2**31, 500
TINY = ModelConfig(num_frames=3, features=4, filter_size=5, sisrnet_layers=2)


class Target(NamedTuple):
    """A good file, or a folder one of whose files is mutated, and what reads it."""

    path: Path
    read: Callable[[Path], Any]  # of a copy of `path`
    plain: Callable[[Path], Any] | None = None  # what a mutated one says, read carelessly
    exact: bool = True  # whether damage is always noticed; else other values may be read


# --- mutations


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Other bytes, in one to three steps."""
    changed = data
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        changed = _STEPS[int(rng.integers(len(_STEPS)))](changed, rng)
    return changed if changed != data else data + b"\0"


def _place(data: bytes, rng: np.random.Generator) -> int:
    """Headers are short and say most, so half of the places lie in the first bytes."""
    where = rng.random()
    near = 0 if where < 0.05 else 200 if where < 0.5 else len(data)
    return int(rng.integers(min(len(data), near) + 1))


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        changed[min(_place(data, rng), len(changed) - 1)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng)]


def _lose(data: bytes, rng: np.random.Generator) -> bytes:
    start = _place(data, rng)
    return data[:start] + data[start + int(rng.integers(1, 64)) :]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    start = _place(data, rng)
    end = start + int(rng.integers(1, 64))
    return data[:end] + data[start:end] * int(rng.integers(1, 4)) + data[end:]


def _append(data: bytes, rng: np.random.Generator) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 200)))


def _overwrite(data: bytes, rng: np.random.Generator) -> bytes:
    start, piece = _place(data, rng), _PIECES[int(rng.integers(len(_PIECES)))]
    return data[:start] + piece + data[start + len(piece) :]


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
    start, piece = _place(data, rng), _PIECES[int(rng.integers(len(_PIECES)))]
    return data[:start] + piece + data[start:]


def _renumber(data: bytes, rng: np.random.Generator) -> bytes:
    """Another number in the place of one that is written in digits."""
    places = [n for n, byte in enumerate(data[:4000]) if 48 <= byte <= 57]
    if not places:
        return _flip(data, rng)
    start = end = places[int(rng.integers(len(places)))]
    while data[end : end + 1].isdigit():
        end += 1
    return data[:start] + _NUMBERS[int(rng.integers(len(_NUMBERS)))] + data[end:]


_STEPS = (_flip, _flip, _flip, _flip, _cut, _lose, _repeat, _append, _overwrite, _insert, _renumber)
_NUMBERS = (
    b"0", b"-1", b"1e999", b"NaN", b"999999999999", b"9" * 400, b"9" * 5000, b"1e300", b"true",
    b"0x10", b"3.5", b"[[1]]",
)  # fmt: skip
_PIECES = (
    b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00" * 8, b"\x80\x00\x00\x00",
    b"\x1b[31m\x1b]0;x\x07", "\u202e\u2028\u0085".encode(), b"\r\n\n", b"[" * 100_000, b"(" * 3000,
    b'{"a":' * 5000, b"\xed\xb3\xbf", b"x" * 100_000, b"null", b"'\"",
)  # fmt: skip


# --- good files


def _undigested(bundle: Path) -> None:
    """Takes every digest away, so that what reads the parameters meets the damage itself."""
    described = files.read_json(bundle / "bundle.json")
    kept = {key: value for key, value in described.items() if "sha256" not in key}
    (bundle / "bundle.json").write_text(json.dumps(kept))


def _config(path: Path) -> Any:
    try:
        return TrainConfig.from_dict(files.read_json(path)).to_dict()
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path}: {text}") from None


def _plain_arrays(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.load(path, allow_pickle=False)


def _as_json(path: Path) -> Any:
    return json.loads(path.read_text())


def _rows(path: Path) -> Any:
    lines = path.read_bytes().decode("utf-8-sig", errors="replace").splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.split()}


def _bundle(path: Path) -> Any:
    bundle = load_params(path)
    return [bundle.config.to_dict(), bundle.info.to_dict(), bundle.params]


def _zeros(tree: Any) -> Params:
    if isinstance(tree, dict):
        return {name: _zeros(part) for name, part in tree.items()}
    return np.linspace(-1, 1, int(np.prod(tree.shape)), dtype=np.float32).reshape(tree.shape)


def make(root: Path, params: bool) -> None:
    """Writes one good file of every kind below an empty folder.

    In a process of its own: JAX starts threads, after which no fork is safe.
    """
    pid = os.fork()
    if not pid:
        status = 1
        try:
            _make(root, params)
            status = 0
        except Exception:  # noqa: BLE001 (this process has nobody else to tell)
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def _make(root: Path, params: bool) -> None:
    rng = np.random.default_rng(0)
    write_dataset(root / "data", SimulationConfig(
        scenes=1, test_scenes=1, lr_size=16, min_frames=4, max_frames=4
    ))  # fmt: skip
    (scene,) = (root / "data" / "train" / "NIR").iterdir()
    (scene / "reference.txt").write_text("LR002\n")
    ramp = (np.arange(24 * 20).reshape(24, 20) * 60).astype(np.uint16)
    kelvins.write_png16(root / "a.png", ramp)
    kelvins.write_png16(root / "noise.png", rng.integers(0, 65536, (40, 30)))
    kelvins.write_mask_png(root / "mask.png", ramp > 9000)
    Image.fromarray(ramp > 9000).save(root / "bits.png")
    stack, masks = (
        (7000 + 500 * rng.standard_normal((4, 12, 10))).astype("f4"),
        rng.random((4, 12, 10)) < 0.9,
    )
    np.save(root / "stack.npy", stack)
    np.save(root / "turned.npy", np.asfortranarray(stack.astype(">u2")))
    np.savez(root / "stored.npz", stack=stack, masks=masks)
    np.savez_compressed(root / "packed.npz", stack=stack.astype(np.uint16), masks=masks)
    np.savez(root / "dates.npz", dates=stack, masks=masks)
    files.write_json(root / "config.json", preset("tiny").to_dict())
    write_submission(root / "s.zip", {f"imgset{n}": ramp[:20, :20] for n in range(3)})
    bands = np.stack([ramp, ramp + 7, ramp + 300], axis=-1)
    rastering.write(root / "dates.tif", bands, nodata=0, compress="deflate", predictor=2)
    rastering.write(root / "one.tif", bands, nodata=0, mask=ramp > 9000)
    tiled: dict[str, Any] = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    rastering.write(root / "two.tif", bands + 1, nodata=0, **tiled)

    if params:
        save_params(root / "bundle", Bundle(_zeros(_shapes()), TINY))
        shutil.copytree(root / "bundle", root / "undigested")
        _undigested(root / "undigested")


def good_files(root: Path, params: bool) -> dict[str, Target]:
    """What `make` has written, and what reads it."""
    (scene,) = (root / "data" / "train" / "NIR").iterdir()

    def stacked(path: Path) -> Any:
        return read_input([path], [])

    def submitted(path: Path) -> Any:
        return check_submission(path, [f"imgset{n}" for n in range(3)], 20)

    def dated(path: Path) -> Any:
        source = RasterSource([path, root / "two.tif"])
        try:
            read = source.read(Rect(0, 0, source.height, source.width))
            return *read, source.fractions, repr(source.georeference)
        finally:
            source.close()

    targets = {
        "a.png": Target(root / "a.png", png.read_png16),
        "noise.png": Target(root / "noise.png", png.read_png16),
        "mask.png": Target(root / "mask.png", png.read_mask_png),
        "bits.png": Target(root / "bits.png", png.read_mask_png),
        "stack.npy": Target(root / "stack.npy", lambda p: stacked(p)[0], _plain_arrays, False),
        "turned.npy": Target(root / "turned.npy", lambda p: stacked(p)[0], _plain_arrays, False),
        "stored.npz": Target(root / "stored.npz", stacked),
        "packed.npz": Target(root / "packed.npz", stacked),
        "dates.npz": Target(root / "dates.npz", lambda p: tuple(read_dates([p]))),
        "dates.tif": Target(root / "dates.tif", lambda p: tuple(read_dates([p])), exact=False),
        "one.tif": Target(root / "one.tif", dated, exact=False),
        "norm.csv": Target(root / "data" / "norm.csv", kelvins.read_norm, _rows, False),
        "any.json": Target(root / "config.json", files.read_json, _as_json, False),
        "config.json": Target(root / "config.json", _config, exact=False),
        "s.zip": Target(root / "s.zip", submitted, exact=False),
        "scene": Target(scene, lambda p: vars(kelvins.read_scene(p)), exact=False),
    }
    if params:
        targets["bundle"] = Target(root / "bundle", _bundle, exact=False)
        targets["undigested"] = Target(root / "undigested", _bundle, exact=False)
    return targets


def _shapes() -> Any:
    from deepsum_jax.systems.table import param_shapes

    return param_shapes(TINY)


# --- trying them


def mutated(target: Target, place: Path, seed: tuple[int, ...]) -> Path:
    """A copy of a target below `place`, damaged as a seed says; returns the file that is."""
    rng = np.random.default_rng(seed)
    copy = place / target.path.name
    if target.path.is_dir():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(target.path, copy)
        inside = sorted(p for p in copy.rglob("*") if p.is_file())
        damaged = inside[int(rng.integers(len(inside)))]
        if rng.random() < 0.05:
            damaged.unlink()
            return damaged
    else:
        damaged = copy
        shutil.copy(target.path, copy)
    damaged.write_bytes(mutate(damaged.read_bytes(), rng))
    return damaged


def digest(value: Any) -> str:
    """What tells a reader's result from others."""
    return hashlib.sha256(_flat(value)).hexdigest()


def _flat(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"{" + b",".join(repr(k).encode() + _flat(v) for k, v in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return b"[" + b",".join(map(_flat, value))
    if isinstance(value, np.ndarray):
        plain = np.ascontiguousarray(value)
        return f"{value.dtype.str}{value.shape}".encode() + plain.tobytes()
    return repr(value).encode()


def fault_of_message(error: BaseException, damaged: Path, target: Path) -> str | None:
    """What is wrong with an error as the commands would show it."""
    if not isinstance(error, (ValueError, TypeError, OSError)):
        return f"a traceback: {type(error).__name__}: {str(error)[:200]}"
    line = cli._one_line(error)
    if not line.isprintable() or len(line) > LONGEST:
        return f"a message that is no line: {line[:200]!r}"
    if damaged.name not in line and target.name not in line:
        return f"a message that names no file: {line[:200]}"
    return None


def attempt(target: Target, place: Path, seed: tuple[int, ...], good: str) -> tuple[str, str]:
    """("read" | "refused" | "fault", what happened)."""
    damaged = mutated(target, place, seed)
    path = place / target.path.name
    try:
        found = digest(target.read(path))
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is reported)
        fault = fault_of_message(error, damaged, path)
        return ("fault", fault) if fault else ("refused", cli._one_line(error))
    if damaged.suffix == ".png" and damaged.exists():  # without HR.png it is another scene
        return "fault", "damage that is not noticed"
    if found != good and target.exact:
        return "fault", "read as other values"
    if found != good and target.plain is not None:
        try:
            said = digest(target.plain(path))
        except Exception as error:  # noqa: BLE001 (careless readers raise all kinds)
            return "fault", f"read what a careless reader cannot ({error})"
        if found != said:
            return "fault", "read as other values than are written"
    return "read", "as before" if found == good else "as written"


def _limited(memory: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _child(targets: dict[str, Target], place: Path, work: list[Any], into: int) -> None:
    """Tries what there is to try, each under an alarm, and writes every outcome at once."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    _limited(BYTES)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    good: dict[str, str] = {}
    for name, seed in work:
        target = targets[name]
        if name not in good:
            good[name] = digest(target.read(target.path))
        signal.alarm(SECONDS)
        outcome = attempt(target, place, seed, good[name])
        signal.alarm(0)
        os.write(into, pickle.dumps(outcome) + b"\0END")


def tried(targets: dict[str, Target], work: list[Any], batch: int = 100) -> Iterator[Any]:
    """(name, seed, kind, what happened) of every file. A child that dies takes one with it."""
    while work:
        part = work[:batch]
        with tempfile.TemporaryDirectory() as place:
            out, into = os.pipe()
            pid = os.fork()
            if not pid:
                try:
                    os.close(out)
                    _child(targets, Path(place), part, into)
                except BaseException as error:  # noqa: BLE001
                    os.write(into, pickle.dumps(("fault", f"driver: {error!r}")) + b"\0END")
                finally:
                    os._exit(0)
            os.close(into)
            with os.fdopen(out, "rb") as pipe:
                outcomes = [pickle.loads(o) for o in pipe.read().split(b"\0END")[:-1]]
            _, status = os.waitpid(pid, 0)
        if len(outcomes) < len(part):
            died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            hang = died == signal.SIGALRM
            why = f"a hang over {SECONDS} s" if hang else f"died of signal {died}"
            outcomes.append(("fault", why))
        for (name, seed), outcome in zip(part, outcomes):
            yield name, seed, *outcome
        work = work[len(outcomes) :]


def through_readers(
    root: Path, count: int, seed: int, params: bool = True
) -> tuple[collections.Counter[tuple[str, str]], list[str]]:
    """How often each kind of file was read and refused, and a line for every fault."""
    make(root, params)
    targets = good_files(root, params)
    names = list(targets)
    work = [(names[n % len(names)], (seed, n)) for n in range(count)]
    work.sort(key=lambda item: names.index(item[0]))  # what a child has loaded serves its batch
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    faults = []
    for name, own, kind, text in tried(targets, work):
        counts[name, kind] += 1
        if kind == "fault":
            faults.append(f"{name} {own}: {text}")
    return counts, faults


# --- through the commands


def commands(root: Path, place: Path) -> dict[str, list[str]]:
    """Commands by the target whose copy in `place` they read."""
    at, out = str(place), str(place / "out")
    system = ["predict", "--system", "bicubic_mean", "--output", f"{out}.npy"]
    scenes = ["evaluate", "--system", "bicubic_mean", "--json", f"{out}.json"]
    return {
        "a.png": [*system, f"{at}/a.png"],
        "mask.png": [*system, str(root / "a.png"), "--masks", f"{at}/mask.png"],
        "stack.npy": [*system, f"{at}/stack.npy"],
        "packed.npz": [*system, f"{at}/packed.npz"],
        "scene": [*scenes, "--data", f"{at}/{next((root / 'data/train/NIR').iterdir()).name}"],
        "dates.npz": ["simulate", "--output", out, "--from", f"{at}/dates.npz", "--seed", "0"],
        "s.zip": ["check", f"{at}/s.zip"],
        "one.tif": [*system[:-1], f"{out}.tif", f"{at}/one.tif", str(root / "two.tif")],
        "undigested": ["predict", "--params", f"{at}/undigested", "--output", f"{out}.npy",
                       str(root / "a.png")],
    }  # fmt: skip


def fault_of_command(done: subprocess.CompletedProcess[str]) -> str | None:
    """What is wrong with how a command ended."""
    if done.returncode not in (0, 2):
        return f"status {done.returncode}: {done.stderr[-300:]!r}"
    lines = [line for line in done.stderr.split("\n") if line and "%|" not in line]
    for line in [*lines, *done.stdout.split("\n")]:
        if not line.isprintable() or len(line) > LONGEST + 20 or "Traceback" in line:
            return f"shows {line[:300]!r}"
    errors = [line for line in lines if line.startswith("error: ")]
    return None if len(errors) == (done.returncode == 2) else f"shows {done.stderr[-300:]!r}"


def through_commands(root: Path, count: int, seed: int) -> list[str]:
    """A line for every fault of `count` commands, each of which reads a mutated file."""
    make(root, True)
    targets, faults = good_files(root, True), []
    for n in range(count):
        with tempfile.TemporaryDirectory() as place:
            every = commands(root, Path(place))
            name = list(every)[n % len(every)]
            mutated(targets[name], Path(place), (seed, n))
            command = [sys.executable, "-m", "deepsum_jax", *every[name]]
            try:
                done = subprocess.run(
                    command, capture_output=True, timeout=300, check=False, encoding="utf-8",
                    errors="replace",
                )  # fmt: skip
                fault = fault_of_command(done)
            except subprocess.TimeoutExpired:
                fault = "hangs"
            if fault:
                faults.append(f"{name} {(seed, n)}: {fault}")
    return faults


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--count", type=int, default=300)
    p.add_argument("--commands", type=int, default=0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--no-params", action="store_true")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = through_readers(Path(folder), args.count, args.seed, not args.no_params)
    for (name, kind), times in sorted(counts.items()):
        print(f"{name}: {kind} {times}")
    if args.commands:
        with tempfile.TemporaryDirectory() as folder:
            wrong = through_commands(Path(folder), args.commands, args.seed)
        print(f"{args.commands} commands: {len(wrong)} faults")
        faults += wrong
    print(f"{args.count} files: {len(faults)} faults", *faults, sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
