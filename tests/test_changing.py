"""Scenes of changing ground: geometry, dates, truth and statistics held against the images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.fft

from deepsum_jax import cli
from deepsum_jax.config import ChangingGround
from deepsum_jax.data import kelvins
from deepsum_jax.data.scene import Scene
from deepsum_jax.data.sensor import observe
from deepsum_jax.simulation import changing, optics
from deepsum_jax.simulation import steady as simulate
from deepsum_jax.simulation.changing import simulate_changing_scene
from deepsum_jax.simulation.places import Place, draw_place
from deepsum_jax.simulation.textures import crop_texture, robust_fit
from experiments import ground

SMALL = ChangingGround(lr_size=24, min_frames=5, max_frames=7)
# No noise, no clouds and one blur: what is left is ground and geometry.
CLEAN = dataclasses.replace(
    SMALL,
    lr_size=32,
    noise=(0.0, 0.0),
    gain_sigma=0.0,
    offset_sigma=0.0,
    haze_chance=0.0,
    thin_cloud_chance=0.0,
    shadow_chance=0.0,
    clear_fraction=1.0,
    psf_sigma=(0.4, 0.4),
    resampled_chance=0.0,
    harvest_chance=0.0,
    flood_chance=0.0,
)
LOOKS = dataclasses.replace(CLEAN, looks=(1.0, 1.0), shift_sigma=(0.3, 0.3), exact_chance=0.0)


def with_(config: ChangingGround, **values: Any) -> ChangingGround:
    return dataclasses.replace(config, **values)


def same_scene(a: tuple[Scene, dict[str, Any]], b: tuple[Scene, dict[str, Any]]) -> bool:
    arrays = ((s.lr, s.masks, s.hr, s.hr_mask, t["same_ground"]) for s, t in (a, b))
    alike = all(np.array_equal(x, y) for x, y in zip(*arrays))
    return alike and plain(a[1]) == plain(b[1])


def plain(truth: dict[str, Any]) -> str:
    """What goes into truth.json: all but the arrays."""
    return json.dumps({k: v for k, v in truth.items() if k != "same_ground"})


# --- arguments decide ---------------------------------------------------------------------------


def test_a_scene_depends_on_its_arguments_alone() -> None:
    first = simulate_changing_scene(3, 5, SMALL)
    np.random.default_rng(0).random(10)
    simulate_changing_scene(3, 6, SMALL)
    assert same_scene(first, simulate_changing_scene(3, 5, SMALL))
    for other in ((4, 5), (3, 6), (5, 3)):
        scene, _ = simulate_changing_scene(*other, SMALL)
        assert scene.hr is not None and first[0].hr is not None
        assert abs(np.corrcoef(scene.hr.ravel(), first[0].hr.ravel())[0, 1]) < 0.6


def test_what_is_seen_does_not_change_what_else_is_drawn() -> None:
    noisy, clean = (simulate_changing_scene(1, 2, with_(SMALL, noise=n)) for n in ((9, 9), (0, 0)))
    assert noisy[0].hr is not None and clean[0].hr is not None
    assert np.array_equal(noisy[0].hr, clean[0].hr)
    assert noisy[1]["frames"] == clean[1]["frames"]


def test_the_other_simulator_is_what_it_was() -> None:
    config = simulate.SimulationConfig(lr_size=16, min_frames=3, max_frames=3)
    scene, truth = simulate.simulate_scene(7, 3, config)
    digest = hashlib.sha256()
    for array in (scene.lr, scene.masks, scene.hr, scene.hr_mask):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(json.dumps(truth).encode())
    assert digest.hexdigest() == "7d9068fc343ea85e9e10794e772cb67af8602606f664811112a42616b1aec6e1"


# --- layout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("frames", [1, 4])
def test_layout(scale: int, frames: int, tmp_path: Path) -> None:
    config = with_(SMALL, lr_size=16, scale=scale, min_frames=frames, max_frames=frames)
    scene, truth = simulate_changing_scene(0, 1, config, "RED")
    assert scene.lr.shape == truth["same_ground"].shape == (frames, 16, 16)
    assert scene.lr.dtype == np.uint16 and truth["same_ground"].dtype == bool
    assert scene.hr is not None and scene.hr_mask is not None and scene.scale == scale
    assert scene.hr.dtype == np.uint16 and scene.hr_mask.all()
    assert max(scene.lr.max(), scene.hr.max()) < 2**14
    kelvins.write_scene(tmp_path / scene.name, scene)
    assert np.array_equal(kelvins.read_scene(tmp_path / scene.name).lr, scene.lr)
    assert json.loads(plain(truth))["hr"] == [0.0, 0.0]


def test_thirty_frames_and_the_reference_among_them() -> None:
    scene, truth = simulate_changing_scene(0, 3, with_(SMALL, min_frames=30, max_frames=30))
    assert scene.num_frames == 30 and scene.reference is not None
    name = f"LR{scene.reference:03d}"
    assert truth["reference"] == name and truth["frames"][name] == [0.0, 0.0]
    mine = truth["details"][name]
    values = [mine[k] for k in ("year", "rotation", "scale", "gain", "offset", "unmasked")]
    assert values == [0, 0.0, 1.0, 1.0, 0.0, []]
    clear = scene.masks.sum(axis=(1, 2))
    assert np.flatnonzero(clear == clear.max()).tolist() == [scene.reference]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scale", 9, "scale: found 9, expected 1 to 8"),
        ("looks", (0.0, 1.5), "looks: found .* two rising numbers in 0 to 1"),
        ("noise", (9.0, 3.0), "noise: found .* two rising numbers"),
        ("contrast", (900.0,), "contrast: found .* two rising numbers"),
        ("max_frames", 2, "max_frames: found 2, expected 5 to 1000"),
        ("bands", ("BLUE",), "bands: found .* expected NIR, RED or both"),
    ],
)
def test_configuration_is_checked(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_(SMALL, **{field: value})


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="band: found 'PAN'"):
        simulate_changing_scene(0, 0, SMALL, "PAN")
    with pytest.raises(ValueError, match="expected none negative"):
        simulate_changing_scene(0, -1, SMALL)
    with pytest.raises(ValueError, match=r"texture 1: found shape \(4, 4\)"):
        simulate_changing_scene(0, 0, SMALL, textures=[np.eye(20), np.eye(4)])
    with pytest.raises(ValueError, match="texture 0: found values that are not finite"):
        simulate_changing_scene(0, 0, SMALL, textures=[np.full((20, 20), np.nan)])


# --- geometry -----------------------------------------------------------------------------------


def wave(frequency: tuple[float, float], y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.asarray(np.cos(2 * np.pi * (frequency[0] * y + frequency[1] * x)))


@pytest.mark.parametrize("resampled", [False, True])
def test_sensor_sees_a_wave_as_theory_says(resampled: bool) -> None:
    side, fine, r, count, margin = 240, 2, 3, 20, 60
    # Cycles per sample, periodic on the ground; cubic convolution is true to long waves alone.
    waves = (4 / side, 2 / side) if resampled else (9 / side, 4 / side)
    k = np.arange(side)
    land = wave(waves, *np.meshgrid(k, k, indexing="ij"))
    blur = optics.Blur(0.6, 0.3, 0.5)
    pose = optics.Pose((1.3, -0.8), 0.02, 1.01)  # exaggerated, to tell its signs apart
    pad, extra = (optics.PAD, (0.3, -0.4)) if resampled else (0, (0.0, 0.0))
    response = optics.transfer(side, fine * r, blur)
    seen = optics.sample(scipy.fft.rfft2(land), response, count, r, fine, margin, pose, extra, pad)
    if resampled:
        seen = optics.resample(seen, count, extra)

    c, centre = count * r / 2, r * (np.arange(count) + 0.5)
    y, x = np.meshgrid(centre - c, centre - c, indexing="ij")
    cos, sin = np.cos(0.02), np.sin(0.02)
    hy, hx = c + 1.3 + 1.01 * (cos * y - sin * x), c - 0.8 + 1.01 * (sin * y + cos * x)
    fy, fx = (f * fine * r for f in waves)  # cycles per LR pixel
    along, across = fx * np.cos(0.5) + fy * np.sin(0.5), fy * np.cos(0.5) - fx * np.sin(0.5)
    gain = np.exp(-2 * np.pi**2 * ((0.6 * along) ** 2 + (0.3 * across) ** 2))
    gain *= np.sinc(fy) * np.sinc(fx)
    wanted = gain * wave(waves, margin + fine * hy - 0.5, margin + fine * hx - 0.5)
    np.testing.assert_allclose(seen, wanted, atol=0.02 if resampled else 1e-3)


@pytest.mark.parametrize("resampled", [0.0, 1.0])
def test_translations_register_frames(resampled: bool) -> None:
    config = with_(LOOKS, hr_psf_sigma=0.1, rotation_sigma=0.0, resampled_chance=resampled)
    scene, truth = simulate_changing_scene(0, 1, with_(config, scale_sigma=0.0))
    assert scene.hr is not None
    inner, worst = (slice(5, -5),) * 2, 0.0
    for frame, shift in zip(scene.lr, truth["frames"].values()):
        seen = observe(scene.hr.astype(float), shift, 3, 0.4)
        right = np.std((seen - frame)[inner])
        assert right < (0.1 if resampled else 0.01) * frame.std()
        mirrored = observe(scene.hr.astype(float), -np.array(shift), 3, 0.4)
        if np.hypot(*shift) > 0.3:
            worst = max(worst, right / np.std((mirrored - frame)[inner]))
    assert 0 < worst < (0.5 if resampled else 0.1)


class Waves:
    """A place of one plane wave per date."""

    cut_on = np.zeros(1)

    def __init__(self, side: int) -> None:
        self.side = side

    def ground(self, year: int, day: float, flooded: bool) -> np.ndarray:
        k = np.arange(self.side)
        at = (6 if (year, day, flooded) == (0, 0.0, False) else 11) / self.side
        return wave((at, 2 / self.side), *np.meshgrid(k, k, indexing="ij"))


def test_hr_is_the_reference_ground_through_a_sharp_sensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changing, "draw_place", lambda key, side, *_: Waves(side))
    scene, truth = simulate_changing_scene(0, 2, with_(CLEAN, contrast=(1000.0, 1000.0)))
    margin = changing._margin(CLEAN)
    side = scipy.fft.next_fast_len((2 * 96 + 2 * margin + 1) // 2, real=True) * 2
    at = margin + 2 * (np.arange(96) + 0.5) - 0.5
    f = (6 / side, 2 / side)
    blur = np.prod([np.exp(-2 * (np.pi * 2 * g * 0.3) ** 2) * np.sinc(2 * g) for g in f])
    wanted = 1000 * np.sqrt(2) * blur * wave(f, *np.meshgrid(at, at, indexing="ij"))
    assert scene.hr is not None
    found = scene.hr - np.median(scene.hr - wanted)  # the level is the scene's own
    np.testing.assert_allclose(found, wanted, atol=3)
    # The other date's wave is seen by other years alone.
    agree = truth["same_ground"].mean(axis=(1, 2))
    dates = [(d["year"], d["day"]) for d in truth["details"].values()]
    assert dates.count((0, 0.0)) == 1
    assert agree[dates.index((0, 0.0))] == 1 and np.sum(agree < 0.1) == len(agree) - 1


def test_hr_of_another_date() -> None:
    config = with_(SMALL, hr_date="other", max_reference_clouded=0.2)
    scenes = [simulate_changing_scene(0, n, config) for n in range(6)]
    assert all(truth["hr"] != [0.0, 0.0] for _, truth in scenes)
    assert any(not scene.hr_mask.all() for scene, _ in scenes if scene.hr_mask is not None)


# --- truth --------------------------------------------------------------------------------------


def test_same_ground_is_where_frames_agree_with_the_reference() -> None:
    config = with_(
        CLEAN, looks=(0.4, 0.6), exact_chance=1.0, clear_fraction=0.3, haze_chance=0.3,
        thin_cloud_chance=0.3, shadow_chance=0.3, harvest_chance=1.0, flood_chance=0.3,
        same_floor=20.0, max_reference_clouded=0.0,
    )  # fmt: skip
    shares = []
    for index in range(4):
        scene, truth = simulate_changing_scene(2, index, config)
        assert scene.reference is not None
        difference = np.abs(scene.lr - scene.lr[scene.reference].astype(float))
        same = truth["same_ground"]
        unsure = np.abs(difference - 20) < 1.5  # counts are rounded
        assert np.array_equal((difference <= 20)[~unsure], same[~unsure])
        shares += list(same.mean(axis=(1, 2)))
    assert min(shares) < 0.2 and sum(0.2 < s < 0.98 for s in shares) > 3 and max(shares) == 1


def test_looks_agree_and_years_differ() -> None:
    correlation: dict[bool, list[float]] = {True: [], False: []}
    for index in range(8):
        scene, truth = simulate_changing_scene(
            0, index, with_(CLEAN, looks=(0.5, 0.5), exact_chance=1.0)
        )
        assert scene.reference is not None
        for n, detail in enumerate(truth["details"].values()):
            if n != scene.reference:
                pair = (scene.lr[n].ravel(), scene.lr[scene.reference].ravel())
                correlation[detail["year"] == 0].append(float(np.corrcoef(*pair)[0, 1]))
    assert min(correlation[True]) > 0.98
    assert 0.6 < np.median(correlation[False]) < 0.96
    assert max(correlation[False]) < 0.999


def parcel_means(place: Place, year: int) -> np.ndarray:
    """Mean brightness of each parcel with enough dry ground."""
    counted = place.farmed & (place.height > 0.6)
    size = np.bincount(place.parcel[counted], minlength=len(place.rows))
    total = np.bincount(place.parcel[counted], place.ground(year, 0.0, False)[counted], len(size))
    return np.asarray(total[size > 300] / size[size > 300])


def test_years_alter_parcels_as_far_as_inverted_contrast() -> None:
    still, all_, lowest = with_(CLEAN, change=(0.0, 0.0)), with_(CLEAN, change=(1.0, 1.0)), []
    for n in range(8):
        quiet = draw_place((0, n), 300, 6, still, "RED")
        if quiet.water == 0:
            assert np.array_equal(quiet.ground(1, 0.0, False), quiet.ground(0, 0.0, False))
        place = draw_place((0, n), 300, 6, all_, "RED")
        before, after = parcel_means(place, 0), parcel_means(place, 1)
        if len(before) > 5:
            lowest.append(float(np.corrcoef(before, after)[0, 1]))
    assert len(lowest) > 3 and min(lowest) < -0.2 and max(lowest) < 0.9


def test_harvest_and_flood_move_borders_within_days() -> None:
    config = with_(CLEAN, harvest_chance=1.0)
    place = draw_place((0, 4), 300, 6, config, "NIR")
    today = place.ground(0, 0.0, False)
    later = np.abs(place.ground(0, 6.0, False) - today) > 0.05
    inside = [later[(place.parcel == p) & place.farmed] for p in range(len(place.rows))]
    shares = np.array([part.mean() for part in inside if part.size > 100])
    assert np.any(shares == 0) and shares.max() > 0.5 and 0.01 < later.mean() < 0.6
    wet = place.ground(0, 0.0, True)
    assert 0.03 < np.mean(np.abs(wet - today) > 0.2) < 0.6
    assert place.height[wet < -2].max() < place.height.max()


def test_gain_offset_and_noise_are_as_truth_says() -> None:
    exposed = with_(LOOKS, gain_sigma=0.05, offset_sigma=200.0)
    (bare, _), (scene, truth) = (simulate_changing_scene(0, 4, c) for c in (LOOKS, exposed))
    noisy, noise = simulate_changing_scene(0, 4, with_(LOOKS, noise=(20.0, 30.0)))
    details = zip(truth["details"].values(), noise["details"].values())
    for n, (detail, other) in enumerate(details):
        gain, offset = robust_fit(bare.lr[n].ravel().astype(float), scene.lr[n].ravel())
        assert gain == pytest.approx(detail["gain"], abs=1e-3)
        assert offset == pytest.approx(detail["offset"], abs=8)
        spread = np.std(noisy.lr[n] - bare.lr[n].astype(float))
        assert spread == pytest.approx(other["noise"], rel=0.1)
    assert len({d["gain"] for d in truth["details"].values()}) == scene.num_frames


# --- real ground --------------------------------------------------------------------------------


def test_texture_is_the_ground_and_its_dates_the_years() -> None:
    y, x = np.mgrid[:80, :80] / 80
    dates = np.stack([np.sin(9 * y) + x, np.sin(9 * y) + x + 3 * (x > 0.6) * (y > 0.5)])
    rng = np.random.default_rng(0)
    crop = crop_texture(rng, [100 + 7 * dates], 100, 2.0, 9)
    assert crop.shape == (2, 100, 100) and abs(crop[0].std() - 1) < 1e-3
    assert len(crop_texture(rng, [dates], 400, 2.0, 1)) == 1  # mirrored, and one date
    config = with_(CLEAN, texture_chance=1.0)
    scenes = [simulate_changing_scene(0, 3, config, textures=t) for t in (None, [dates], [y * x])]
    assert len({scene.lr.tobytes() for scene, _ in scenes}) == 3
    # No texture is used where chance has it so.
    unused = simulate_changing_scene(0, 3, with_(CLEAN, texture_chance=0.0), textures=[dates])
    assert same_scene(unused, simulate_changing_scene(0, 3, with_(CLEAN, texture_chance=0.0)))


def test_exposure_of_a_real_date_is_no_change() -> None:
    noise = np.random.default_rng(1).standard_normal((60, 60)).cumsum(0).cumsum(1)
    crop = crop_texture(np.random.default_rng(2), [np.stack([noise, 40 + 1.3 * noise])], 90, 2.0, 2)
    np.testing.assert_allclose(crop[1], crop[0], atol=2e-3)


# --- the comparison -----------------------------------------------------------------------------


def test_statistics_tell_alike_from_altered() -> None:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((48, 48)).cumsum(0).cumsum(1)
    image -= image.mean()
    altered = np.where(np.arange(48) < 34, image, -image)
    frames = np.stack([image, 3 + 2 * image, altered])
    stack = ground.Stack(
        frames, np.ones(frames.shape, bool), 0, np.kron(image, np.ones((3, 3))),
        np.array([False, False, True]),
    )  # fmt: skip
    found = ground.compare_statistics([stack])
    assert found.correlation["looks"] == pytest.approx([1]) == found.detail["looks"]
    assert found.agreement["looks"] == pytest.approx([1])
    assert found.correlation["years"][0] < 0.9 and 0.65 < found.agreement["years"][0] < 0.85
    white = ground.power_spectrum(rng.standard_normal((96, 96)))
    np.testing.assert_allclose(white[8:], 1, atol=0.3)


def test_command_writes_the_figure_and_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rasterio = pytest.importorskip("rasterio")
    rng = np.random.default_rng(0)
    for year in range(3):
        values = 120 + 30 * rng.standard_normal((4, 150, 150 + year))
        profile = {"driver": "GTiff", "count": 4, "dtype": "uint8", "height": 150}
        transform = rasterio.Affine(5, 0, 0, 0, -5, 0)
        path = tmp_path / f"{2010 + year}.tif"
        with rasterio.open(path, "w", width=150 + year, transform=transform, **profile) as target:
            target.write(values.clip(1, 255).astype(np.uint8))
    monkeypatch.setattr(cli, "run", lambda main: main())
    ground.main(["--naip", str(tmp_path), "--output", str(tmp_path / "out.png"), "--scenes", "2"])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert "| NAIP | NIR | years |" in table and "| changing | RED |" in table
    with pytest.raises(FileNotFoundError, match="found 0 files"):
        ground.read_naip(tmp_path / "nowhere")
