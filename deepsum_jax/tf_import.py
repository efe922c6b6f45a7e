"""The authors' TensorFlow checkpoints become our parameters.

    python -m deepsum_jax.tf_import --checkpoint PREFIX --band NIR --output DIR
    python -m deepsum_jax.tf_import --sisrnet PREFIX --regnet PREFIX --band NIR --output DIR

Only the command reads checkpoint files, and needs TensorFlow (extra `tf`) for it;
`params_from_variables` takes plain arrays.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepsum_jax import cli
from deepsum_jax.bundle import Bundle, BundleInfo, save_params
from deepsum_jax.config import NORMALIZATIONS, ModelConfig
from deepsum_jax.systems.system import Params
from deepsum_jax.systems.table import param_shapes

_REGNET = ("Rconv1b", "Rconv2b", "Rconv3b", "Rconv4b", "Rconv7_b")
_REFERENCE = ModelConfig()


def reference_names() -> dict[str, tuple[str, ...]]:
    """Every variable of the reference network, and the path of our parameter that holds it."""
    names: dict[str, tuple[str, ...]] = {}

    def conv(reference: str, *path: str) -> None:
        names[f"{reference}/W"] = (*path, "kernel")
        names[f"{reference}/b"] = (*path, "bias")

    def norm(reference: str, *path: str) -> None:
        names[f"{reference}/gamma"] = (*path, "scale")
        names[f"{reference}/beta"] = (*path, "bias")

    for i in range(_REFERENCE.sisrnet_layers):
        conv(f"conv_up_{i}", "sisrnet", f"conv{i}")
        norm(f"inst_norm_up_{i}", "sisrnet", f"norm{i}")
    for i, reference in enumerate(_REGNET):
        conv(reference, "regnet", f"conv{i}")
    for i in range(_REFERENCE.fusionnet_layers):
        conv(f"conv_fuse_{i}", "fusionnet", f"conv{i}")
        norm(f"inst_norm_fuse_{i}", "fusionnet", f"norm{i}")
    conv(f"conv_fuse_{_REFERENCE.fusionnet_layers}", "fusionnet", "conv_out")
    return names


def _shapes() -> Any:
    return param_shapes(_REFERENCE)


def _reference_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The reference keeps every kernel five-dimensional, with a depth of 1 where we have none."""
    return (1,) * (5 - len(shape)) + shape if name.endswith("/W") else shape


def _convert(mapping: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> Params:
    """The named variables as a tree of our parameters; names all that are missing or misshapen."""
    variables = {name.removesuffix(":0"): value for name, value in mapping.items()}
    shapes, wrong = _shapes(), []
    params: dict[str, Any] = {}
    for name, path in names.items():
        expected: Any = shapes
        for key in path:
            expected = expected[key]
        if name not in variables:
            wrong.append(f"missing {name}")
            continue
        value = np.asarray(variables[name])
        if value.shape != _reference_shape(name, expected.shape):
            wrong.append(
                f"{name} has shape {value.shape}, expected {_reference_shape(name, expected.shape)}"
            )
            continue
        place = params
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value.reshape(expected.shape).astype(np.float32)
    if wrong:
        raise ValueError(f"reference variables: {'; '.join(wrong)}")
    return params


def params_from_variables(mapping: Mapping[str, Any]) -> Params:
    """Parameters of `DeepSUM(ModelConfig())` from the reference network's variables.

    Args:
      mapping: arrays by reference variable name, with or without ":0"; optimiser slots, counters
        and the pretraining head are ignored.

    Returns:
      {"sisrnet", "regnet", "fusionnet"} of float32 numpy arrays.

    Raises:
      ValueError: names every variable that is missing or misshapen.
    """
    return _convert(mapping, reference_names())


def subtree_from_variables(mapping: Mapping[str, Any], name: str) -> Params:
    """One sub-network, "sisrnet" or "regnet", from a pretraining checkpoint's variables.

    Errors as in `params_from_variables`.
    """
    names = {k: path for k, path in reference_names().items() if path[0] == name}
    return _convert(mapping, names)[name]


def head_from_variables(mapping: Mapping[str, Any]) -> Params | None:
    """SISRNet's pretraining head, where a checkpoint has it."""
    variables = {name.removesuffix(":0"): np.asarray(v) for name, v in mapping.items()}
    last = f"conv_up_{_REFERENCE.sisrnet_layers}"
    shape = (1, 1, _REFERENCE.features, _REFERENCE.channels)
    expected = {f"{last}/W": (1, *shape), f"{last}/b": shape[-1:]}
    found = {name: variables[name].shape for name in expected if name in variables}
    if not found:
        return None
    if found != expected:
        raise ValueError(f"reference variables: found {found}, expected {expected}")
    kernel = variables[f"{last}/W"].astype(np.float32).reshape(shape)
    return {"conv": {"kernel": kernel, "bias": variables[f"{last}/b"].astype(np.float32)}}


def read_checkpoint(prefix: Path) -> dict[str, np.ndarray]:
    """All variables of a TensorFlow checkpoint, by name.

    Args:
      prefix: path without `.index` and `.data-…`.

    Raises:
      FileNotFoundError: no checkpoint of that prefix.
      ValueError: one that TensorFlow cannot read, or TensorFlow is not installed.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    if not index.is_file():
        raise FileNotFoundError(
            f"{index}: no such file, expected a checkpoint prefix such as DIR/model.ckpt-5999"
        )
    try:
        import tensorflow as tf
    except ImportError:
        raise ValueError(
            "reading TensorFlow checkpoints needs TensorFlow: pip install 'deepsum_jax[tf]'"
        ) from None
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{prefix}: not a readable TensorFlow checkpoint ({first})") from None


def import_checkpoints(
    band: str,
    checkpoint: Path | None = None,
    sisrnet: Path | None = None,
    regnet: Path | None = None,
    read: Callable[[Path], Mapping[str, Any]] = read_checkpoint,
) -> Bundle:
    """A bundle from the authors' checkpoints.

    Final weights were stored with graphs that inpaint *before* registration and mask by integer
    shifts, so their bundle says so; the pretraining ones start a training of either order.

    Args:
      band: NIR or RED, whose normalisation the bundle takes.
      checkpoint: prefix of final weights; or
      sisrnet, regnet: prefixes of the pretraining checkpoints, either or both.
      read: how to read one.
    """
    norm = NORMALIZATIONS[band]
    if checkpoint is not None:
        params = params_from_variables(read(checkpoint))
        config = ModelConfig(
            inpainting="before_registration", mask_alignment="shifts", normalization=norm
        )
        return Bundle(params, config, BundleInfo(bands=(band,), stage="deepsum"))
    params, stage = {}, ""
    if sisrnet is not None:
        variables = read(sisrnet)
        params["sisrnet"], stage = subtree_from_variables(variables, "sisrnet"), "sisrnet"
        head = head_from_variables(variables)
        if head is not None:
            params["sisr_head"] = head
    if regnet is not None:
        params["regnet"], stage = subtree_from_variables(read(regnet), "regnet"), "regnet"
    return Bundle(params, ModelConfig(normalization=norm), BundleInfo(bands=(band,), stage=stage))


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "deepsum tf_import",
        "Turn the authors' TensorFlow checkpoints into a parameter bundle.",
        """A PREFIX is a checkpoint's path without .index and .data-…, as DIR/model.ckpt-5999.
Final weights (--checkpoint) predict; pretraining ones start a training (train --init).""",
    )
    p.add_argument("--checkpoint", type=Path, metavar="PREFIX", help="final weights")
    p.add_argument("--sisrnet", type=Path, metavar="PREFIX", help="SISRNet's pretraining")
    p.add_argument("--regnet", type=Path, metavar="PREFIX", help="RegNet's pretraining")
    p.add_argument(
        "--band",
        required=True,
        choices=tuple(NORMALIZATIONS),
        help="whose normalisation the weights were trained with",
    )
    p.add_argument("--output", required=True, type=Path, metavar="DIR", help="the new bundle")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    pretraining = args.sisrnet is not None or args.regnet is not None
    if (args.checkpoint is not None) == pretraining:
        raise ValueError("expected either --checkpoint, or --sisrnet and --regnet (or one of them)")
    bundle = import_checkpoints(args.band, args.checkpoint, args.sisrnet, args.regnet)
    save_params(args.output, bundle)
    print(f"{args.output}: {', '.join(bundle.params)}")
    if "fusionnet" not in bundle.params:
        print(
            "without FusionNet it cannot predict; start a training with it: train --init "
            f"{args.output}"
        )


if __name__ == "__main__":
    cli.run(main)
