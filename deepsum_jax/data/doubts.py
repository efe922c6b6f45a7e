"""What looks wrong about a sound stack: inverted masks, levels that jump, axes in another order.

Nothing here is an error, since real stacks can look so; each doubt is one sentence or None, and
whoever called decides what becomes of it. All work on a sample of the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_SAMPLE = 20_000  # pixels of each frame, spread over it, that are looked at
_FEW = 16  # pixels that say nothing
# How many spreads a jump must have where few degrees of freedom say what the spread is; else 6.
_SURE = {2: 20, 3: 12, 4: 8}
_NEARLY_ALL = 0.9  # of the pixels that an offset raises, even over ground that changes
_ADVICE = (
    "masks are True (non-zero) where a pixel is reliable; if yours mark clouds, invert them, as "
    "~masks or masks == 0"
)


def doubts(lr: np.ndarray, masks: np.ndarray) -> list[str]:
    """All that looks wrong about a stack, a sentence each.

    Args:
      lr: [T, h, w, C], any real dtype.
      masks: [T, h, w] bool, True = reliable.
    """
    found = [frames_last(lr.shape)]
    x, clear = _sample(lr, masks)
    # Where masks are wrong, levels are those of clouds.
    found.append(inverted_masks(x, clear) or level_jump(x, clear))
    return [doubt for doubt in found if doubt]


def _sample(lr: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some pixels of every frame, bands averaged: float64 and bool [T, P]."""
    pixels = masks[0].size
    step = -(-pixels // _SAMPLE)
    x = lr.reshape(len(lr), pixels, -1)[:, ::step].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        return x.mean(axis=2), masks.reshape(len(lr), pixels)[:, ::step]


def frames_last(shape: tuple[int, ...]) -> str | None:
    """A doubt where [T, h, w] looks like [h, w, T]."""
    frames, h, w = shape[:3]
    if not (w > 1 and min(frames, h) >= 3 * w and frames >= 32):
        return None
    return (
        f"the stack has {frames} frames of {h}×{w} pixels; if frames are its last axis, "
        "np.moveaxis(stack, -1, 0) puts them first"
    )


# --- masks --------------------------------------------------------------------------------------


def _without_codes(x: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Hidden measurements, bool [T, P]: not those that are no-data codes, which masks must hide.

    A code is not finite, or one value that is common where masks hide and rare where they do not.
    """
    hidden = ~clear & np.isfinite(x)
    values, counts = np.unique(x[hidden], return_counts=True)
    for value in values[counts > 0.05 * hidden.sum()]:
        same = x == value
        if np.count_nonzero(same & clear) < 0.01 * max(1, clear.sum()):
            hidden &= ~same
    return hidden


def _against_the_others(x: np.ndarray) -> np.ndarray:
    """How far each frame lies from the median of the others: [T, P].

    Levels stay in: they move what a frame hides and what it shows alike.
    """
    return np.stack(
        [np.abs(x[n] - np.median(np.delete(x, n, axis=0), axis=0)) for n in range(len(x))]
    )


def _disagreement(x: np.ndarray, clear: np.ndarray, hidden: np.ndarray) -> float | None:
    """How much worse hidden pixels agree with other frames than visible ones do, as a ratio.

    Only at places that some frames hide and others show: a lake that every frame hides tells
    nothing. The median over frames; None where there is too little to tell.
    """
    if len(x) < 3:
        return None
    with np.errstate(invalid="ignore"):
        away = _against_the_others(np.where(clear | hidden, x, np.nan))
    mixed = hidden.any(axis=0) & clear.any(axis=0) & np.isfinite(away).all(axis=0)
    ratios = []
    for n in range(len(x)):
        inside, outside = away[n][mixed & hidden[n]], away[n][mixed & clear[n]]
        if min(len(inside), len(outside)) >= _FEW and np.median(outside) > 0:
            ratios.append(np.median(inside) / np.median(outside))
    return float(np.median(ratios)) if ratios else None


def inverted_masks(x: np.ndarray, clear: np.ndarray) -> str | None:
    """A doubt where masks seem to be True where pixels are not reliable.

    They do where they hide most measurements, unless what they hide is indeed unlike the other
    frames; and where what they hide is more like the other frames than what they show.

    Args:
      x: [T, P].
      clear: [T, P] bool.
    """
    if clear.all() or not clear.any():
        return None
    hidden = _without_codes(x, clear)
    ratio = _disagreement(x, clear, hidden)
    if ratio is not None and ratio < 0.5:
        return (
            "what the masks hide agrees with the other frames better than what they show "
            f"(deviations of {ratio:.2f} to 1); {_ADVICE}"
        )
    share = hidden.mean()
    if share > 0.5 and (ratio is None or ratio < 2):
        return f"the masks hide most of the stack ({share:.0%}); {_ADVICE}"
    return None


# --- levels -------------------------------------------------------------------------------------


def _levels(x: np.ndarray, clear: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Each frame's level [T] against the stack's own image, NaN where unknown; the frames' own
    deviation; and what is left of frames less that image and their level."""
    seen = np.where(clear & np.isfinite(x), x, np.nan)
    there = np.isfinite(seen).any(axis=0)
    seen = seen[:, there]
    # About its own level each frame is like the others, so that two groups make one image.
    own = np.array([np.nanmedian(f) if np.isfinite(f).any() else np.nan for f in seen])
    image = np.nanmedian(seen - own[:, None], axis=0)
    levels, deviations, left = np.full(len(x), np.nan), [], []
    for n, frame in enumerate(seen):
        good = np.isfinite(frame) & np.isfinite(image)
        if good.sum() < _FEW:
            continue
        difference = frame[good] - image[good]
        levels[n] = np.median(difference)
        left.append(np.median(np.abs(difference - levels[n])))
        deviations.append(np.median(np.abs(frame[good] - np.median(frame[good]))))
    if not left:
        return levels, 0.0, 0.0
    return levels, 1.4826 * float(np.median(deviations)), 1.4826 * float(np.median(left))


def _everywhere(x: np.ndarray, clear: np.ndarray, groups: Sequence[np.ndarray]) -> float:
    """By how much nearly all pixels of the second group of frames lie higher than the first's.

    Fields that ripen or are ploughed change many pixels, and by unlike amounts; an offset is added
    to all.
    """
    seen = np.where(clear & np.isfinite(x), x, np.nan)
    both = np.logical_and(*(np.isfinite(seen[g]).any(axis=0) for g in groups))
    low, high = (np.nanmedian(seen[g][:, both], axis=0) for g in groups)
    return float(np.quantile(high - low, 1 - _NEARLY_ALL)) if both.any() else 0.0


def level_jump(x: np.ndarray, clear: np.ndarray) -> str | None:
    """A doubt where frames fall into two groups whose levels lie far apart.

    Far is six times the spread within the groups, and more than frames differ by themselves:
    half their own deviation, or twice where too few frames tell a spread or one stands alone; and
    three times what is left of a frame less the stack's image. And nearly all pixels rise by
    half of it.

    Args:
      x: [T, P].
      clear: [T, P] bool.
    """
    with np.errstate(invalid="ignore"):
        levels, deviation, left = _levels(x, clear)
    known = np.flatnonzero(np.isfinite(levels))
    if len(known) < 2:
        return None
    order = known[np.argsort(levels[known], kind="stable")]
    gaps = np.diff(levels[order])
    cut = int(gaps.argmax()) + 1
    low, high = order[:cut], order[cut:]
    jump = float(np.median(levels[high]) - np.median(levels[low]))
    squares = sum(float(((levels[g] - levels[g].mean()) ** 2).sum()) for g in (low, high))
    freedom = len(order) - 2
    spread = np.sqrt(squares / freedom) if freedom else 0.0
    # One frame alone may be hazy, or of another season: it has to stand out by more.
    several = min(len(low), len(high)) > 1
    sure = several and jump > _SURE.get(freedom, 6) * spread
    least = (0.5 if sure else 2) * deviation
    if not jump > max(6 * spread, least, 3 * left) or gaps[cut - 1] < jump / 2:
        return None
    if _everywhere(x, clear, (low, high)) < jump / 2:
        return None
    names = ", ".join(str(n) for n in sorted(high)[:8]) + (" …" if len(high) > 8 else "")
    plural = "s" if len(high) > 1 else ""
    return (
        f"frame{plural} {names} (of 0 to {len(x) - 1}) lie{'' if plural else 's'} about {jump:.4g} "
        f"higher than the other{'s' if len(low) > 1 else ''}: is there an offset to take away, as "
        "the 1000 of Sentinel-2 from baseline 04.00 on?"
    )
