"""Parameters on disk: exact round trips, and no fault that passes for a bundle."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import contents, random_bundle

from deepsum_jax import bundle as bundles
from deepsum_jax import files, predict
from deepsum_jax.bundle import (
    Bundle,
    BundleInfo,
    find_bundle,
    load_params,
    params_digest,
    read_step,
    save_params,
)
from deepsum_jax.config import ModelConfig, Normalization, Settings

CONFIG = ModelConfig(
    num_frames=5,
    scale=2,
    features=4,
    filter_size=3,
    channels=2,
    sisrnet_layers=1,
    inpainting="before_registration",
    mask_alignment="shifts",
    mask_threshold=0.75,
    residual_init="zeros",
    normalization=Normalization((1.5, 2.5), (0.1, 1 / 3), (1.5, 2.5), (0.2, 1e-6)),
    options=Settings({"search": 9, "delta": 1 / 3}),  # all that there are: defaults are added
)
INFO = BundleInfo(
    bands=("NIR", "RED"),
    reference="clearest",
    stage="deepsum",
    step=1200,
    seed=7,
    parent="cd" * 32,
    data_fingerprint="ab" * 32,
    train_scenes=("NIR/imgset0594", "RED/imgset0001"),
    validation_scenes=("NIR/imgset0595",),
    validation_cpsnr=47.84123456789012,
)


def bits(tree: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every leaf by its path: dtype, shape and bytes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return {path: (a.dtype.name, a.shape, a.tobytes()) for path, a in arrays.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "a"
    save_params(path, random_bundle())
    return path


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A bundle on disk that a test may damage."""
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(folder: Path, **changes: Any) -> None:
    """Changes the description; None takes a key away."""
    described = {**files.read_json(folder / "bundle.json"), **changes}
    kept = {k: v for k, v in described.items() if v is not None}
    files.write_json(folder / "bundle.json", kept)


# --- round trips


def test_round_trip_is_exact(tmp_path: Path) -> None:
    saved = Bundle(random_bundle(CONFIG).params, CONFIG, INFO)
    odd = saved.params["regnet"]["conv0"]["bias"]  # values that a detour over text would lose
    odd.flat[:6] = [2**-126, -0.0, 99999.99, 1e-45, 1 + 2**-23, -(2**16)]
    before = bits(saved.params)
    save_params(tmp_path / "new" / "folder", saved)
    assert bits(saved.params) == before
    loaded = load_params(tmp_path / "new" / "folder")
    assert bits(loaded.params) == before
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded.params))
    assert loaded.config == CONFIG and hash(loaded.config) == hash(CONFIG)
    assert loaded.info == INFO
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "bundle.json",
        "params",
    ]


def test_little_known(made: Path) -> None:
    loaded = load_params(str(made))
    assert loaded.info == BundleInfo()
    assert bits(loaded.params) == bits(random_bundle().params)


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_params("here", random_bundle())
    assert bits(load_params("here").params) == bits(random_bundle().params)
    assert find_bundle("here") == tmp_path / "here"


def test_device_arrays(tmp_path: Path) -> None:
    params = jax.tree.map(jnp.asarray, random_bundle(CONFIG).params)
    save_params(tmp_path / "a", Bundle(params, CONFIG))
    loaded = load_params(tmp_path / "a").params
    assert bits(loaded) == bits(random_bundle(CONFIG).params)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))


def test_sub_trees_of_an_earlier_stage(tmp_path: Path) -> None:
    params = {"sisrnet": random_bundle().params["sisrnet"]}
    head = {"conv": {"kernel": np.ones((1, 1, 4, 1), np.float32), "bias": np.zeros(1, np.float32)}}
    saved = Bundle({**params, "sisr_head": head}, random_bundle().config)
    save_params(tmp_path / "half", saved)
    assert bits(load_params(tmp_path / "half").params) == bits(saved.params)


def test_description_is_plain_json(tmp_path: Path) -> None:
    save_params(tmp_path / "a", Bundle(random_bundle(CONFIG).params, CONFIG, INFO))
    described = files.read_json(tmp_path / "a" / "bundle.json")
    assert described["format"] == 1
    assert described["package_version"] == bundles.package_version()
    assert described["model"]["normalization"]["lr_std"] == [0.1, 1 / 3]
    assert described["model"]["inpainting"] == "before_registration"
    for key in ("stage", "step", "seed", "data_fingerprint", "validation_cpsnr"):
        assert described[key] == getattr(INFO, key)
    assert described["validation_scenes"] == ["NIR/imgset0595"]


def test_options_go_with_their_defaults(tmp_path: Path) -> None:
    """Those of a later version may differ; what these parameters were made with must not."""
    config = dataclasses.replace(CONFIG, options=Settings({"search": 9}))
    save_params(tmp_path / "a", Bundle(random_bundle(config).params, config))
    whole = {"delta": 10.0, "search": 9}
    assert files.read_json(tmp_path / "a" / "bundle.json")["model"]["options"] == whole
    assert load_params(tmp_path / "a").config == dataclasses.replace(
        config, options=Settings(whole)
    )


def test_bundle_of_an_earlier_version(bundle: Path) -> None:
    """What it computed with stood in its model, and there were no options and no parent."""
    model = files.read_json(bundle / "bundle.json")["model"]
    del model["options"]
    computed = {
        "dtype": "float32",
        "param_dtype": "float32",
        "precision": "highest",
        "backend": "auto",
        "rematerialize": False,
    }
    edit(bundle, model={**model, **computed}, parent=None)
    loaded = load_params(bundle)
    assert loaded.config == random_bundle().config and loaded.info.parent == ""
    assert bits(loaded.params) == bits(random_bundle().params)
    edit(bundle, model={**model, **computed, "backend": "gpu"})
    with pytest.raises(ValueError, match=r"bundle\.json: Compute\.backend: found 'gpu'"):
        load_params(bundle)


def test_digest_tells_parameters_apart(made: Path, bundle: Path, tmp_path: Path) -> None:
    """The same wherever they lie, for a workdir that of its best, and without one written down."""
    assert params_digest(bundle) == params_digest(made)
    assert files.read_json(made / "bundle.json")["params_sha256"] == params_digest(made)
    save_params(tmp_path / "other", random_bundle(seed=1))
    assert params_digest(tmp_path / "other") != params_digest(made)
    shutil.copytree(made, tmp_path / "w" / "deepsum" / "best")
    assert params_digest(tmp_path / "w") == params_digest(made)
    edit(bundle, params_sha256=None)
    assert params_digest(bundle) == params_digest(made)


def test_step_is_read_without_the_parameters(bundle: Path) -> None:
    edit(bundle, step=17)
    shutil.rmtree(bundle / "params")
    assert read_step(bundle) == 17


def test_unknown_system_is_named(bundle: Path) -> None:
    model = files.read_json(bundle / "bundle.json")["model"]
    edit(bundle, model={**model, "system": "deepsumm"})
    with pytest.raises(ValueError, match=r"'deepsumm'; did you mean 'deepsum'"):
        load_params(bundle)


def test_a_bundle_is_a_pytree_with_static_configuration() -> None:
    whole = Bundle(random_bundle(CONFIG).params, CONFIG, INFO)
    doubled = jax.tree.map(lambda x: 2 * x, whole)
    assert (doubled.config, doubled.info) == (CONFIG, INFO)
    kernel = whole.params["sisrnet"]["conv0"]["kernel"]
    np.testing.assert_array_equal(doubled.params["sisrnet"]["conv0"]["kernel"], 2 * kernel)


# --- what is no bundle, or a damaged one


def test_newer_format_is_refused_by_name(bundle: Path) -> None:
    edit(bundle, format=2, package_version="9.8.7")
    with pytest.raises(ValueError) as caught:
        load_params(bundle)
    message = str(caught.value)
    assert message.startswith(f"{bundle / 'bundle.json'}: found format 2")
    assert "written by deepsum_jax 9.8.7" in message and "update deepsum_jax" in message


def test_older_format_is_migrated(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(bundle, step=None, steps_done=5)

    def renamed(described: dict[str, Any]) -> dict[str, Any]:
        return {**described, "step": described["steps_done"]}

    monkeypatch.setattr(bundles, "FORMAT", 3)
    monkeypatch.setattr(
        bundles, "_MIGRATIONS", {1: renamed, 2: lambda d: {**d, "step": d["step"] + 1}}
    )
    assert load_params(bundle).info.step == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 0}, "found format 0, which never was"),
        ({"format": None}, "found no format number"),
        ({"format": "1"}, "found no format number"),
        ({"model": None}, "no model configuration"),
        ({"model": {"featurs": 4}}, "did you mean 'features'"),
        ({"model": {"features": -1}}, "features: found -1"),
        ({"bands": 3}, "BundleInfo.bands: found 3"),
        ({"step": "4"}, "BundleInfo.step: found '4'"),
    ],
)
def test_description_that_makes_no_sense(changes: dict[str, Any], words: str, bundle: Path) -> None:
    edit(bundle, **changes)
    with pytest.raises(ValueError) as caught:
        load_params(bundle)
    assert str(bundle / "bundle.json") in str(caught.value) and words in str(caught.value)


def test_every_damaged_byte_of_the_description_is_noticed(bundle: Path) -> None:
    """Even those that would make no difference, or take its digest for something else."""
    where = bundle / "bundle.json"
    stored = where.read_bytes()
    assert read_step(bundle) == 0
    for place in range(len(stored)):
        broken = bytearray(stored)
        broken[place] ^= 1 << place * 5 % 8
        where.write_bytes(bytes(broken))
        with pytest.raises(ValueError, match=r"bundle\.json") as caught:
            read_step(bundle)
        assert "\n" not in str(caught.value)


def test_an_edited_description_says_how_an_edit_is_kept(bundle: Path) -> None:
    where = bundle / "bundle.json"
    lines = where.read_text().splitlines(keepends=True)
    edited = [line.replace('"step": 0', '"step": 7') for line in lines]
    where.write_text("".join(edited))
    with pytest.raises(ValueError, match=r"edited; .*file_sha256 \(take that line away"):
        load_params(bundle)
    described = files.read_signed(where)[0]
    files.write_json(where, described)
    assert load_params(bundle).info.step == 7


def test_every_damaged_byte_is_noticed(bundle: Path) -> None:
    """One flipped bit in each file of the parameters, in turn."""
    paths = sorted(p for p in (bundle / "params").rglob("*") if p.is_file())
    assert len(paths) > 3
    for path in paths:
        stored = path.read_bytes()
        for place in {0, len(stored) // 2, len(stored) - 1} if stored else ():
            broken = bytearray(stored)
            broken[place] ^= 1
            path.write_bytes(bytes(broken))
            with pytest.raises(ValueError, match=r"damaged or incomplete.*digest"):
                load_params(bundle)
        path.write_bytes(stored)
    assert bits(load_params(bundle).params) == bits(random_bundle().params)


@pytest.mark.parametrize("change", ["missing", "renamed", "additional", "cut short"])
def test_files_that_are_not_those_that_were_saved(change: str, bundle: Path) -> None:
    files_ = sorted((p for p in (bundle / "params").rglob("*") if p.is_file()), key=os.path.getsize)
    largest = files_[-1]
    if change == "missing":
        largest.unlink()
    elif change == "renamed":
        largest.rename(largest.with_name(f"{largest.name}0"))
    elif change == "additional":
        (bundle / "params" / "new").write_bytes(b"")
    else:
        largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"params: found other files than were saved"):
        load_params(bundle)


def test_missing_parameters(bundle: Path) -> None:
    shutil.rmtree(bundle / "params")
    with pytest.raises(ValueError, match=r"params: found no folder, expected orbax parameters"):
        load_params(bundle)


def test_damage_without_a_digest_is_one_line(bundle: Path) -> None:
    edit(bundle, params_sha256=None)
    assert bits(load_params(bundle).params) == bits(random_bundle().params)
    (bundle / "params" / "_METADATA").write_text("{")
    with pytest.raises(ValueError, match=r"params: cannot be read as orbax arrays") as caught:
        load_params(bundle)
    assert "\n" not in str(caught.value)


def test_parameters_that_do_not_fit_the_configuration(bundle: Path) -> None:
    model = files.read_json(bundle / "bundle.json")["model"]
    edit(bundle, model={**model, "filter_size": 7})
    expected = r"regnet/conv\d/(kernel|bias): found shape \(.*25.*\), expected \(.*49.*\)"
    with pytest.raises(ValueError, match=expected):
        load_params(bundle)
    edit(bundle, model={**model, "sisrnet_layers": 3})
    with pytest.raises(ValueError, match=r"sisrnet/\w+2/\w+: found shape nothing, expected"):
        load_params(bundle)


def test_more_parameters_than_the_configuration_has(bundle: Path) -> None:
    """A network with a layer less would run, and give something else."""
    model = files.read_json(bundle / "bundle.json")["model"]
    edit(bundle, model={**model, "sisrnet_layers": 1})
    with pytest.raises(ValueError, match=r"parameter sisrnet/conv1/\w+"):
        load_params(bundle)


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder"):
        load_params(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("file", "empty", "."):
        with pytest.raises(ValueError, match=r"found no bundle\.json, expected a parameter bundle"):
            load_params(tmp_path / name)


def test_a_bundle_that_is_replaced_while_it_is_read(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the old one or the new one, not the description of one with the arrays of the other."""
    original = bundles.trees.read
    replaced: list[Any] = []

    def read(path: Path, *like: Any, **limits: Any) -> Any:
        if not replaced:
            replaced.append(path)
            save_params(bundle, Bundle(random_bundle(CONFIG).params, CONFIG, INFO))
        return original(path, *like, **limits)

    monkeypatch.setattr(bundles.trees, "read", read)
    loaded = load_params(bundle)
    assert (loaded.config, loaded.info) == (CONFIG, INFO)
    assert bits(loaded.params) == bits(random_bundle(CONFIG).params)

    def always(path: Path, *like: Any, **limits: Any) -> Any:
        save_params(bundle, random_bundle())
        return original(path, *like, **limits)

    monkeypatch.setattr(bundles.trees, "read", always)
    with pytest.raises(ValueError, match="is replaced faster than it can be read"):
        load_params(bundle)


# --- workdirs


def test_workdir_gives_its_best(made: Path, tmp_path: Path) -> None:
    """The last stage first, and in each its best before its last."""
    places = [f"{s}/{k}" for s in ("deepsum", "regnet", "sisrnet") for k in ("best", "last")]
    for step, place in enumerate(places):
        shutil.copytree(made, tmp_path / place)
        edit(tmp_path / place, step=step)
    files.write_json(tmp_path / "config.json", {})
    for step, place in enumerate(places):
        assert find_bundle(tmp_path) == tmp_path / place
        assert load_params(tmp_path).info.step == step
        (tmp_path / place / "bundle.json").unlink()  # as if it were never finished
    with pytest.raises(ValueError, match="a workdir without any saved parameters yet"):
        load_params(tmp_path)


# --- writing


def test_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "file").write_text("more")
    before = contents(tmp_path)
    for name in ("thesis", "file"):
        with pytest.raises(ValueError, match=rf"{name}: exists and is not a parameter bundle"):
            save_params(tmp_path / name, random_bundle())
    for thing in (random_bundle().params, None):
        with pytest.raises(TypeError, match=r"bundle: found \w+, expected a Bundle"):
            save_params(tmp_path / "new", thing)  # type: ignore[arg-type]
    assert contents(tmp_path) == before


def test_an_empty_folder_and_a_bundle_are_replaced(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "empty").mkdir()
    (bundle / "params" / "left over").write_text("")
    (bundle / "notes.txt").write_text("")
    for path in (tmp_path / "empty", bundle):
        save_params(path, Bundle(random_bundle(CONFIG).params, CONFIG, INFO))
        loaded = load_params(path)
        assert (loaded.config, loaded.info) == (CONFIG, INFO)
        assert bits(loaded.params) == bits(random_bundle(CONFIG).params)
        assert sorted(p.name for p in path.iterdir()) == ["bundle.json", "params"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "empty"]


def fail_in_orbax(patch: pytest.MonkeyPatch, target: Path) -> None:
    def save(self: Any, path: Any, *_: Any, **__: Any) -> None:
        Path(path).mkdir()
        (Path(path) / "half").write_text("")
        raise OSError(28, "No space left on device")

    patch.setattr(ocp.StandardCheckpointer, "save", save)


def fail_in_description(patch: pytest.MonkeyPatch, target: Path) -> None:
    def write(path: Any, data: Any) -> None:
        Path(path).write_text("{")
        raise OSError(28, "No space left on device")

    patch.setattr(files, "write_json", write)


def fail_in_last_rename(patch: pytest.MonkeyPatch, target: Path) -> None:
    replace = os.replace

    def failing(source: Any, destination: Any) -> None:
        if Path(destination) == target and Path(source).suffix == ".tmp":
            raise OSError(5, "Input/output error")
        replace(source, destination)

    patch.setattr(os, "replace", failing)
    patch.setattr(files, "_exchange", lambda *_: False)


def interrupted(patch: pytest.MonkeyPatch, target: Path) -> None:
    def digest(folder: Path) -> str:
        raise KeyboardInterrupt

    patch.setattr(files, "digest", digest)


@pytest.mark.parametrize(
    "fault", [fail_in_orbax, fail_in_description, fail_in_last_rename, interrupted]
)
@pytest.mark.parametrize("old", [True, False])
def test_failed_save_leaves_the_old_bundle_whole(
    fault: Callable[[pytest.MonkeyPatch, Path], None], old: bool, bundle: Path, tmp_path: Path
) -> None:
    target = bundle if old else tmp_path / "new"
    before = contents(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        fault(patch, target)
        with pytest.raises((OSError, KeyboardInterrupt)):
            save_params(target, Bundle(random_bundle(CONFIG).params, CONFIG))
    assert contents(tmp_path) == before
    assert bits(load_params(bundle).params) == bits(random_bundle().params)


def test_a_system_without_parameters_is_kept_with_its_settings(tmp_path: Path) -> None:
    config = ModelConfig(
        system="robust_ibp", scale=2, psf_sigma=0.5, options=Settings({"rounds": 3})
    )
    save_params(tmp_path / "robust", Bundle({}, config))
    read = load_params(tmp_path / "robust")
    assert read.params == {}
    assert read.config.psf_sigma == 0.5
    assert dict(read.config.options) == {"iterations": 20, "rounds": 3}
    assert predict(read, np.full((1, 6, 6), 3.0)).shape == (12, 12)
