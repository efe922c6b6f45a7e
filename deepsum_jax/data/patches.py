"""grain: endless, shuffled, sharded, exactly resumable batches of patches.

Four views of the same patches serve the stages: single frames with HR, reference frames with
synthetic shifts, whole stacks with HR, and aligned ones on the frames' own grids.
"""

from __future__ import annotations

from typing import Any

import grain
import numpy as np

from deepsum_jax import units
from deepsum_jax.config import DataConfig, ModelConfig
from deepsum_jax.data.inputs import View, Window, input_images, make_inputs, upsampled_masks
from deepsum_jax.data.prepare import PreparedScene
from deepsum_jax.data.turns import turned

Batch = dict[str, np.ndarray]


class Patches:
    """Random access to the patches of prepared scenes, standardised and upsampled.

    A record is a dict of float32 and bool arrays:

    * view "stacks": `images` [N, P, P, C], `masks` [N, P, P, 1], `hr` [P, P, C], `hr_mask`
      [P, P, 1]; where the system is given shifts, `frame_shifts` [N, 2] in HR
      pixels, that register the frames on frame 0;
    * view "frames": one frame at a time, so there are N times as many records: `images`
      [1, P, P, C] and HR as above, but `hr` in *input* units, and `hr_mask` without what the frame
      itself hides;
    * view "shifts": `images` [1, P, P, C], the reference frame, to be shifted; with
      `data.clouded_shifts` [N, P, P, C], the reference frame under the clouds of each frame of
      the stack: what a mask calls unreliable shows the other frame, as real stacks do;
    * view "aligned": `frames` and `masks` [N, p, p, 1] on the LR grid, `frame_shifts` [N, 2] and
      `noise` [] as of `Aligned`, in whose units `hr` is; frames that a scene lacks hide all.
    """

    def __init__(
        self, scenes: tuple[PreparedScene, ...], model: ModelConfig, data: DataConfig, view: View
    ) -> None:
        self.scenes, self.model, self.data, self.view = scenes, model, data, view
        # Row p of the table is (scene, patch).
        self.table = np.array(
            [(i, p) for i, s in enumerate(scenes) for p in range(len(s.corners))], np.int32
        )
        self.per_patch = model.num_frames if view == "frames" else 1

    def __len__(self) -> int:
        return len(self.table) * self.per_patch

    def __getitem__(self, index: int) -> Batch:
        patch, frame = divmod(int(index), self.per_patch)
        scene = self.scenes[self.table[patch, 0]]
        members = scene.members[self.table[patch, 1]]
        row, column = (int(c) for c in scene.corners[self.table[patch, 1]])
        window = Window(row, column, self.data.patch_size // self.model.scale)
        if self.view == "aligned":
            return self._aligned(scene, window)
        if self.view == "shifts":
            return {"images": self._versions(scene, members, window)}
        if self.view == "frames":
            return self._frame(scene, members[[frame]], window)
        return self._stack(scene, members, window)

    def scenes_of(self, records: np.ndarray) -> list[str]:
        """BAND/NAME of the scenes that records come from, each once."""
        scenes = [self.scenes[i] for i in self.table[records // self.per_patch, 0]]
        return list(dict.fromkeys(f"{s.band}/{s.name}" for s in scenes))

    def _stack(self, scene: PreparedScene, members: np.ndarray, window: Window) -> Batch:
        given = make_inputs(
            scene.lr[members], scene.masks[members], scene.shifts[members], self.model, window
        )
        hr, hr_mask = self._hr(scene, window)
        hr = np.asarray(units.to_target(hr, self.model.normalization), np.float32)
        record = {"images": given.images, "masks": given.masks, "hr": hr, "hr_mask": hr_mask}
        return record if given.shifts is None else {**record, "frame_shifts": given.shifts}

    def _aligned(self, scene: PreparedScene, window: Window) -> Batch:
        assert scene.aligned is not None
        stack = scene.aligned.of(self.model.num_frames)
        hr, hr_mask = self._hr(scene, window)
        return {
            "frames": window.cut(stack.frames)[..., None],
            "masks": window.cut(stack.masks)[..., None],
            "frame_shifts": stack.shifts,
            "noise": stack.noise,
            "hr": stack.own_units(hr),
            "hr_mask": hr_mask,
        }

    def _frame(self, scene: PreparedScene, member: np.ndarray, window: Window) -> Batch:
        clear = upsampled_masks(scene.masks[member], self.model.scale, window)
        hr, hr_mask = self._hr(scene, window)
        return {
            "images": input_images(scene.lr[member], self.model, window),
            "hr": np.asarray(units.to_input(hr, self.model.normalization), np.float32),
            "hr_mask": hr_mask & clear[0][..., None],
        }

    def _versions(self, scene: PreparedScene, members: np.ndarray, window: Window) -> np.ndarray:
        if not self.data.clouded_shifts:
            return input_images(scene.lr[members[:1]], self.model, window)
        images = input_images(scene.lr[members], self.model, window)
        clear = upsampled_masks(scene.masks[members], self.model.scale, window)
        return np.where(clear[..., None], images[:1], images)

    def _hr(self, scene: PreparedScene, window: Window) -> tuple[np.ndarray, np.ndarray]:
        hr, mask = (window.cut(x[None], self.model.scale)[0] for x in (scene.hr, scene.hr_mask))
        return hr, mask[..., None]


def flip_and_rotate(record: Batch, code: int) -> Batch:
    """One of the eight flips and 90° rotations, the same for all images of a record.

    Args:
      record: arrays [..., P, P, channels], `frame_shifts` [N, 2], and scalars, which stay.
      code: of `turns.CODES`.
    """

    def turn(shifts: np.ndarray) -> np.ndarray:
        for _ in range(code & 3):
            shifts = shifts[:, ::-1] * np.array([-1, 1], shifts.dtype)
        return np.ascontiguousarray(shifts * np.array([1, -1 if code & 4 else 1], shifts.dtype))

    moved = {key: turned(x, code, (-3, -2)) for key, x in record.items() if np.ndim(x) > 2}
    if "frame_shifts" in record:
        moved["frame_shifts"] = turn(record["frame_shifts"])
    return record | moved


def without_some(record: Batch, chance: float, rng: np.random.Generator) -> Batch:
    """An aligned record that has lost a random number of its frames, now and then; they hide all.

    A network that always sees as many frames need not know what one alone is worth.
    """
    count = len(record["masks"])
    if rng.random() >= chance or count < 2:
        return record
    lost = 1 + rng.permutation(count - 1)[rng.integers(0, count - 1) :]
    masks = record["masks"].copy()
    masks[lost] = False
    return {**record, "masks": masks}


class _Finish:
    """Augments a record, and draws its synthetic shifts where the view wants them.

    What is drawn depends on (seed, epoch, record) alone, so neither the number of devices nor of
    workers changes it.
    """

    def __init__(self, patches: Patches, seed: int, numbered: bool) -> None:
        self.patches, self.seed, self.records = patches, seed, len(patches)
        self.numbered = numbered

    def __call__(self, position: int, index: int) -> Batch:
        rng = np.random.default_rng([self.seed, int(position) // self.records, int(index)])
        record = self.patches[index]
        if self.patches.data.augment:
            record = flip_and_rotate(record, int(rng.integers(8)))
        if self.patches.view == "aligned":
            record = without_some(record, self.patches.data.fewer_frames, rng)
        if self.patches.view == "shifts":
            record["shifts"] = synthetic_shifts(rng, self.patches.model)
        return {**record, "record": np.asarray(index, np.int32)} if self.numbered else record


def synthetic_shifts(rng: np.random.Generator, model: ModelConfig) -> np.ndarray:
    """N integer translations within the filters' reach, (0, 0) first: int32 [N, 2]."""
    reach = model.filter_size // 2
    shifts = rng.integers(-reach, reach + 1, (model.num_frames, 2), np.int32)
    shifts[0] = 0
    return shifts


def make_iterator(
    patches: Patches,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    numbered: bool = False,
) -> Any:
    """An endless grain iterator of batches with `get_state()` and `set_state()`.

    Every epoch is shuffled anew. Each process gets its share of every global batch.

    Args:
      patches: what to iterate over.
      batch_size: over all processes.
      seed: of the shuffles and the augmentation.
      numbered: batches also have `record` [B] int32, as `Patches.scenes_of` takes them.

    Raises:
      ValueError: no patches, or a batch that the processes cannot share evenly.
    """
    if not len(patches):
        raise ValueError("no patch to train on")
    if batch_size % process_count:
        raise ValueError(
            f"batch_size: found {batch_size}, expected a multiple of {process_count} processes"
        )
    dataset = (
        grain.MapDataset.range(len(patches))
        .seed(seed)
        .shuffle()
        .repeat()
        .map_with_index(_Finish(patches, seed, numbered))
    )[process_index::process_count]
    workers = patches.data.workers
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * batch_size)
    # Batched behind the prefetch: grain cannot count the batches of one record of an endless set.
    batches = dataset.to_iter_dataset(options).batch(batch_size // process_count)
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers crash in a plain script otherwise
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(batches)
