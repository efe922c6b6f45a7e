"""Four fake CPU devices for the whole suite, so that nothing works on one device only."""

from __future__ import annotations

import os

# Programs here are many and run briefly: compile them fast rather than well.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # nothing outside tmp_path
