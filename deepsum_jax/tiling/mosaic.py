"""A stack larger than memory, super-resolved tile by tile.

    source ──→ overview ──→ reference, frames ──→ survey ──→ tiles ──→ strips of the result

What the whole says once (which frames serve, where they lie, how bright and noisy they are) every
tile begins with; what is left is the system's work on a part. How many tiles run at once changes
nothing in what comes out.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from tqdm import tqdm

from deepsum_jax.bundle import Bundle
from deepsum_jax.config import Compute
from deepsum_jax.data import resample
from deepsum_jax.data.doubts import doubts
from deepsum_jax.data.frames import select_frames
from deepsum_jax.data.serving import Chosen
from deepsum_jax.inference import frames_in_use, super_resolve_bands
from deepsum_jax.systems.system import Stack
from deepsum_jax.systems.table import system_of
from deepsum_jax.tiling import tiles as cutting
from deepsum_jax.tiling.overview import Overview, look_over
from deepsum_jax.tiling.source import Rect, Source, Strip
from deepsum_jax.tiling.store import Arrays, Memory, Store
from deepsum_jax.tiling.survey import Field, make_survey
from deepsum_jax.tiling.tiles import Tiles

MEMORY = 2.0  # GB, that tiles may take together
_CLEARLY = 0.02  # of a stack's pixels, by which the clearest frame must lead to need no second look
_HIDDEN = 0.02  # of a tile's reference; with less that is reliable another frame leads
_COPIES = 100  # of its frames on the HR grid, float32, that a system takes at once


class Plan(NamedTuple):
    """How a stack is going to be super-resolved."""

    overview: Overview
    chosen: Chosen
    field: Field
    tiles: Tiles

    @property
    def reference(self) -> int:
        return self.chosen.kept[0]


# --- before the tiles


def choose_reference(source: Source, overview: Overview, bundle: Bundle) -> int:
    """The frame that is clearest of all or, where several are, that which its system prefers."""
    clearance = overview.clearance
    order = np.argsort(-clearance, kind="stable")
    lead = clearance[order[0]] - clearance[order[1]] if len(order) > 1 else 1.0
    prefers = system_of(bundle.config).choose_reference
    samples = overview.samples(None)
    if prefers is None or lead > _CLEARLY or not samples:
        return int(order[0])
    able = np.flatnonzero(clearance >= clearance[order[0]] - _CLEARLY)
    lr, masks = source.read(samples[0])
    masks[np.setdiff1d(np.arange(len(masks)), able)] = False
    return int(prefers(lr, masks, bundle.config)) if masks.any() else int(order[0])


def make_plan(
    bundle: Bundle,
    source: Source,
    reference: int | None = None,
    *,
    explicit: bool = False,
    max_frames: int | None = None,
    side: int = cutting.SIDE,
    margin: int = cutting.MARGIN,
    overview: Overview | None = None,
) -> Plan:
    """Chooses the frames and surveys them.

    Args:
      reference: that which a rule or the user (`explicit`) gives; None takes `choose_reference`'s.
      max_frames: of the clearest frames, that each tile uses at most.
      side, margin: of tiles, LR pixels.
      overview: of the source, where it is known.

    Raises:
      ValueError: nothing in the stack is reliable, or the reference cannot serve.

    Warns of a stack that looks wrong and of frames that are left out.
    """
    overview = look_over(source) if overview is None else overview
    samples = overview.samples(reference)
    if not samples:
        what = "any frame" if reference is None else source.names[reference]
        raise ValueError(f"masks: found no reliable pixel in {what}, expected some")
    config = bundle.config
    index = choose_reference(source, overview, bundle) if reference is None else reference
    lr, masks = source.read(overview.samples(index)[0])
    for doubt in doubts(lr, masks):
        warnings.warn(doubt, UserWarning, stacklevel=2)
    chosen = _serving(bundle, lr, masks, overview, index, explicit)
    for line in chosen.warnings():
        warnings.warn(line, UserWarning, stacklevel=2)
    members = min(len(chosen.kept), max_frames or max(config.num_frames, 15))
    field = make_survey(
        source, chosen.kept, overview.samples(chosen.kept[0]), config.scale, config.psf_sigma,
        members,
    )  # fmt: skip
    return Plan(overview, chosen, field, cutting.cut(source.height, source.width, side, margin))


def _serving(
    bundle: Bundle, lr: np.ndarray, masks: np.ndarray, overview: Overview, reference: int,
    explicit: bool,
) -> Chosen:  # fmt: skip
    """The frames that can serve, by a part in which the reference is clear; a frame that is hidden
    there, but not everywhere, serves where it is not."""
    chosen = frames_in_use(bundle, lr, masks, reference, len(lr), explicit)
    out = set(chosen.serving.left_out)
    hidden = {n for n in range(len(lr)) if not masks[n].any() and overview.clearance[n] > 0}
    first = chosen.kept[0]
    order = [int(n) for n in np.argsort(-overview.clearance, kind="stable")]
    others = [n for n in order if n != first and overview.clearance[n] > 0]
    return chosen._replace(kept=[first, *(n for n in others if n not in out - hidden)])


# --- one tile


def _members(masks: np.ndarray, frames: int, most: int) -> list[int]:
    """Which frames [M, h, w] of a tile are used, the first to lead: the reference, unless it is
    hidden there; none where nothing is reliable."""
    clear = masks.mean(axis=(1, 2))
    if not clear.any():
        return []
    leader = 0 if clear[0] >= min(_HIDDEN, clear.max()) else int(clear.argmax())
    return select_frames(masks, frames, leader, most)


def _moved(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """An image [H, W, C] on the reference's grid, by a fraction of a pixel."""
    planes = [
        scipy.ndimage.shift(image[..., c].astype(np.float64), shift, order=3, mode="nearest")
        for c in range(image.shape[-1])
    ]
    return np.stack(planes, axis=-1).astype(np.float32)


def _super_resolve_tile(
    bundle: Bundle, source: Source, plan: Plan, rect: Rect, compute: Compute
) -> Arrays:
    """One tile: image, standard_error and frames_per_pixel, NaN where nothing is known; and each
    frame's share in it."""
    kept, scale = plan.chosen.kept, bundle.config.scale
    lr, masks = source.read(rect)
    lr, masks = lr[kept], masks[kept]
    whole = plan.field.at(rect)
    members = _members(masks, bundle.config.num_frames, whole.frames)
    size = (scale * rect.height, scale * rect.width)
    shares = np.zeros(len(source.names), np.float32)
    if not members:
        hidden = np.full((*size, source.channels), np.nan, np.float32)
        return {"image": hidden, "shares": shares}
    leader = members[0]
    survey = whole.led_by(members)
    result = super_resolve_bands(bundle, Stack(lr[members], masks[members], survey), compute)
    image, error, spoke = result.image, result.standard_error, result.frames_per_pixel
    if leader != 0:  # on its own grid and in its own brightness
        gain, offset = whole.gains[leader], whole.offsets[leader]
        shift = whole.shifts[leader]
        image = _moved(image, shift) * np.float32(gain) + np.float32(offset)
        error = None if error is None else np.abs(_moved(error, shift)) * np.float32(gain)
        spoke = None if spoke is None else _moved(spoke[..., None], shift)[..., 0]
    shifts = np.rint(survey.shifts + whole.shifts[leader]).astype(int)
    seen = np.any(resample.aligned_masks(masks[members], shifts, scale), axis=0)
    np.add.at(shares, [kept[n] for n in members], result.weights)
    found = {"image": np.where(seen[..., None], image, np.nan), "shares": shares}
    if error is not None:
        found["standard_error"] = np.where(seen[..., None], error, np.nan)
    if spoke is not None:
        found["frames_per_pixel"] = np.where(seen, np.maximum(spoke, 0), 0)
    return found


# --- all tiles


def tiles_at_once(bundle: Bundle, plan: Plan, memory: float) -> int:
    """How many tiles fit into so many GB; one at least."""
    r = bundle.config.scale
    pixels = r * r * plan.tiles.rows.length * plan.tiles.columns.length
    bytes_each = 4 * _COPIES * pixels * max(plan.field.whole.frames, bundle.config.num_frames)
    return max(1, int(memory * 1e9 / bytes_each))


class Mosaic:
    """The tiles of a plan, computed as they are asked for.

    Attributes:
      shares: float64 [T], each frame's share in the tiles that are done; sums to one.
    """

    def __init__(
        self,
        bundle: Bundle,
        source: Source,
        plan: Plan,
        *,
        compute: Compute = Compute(),
        memory: float = MEMORY,
        store: Store | None = None,
        progress: bool = False,
    ) -> None:
        self._bundle, self._source, self._plan = bundle, source, plan
        self._compute, self._progress = compute, progress
        self._at_once = tiles_at_once(bundle, plan, memory)
        self._store = Memory() if store is None else store
        self._shares = np.zeros(len(source.names))

    @property
    def shares(self) -> np.ndarray:
        return self._shares / max(float(self._shares.sum()), 1e-12)

    def strips(self) -> Iterator[Strip]:
        """The result from top to bottom."""
        scale, channels = self._bundle.config.scale, self._source.channels
        gives = system_of(self._bundle.config).gives
        joined = cutting.joined(self._plan.tiles, self._rows(), scale)
        for row, values in joined:
            image = values[..., :channels]
            error = values[..., channels : 2 * channels]
            spoke = values[..., -1]
            yield Strip(
                row,
                image,
                np.isfinite(image).all(axis=-1),
                error if "standard_error" in gives else None,
                np.nan_to_num(spoke) if "frames_per_pixel" in gives else None,
            )

    def _rows(self) -> Iterator[Sequence[np.ndarray]]:
        """Tiles by rows, what they hold side by side in [side, side, K]: image, error, frames."""
        numbers = self._plan.tiles.numbers
        across = len(self._plan.tiles.columns.starts)
        done = self._in_order(numbers)
        for _ in range(len(self._plan.tiles.rows.starts)):
            row = []
            for _, arrays in zip(range(across), done):
                self._shares += arrays["shares"]
                row.append(_side_by_side(arrays))
            yield row

    def _in_order(self, numbers: Sequence[tuple[int, int]]) -> Iterator[Arrays]:
        """Tiles' arrays in order, as many computed at once as memory allows."""
        waiting: deque[tuple[str, Future[None]]] = deque()
        bar = tqdm(total=len(numbers), unit="tile", disable=not self._progress, leave=False)
        pool = ThreadPoolExecutor(self._at_once)
        try:
            for row, column in numbers:
                name = f"tile-{row}-{column}"
                rect = self._plan.tiles.rect(row, column)
                waiting.append((name, pool.submit(self._compute_tile, name, rect)))
                if len(waiting) > self._at_once:
                    yield self._finished(*waiting.popleft(), bar)
            while waiting:
                yield self._finished(*waiting.popleft(), bar)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            bar.close()

    def _compute_tile(self, name: str, rect: Rect) -> None:
        if not self._store.has(name):
            found = _super_resolve_tile(self._bundle, self._source, self._plan, rect, self._compute)
            self._store.save(name, found)

    def _finished(self, name: str, future: Future[None], bar: tqdm) -> Arrays:
        future.result()
        arrays = self._store.load(name)
        self._store.forget(name)
        bar.update()
        return arrays


def _side_by_side(arrays: Arrays) -> np.ndarray:
    """A tile's image, standard error and frames per pixel as [side, side, 2C + 1]; NaN where a
    system has none."""
    image = arrays["image"]
    error = arrays.get("standard_error", np.full_like(image, np.nan))
    spoke = arrays.get("frames_per_pixel", np.zeros(image.shape[:2], np.float32))
    return np.concatenate([image, error, spoke[..., None]], axis=-1).astype(np.float32)
