"""Parameters on disk: self-describing bundles, a folder of orbax `params/` and `bundle.json`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from deepsum_jax import files, trees
from deepsum_jax.config import ModelConfig, Section
from deepsum_jax.pretrained import DEFAULT, is_default, shipped
from deepsum_jax.systems.system import Params
from deepsum_jax.systems.table import MOST_PARAMETERS, all_options, param_shapes

FORMAT = 1
# What turns the description of format n into that of format n + 1.
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
_LARGEST = 1e5  # in magnitude; training that has reached it has diverged
_STAGES = ("deepsum", "regnet", "sisrnet")  # the one that serves best first


def package_version() -> str:
    """The installed version, or "unknown" in a checkout that is not installed."""
    try:
        return importlib.metadata.version("deepsum_jax")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@dataclasses.dataclass(frozen=True)
class BundleInfo(Section):
    """Where parameters come from. Everything may be unknown but the reference rule."""

    bands: tuple[str, ...] = ()  # that they were trained on
    reference: Literal["clearest", "first", "given"] = "clearest"  # how frame 0 is picked
    stage: str = ""  # that made them
    step: int = 0  # of that stage
    seed: int | None = None
    parent: str = ""  # digest of the parameters that the training started from (--init)
    data_fingerprint: str = ""  # of the training data's bytes
    train_scenes: tuple[str, ...] = ()  # BAND/NAME
    validation_scenes: tuple[str, ...] = ()
    validation_cpsnr: float | None = None  # dB


@flax.struct.dataclass
class Bundle:
    """Parameters with all that is needed to use them: a pytree with static configuration.

    Attributes:
      params: {"sisrnet", "regnet", "fusionnet"}, or fewer sub-trees from an earlier stage.
      config: of the network, with its normalisation.
      info: where they come from.
    """

    params: Params
    config: ModelConfig = flax.struct.field(pytree_node=False, default=ModelConfig())
    info: BundleInfo = flax.struct.field(pytree_node=False, default=BundleInfo())

    def missing_parts(self) -> list[str]:
        """Sub-trees that the bundle's system needs and the bundle lacks."""
        return [name for name in param_shapes(self.config) if name not in self.params]


class Damaged(ValueError):
    """A bundle that is not as it was written, or not all of it."""


def _describe(bundle: Bundle) -> dict[str, Any]:
    # Options go with their defaults: those of a later version may differ.
    config = dataclasses.replace(bundle.config, options=all_options(bundle.config))
    return {
        "format": FORMAT,
        "package_version": package_version(),
        "model": config.to_dict(),
        **bundle.info.to_dict(),
    }


def save_params(path: str | os.PathLike[str], bundle: Bundle) -> None:
    """Writes a bundle as a folder, aside and then renamed.

    A bundle that stands there is replaced; anything else is left alone.

    Args:
      path: the folder; its parents are made.
      bundle: what to write.

    Raises:
      TypeError: not a bundle.
      ValueError: `path` exists and is not a bundle, or means the shipped parameters; parameters
        that are no finite numbers, or absurd.
    """
    if not isinstance(bundle, Bundle):
        raise TypeError(f"bundle: found {type(bundle).__name__}, expected a Bundle")
    if is_default(path):  # `load_params` of the same name would give others
        raise ValueError(
            f"{path}: found the name of the parameters that the package ships, expected a folder; "
            f"./{path} is one"
        )
    fault = fault_of(bundle.params)
    if fault is not None:
        raise ValueError(f"{path}: found {fault}; not written")
    path = Path(os.path.abspath(path))
    if path.exists() and not (path / "bundle.json").is_file() and not _is_empty_folder(path):
        raise ValueError(f"{path}: exists and is not a parameter bundle; not overwritten")
    with files.written_aside(path) as aside:
        aside.mkdir()
        if bundle.params:  # orbax keeps no empty tree
            trees.write(aside / "params", bundle.params)
        described = {**_describe(bundle), "params_sha256": files.digest(aside / "params")}
        files.write_signed(aside / "bundle.json", described)


def read_step(path: Path) -> int:
    """The step at which a stage's bundle was saved, without its parameters."""
    return _read_description(path)[1].step


def params_digest(path: str | os.PathLike[str]) -> str:
    """What tells a bundle's parameters from others: the digest of their files.

    Args:
      path: as for `load_params`.
    """
    folder = find_bundle(path)
    return _read_description(folder)[2] or files.digest(folder / "params")


def fault_of(params: Params) -> str | None:
    """What is wrong with the values of parameters, in words; None where nothing is."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.asarray(leaf)
        name = f"parameter {jax.tree_util.keystr(path, simple=True, separator='/')}"
        if not jnp.issubdtype(values.dtype, jnp.floating):
            return f"{name} of dtype {values.dtype}, expected floating-point numbers"
        if not np.isfinite(values).all():
            return f"{name} with values that are not finite"
        largest = float(np.abs(values).max(initial=0))
        if largest > _LARGEST:
            return f"{name} with a value of {largest:.3g}, expected at most {_LARGEST:g}"
    return None


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def find_bundle(path: str | os.PathLike[str], scale: int | None = None) -> Path:
    """The bundle's folder: `path` itself, the best one in a training working directory, or the
    shipped one of a scale.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: a folder that is neither, or a scale for one; no shipped bundle of that scale.
    """
    if is_default(path):
        return shipped(scale)
    if scale is not None:
        raise ValueError(
            f"scale: found {scale} for the parameters in {path}, which have their own; expected it "
            f"with {DEFAULT!r} alone"
        )
    path = Path(os.path.abspath(path))
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder, expected a parameter bundle or a workdir")
    if (path / "bundle.json").is_file():
        return path
    for stage in _STAGES:
        for kind in ("best", "last"):
            if (path / stage / kind / "bundle.json").is_file():
                return path / stage / kind
    what = (
        "a workdir without any saved parameters yet"
        if (path / "config.json").is_file()
        else ("no bundle.json")
    )
    raise ValueError(f"{path}: found {what}, expected a parameter bundle or a trained workdir")


def _read_description(folder: Path) -> tuple[ModelConfig, BundleInfo, str | None]:
    """Configuration, origin, and the digest of the parameters' files."""
    where = folder / "bundle.json"
    try:
        described, damage = files.read_signed(where)
    except ValueError as error:
        raise Damaged(str(error)) from None
    wrong = ValueError if damage is None else Damaged  # whatever the damage makes it look like
    if not isinstance(described, dict) or not isinstance(described.get("format"), int):
        raise wrong(f"{where}: found no format number, expected a bundle description")
    if described["format"] > FORMAT:
        raise wrong(
            f"{where}: found format {described['format']} (written by deepsum_jax "
            f"{described.get('package_version', '?')}), expected at most {FORMAT}; "
            "update deepsum_jax"
        )
    for version in range(described["format"], FORMAT):
        if version not in _MIGRATIONS:
            raise wrong(f"{where}: found format {version}, which never was")
        described = _MIGRATIONS[version](described)
    known = {f.name for f in dataclasses.fields(BundleInfo)}
    try:
        if "model" not in described:
            raise ValueError("no model configuration")
        config = ModelConfig.from_dict(described["model"])
        info = BundleInfo.from_dict({k: v for k, v in described.items() if k in known})
    except ValueError as error:
        raise wrong(f"{where}: {error}") from None
    if damage is not None:
        raise Damaged(damage)
    return config, info, described.get("params_sha256")


def load_params(path: str | os.PathLike[str] = DEFAULT, *, scale: int | None = None) -> Bundle:
    """Reads a parameter bundle, the best one of a training working directory, or one that the
    package ships.

    Args:
      path: the folder; "default" is what the package ships, and "./default" a folder.
      scale: of the shipped parameters, output pixels per input pixel; None is 3.

    Returns:
      A `Bundle` whose arrays are numpy's, ready for any device.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: no bundle there, one of a newer format, damaged files, or parameters that do
        not fit the configuration beside them, or are no finite numbers, or absurd; no shipped one
        of that scale, or a scale for others. `Damaged` where what was written has changed.
    """
    folder = find_bundle(path, scale)
    for _ in range(9):  # a training replaces its best at any time: not half of one, half of another
        before = _identity(folder)
        try:
            bundle = _load(folder)
        except (ValueError, OSError):
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return bundle
    raise ValueError(f"{folder}: is replaced faster than it can be read; try again later")


def _identity(folder: Path) -> tuple[int, ...]:
    """What tells a folder from another that takes its place."""
    found = folder.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _load(folder: Path) -> Bundle:
    config, info, digest = _read_description(folder)
    whole = param_shapes(config) or (folder / "params").exists()
    params = _restore(folder / "params", digest) if whole else {}
    _check_params(params, config, folder)
    return Bundle(params, config, info)


def _restore(path: Path, digest: str | None) -> Params:
    if not path.is_dir():
        raise Damaged(f"{path}: found no folder, expected orbax parameters")
    special = next((p for p in path.rglob("*") if not (p.is_file() or p.is_dir())), None)
    if special is not None:  # whoever opens a pipe waits for ever
        raise Damaged(f"{special}: found a device or pipe, expected orbax parameters")
    if digest is not None and digest != files.digest(path):
        raise Damaged(
            f"{path}: found other files than were saved, damaged or incomplete; expected those "
            "whose digest is in bundle.json (copy the bundle again)"
        )
    return trees.read(path, most=MOST_PARAMETERS)


def _check_params(params: Params, config: ModelConfig, folder: Path) -> None:
    wanted = param_shapes(config)
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.split("/")[0] in params and shapes.get(name) != leaf.shape:
            raise ValueError(
                f"{folder}: parameter {name}: found shape {shapes.get(name, 'nothing')}, "
                f"expected {leaf.shape}"
            )
        shapes.pop(name, None)
    extra = sorted(name for name in shapes if name.split("/")[0] in wanted)
    if extra:
        raise ValueError(f"{folder}: parameter {extra[0]}: found one that no layer takes")
    fault = fault_of(params)
    if fault is not None:
        raise ValueError(f"{folder}: found {fault}; train or copy the bundle again")
