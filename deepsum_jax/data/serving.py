"""Which frames of a stack can serve at all, and which of them can be the reference.

A frame of one value, of another place, or further off than registration searches would be averaged
in all the same, misplaced. Two frames that show one place have a cross-correlation of their detail
with one peak that stands far out of the rest, wherever fields have changed their brightness; two
that do not, have none. So a frame is judged by how significant its peak is, and where it lies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.ndimage

from deepsum_jax.data.frames import clearest_first, reference_first, select_frames

_DETAIL = 1.5  # LR pixels: what changes more slowly than this Gaussian is no detail
_SEARCH = 0.6  # of the smaller side, how far frames are looked for
_OVERLAP = 0.15  # of the greatest overlap, the least that a shift must keep to be tried
# Robust deviations of a peak: below the first it may be chance, above the second it is not, and
# above the third not even among all places where a frame could lie.
_CHANCE, _SURE, _FAR = 5.0, 6.0, 8.0
_NOISE, _STRUCTURED = 0.15, 0.4  # correlation of neighbouring pixels
_ALIEN = "nothing in common with the reference"
_FEW, _MOST = 0.3, 0.5  # of the other frames, that show a frame's place
_LEAST = 16  # LR pixels; smaller frames do not tell
_BLANK = 0.02  # of the stack's usual contrast; a frame with less shows nothing
_MANY_PIXELS = 2**15  # larger frames are judged by their middle, which tells as much


class Match(NamedTuple):
    """How two frames lie on each other."""

    significance: float  # robust deviations by which the peak stands out
    shift: tuple[int, int]  # LR pixels, as in `registration`


@dataclasses.dataclass(frozen=True)
class Serving:
    """What of a stack can serve.

    Attributes:
      reference: index of the reference frame.
      replaced: (index, reason) of the frame that the rule would have made the reference.
      left_out: reasons by index of the frames that cannot serve.
    """

    reference: int
    replaced: tuple[int, str] | None
    left_out: dict[int, str]


def _lies(match: Match, reach: float) -> bool:
    """Whether a frame surely shows the same place, within reach."""
    return match.significance > _SURE and max(map(abs, match.shift)) <= reach


class _Detail:
    """A frame's detail, ready to be held against others'."""

    def __init__(self, frame: np.ndarray, mask: np.ndarray, search: int) -> None:
        shape = tuple(scipy.fft.next_fast_len(n + search, real=True) for n in frame.shape)
        weights = mask.astype(np.float32)
        level = np.median(frame[mask]) if mask.any() else 0.0
        known = np.where(mask, frame - level, 0).astype(np.float32)
        around = scipy.ndimage.gaussian_filter(known, _DETAIL)
        share = np.maximum(scipy.ndimage.gaussian_filter(weights, _DETAIL), 1e-3)
        detail = np.where(mask, known - around / share, 0)
        size = np.percentile(np.abs(detail[mask]), 90) if mask.any() else 0.0
        # Edges count by where they are: the strongest, and hot pixels, by no more than others.
        detail = np.clip(detail / max(float(size), 1e-12), -2, 2).astype(np.float32)
        self.flat = size <= 1e-6 * max(1.0, abs(float(level)))
        self.spectra = [scipy.fft.rfft2(x, shape) for x in (weights, detail, detail * detail)]
        self.shape, self.search = shape, search

    def match(self, other: _Detail) -> Match:
        """The shift that registers another frame on this one, and how significant it is."""
        window = np.arange(-self.search, self.search + 1)

        def total(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            full = scipy.fft.irfft2(a * np.conj(b), s=self.shape)
            return np.asarray(full[np.ix_(window, window)])

        (w1, d1, s1), (w2, d2, s2) = self.spectra, other.spectra
        count = np.maximum(total(w1, w2), 1e-3)
        energy = np.maximum(total(s1, w2) * total(w1, s2), 1e-3)
        # A coefficient of correlation times the root of its pixels: chance has one deviation.
        score = total(d1, d2) / np.sqrt(energy) * np.sqrt(count)
        tried = score[count >= _OVERLAP * count.max()]
        score = np.where(count >= _OVERLAP * count.max(), score, -np.inf)
        peak = np.unravel_index(int(score.argmax()), score.shape)
        middle = float(np.median(tried))
        spread = 1.4826 * float(np.median(np.abs(tried - middle)))
        significance = (float(score[peak]) - middle) / max(spread, 1e-6)
        return Match(significance, (int(window[peak[0]]), int(window[peak[1]])))


def _emptiness(frames: np.ndarray, masks: np.ndarray) -> dict[int, str]:
    """Reasons by index of the frames [T, h, w, C] that show nothing, whatever the others do."""
    contrast, reasons = np.full(len(frames), np.nan), {}
    for n, (frame, mask) in enumerate(zip(frames, masks)):
        if not mask.any():
            reasons[n] = "no reliable pixel"
        elif mask.sum() > 1 and not np.ptp(frame[mask], axis=0).any():
            reasons[n] = "of one value"
        else:
            low, high = np.percentile(frame[mask], [5, 95], axis=0)
            contrast[n] = float((high - low).max())
    if len(reasons) == len(frames):  # flat ground is flat ground
        hidden = {n: why for n, why in reasons.items() if not masks[n].any()}
        if len(hidden) == len(frames):
            raise ValueError(f"masks: found no reliable pixel in any of {len(frames)} frames")
        return hidden
    usual = float(np.nanmedian(contrast))
    return reasons | {int(n): "blank" for n in np.flatnonzero(contrast < _BLANK * usual)}


def _middle(grey: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The middle of large frames [T, h, w]."""
    height, width = grey.shape[1:]
    if height * width <= _MANY_PIXELS:
        return grey, masks
    factor = (_MANY_PIXELS / (height * width)) ** 0.5
    high, wide = (max(_LEAST, min(n, round(n * factor))) for n in (height, width))
    rows = slice((height - high) // 2, (height - high) // 2 + high)
    columns = slice((width - wide) // 2, (width - wide) // 2 + wide)
    return grey[:, rows, columns], masks[:, rows, columns]


class _Matches:
    """Matches between the frames of a stack, each made once."""

    def __init__(self, lr: np.ndarray, masks: np.ndarray) -> None:
        grey = lr.mean(axis=-1, dtype=np.float64)
        grey, masks = _middle(grey, masks)
        self.search = int(_SEARCH * min(grey.shape[1:]))
        self.details: dict[int, _Detail] = {}
        self.found: dict[tuple[int, int], Match] = {}
        self._grey, self._masks = grey, masks

    def detail(self, n: int) -> _Detail:
        if n not in self.details:
            self.details[n] = _Detail(self._grey[n], self._masks[n], self.search)
        return self.details[n]

    def of(self, reference: int, others: list[int]) -> dict[int, Match]:
        """Matches of other frames on one."""
        for n in others:
            if (reference, n) not in self.found:
                self.found[reference, n] = self.detail(reference).match(self.detail(n))
        return {n: self.found[reference, n] for n in others}

    def structure(self, n: int) -> float:
        """How alike neighbouring pixels of a frame are: their coefficient of correlation."""
        frame, mask = self._grey[n], self._masks[n]
        low, high = np.percentile(frame[mask], [2, 98])
        x = np.clip(frame, low, high)
        found = []
        for a, b in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
            both = mask[a] & mask[b]
            one, other = x[a][both], x[b][both]
            if both.sum() > 2 and np.ptp(one) and np.ptp(other):
                found.append(np.corrcoef(one, other)[0, 1])
        return float(np.mean(found)) if found else 1.0

    def support(self, reference: int, frames: list[int], reach: float) -> float:
        """Share of the other frames that surely show a frame's place, within reach."""
        others = [n for n in frames if n != reference]
        return sum(_lies(m, reach) for m in self.of(reference, others).values()) / len(others)


def judge(
    lr: np.ndarray, masks: np.ndarray, reference: int | None, reach: float, explicit: bool = False
) -> Serving:
    """Judges the frames of a stack.

    Frames are left out as alien only where others surely show the reference's place: a stack of
    noise, or of two frames that share nothing, does not tell which is wrong. A reference that has
    nothing in common with the others, which agree, is the wrong one, unless the masks call it the
    clearest of all: then they are.

    Args:
      lr: [T, h, w, C], reliable values finite.
      masks: [T, h, w] bool, some True.
      reference: the frame that should be the reference; None for the clearest.
      reach: how far registration searches, LR pixels.
      explicit: the user has asked for that reference, and gets no other.

    Raises:
      ValueError: no frame can serve, or an explicit reference cannot.
    """
    empty = _emptiness(lr, masks)
    order = [int(n) for n in clearest_first(masks)]
    if reference is not None and not explicit:  # by rule: the next in the stack takes its place
        order = [(reference + n) % len(lr) for n in range(len(lr))]
    elif reference is not None:
        order = [int(n) for n in reference_first(masks, reference)]
    if explicit and order[0] in empty:
        raise ValueError(
            f"reference: found that frame {order[0]} {_as_verb(empty[order[0]])}, expected one "
            "that shows something"
        )
    fit = [n for n in order if n not in empty]
    replaced = (order[0], empty[order[0]]) if order[0] in empty else None
    if len(fit) == 1 or min(lr.shape[1:3]) < _LEAST:
        return Serving(fit[0], replaced, empty)
    matches = _Matches(lr, masks)
    chosen = fit[0]
    others = [n for n in fit if n != chosen]
    if _is_stranger(matches, chosen, fit, reach):
        if _is_clearest(masks, chosen):  # the masks say that it is the one: so the others are wrong
            group = {n: _ALIEN for n in others if matches.support(n, others, reach) >= _MOST}
            return Serving(chosen, replaced, empty | group)
        if explicit:
            raise ValueError(
                f"reference: found that frame {chosen} has nothing in common with the others, "
                "which show one place; expected one of theirs"
            )
        chosen = next(n for n in fit[1:] if matches.support(n, fit, reach) >= _MOST)
        replaced = (fit[0], "nothing in common with the others")
        others = [n for n in fit if n != chosen]
    return Serving(chosen, replaced, empty | _misplaced(matches, chosen, others, reach))


def _is_clearest(masks: np.ndarray, candidate: int) -> bool:
    """Whether the masks call a frame clearer than every other."""
    clear = masks.sum(axis=(1, 2))
    return bool((np.delete(clear, candidate) < clear[candidate]).all())


def _as_verb(reason: str) -> str:
    return f"has {reason}" if reason.startswith("no") else f"is {reason}"


def _is_stranger(matches: _Matches, candidate: int, fit: list[int], reach: float) -> bool:
    """Whether a frame shows another place than most: few surely show its own, and most surely
    show that of another."""
    if len(fit) < 3 or matches.support(candidate, fit, reach) >= _FEW:
        return False
    return any(matches.support(n, fit, reach) >= _MOST for n in fit if n != candidate)


def _misplaced(
    matches: _Matches, reference: int, others: list[int], reach: float
) -> dict[int, str]:
    """Reasons by index of the frames that lie too far off or show another place."""
    found = matches.of(reference, others)
    most = sum(_lies(match, reach) for match in found.values()) >= _MOST * len(others)
    reasons = {}
    sound = matches.structure(reference) > _STRUCTURED
    for n, match in found.items():
        far = max(map(abs, match.shift))
        if far > reach and match.significance > _FAR:
            reasons[n] = f"{far} pixels off, further than the {reach:g} that registration searches"
        elif sound and matches.structure(n) < _NOISE:
            reasons[n] = "noise"
        elif most and (far > reach or match.significance < _CHANCE):
            reasons[n] = _ALIEN
    return reasons


class Chosen(NamedTuple):
    """The frames of a stack that are used."""

    kept: list[int]  # indices, the reference first, then by clearance
    serving: Serving

    def warnings(self, names: Sequence[str] | None = None) -> list[str]:
        """What the user should know, a line each; `names` of all frames, where they have some."""

        def called(n: int) -> str:
            return f"frame {n}" if names is None else names[n]

        lines = []
        if self.serving.replaced is not None:
            index, reason = self.serving.replaced
            lines.append(
                f"reference: {called(index)} {_as_verb(reason)}; {called(self.kept[0])} takes its "
                "place"
            )
        named = {
            n: reason
            for n, reason in self.serving.left_out.items()
            if reason != "no reliable pixel"  # its mask says so
        }
        if self.serving.replaced is not None:
            named.pop(self.serving.replaced[0], None)
        if named:
            lines.append(
                "left out: " + ", ".join(f"{called(n)} ({why})" for n, why in sorted(named.items()))
            )
        return lines


def choose_frames(
    lr: np.ndarray,
    masks: np.ndarray,
    frames: int,
    reference: int | None,
    max_frames: int | None,
    reach: float,
    explicit: bool = False,
) -> Chosen:
    """The frames to use: of those that can serve, as `select_frames` does.

    Args:
      lr, masks, reference, reach, explicit: as of `judge`.
      frames, max_frames: as of `select_frames`.

    Raises:
      ValueError: as `judge`.
    """
    serving = judge(lr, masks, reference, reach, explicit)
    able = masks.copy()
    able[list(serving.left_out)] = False
    chosen = None if reference is None and serving.replaced is None else serving.reference
    return Chosen(select_frames(able, frames, chosen, max_frames), serving)
