"""One CPU device a core, where the batches allow it and nobody said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

SCRIPT = """
import os
cores = {cores}
os.sched_getaffinity = lambda _: set(range(cores))
from deepsum_jax.training import parallel
parallel.use_cores({batches})
import jax
print(jax.device_count())
parallel.use_cores([1])  # too late, and no harm
print(jax.device_count())
"""


def count(cores: int, batches: list[int], environment: Mapping[str, str] = {}) -> int:
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(cores=cores, batches=batches)],
        env={**clean, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second = map(int, done.stdout.split())
    assert first == second
    return first


@pytest.mark.parametrize(
    ("cores", "batches", "devices"),
    [(4, [8, 16, 8], 4), (6, [8, 4, 8], 4), (3, [8, 8, 8], 2), (4, [9, 6, 3], 3), (8, [5], 5)],
)
def test_a_device_a_core(cores: int, batches: list[int], devices: int) -> None:
    assert count(cores, batches) == devices


def test_settings_come_first() -> None:
    asked = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    assert count(4, [8], asked) == 3
    assert count(4, [8], {"JAX_NUM_CPU_DEVICES": "1"}) == 1


def test_compiled_programs_are_kept(tmp_path: Path) -> None:
    script = "from deepsum_jax import cli; import jax; cli.run(lambda: print(jax.config.{}))"

    def setting(environment: Mapping[str, str]) -> str:
        keep = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        done = subprocess.run(
            [sys.executable, "-c", script.format("jax_compilation_cache_dir")],
            env={**keep, "XDG_CACHE_HOME": str(tmp_path), **environment},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    assert setting({}) == os.path.join(str(tmp_path), "deepsum_jax")
    assert setting({"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}) == "/elsewhere"
    assert setting({"JAX_ENABLE_COMPILATION_CACHE": "false"}) == "None"
