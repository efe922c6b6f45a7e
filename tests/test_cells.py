"""Cells: equal budgets, shared pretraining, brightness, work, and which scenes are scored."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TINY as SMALL
from helpers import random_bundle
from pngs import assert_panels, marks

from deepsum_jax import files
from deepsum_jax.config import ModelConfig, SimulationConfig, TrainConfig, override
from deepsum_jax.config.presets import DEMO, TINY
from deepsum_jax.data import kelvins
from deepsum_jax.inference import super_resolve
from deepsum_jax.scoring.scene import SceneScore
from deepsum_jax.scoring.summary import evaluate
from deepsum_jax.simulation.dataset import write_dataset
from deepsum_jax.systems.deepsum import nominal_work
from deepsum_jax.systems.duf import duf_work
from deepsum_jax.systems.system import Stack
from deepsum_jax.systems.table import system_of
from experiments import cells, exhibits, panels, rows
from experiments.cells import Bench

ONE_STEP = override(
    TINY,
    [
        "compute.backend=plain", "simulation.scenes=4",
        *(f"{s}.steps=1" for s in rows.STAGES), *(f"{s}.validate_every=1" for s in rows.STAGES),
    ],
)  # fmt: skip


def bench(workdir: Path, data: Path | None = None, base: TrainConfig = ONE_STEP) -> Bench:
    return Bench(workdir, data, base, 4, exhibits.ROWS)


# --- budgets


def test_budgets_are_equal() -> None:
    """Every stack network trains as many end-to-end steps; the others all steps in one stage."""
    steps = {row.name: rows.row_config(row, DEMO, 3) for row in exhibits.ROWS.values()}
    names = ("deepsum", "no_registration", "correlation", "shifts", "batch_norm", "no_inpainting")
    for name in names:
        assert steps[name].deepsum == DEMO.deepsum and steps[name].sisrnet == DEMO.sisrnet
    both = DEMO.sisrnet.steps + DEMO.deepsum.steps
    assert steps["sisr"].sisrnet.steps == steps["duf"].deepsum.steps == both
    assert steps["duf_steps3"].deepsum.steps == 3 * both
    assert steps["no_pretraining"].regnet.steps == 0
    assert steps["no_pretraining"].deepsum.steps == DEMO.deepsum.steps
    assert {c.seed for c in steps.values()} == {3}
    assert len({c.deepsum.batch_size for c in steps.values()}) == 1
    assert len({dataclasses.replace(c.data, reference="first") for c in steps.values()}) == 1


def test_steps_scale() -> None:
    half = rows.scaled(DEMO, 0.5)
    assert half.deepsum.steps == DEMO.deepsum.steps // 2
    assert rows.scaled(DEMO, 1e-9).regnet.steps == 1
    assert rows.scaled(override(DEMO, ["regnet.steps=0"]), 3).regnet.steps == 0
    assert dataclasses.replace(half, sisrnet=DEMO.sisrnet, regnet=DEMO.regnet,
                               deepsum=DEMO.deepsum) == DEMO  # fmt: skip


def test_who_shares_a_pretraining() -> None:
    """Rows that differ in nothing that the stages before the last read."""

    def key(name: str, seed: int = 0) -> TrainConfig:
        return rows.pretraining(rows.row_config(exhibits.ROWS[name], DEMO, seed))

    for name in ("no_inpainting", "inpainting_before", "mask_shifts", "no_residual"):
        assert key(name) == key("deepsum")
    assert key("correlation") == key("agreement") == key("no_registration")
    for name in ("no_registration", "shifts", "batch_norm", "nonlocal", "deepsum_first",
                 "frames5", "deepsum_steps3"):  # fmt: skip
        assert key(name) != key("deepsum")
    assert key("deepsum", 1) != key("deepsum")


# --- runs


def test_shared_pretraining_changes_nothing(tmp_path: Path) -> None:
    """DeepSUM behind a pretraining of its own folder is DeepSUM trained in one."""
    b = bench(tmp_path)
    bundle, seconds, steps = b.system(rows.DEEPSUM, 0)
    whole = cells.train(tmp_path / "whole", ONE_STEP, b.scenes(), report=False)
    for one, other in zip(
        sorted(files_of(bundle.params).items()), sorted(files_of(whole.params).items())
    ):
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1], other[1])
    assert steps == {"sisrnet": 1, "regnet": 1, "deepsum": 1} and seconds > 0
    (folder,) = [p for p in (tmp_path / "runs").iterdir() if "pretraining" in p.name and p.is_dir()]
    stamp = (folder / "regnet" / "last" / "bundle.json").stat().st_mtime_ns
    b.system(exhibits.ROWS["no_inpainting"], 0)
    assert (folder / "regnet" / "last" / "bundle.json").stat().st_mtime_ns == stamp
    assert b.is_trained(rows.DEEPSUM, 0) and not b.is_trained(rows.DEEPSUM, 1)
    assert b.is_trained(rows.IBP, 7) and not b.is_trained(rows.DUF, 0)


def files_of(params: Any) -> dict[str, np.ndarray]:
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def test_time_of_interrupted_trainings_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    clock = tmp_path / "run.clock.json"
    files.write_json(clock, {"seconds": 100.0, "done": False})
    monkeypatch.setattr(cells, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cells._train(tmp_path / "run", TINY, tmp_path, ["deepsum"])
    kept = files.read_json(clock)
    assert kept["seconds"] > 100 and not kept["done"]
    monkeypatch.setattr(cells, "train", lambda *_, **__: None)
    assert cells._train(tmp_path / "run", TINY, tmp_path, ["deepsum"]) > kept["seconds"]
    assert files.read_json(clock)["done"]


def test_a_cell_says_all_of_itself(tmp_path: Path) -> None:
    b = bench(tmp_path)
    b.run(exhibits.ROWS["ibp_first"], 5, progress=False)
    path = tmp_path / "cells" / "ibp_first-0.json"  # no seed changes what has no parameters
    cell = files.read_json(path)
    assert cell["row"] == "ibp_first" and cell["parameters"] == 0 and cell["steps"] == {}
    assert {"date", "commit", "processor", "jax"} <= set(cell["made"])
    assert len(cell["scenes"]) == ONE_STEP.simulation.test_scenes
    clearest = evaluate(b.tested(rows.IBP, 0), b.scenes(), "test", max_frames=4)[0]
    first = [s["cpsnr"] for s in cell["scenes"]]
    assert first != pytest.approx([s["cpsnr"] for s in clearest["scenes"]])


def test_scenes_without_test_part_are_those_left_out(tmp_path: Path) -> None:
    """As in the challenge, whose test scenes have no HR: validation scenes serve, for all rows."""
    data = tmp_path / "data"
    config = SimulationConfig(
        lr_size=16, min_frames=6, max_frames=6, scenes=6, test_scenes=1, seed=2
    )
    write_dataset(data, config)
    for folder in kelvins.find_scenes(data):
        if folder.part == "test":
            (folder.path / "HR.png").unlink()
    base = override(ONE_STEP, ["data.max_shift=9"])
    b = bench(tmp_path / "w", data, base)
    b.run(rows.BICUBIC, 0, progress=False)
    b.run(rows.SISR, 0, progress=False)
    names = [
        [s["name"] for s in (b.cell(row, 0) or {})["scenes"]] for row in (rows.BICUBIC, rows.SISR)
    ]
    bundle, _, _ = b.system(rows.SISR, 0)
    assert names[0] == names[1] == [s.split("/")[1] for s in bundle.info.validation_scenes]
    assert len(names[0]) == 2 and (b.cell(rows.SISR, 0) or {})["split"] == "val"
    # A row that was trained on one of them is not scored there.
    seen = dataclasses.replace(bundle.info, train_scenes=(f"NIR/{names[0][0]}",))
    rest = b._for_test(dataclasses.replace(bundle, info=seen), rows.SISR)
    assert rest.info.validation_scenes == (f"NIR/{names[0][1]}",)
    assert b.bands() == ["NIR"]
    assert [s.name for s, _ in b.held_out_scenes("NIR", 5)] == names[0]


def test_scenes_of_many_frames(tmp_path: Path) -> None:
    b = bench(tmp_path)
    few, many = b.scenes(), b.scenes(many=True)
    counts = [kelvins.read_scene(f).num_frames for f in kelvins.find_scenes(many)]
    assert few != many and min(counts) >= 15 and max(counts) <= 20
    assert len(counts) == len(kelvins.find_scenes(few))
    shutil.rmtree(few)
    assert bench(tmp_path, many).scenes(many=True) == many  # given data serve for both


def test_panels(tmp_path: Path) -> None:
    """Pictures of what is trained; what is not is named."""
    b = bench(tmp_path)
    b.system(rows.DEEPSUM, 0)
    panels.draw(b, tmp_path / "out", 0, "said here")
    text = (tmp_path / "out" / "panels.md").read_text()
    assert "| DUF |\n|---|\n| not run |" in text and "| IBP |" not in text
    assert text.endswith("said here\n")
    # Two scenes of three rows: LR, Bicubic+Mean, IBP, DeepSUM and HR; their details; the errors
    # of the three in the middle.
    bare = {(row, column) for row in (2, 5) for column in (0, 4)}
    assert_panels(tmp_path / "out" / "panels_NIR.png", 6, 5, bare)
    assert marks(tmp_path / "out" / "panels_filters.png", "#ff7f0e") == 3  # and the legend's


# --- brightness and work


@pytest.mark.parametrize(("gain", "haze"), [(0.5, 0.0), (2.0, 0.0), (1.0, -1.5), (1.4, 1.0)])
def test_brighter_normalisation_is_brighter_frames(gain: float, haze: float) -> None:
    # Batch norm sees a constant, where instance norm is blind to it.
    bundle = random_bundle(dataclasses.replace(SMALL, norm="batch"))
    rng = np.random.default_rng(0)
    lr = (7700 + 900 * rng.standard_normal((3, 8, 8, 1))).astype(np.float32)
    masks = rng.random((3, 8, 8)) < 0.9
    norm = bundle.config.normalization
    added = np.float32(haze * np.asarray(norm.lr_std))
    expected = (super_resolve(bundle, Stack(gain * lr + added, masks)).image - added) / gain
    config = dataclasses.replace(bundle.config, normalization=cells.brighter(norm, gain, haze))
    found = super_resolve(dataclasses.replace(bundle, config=config), Stack(lr, masks)).image
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def work(model: ModelConfig, frames: int) -> float:
    """What the table says of a scene of 24×24 upsampled pixels."""
    return system_of(model).work(model, 24, 24, frames)


def test_nominal_work_of_systems() -> None:
    model = TINY.model
    parts = nominal_work(model, 24, 24)

    def of(**changes: Any) -> float:
        return work(dataclasses.replace(model, **changes), 3)

    assert of() == pytest.approx(parts.total)
    bare = parts.sisrnet + parts.fusionnet
    assert of(registration="none") == pytest.approx(bare)
    for given in ("correlation", "agreement"):
        assert of(registration=given) == pytest.approx(bare + parts.dynamic)
    assert of(system="sisr_mean") == pytest.approx(model.num_frames * of(system="sisr"))
    assert of(system="ibp") == of(system="bicubic_mean") == 0
    assert of(system="duf") > 0


def test_work_counts_windows(tmp_path: Path) -> None:
    b = bench(tmp_path)
    nan = float("nan")
    scores = [
        SceneScore("a", "", frames, nan, nan, {}, None, (24, 24))
        for frames in (2, 3, 6)  # 1, 1 and 4 windows of three
    ]
    one = nominal_work(TINY.model, 24, 24).total
    assert b._forward_work(TINY.model, scores) == pytest.approx(2 * one)
    duf = dataclasses.replace(TINY.model, system="duf")
    assert b._forward_work(duf, scores) == pytest.approx(2 * duf_work(duf, 24, 24))
    sisr = dataclasses.replace(TINY.model, system="sisr")
    single = nominal_work(TINY.model, 24, 24).sisrnet / 3
    assert b._forward_work(sisr, scores) == pytest.approx(single)
