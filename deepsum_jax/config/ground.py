"""The knobs of the simulator whose ground changes (`changing`)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from deepsum_jax.config.machinery import Section


@dataclasses.dataclass(frozen=True)
class ChangingGround(Section):
    """What simulated scenes of changing ground look like. Counts are raw units, 14 bits.

    Pairs are the ends of a range from which each scene draws; noise, contrast and misregistration
    draw evenly in the logarithm. "Looks" are frames of the reference's date, give or take days.
    """

    lr_size: int = 64  # LR pixels, height and width of a frame, 16..4096
    scale: int = 3  # r, 1..8
    min_frames: int = 4  # frames of a scene, 1..1000
    max_frames: int = 16  # min_frames..1000; the number is uniform between the two
    bands: tuple[str, ...] = ("NIR",)  # of NIR, RED
    hr_date: Literal["reference", "other"] = "reference"  # other: HR days and a shift away, cloudy

    # What the ground does.
    looks: tuple[float, ...] = (0.0, 1.0)  # share of the other frames that are looks, 0..1
    years: int = 9  # other years that frames may come from, at most, 1..100
    change: tuple[float, ...] = (0.15, 1.0)  # share of parcels that another year alters, 0..1
    harvest_chance: float = 0.15  # that a scene lies in harvest time: parcels differ by days, 0..1
    flood_chance: float = 0.1  # that another year stands under water, a look a fifth of it, 0..1
    texture_chance: float = 0.7  # that a scene's ground is real, where textures are given, 0..1

    # What the air does; no mask knows of haze, thin cloud and stray shadows.
    haze_chance: float = 0.15  # of a frame, 0..1
    thin_cloud_chance: float = 0.1  # of a frame, 0..1
    shadow_chance: float = 0.1  # of a frame, 0..1
    clear_fraction: float = 0.5  # of frames that have no masked cloud at all, 0..1
    max_clouded: float = 0.35  # masked fraction of the cloudiest frame, 0..0.4
    max_reference_clouded: float = 0.1  # of the reference, and of another date's HR, 0..0.4

    # What the sensor does.
    psf_sigma: tuple[float, ...] = (0.25, 0.6)  # LR pixels, Gaussian before the pixel's box, 0.1..1
    hr_psf_sigma: float = 0.3  # HR pixels, likewise, 0.1..1
    noise: tuple[float, ...] = (3.0, 40.0)  # counts, deviation at the scene's level, 0..500
    hr_noise: float = 0.0  # counts, 0..500
    contrast: tuple[float, ...] = (500.0, 2800.0)  # counts, deviation of the ground, 10..4000
    gain_sigma: float = 0.02  # relative, between looks; five times that between years, 0..0.1
    offset_sigma: float = 50.0  # counts, between looks; five times that between years, 0..500
    resampled_chance: float = 0.4  # that a scene's frames were resampled once, cubic, 0..1

    # Where frames lie.
    exact_chance: float = 0.1  # that all frames of a scene lie on one grid, 0..1
    shift_sigma: tuple[float, ...] = (0.15, 0.8)  # LR pixels, per axis, 0..3
    max_shift: float = 3.0  # LR pixels, per axis, 0..8
    outlier_fraction: float = 0.02  # of frames shifted anywhere within max_shift, 0..1
    rotation_sigma: float = 2e-4  # radians, 0..0.002
    scale_sigma: float = 2e-4  # relative, 0..0.002

    # What counts as the same ground.
    same_threshold: float = 2.0  # deviations of the frame's noise, 0..100
    same_floor: float = 8.0  # counts: a difference below it is none, however low the noise, 0..500

    def check(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "lr_size": (16, 4096),
            "scale": (1, 8),
            "min_frames": (1, 1000),
            "max_frames": (self.min_frames, 1000),
            "looks": (0, 1),
            "years": (1, 100),
            "change": (0, 1),
            "harvest_chance": (0, 1),
            "flood_chance": (0, 1),
            "texture_chance": (0, 1),
            "haze_chance": (0, 1),
            "thin_cloud_chance": (0, 1),
            "shadow_chance": (0, 1),
            "clear_fraction": (0, 1),
            "max_clouded": (0, 0.4),
            "max_reference_clouded": (0, 0.4),
            "psf_sigma": (0.1, 1),
            "hr_psf_sigma": (0.1, 1),
            "noise": (0, 500),
            "hr_noise": (0, 500),
            "contrast": (10, 4000),
            "gain_sigma": (0, 0.1),
            "offset_sigma": (0, 500),
            "resampled_chance": (0, 1),
            "exact_chance": (0, 1),
            "shift_sigma": (0, 3),
            "max_shift": (0, 8),
            "outlier_fraction": (0, 1),
            "rotation_sigma": (0, 0.002),
            "scale_sigma": (0, 0.002),
            "same_threshold": (0, 100),
            "same_floor": (0, 500),
        }
        self._require_within(ranges)
        known = bool(self.bands) and set(self.bands) <= {"NIR", "RED"}
        once = len(set(self.bands)) == len(self.bands)
        self._require(known and once, "bands", "NIR, RED or both")
