"""The experiment on real dates: its stacks, how they are spoilt, and what is said of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from deepsum_jax import Bundle, ModelConfig
from deepsum_jax.config import SimulationConfig
from deepsum_jax.data.scene import Scene
from deepsum_jax.scoring.company import COMPANY
from deepsum_jax.simulation.steady import simulate_scene
from experiments import real

REAL = Path(__file__).parents[1].parent / "shared" / "real" / "naip-dakota"
LABELS = {**COMPANY, "robust_ibp": "robust IBP"}


def scene(index: int) -> Scene:
    looks = SimulationConfig(lr_size=32, min_frames=5, max_frames=5, clear_fraction=1.0)
    made = simulate_scene(4, index, looks)[0]
    masks = np.ones_like(made.masks)  # the reference is the clearest, as by Wald's protocol
    masks[[n for n in range(5) if n != real.reference_index(made)], 0, 0] = False
    return dataclasses.replace(made, masks=masks)


@pytest.mark.parametrize("name", real.SPOILS)
def test_only_so_many_frames_are_spoilt(name: str) -> None:
    good, other = scene(0), scene(1)
    bad = real.spoilt(good, other, real.SPOILS[name], 2, seed=0)
    changed = [n for n in range(5) if not np.array_equal(bad.lr[n], good.lr[n])]
    assert len(changed) == 2
    assert real.reference_index(good) not in changed
    again = real.spoilt(good, other, real.SPOILS[name], 2, seed=0)
    np.testing.assert_array_equal(again.lr, bad.lr)


def test_a_spoilt_reference_is_the_only_one() -> None:
    good, other = scene(0), scene(1)
    bad = real.spoilt_reference(good, other, real.SPOILS["another place"], seed=0)
    changed = [n for n in range(5) if not np.array_equal(bad.lr[n], good.lr[n])]
    assert changed == [real.reference_index(good)]
    assert bad.masks.all()


def test_scores_and_what_is_written() -> None:
    bundles = {"robust_ibp": Bundle({}, ModelConfig(system="robust_ibp"))}
    scores = real.score_stacks({"steady": [scene(0), scene(1)]}, bundles, max_frames=5)
    values = scores["steady"]
    assert set(values) == set(LABELS) and all(len(v) == 2 for v in values.values())
    assert np.mean(values["robust_ibp"]) > np.mean(values["ibp_one"])
    text = real.stacks_markdown(scores, LABELS)
    assert text.count("\n") == 3 and "steady (2)" in text and text.count("**") == 2
    worst = real.worst_markdown(scores, LABELS)
    safe = np.maximum(values["bicubic"], values["ibp_one"])
    assert f"{np.min(np.array(values['ibp']) - safe):+.2f}" in worst
    spoilt = real.score_spoilt([scene(0)], [scene(1)], bundles)
    assert len(spoilt) == 3 * len(real.SPOILS)
    alone = next(e for e in spoilt if e["spoilt"] == "all others: noise")
    assert abs(alone["robust_ibp"][0]) < 0.2
    assert "(worst " in real.spoilt_markdown(spoilt, {"robust_ibp": "robust IBP"})
    assert len(real.chart(scores, LABELS).axes[0].lines) == len(LABELS)


def test_the_named_reference_leads_where_it_is_asked_for() -> None:
    """The company's too."""
    plain = Bundle({}, ModelConfig(system="robust_ibp"))
    made = scene(0)
    named = real.reference_index(made)
    other = dataclasses.replace(made, reference=(named + 1) % 5)  # the masks still call for `named`
    keys = ("robust_ibp", "bicubic", "ibp_one", "ibp")

    def scores(one: Scene, bundle: Bundle) -> list[float]:
        found = real.score_stacks({"one": [one]}, {"robust_ibp": bundle}, max_frames=5)["one"]
        return [found[key][0] for key in keys]

    assert scores(other, plain) == scores(made, plain) == scores(made, real.by_given(plain))
    led = scores(other, real.by_given(plain))
    assert all(a != b for a, b in zip(led[:3], scores(made, plain)))


def test_spoilt_references_of_every_stack() -> None:
    """Looks without their reference are worth as much as IBP makes of them."""
    bundles = {name: Bundle({}, ModelConfig(system=name)) for name in ("ibp", "robust_ibp")}
    scenes = [scene(0), scene(1)]
    table = real.score_spoilt_references({"steady": scenes, "steady too": scenes[:1]}, bundles)
    assert [entry["spoilt"] for entry in table] == [
        f"the reference of {stack}: {name}"
        for stack in ("steady", "steady too")
        for name in ("another place", "an unmasked cloud")
    ]
    assert [len(entry["robust_ibp"]) for entry in table] == [2, 2, 1, 1]
    clouded = table[1]
    assert np.mean(clouded["robust_ibp"]) > -0.5
    assert np.mean(clouded["robust_ibp"]) > np.mean(clouded["ibp"]) + 3


@pytest.mark.skipif(not REAL.is_dir(), reason="the real dates lie beside the checkout only")
def test_reported_columns_alone() -> None:
    pytest.importorskip("rasterio", reason="needs the extra geo")
    stacks = real.real_stacks(REAL)
    assert [len(scenes) for scenes in stacks.values()] == [7] * 6
    looks = stacks["NIR, looks at one date"][0]
    assert looks.lr.shape == (10, 32, 32) and looks.masks[real.reference_index(looks)].all()


def test_a_folder_without_dates(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"found no \.tif"):
        real.real_stacks(tmp_path)
