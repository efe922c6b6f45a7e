"""Commands that write onto a disk which is too small, and again once it has been enlarged.

Disks are in memory (tmpfs), which only root may mount.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from faults.kills import OTHERS, Driver, bits, leftovers, written
from faults.report import Report
from faults.running import told_in_a_line

_PAGE = 4096  # bytes, that such a disk counts in


def can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextlib.contextmanager
def disk(place: Path, size: int) -> Iterator[None]:
    """A disk of so many bytes at an empty folder."""
    place.mkdir(exist_ok=True)
    _mount(place, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def enlarge(place: Path) -> None:
    _mount(place, "-o", "remount,size=256m")


def _mount(place: Path, *arguments: str) -> None:
    subprocess.run(["mount", *arguments, str(place)], check=True)


def _size(path: Path) -> int:
    """What an output takes on a disk, in bytes, names and folders too."""
    found = [path, *path.rglob("*")]
    return sum(_PAGE * (1 + p.lstat().st_size // _PAGE) for p in found)


def campaign(root: Path, seed: int, trainings: int, others: int) -> Report:
    """So many disks for trainings, and for every other command.

    Raises:
      PermissionError: nothing can be mounted.
    """
    if not can_mount():
        raise PermissionError("disks: found no right to mount a tmpfs, expected root")
    driver, faults, refused, place = Driver(root, seed), [], 0, root / "disk"
    driver.run("train", "whole")
    for command, name in OTHERS.items():
        driver.run(command, f"whole/{name}")
    for command, name in [("train", "w"), *OTHERS.items()]:
        whole = root / "whole" if command == "train" else root / "whole" / name
        for n in range(trainings if command == "train" else others):
            size = driver.rng.randrange(_PAGE, max(2 * _PAGE, _size(whole)), _PAGE)
            case = f"{command} {n} on {size} bytes"
            with disk(place, size):
                process = driver.start(command, f"disk/{name}")
                output, _ = process.communicate(timeout=900)
                if process.returncode:
                    refused += 1
                    line = told_in_a_line(process.returncode, output)
                    if line is None or str(place) not in line:
                        faults.append(f"{case}: ended with {process.returncode}: {output[-800:]}")
                    elif command != "train" and any(place.iterdir()):
                        faults.append(f"{case}: left {sorted(place.iterdir())}")
                    enlarge(place)
                    driver.run(command, f"disk/{name}")
                same = bits if command == "train" else written
                if same(place / name) != same(whole):
                    faults.append(f"{case}: differs")
                faults += [f"{case}: left {left}" for left in leftovers(place)]
    return Report(
        f"{trainings} trainings and {others} of each of {', '.join(OTHERS)} on disks too small: "
        f"{refused} refused, then ended on a larger one",
        faults,
    )
