"""deepsum_jax: multi-image super-resolution of satellite stacks, in JAX.

params = load_params()  # what the package ships; or load_params("workdir")
image = predict(params, stack, masks)

Names are imported when they are first used, so `import deepsum_jax` costs nothing.
"""

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepsum_jax import losses as losses
    from deepsum_jax import metrics as metrics
    from deepsum_jax.bundle import Bundle as Bundle
    from deepsum_jax.bundle import load_params as load_params
    from deepsum_jax.bundle import save_params as save_params
    from deepsum_jax.config import Compute as Compute
    from deepsum_jax.config import ModelConfig as ModelConfig
    from deepsum_jax.config import Normalization as Normalization
    from deepsum_jax.data.scene import Scene as Scene
    from deepsum_jax.model.deepsum import DeepSUM as DeepSUM
    from deepsum_jax.predict import predict as predict
    from deepsum_jax.prediction import Prediction as Prediction
    from deepsum_jax.sample import sample_stack as sample_stack

_HOMES = {
    "Bundle": "bundle",
    "load_params": "bundle",
    "save_params": "bundle",
    "Compute": "config",
    "ModelConfig": "config",
    "Normalization": "config",
    "Scene": "data.scene",
    "DeepSUM": "model.deepsum",
    "Prediction": "prediction",
    "sample_stack": "sample",
}
_MODULES = ("losses", "metrics", "predict")  # `predict` is a module that can be called

__all__ = [*_HOMES, *_MODULES]


_LOADING = ("-m", "deepsum")  # what a process of a command is called while it loads this
if (
    os.path.basename("".join(sys.argv[:1])) in _LOADING
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):  # Until it listens (see `signals`), Ctrl-C ends it without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"deepsum_jax.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'deepsum_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"deepsum_jax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
