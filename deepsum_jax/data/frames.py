"""Which frames of a stack serve, and in which order: the reference, then the clearest."""

from __future__ import annotations

import numpy as np

from deepsum_jax.data.scene import Scene

MAX_FRAMES = 15  # more of the clearest frames did not help (slides, "Quantitative Results")


def clearest_first(masks: np.ndarray) -> np.ndarray:
    """Indices of frames by falling count of reliable pixels; a tie keeps the stack's order."""
    return np.argsort(-masks.reshape(len(masks), -1).sum(axis=1), kind="stable")


def reference_frame(scene: Scene, rule: str) -> int | None:
    """Index of the frame that a rule makes the reference; None for the clearest of those in use.

    Args:
      rule: "clearest", "first" (in the stack) or "given" (by the scene).

    Raises:
      ValueError: a scene that gives none where it should.
    """
    if rule != "given":
        return None if rule == "clearest" else 0
    if scene.reference not in scene.frames:
        raise ValueError(
            f"scene {scene.name!r}: found no given reference frame, expected a reference.txt that "
            "names one"
        )
    return scene.frames.index(scene.reference)


def reference_first(masks: np.ndarray, reference: int | None) -> np.ndarray:
    """Indices of frames: the reference, then the others by clearance."""
    order = clearest_first(masks)
    return order if reference is None else np.r_[reference, order[order != reference]]


def select_frames(
    masks: np.ndarray, frames: int, reference: int | None = None, max_frames: int | None = None
) -> list[int]:
    """The frames to use, reference first, then by clearance.

    Frames more than 90 % clear are kept, the bar being lowered by 5 points until `frames` remain
    (or all with any reliable pixel).

    Args:
      masks: [T, h, w] bool.
      frames: N.
      reference: index of frame 0; None takes the clearest (the earliest of a tie).
      max_frames: at most this many; None takes `MAX_FRAMES`, or N if that is more.

    Raises:
      ValueError: no frame has a reliable pixel.
    """
    clearance = masks.reshape(len(masks), -1).mean(axis=1)
    if not clearance.any():
        raise ValueError(f"masks: found no reliable pixel in any of {len(masks)} frames")
    order = [
        int(n) for n in reference_first(masks, reference) if clearance[n] > 0 or n == reference
    ]
    bar = 90
    kept: list[int] = []
    while bar > -5 and len(kept) < min(frames, len(order)):
        kept = [n for n in order if n == order[0] or clearance[n] * 100 > bar]
        bar -= 5
    return kept[: max(MAX_FRAMES, frames) if max_frames is None else max_frames]
