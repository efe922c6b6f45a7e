"""A stack larger than memory, super-resolved tile by tile.

    source ──→ overview ──→ reference, frames ──→ survey ──→ tiles ──→ strips of the result

What the whole says once (which frames serve, where they lie, how bright and noisy they are) every
tile begins with; what is left is the system's work on a part. How many tiles run at once changes
nothing in what comes out.
"""

from __future__ import annotations

import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
import scipy.ndimage
from tqdm import tqdm

from deepsum_jax.bundle import Bundle
from deepsum_jax.config import Compute
from deepsum_jax.data import resample
from deepsum_jax.data.doubts import doubts
from deepsum_jax.data.frames import MAX_FRAMES, select_frames
from deepsum_jax.data.serving import Chosen, Serving
from deepsum_jax.data.survey import Survey
from deepsum_jax.inference import frames_in_use, super_resolve_parts
from deepsum_jax.radiometry import Normalize, Radiometry, radiometry
from deepsum_jax.systems.system import Stack, SuperResolved
from deepsum_jax.systems.table import system_of
from deepsum_jax.tiling import tiles as cutting
from deepsum_jax.tiling.overview import Overview, look_over
from deepsum_jax.tiling.source import Rect, Source, Strip
from deepsum_jax.tiling.store import Memory, Store
from deepsum_jax.tiling.survey import Field, make_survey
from deepsum_jax.tiling.tiles import Tiles

MEMORY = 2.0  # GB, that tiles may take together
_CLEARLY = 0.02  # of a stack's pixels, by which the clearest frame must lead to need no second look
_LOOKS = 5  # parts, at most, by which frames are judged
_HIDDEN = 0.02  # of a tile's reference; with less that is reliable another frame leads
_COPIES = 100  # of its frames on the HR grid, float32, that a system takes at once


class Plan(NamedTuple):
    """How a stack is going to be super-resolved."""

    overview: Overview
    chosen: Chosen
    field: Field
    tiles: Tiles
    units: Radiometry | None  # what brings the stack into training's units, if it is to be

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
    normalize: Normalize | None = None,
) -> Plan:
    """Chooses the frames and surveys them.

    Args:
      reference: that which a rule or the user (`explicit`) gives; None takes `choose_reference`'s.
      max_frames: of the clearest frames, that each tile uses at most.
      side, margin: of tiles, LR pixels.
      overview: of the source, where it is known.
      normalize: see `radiometry`.

    Raises:
      ValueError: nothing in the stack is reliable, or the reference cannot serve; as `radiometry`.

    Warns of a stack that looks wrong, of frames that are left out, and as `radiometry`.
    """
    overview = look_over(source) if overview is None else overview
    samples = overview.samples(reference)
    if not samples:
        what = "any frame"
        if reference is not None and overview.clearance.any():
            what = source.names[reference]
        raise ValueError(f"masks: found no reliable pixel in {what}, expected some")
    config = bundle.config
    index = choose_reference(source, overview, bundle) if reference is None else reference
    looks = [source.read(rect) for rect in overview.samples(index)[:_LOOKS]]
    for doubt in doubts(*looks[0]):
        warnings.warn(doubt, UserWarning, stacklevel=5)
    if explicit:  # one part suffices to say that it cannot serve, and not which takes its place
        looks = looks[:1]
    found = [frames_in_use(bundle, *look, index, len(look[0]), explicit) for look in looks]
    chosen = _agreed(found, [np.any(masks, axis=(1, 2)) for _, masks in looks], overview)
    for line in chosen.warnings(source.names):
        warnings.warn(line, UserWarning, stacklevel=5)
    members = min(len(chosen.kept), max_frames or max(config.num_frames, MAX_FRAMES))
    field = make_survey(
        source, chosen.kept, overview.samples(chosen.kept[0]), config.scale, config.psf_sigma,
        members,
    )  # fmt: skip
    tiles = cutting.cut(source.height, source.width, side, margin)
    units = radiometry(bundle, lambda: _values(source, overview), normalize)
    return Plan(overview, chosen, field, tiles, units)


def _values(source: Source, overview: Overview) -> np.ndarray:
    """Reliable pixels [P, C] of parts that stand for the whole."""
    parts = (source.read(rect) for rect in overview.samples(None))
    return np.concatenate([lr[masks] for lr, masks in parts])


def _agreed(found: Sequence[Chosen], there: Sequence[np.ndarray], overview: Overview) -> Chosen:
    """The frames that can serve by most of the parts that show them; ground that changed in one of
    them may look like another place.

    Args:
      found: what each part says, the one that tells most first.
      there: [T] for each part, which frames have a reliable pixel in it.
      overview: gives their order.
    """
    first = found[0].serving
    replaced = Counter(one.serving.reference for one in found).most_common(1)[0]
    leader = next(one.serving for one in found if one.serving.reference == replaced[0])
    if 2 * replaced[1] <= len(found):
        leader = first
    left_out = {}
    for n in range(len(overview.clear)):
        reasons = [one.serving.left_out.get(n) for one, known in zip(found, there) if known[n]]
        named = [reason for reason in reasons if reason]
        if overview.clearance[n] == 0:
            left_out[n] = "no reliable pixel"
        elif n != leader.reference and 2 * len(named) > len(reasons):
            left_out[n] = named[0]
    order = [int(n) for n in np.argsort(-overview.clearance, kind="stable")]
    kept = [n for n in order if n != leader.reference and n not in left_out]
    return Chosen([leader.reference, *kept], Serving(leader.reference, leader.replaced, left_out))


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


class _Part(NamedTuple):
    """One tile, ready to be super-resolved."""

    stack: Stack  # the leader first
    whole: Survey  # of all kept frames
    members: list[int]  # indices into the kept frames


def _read_part(source: Source, plan: Plan, rect: Rect, frames: int) -> _Part | None:
    """A tile's frames; None where nothing is reliable."""
    kept = plan.chosen.kept
    lr, masks = source.read(rect)
    lr, masks = lr[kept], masks[kept]
    whole = plan.field.at(rect)
    members = _members(masks, frames, whole.frames)
    if not members:
        return None
    stack = Stack(lr[members], masks[members], whole.led_by(members))
    return _Part(stack, whole, members)


def _tile(
    part: _Part, result: SuperResolved, plan: Plan, scale: int
) -> tuple[np.ndarray, np.ndarray]:
    """A tile on the reference's grid, as of `_side_by_side`; and each frame's share in it."""
    leader, whole = part.members[0], part.whole
    image, error, spoke = result.image, result.standard_error, result.frames_per_pixel
    if leader != 0:  # its own grid, its own brightness
        gain, offset = whole.gains[leader], whole.offsets[leader]
        shift = whole.shifts[leader]
        image = _moved(image, shift) * np.float32(gain) + np.float32(offset)
        error = None if error is None else np.abs(_moved(error, shift)) * np.float32(gain)
        spoke = None if spoke is None else _moved(spoke[..., None], shift)[..., 0]
    shifts = np.rint(whole.shifts[part.members]).astype(int)
    seen = np.any(resample.aligned_masks(part.stack.masks, shifts, scale), axis=0)
    shares = np.zeros(plan.overview.clear.shape[0], np.float32)
    np.add.at(shares, [plan.chosen.kept[n] for n in part.members], result.weights)
    spoke = None if spoke is None else np.maximum(spoke, 0)
    return _side_by_side(image, error, spoke, seen), shares


def _nothing(plan: Plan, rect: Rect, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """A tile in which nothing is reliable: the stack's usual level, give or take its contrast."""
    size = (scale * rect.height, scale * rect.width)
    level, contrast = (
        np.broadcast_to(x, (*size, len(x))) for x in (plan.field.level, plan.field.whole.contrast)
    )
    shares = np.zeros(plan.overview.clear.shape[0], np.float32)
    return _side_by_side(level, contrast, np.zeros(size), np.zeros(size, bool)), shares


def _side_by_side(
    image: np.ndarray, error: np.ndarray | None, spoke: np.ndarray | None, seen: np.ndarray
) -> np.ndarray:
    """Image, standard error, frames per pixel, and where any frame was reliable: float32
    [side, side, 2C + 2]; zeros where a system has none."""
    parts = [
        image,
        np.zeros_like(image) if error is None else error,
        (np.zeros(image.shape[:2]) if spoke is None else spoke)[..., None],
        seen[..., None],
    ]
    return np.concatenate(parts, axis=-1, dtype=np.float32)


# --- all tiles


def tiles_at_once(bundle: Bundle, plan: Plan, memory: float) -> int:
    """How many groups of tiles, one for each device, fit into so many GB; one at least."""
    r = bundle.config.scale
    pixels = r * r * plan.tiles.rows.length * plan.tiles.columns.length
    bytes_each = 4 * _COPIES * pixels * max(plan.field.whole.frames, bundle.config.num_frames)
    return max(1, int(memory * 1e9 / bytes_each / jax.local_device_count()))


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
        joined = cutting.joined(self._plan.tiles, self._rows_done(), self._load, scale)
        for row, values in joined:
            yield Strip(
                row,
                values[..., :channels],
                values[..., -1] > 0.5,
                values[..., channels : 2 * channels] if "standard_error" in gives else None,
                values[..., -2] if "frames_per_pixel" in gives else None,
            )

    def _load(self, number: tuple[int, int]) -> np.ndarray:
        return self._store.load(_name(number))

    def _rows_done(self) -> Iterator[None]:
        """Goes on whenever one more row of tiles is done, and forgets those that nobody needs."""
        tiles = self._plan.tiles
        done = self._in_order(tiles.numbers)
        across = range(len(tiles.columns.starts))
        for row, start in enumerate(tiles.rows.starts):
            for _, number in zip(across, done):
                self._shares += self._store.load(_shares(number))
            yield
            for above in range(row):
                if tiles.rows.starts[above] + tiles.rows.length <= start:
                    for column in across:
                        self._store.forget(_name((above, column)))

    def _in_order(self, numbers: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Tiles in order, as they are done; as many computed at once as memory allows."""
        waiting: deque[tuple[list[tuple[int, int]], Future[None]]] = deque()
        bar = tqdm(total=len(numbers), unit="tile", disable=not self._progress, leave=False)
        pool = ThreadPoolExecutor(self._at_once)
        devices = jax.local_device_count()
        groups = [list(numbers[n : n + devices]) for n in range(0, len(numbers), devices)]
        try:
            while groups or waiting:
                while groups and len(waiting) <= self._at_once:
                    group = groups.pop(0)
                    waiting.append((group, pool.submit(self._compute_group, group)))
                group, future = waiting.popleft()
                future.result()
                for number in group:
                    bar.update()
                    yield number
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            bar.close()

    def _compute_group(self, numbers: Sequence[tuple[int, int]]) -> None:
        """Tiles for all devices at once; those that there are already stay."""
        scale, parts = self._bundle.config.scale, {}
        for number in numbers:
            if self._store.has(_name(number)) and self._store.has(_shares(number)):
                continue
            rect = self._plan.tiles.rect(*number)
            part = _read_part(self._source, self._plan, rect, self._bundle.config.num_frames)
            if part is None:
                self._save(number, *_nothing(self._plan, rect, scale))
            else:
                parts[number] = part
        if parts:
            stacks = [part.stack for part in parts.values()]
            results = super_resolve_parts(self._bundle, stacks, self._compute, self._plan.units)
            for (number, part), result in zip(parts.items(), results):
                self._save(number, *_tile(part, result, self._plan, scale))

    def _save(self, number: tuple[int, int], tile: np.ndarray, shares: np.ndarray) -> None:
        self._store.save(_shares(number), shares)
        self._store.save(_name(number), tile)


def _name(number: tuple[int, int]) -> str:
    row, column = number
    return f"tile-{row}-{column}"


def _shares(number: tuple[int, int]) -> str:
    return f"{_name(number)}-shares"
