"""The score of one scene with HR, beside the honest alternatives on the same frames."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from deepsum_jax import files, metrics
from deepsum_jax.bundle import Bundle
from deepsum_jax.config import Compute
from deepsum_jax.data import kelvins
from deepsum_jax.data.fill import fill_hidden
from deepsum_jax.data.frames import reference_frame
from deepsum_jax.data.registration import register_upsampled
from deepsum_jax.data.scene import Scene, with_channels
from deepsum_jax.inference import frames_in_use, super_resolve
from deepsum_jax.model import ops
from deepsum_jax.scoring.company import COMPANY, company
from deepsum_jax.systems.system import Stack
from deepsum_jax.systems.table import system_of


@dataclasses.dataclass(frozen=True, eq=False)
class SceneScore:
    """Scores of one scene, and the images they belong to."""

    name: str
    band: str
    frames: int  # used
    cpsnr: float  # dB; NaN where HR has no reliable pixel, or no frame has
    cssim: float
    company: dict[str, float]  # dB, of the alternatives (`COMPANY`) on the same frames
    norm: float | None  # Kelvins baseline, dB
    shape: tuple[int, int]  # of HR
    label: str = ""  # of the system
    # [n, 2, 2]: frames × (the system's filters, integer cross-correlation) × (y, x)
    shift_errors: np.ndarray | None = None
    filters_by: str = ""  # who proposed the system's filters
    remarks: tuple[str, ...] = ()  # frames that were left out or replaced, and why
    # "LR", the alternatives by name, "SR", "HR": [H, W], and "mask"
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """Kelvins score of this scene: infinite where it has the worst cPSNR there is."""
        if self.norm is None or not math.isfinite(self.cpsnr):
            return None
        return self.norm / self.cpsnr if self.cpsnr else math.inf


def score_image(image: np.ndarray, scene: Scene, border: int) -> tuple[float, float]:
    """cPSNR and cSSIM; NaN without a reliable HR pixel, the worst there is for an image that is
    not finite where HR is reliable."""
    assert scene.hr is not None and scene.hr_mask is not None
    hr = fill_hidden(with_channels(scene.hr, 2)[None], scene.hr_mask[None])
    mask = scene.hr_mask[None, ..., None]
    cpsnr = float(metrics.cpsnr(image[None], hr, mask, border)[0])
    cssim = float(metrics.cssim(image[None], hr, mask, border)[0])
    if math.isnan(cpsnr) and scene.hr_mask.any():
        return metrics.WORST_CPSNR, 0.0
    return cpsnr, cssim


def read_truth(folder: kelvins.SceneFolder) -> dict[str, Any] | None:
    """What a simulated scene's truth.json says; None without one."""
    path = folder.path / "truth.json"
    return files.read_json(path) if path.exists() else None


def true_shifts(truth: dict[str, Any], frames: Sequence[int]) -> np.ndarray:
    """[n, 2]: translations that register frames on the first, from a simulated scene's truth.

    Raises:
      ValueError: a frame's translation is missing or is not two numbers.
    """
    place = np.full((len(frames), 2), np.nan)
    for row, number in zip(place, frames):
        try:
            dy, dx = truth["frames"][f"LR{number:03d}"]
            row[:] = float(dy), float(dx)
        except (KeyError, TypeError, ValueError):
            pass  # stays NaN
        if not np.isfinite(row).all():
            raise ValueError(
                f"truth.json: found no translation of LR{number:03d}, expected "
                f"frames.LR{number:03d} to be (dy, dx)"
            )
    return place - place[0]


def _shift_errors(
    bundle: Bundle, scene: Scene, kept: list[int], filters: np.ndarray, truth: dict[str, Any]
) -> np.ndarray:
    """Errors, in HR pixels, of the system's filters and of integer cross-correlation.

    Over the first window's frames whose true shift the filters can reach.
    """
    members = kept[: bundle.config.num_frames]
    true = true_shifts(truth, [scene.frames[n] for n in members])[1:]
    learned = np.asarray(ops.filter_shift(jnp.asarray(filters)))[: len(true)]
    lr = fill_hidden(with_channels(scene.lr, 3)[members], scene.masks[members])
    correlated = register_upsampled(lr, scene.masks[members], bundle.config.scale)[1:]
    reached = np.abs(true).max(axis=1) <= bundle.config.filter_size // 2
    return np.stack([learned - true, correlated - true], axis=1)[reached]


def evaluate_scene(
    bundle: Bundle,
    scene: Scene,
    truth: dict[str, Any] | None = None,
    max_frames: int | None = None,
    border: int = 3,
    compute: Compute = Compute(),
) -> SceneScore:
    """Scores what `predict` makes of a scene.

    Args:
      bundle: a whole system.
      scene: with HR; its scale and channels are the system's.
      truth: of a simulated scene, for registration errors.
      max_frames, compute: as in `predict`.

    Raises:
      ValueError: another scale or number of channels, or a scene without the reference frame
        that the bundle's rule wants given.
    """
    config, label = bundle.config, system_of(bundle.config).label
    lr = with_channels(scene.lr, 3)
    if scene.hr is None or scene.scale != config.scale:
        hint = "" if bundle.params or scene.scale is None else f" (--scale {scene.scale} sets it)"
        raise ValueError(
            f"scene {scene.name!r}: found scale {scene.scale}, expected {config.scale}{hint}"
        )
    if lr.shape[-1] != config.channels:
        raise ValueError(
            f"scene {scene.name!r}: found {lr.shape[-1]} channels, expected {config.channels}"
        )
    shape, nan = (scene.hr.shape[0], scene.hr.shape[1]), math.nan
    if not scene.masks.any():  # nothing to super-resolve: counted, not scored
        nothing = dict.fromkeys(COMPANY, nan)
        return SceneScore(scene.name, scene.band, 0, nan, nan, nothing, scene.norm, shape, label)
    reference = reference_frame(scene, bundle.info.reference)
    chosen = frames_in_use(bundle, lr, scene.masks, reference, max_frames)
    kept = chosen.kept
    stack = Stack(lr[kept], scene.masks[kept])
    result = super_resolve(bundle, stack, compute)
    cpsnr, cssim = score_image(result.image, scene, border)
    others = company(stack, config.scale, config.psf_sigma)
    scores = {
        name: nan if image is None else score_image(image, scene, border)[0]
        for name, image in others.items()
    }
    errors = None
    if truth is not None and result.filters is not None:
        errors = _shift_errors(bundle, scene, kept, result.filters, truth)
    images: dict[str, np.ndarray] = {
        "LR": fill_hidden(stack.lr[:1], stack.masks[:1])[0, ..., 0],
        **{name: image[..., 0] for name, image in others.items() if image is not None},
        "SR": result.image[..., 0],
        "HR": with_channels(scene.hr, 2)[..., 0].astype(np.float32),
        "mask": np.asarray(scene.hr_mask),
    }
    return SceneScore(
        scene.name, scene.band, len(kept), cpsnr, cssim, scores, scene.norm, shape, label,
        errors, result.filters_by, tuple(chosen.warnings()), images,
    )  # fmt: skip
