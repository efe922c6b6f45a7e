"""Places whose ground changes: parcels, water and texture by year and by day.

A place is drawn once; `Place.ground` says what it looks like on a date. Between years parcels are
sown anew, cut up along new borders, ploughed and striped; the soil's pattern shows through, fades
or inverts; water rises and falls within its basins. Roads, lanes, relief and wild land stay.
Within a year only harvest, whose front crosses a parcel within days, and a flood tell dates apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from deepsum_jax.config import ChangingGround
from deepsum_jax.simulation.landscape import Rng, draw_ground, fractal
from deepsum_jax.simulation.textures import crop_texture

_HARVEST_DAYS = 20.0  # a harvest time's parcels are cut within so many days around the reference
_FRONT_DAYS = 1.5  # that the front takes to cross a parcel


@dataclasses.dataclass(frozen=True)
class Crops:
    """What stands on the P parcels: [P] each, in units of the ground's contrast."""

    brightness: np.ndarray
    soil: np.ndarray  # how strongly the soil's pattern shows, negative: inverted
    stripes: np.ndarray  # along the rows
    fresh: np.ndarray  # texture of this year alone
    usual: np.ndarray  # texture of the reference's year, while its crops stand
    border: np.ndarray  # 0..1, where a new border cuts the parcel; above 1: nowhere
    beyond: np.ndarray  # brightness beyond it, relative to that before it

    def altered(self, other: Crops, amount: np.ndarray) -> Crops:
        """These crops, on the way to others by `amount` [P]: 0 stays, 1 is the other."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name))
                 for f in dataclasses.fields(self)}  # fmt: skip
        values = {name: old + amount * (new - old) for name, (old, new) in pairs.items()}
        # A border is the old one or a new one, never one in between.
        values["border"] = np.where(amount > 0, other.border, self.border)
        return Crops(**values)


def _sow(rng: Rng, parcels: int) -> Crops:
    """Crops of a year: a region grows a few of them."""
    kinds = rng.normal(0, 1, 5)
    values = (
        kinds[rng.integers(0, 5, parcels)] + rng.normal(0, 0.25, parcels),
        rng.normal(0.15, 0.35, parcels),
        rng.normal(0, 0.25, parcels) * (rng.random(parcels) < 0.35),
        np.abs(rng.normal(0, 0.2, parcels)),
        np.zeros(parcels),
        np.where(rng.random(parcels) < 0.25, rng.uniform(0.15, 0.85, parcels), 2.0),
        rng.normal(0, 0.9, parcels),
    )
    return Crops(*(v.astype(np.float32) for v in values))


def _cells(rng: Rng, at: np.ndarray, mean: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts a line into cells about `mean` long: number, place in it 0..1 and its length, by `at`.

    `at` is >= 0.
    """
    count = int(at.max() / mean * 2.5) + 8
    ends = np.cumsum(mean * np.maximum(0.25, rng.lognormal(0, 0.4, count)))
    # Looked up on whole samples: binary search at every point would take most of a scene's time.
    line = np.minimum(np.searchsorted(ends, np.arange(int(at.max()) + 2)), count - 1)
    number = line[at.astype(np.int32)]
    lengths = np.diff(ends, prepend=0.0).astype(np.float32)
    starts = (ends - lengths).astype(np.float32)
    length = lengths[number]
    return number, np.clip((at - starts[number]) / length, 0, 1), length


def _patchwork(rng: Rng, side: int, lr: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parcels: their number [S, S], the place within them 0..1 [2, S, S], and lanes, bool."""
    angle = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    y, x = np.meshgrid(*2 * [np.arange(side, dtype=np.float32)], indexing="ij")
    u, v = x * cos + y * sin, y * cos - x * sin
    if rng.random() < 0.5:  # borders that follow the land
        bend = np.float32(lr * rng.uniform(0.5, 4))
        u, v = u + bend * fractal(rng, side, 2, 0.05), v + bend * fractal(rng, side, 2, 0.05)
    u, v = u - u.min(), v - v.min()
    size = lr * np.exp(rng.uniform(np.log(4), np.log(24)))  # from gardens to quarter sections
    row, across, high = _cells(rng, v, size)
    slip = rng.uniform(0, 6 * size, int(row.max()) + 1).astype(np.float32)
    column, along, wide = _cells(rng, u + slip[row], size * rng.uniform(1, 2.5))
    _, number = np.unique(row * (int(column.max()) + 1) + column, return_inverse=True)
    # Lanes and hedges, on some sides of some parcels.
    width = lr * rng.uniform(0.1, 0.35)
    lanes = (across * high < width) & (rng.random(int(row.max()) + 1) < 0.5)[row]
    lanes |= (along * wide < width) & (rng.random(int(column.max()) + 1) < 0.3)[column]
    return number.reshape(side, side).astype(np.int32), np.stack([across, along]), lanes


def _rank(values: np.ndarray) -> np.ndarray:
    """Each value's rank among all, 0..1, closely enough."""
    ordered = np.sort(values[::4, ::4], axis=None)
    steps = np.linspace(0, 1, ordered.size, dtype=np.float32)
    return np.asarray(np.interp(values, ordered, steps), np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A place, on S x S samples; brightness in units of its contrast.

    Build it with `draw_place`.
    """

    key: tuple[int, ...]  # of the random numbers of its years
    config: ChangingGround
    band: str
    fixed: np.ndarray  # [S, S] brightness of what no year changes: wild land, roads, lanes
    farmed: np.ndarray  # [S, S] bool, parcels; elsewhere crops do not count
    parcel: np.ndarray  # [S, S] its number
    within: np.ndarray  # [2, S, S] place within the parcel, 0..1
    soil: np.ndarray  # [S, S] pattern of unit deviation
    texture: np.ndarray  # [S, S] likewise, of the reference's crops
    shade: np.ndarray  # [S, S] relief, unit deviation
    height: np.ndarray  # [S, S] above the deepest water, 0..1, as a rank
    water: float  # share of the ground under water in the reference's year
    reeds: float  # contrast of the shore
    silt: float  # brightness of water in red, in the reference's year
    relief: float  # contrast of the relief
    crops: Crops  # of the reference's year
    cut_on: np.ndarray  # [P] days after the reference's date, inf: no harvest
    rows: np.ndarray  # [P] tillage rows per parcel
    sideways: np.ndarray  # [P] bool, new borders run across the rows
    real: np.ndarray | None  # [D, S, S] real ground, the reference's date first
    realness: tuple[float, float]  # weights of the real ground and of what is invented

    def ground(self, year: int, day: float, flooded: bool) -> np.ndarray:
        """The ground on a date, float32 [S, S], in units of contrast.

        Args:
          year: 0 is the reference's.
          day: after the reference's day, may be negative.
          flooded: water stands far above its usual level.
        """
        if self.real is None:
            return self._invented(year, day, flooded)
        weight, blended = self.realness
        years = len(self.real) - 1
        date = self.real[1 + (year - 1) % years if year and years else 0]
        if weight < 1:
            return np.asarray(weight * date + blended * self._invented(year, day, flooded))
        # Real years bring their own change, and only what days do is invented; where there is
        # but one real date, what years do is invented too.
        usual = (year if years else 0, 0.0, False)
        if (year, day, flooded) == usual:
            return date
        change = self._invented(year, day, flooded) - self._invented(*usual)
        return np.asarray(date + np.float32(0.6) * change)

    def _year(self, year: int) -> tuple[Rng, float]:
        """Random numbers of a year, and how much it differs from the reference's, 0..1."""
        rng = np.random.default_rng([*self.key, 2, year])
        low, high = self.config.change
        return rng, rng.uniform(low, high) if year else 0.0

    def _invented(self, year: int, day: float, flooded: bool) -> np.ndarray:
        rng, change = self._year(year)
        side = len(self.fixed)
        parcels = len(self.rows)
        # In red, soil is bright and leaves are dark, so that crops and seasons tell more apart.
        red = self.band == "RED"
        amount = rng.uniform(0.5, 1.4, parcels) if red else rng.uniform(0.05, 0.6, parcels)
        amount *= rng.random(parcels) < (1 - (1 - change) ** 4 if red else change)
        crops = self.crops.altered(_sow(rng, parcels), amount.astype(np.float32))
        texture = fractal(rng, side, rng.uniform(0.7, 1.3), 2.5 / side)
        smooth = fractal(rng, side, 1.8, 0.06)
        fields = self._fields(crops, day, texture)
        # Years differ more in detail than they do at large, whatever grows; but not everywhere.
        rough, broad = (0.7, 0.9) if red else (0.8, 0.12)
        local = np.float32(change) * np.clip(np.float32(2.5 * change - 0.7) - smooth, 0, 1.5)
        fields += np.float32(0.7 * rough) * local * texture
        wild = self.fixed + local * (np.float32(rough) * texture + np.float32(broad) * smooth)
        ground = np.where(self.farmed, fields, wild)
        ground += np.float32(self.relief * (1 + 0.1 * change * rng.standard_normal())) * self.shade
        ground = np.float32(2.2) * np.tanh(ground / np.float32(2.2))  # reflectance has bounds
        return self._wet(rng, ground, change, flooded, texture)

    def _fields(self, crops: Crops, day: float, texture: np.ndarray) -> np.ndarray:
        """Parcels [S, S] under their crops."""
        p, (across, along) = self.parcel, self.within
        values = crops.brightness[p] + crops.soil[p] * self.soil
        values += crops.fresh[p] * texture + crops.usual[p] * self.texture
        values += crops.stripes[p] * np.sin(np.float32(2 * np.pi) * self.rows[p] * across)
        cut = np.where(self.sideways[p], across, along) > crops.border[p]
        values += np.where(cut, crops.beyond[p], np.float32(0))
        progress = np.clip((day - self.cut_on) / _FRONT_DAYS, 0, 1).astype(np.float32)
        if progress.any():
            stubble = np.float32(-0.9 if self.band == "NIR" else 0.9)
            harvested = along < progress[p]
            values = np.where(harvested, stubble + 0.3 * (values - crops.brightness[p]), values)
        return np.asarray(values, np.float32)

    def _wet(
        self,
        rng: Rng,
        ground: np.ndarray,
        change: float,
        flooded: bool,
        texture: np.ndarray,
    ) -> np.ndarray:
        """Ground with its water at the level of the year, and reeds along the shore."""
        level = self.water * np.exp(0.7 * change * rng.standard_normal())
        turbid = change * rng.standard_normal()
        reeds = self.reeds + change * rng.standard_normal()
        if flooded:
            level = max(level, 0.03) + rng.uniform(0.05, 0.3)
        if level <= 0:
            return ground
        # In near infrared water is black; in red it has the colour of what it carries.
        colour = -2.3 + 0.1 * turbid if self.band == "NIR" else self.silt + 1.2 * turbid
        shore = np.exp(-np.maximum(self.height - np.float32(level), 0) / np.float32(0.02))
        ground = ground + np.float32(reeds) * shore
        wet = self.height < level
        return np.where(wet, np.float32(colour) + np.float32(0.03) * texture, ground)


def draw_place(
    key: Sequence[int],
    side: int,
    fine_per_lr: int,
    config: ChangingGround,
    band: str,
    textures: Sequence[np.ndarray] = (),
) -> Place:
    """Draws a place.

    Args:
      key: two numbers, all that it depends on beside the other arguments.
      side: samples S of its ground in both axes.
      fine_per_lr: samples per LR pixel.
      config: how ground changes.
      band: "NIR" or "RED".
      textures: real ground, [D, H, W] each, to cut it from with `config.texture_chance`.
    """
    rng = np.random.default_rng([*key, 1, 0])
    lr = float(fine_per_lr)
    wild = draw_ground(rng, side, fine_per_lr)[0]
    parcel, within, lanes = _patchwork(rng, side, lr)
    hills = fractal(rng, side, rng.uniform(1.7, 2.2), 4 / side)
    gy, gx = np.gradient(hills)
    sun = rng.uniform(0, 2 * np.pi)
    shade = gy * np.float32(np.sin(sun)) + gx * np.float32(np.cos(sun))
    farmed = _rank(fractal(rng, side, 1.8, 0.02)) < rng.uniform(0.3, 1.3)
    fixed = np.where(lanes & farmed, np.float32(rng.choice([-1.0, 1.0])), wild)
    farmed &= ~lanes
    parcels = int(parcel.max()) + 1
    crops = _sow(rng, parcels)
    cut_on = np.full(parcels, np.inf)
    if rng.random() < config.harvest_chance:
        ripe = rng.random(parcels) < rng.uniform(0.2, 0.8)
        cut_on[ripe] = rng.uniform(-_HARVEST_DAYS, _HARVEST_DAYS, int(ripe.sum()))
    real, realness = None, (0.0, 1.0)
    chance = np.random.default_rng([*key, 1, 1])  # of its own: textures leave all else as it is
    if textures and chance.random() < config.texture_chance:
        real = crop_texture(chance, textures, side, 2.0, config.years + 1)
        weight = 1.0 if chance.random() < 0.6 else float(chance.uniform(0.5, 1))
        realness = (weight, float(np.sqrt(1 - weight**2)))
    return Place(
        key=tuple(key),
        config=config,
        band=band,
        fixed=np.asarray(fixed, np.float32),
        farmed=farmed,
        parcel=parcel,
        within=within.astype(np.float32),
        soil=fractal(rng, side, rng.uniform(1.0, 1.5), 3 / side),
        texture=fractal(rng, side, rng.uniform(0.7, 1.3), 2.5 / side),
        shade=np.asarray(shade / shade.std(), np.float32),
        height=_rank(hills + 0.15 * fractal(rng, side, 1.2, 6 / side)),
        water=float(rng.uniform(0.01, 0.35) * (rng.random() < 0.6)),
        reeds=float(rng.normal(0, 0.7)),
        silt=float(rng.uniform(-2, 0.5)),
        relief=float(rng.choice([0.08, 0.2, 0.4], p=[0.5, 0.3, 0.2])),
        crops=dataclasses.replace(crops, usual=crops.fresh, fresh=crops.usual),
        cut_on=cut_on,
        rows=rng.integers(2, 12, parcels).astype(np.float32),
        sideways=rng.random(parcels) < 0.5,
        real=real,
        realness=realness,
    )
