"""A long training of tiny steps: memory and time stay as they were, and nothing compiles anew."""

from __future__ import annotations

import json
import statistics
import subprocess
import threading
from pathlib import Path

from faults.report import Report
from faults.running import start

STAGES = ("sisrnet", "regnet", "deepsum")
EVERY = 100  # steps, between states
_MOST = 1.1  # times what the second quarter of a stage took, that the last may take


def _arguments(workdir: Path, steps: int) -> list[str]:
    settings = ["compute.backend=plain"]
    for stage in STAGES:
        settings += [f"{stage}.steps={steps}", f"{stage}.log_every=10"]
        settings += [f"{stage}.checkpoint_every={EVERY}", f"{stage}.validate_every={5 * EVERY}"]
    return ["--workdir", str(workdir), "--preset", "tiny", *(f"--set={s}" for s in settings)]


def _watched(
    process: subprocess.Popen[str], workdir: Path, seconds: float = 0.5
) -> tuple[str, dict[str, list[float]]]:
    """What a training says, and the memory [MiB] that it holds in each stage as time goes on."""
    memory: dict[str, list[float]] = {stage: [] for stage in STAGES}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(seconds):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            held = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
            begun = [stage for stage in STAGES if (workdir / stage / "best").is_dir()]
            if begun and not (workdir / begun[-1] / "last").is_dir():
                memory[begun[-1]].extend(int(kilobytes) / 1024 for kilobytes in held)

    watcher = threading.Thread(target=look)
    watcher.start()
    output, _ = process.communicate()
    ended.set()
    watcher.join()
    return output, memory


def _trained(root: Path, name: str, steps: int) -> tuple[Path, int, dict[str, list[float]]]:
    """The working directory, how many programs were compiled, and memory."""
    workdir = root / name
    process = start(root / "xla", "train", *_arguments(workdir, steps), JAX_LOG_COMPILES="1")
    output, memory = _watched(process, workdir)
    assert process.returncode == 0, output[-3000:]
    return workdir, output.count("Compiling jit("), memory


def _quarters(values: list[float]) -> tuple[float, float]:
    """Medians of the second and of the last quarter."""
    part = len(values) // 4
    return statistics.median(values[part : 2 * part]), statistics.median(values[-part:])


def campaign(root: Path, steps: int) -> Report:
    """So many steps of every stage, beside as few as let every program be compiled."""
    _, few, _ = _trained(root, "short", 5 * EVERY + 1)
    workdir, compiled, memory = _trained(root, "long", steps)
    faults, shown = [], []
    if compiled != few:
        faults.append(f"{compiled} programs compiled, {few} in a short training")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for stage in STAGES:
        speed = [r["steps_per_second"] for r in rows
                 if r["stage"] == stage and "steps_per_second" in r]  # fmt: skip
        for what, values in (
            ("ms a step", [1000 / s for s in speed]),
            ("MiB", memory[stage]),
        ):
            early, late = _quarters(values)
            shown.append(f"{stage} {early:.1f} and {late:.1f} {what}")
            if late > _MOST * early:
                faults.append(f"{stage}: {early:.1f} {what} became {late:.1f}")
    return Report(
        f"{len(STAGES) * steps} steps, medians of the second and of the last quarter of a stage: "
        f"{', '.join(shown)}; {compiled} programs compiled, as many as in "
        f"{len(STAGES) * (5 * EVERY + 1)} steps",
        faults,
    )
