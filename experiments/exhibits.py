"""The paper's tables and figures, and those that people ask for beside them, as data.

An exhibit is a list of rows, or curves through rows; its name is that of its command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from experiments import rows
from experiments.rows import Row

Curves = Mapping[str, tuple[tuple[float, Row], ...]]


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """One table or figure.

    Attributes:
      name: of its files and its command.
      title: over it.
      about: what it answers.
      table: its rows, in order.
      curves: by label, points (x, row); a figure over an axis in place of a chart of the rows.
      axis: what x is.
      needs: rows whose systems a picture shows.
    """

    name: str
    title: str
    about: str
    table: tuple[Row, ...] = ()
    curves: Curves = dataclasses.field(default_factory=dict)
    axis: str = ""
    needs: tuple[Row, ...] = ()

    @property
    def command(self) -> str:
        return f"python -m experiments {self.name} --workdir DIR"

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows whose cells it shows, each once."""
        points = (row for points in self.curves.values() for _, row in points)
        return tuple(dict.fromkeys((*self.table, *points)))


def _curve(label: str, xs: tuple[float, ...], made: tuple[Row, ...]) -> Curves:
    return {label: tuple(zip(xs, made, strict=True))}


def _both_norms(under: Callable[[Row, float], Row], xs: tuple[float, ...]) -> Curves:
    """The two norms tested under a condition of every strength."""
    both = (("instance norm", rows.DEEPSUM), ("batch norm", rows.BATCH_NORM))
    return {label: tuple((x, under(row, x)) for x in xs) for label, row in both}


TABLE2 = Exhibit(
    "table2",
    "Table II: systems",
    "The paper's comparison of systems, with one budget of steps, patches and batches.",
    (rows.BICUBIC, rows.IBP, rows.SISR, rows.SISR_MEAN, rows.DUF, rows.DEEPSUM),
)
TABLE1 = Exhibit(
    "table1",
    "Table I: what RegNet brings",
    "The same network with registration filters and without.",
    (rows.UNREGISTERED, rows.DEEPSUM),
)
REGISTRATION = Exhibit(
    "registration",
    "Registration: shifts against filters",
    "Frames moved by cross-correlation or by learned shifts with a fixed kernel, or by RegNet's "
    "filters.",
    (rows.CORRELATION, rows.SHIFTS, rows.DEEPSUM),
)
AGREEMENT = Exhibit(
    "agreement",
    "DeepSUM with what classical registration knows",
    "Frames moved by robust back-projection's shifts, to a fraction of a pixel, and what disagrees "
    "with the reference masked. For ground that changes: `--set data.ground=changing --set "
    "data.reference=given`.",
    (rows.BICUBIC, rows.IBP, rows.ROBUST_IBP, rows.DEEPSUM, rows.AGREEMENT),
)
ABLATIONS = Exhibit(
    "ablations",
    "Ablations: one thing changed at a time",
    "DeepSUM with one thing changed at a time; the non-local SISRNet gathers the eight most alike "
    "pixels around each.",
    (*rows.ABLATIONS, rows.DEEPSUM),
)
PANELS = Exhibit(
    "panels",
    "Qualitative results",
    "Evenly spaced test scenes of each band: images, a detail, and errors on one scale; and "
    "RegNet's filters beside the frames they register.",
    needs=(rows.BICUBIC, rows.IBP, rows.DUF, rows.DEEPSUM),
)
REFERENCE_FRAME = Exhibit(
    "reference_frame",
    "Which frame is the reference",
    "The clearest frame, the first in the stack, or one that is given (here the one taken nearest "
    "to HR): does the choice reorder the systems?",
    tuple(
        rows.on_reference(row, rule)
        for rule in rows.REFERENCES
        for row in (rows.BICUBIC, rows.IBP, rows.SISR_MEAN, rows.DEEPSUM)
    ),
)
BRIGHTNESS = Exhibit(
    "brightness",
    "Instance norm against batch norm under another gain",
    "All test frames multiplied: brightness and contrast change together. Instance norm takes "
    "statistics of each image, batch norm those of training.",
    curves=_both_norms(rows.at_gain, rows.GAINS),
    axis="gain of the test frames",
)
HAZE = Exhibit(
    "haze",
    "Instance norm against batch norm in haze",
    "A constant added to all test frames: another brightness, the same contrast.",
    curves=_both_norms(rows.in_haze, rows.HAZES),
    axis="added to the test frames, deviations of the training frames",
)
SENSOR = Exhibit(
    "sensor",
    "How well IBP must know the sensor",
    "IBP inverts a sensor of a Gaussian blur and square pixels, which is what simulated scenes are "
    "made with (0.42 LR pixels). On real images the blur is not known.",
    (rows.DEEPSUM,),
    curves=_curve("IBP", rows.PSF_SIGMAS, tuple(map(rows.with_psf, rows.PSF_SIGMAS))),
    axis="blur that IBP takes the sensor to have, LR pixels",
)
STEPS = Exhibit(
    "steps",
    "More or less training",
    "Whether the order of the systems is a matter of their budget.",
    curves={
        row.label: tuple((f, rows.with_steps(row, f)) for f in rows.STEP_FACTORS)
        for row in (rows.SISR, rows.DUF, rows.DEEPSUM, rows.NONLOCAL)
    },
    axis="steps of all stages, relative to the tables'",
)
FRAMES_TEST = Exhibit(
    "frames_test",
    "Frames at test time",
    "DeepSUM for nine frames on up to 15 frames, and on all, through the sliding window. Scenes of "
    "15 to 20 frames; only those clear enough take part.",
    curves=_curve(
        "DeepSUM, N = 9",
        tuple(float(min(f, 20)) for f in rows.TEST_FRAMES),
        tuple(map(rows.tested_with, rows.TEST_FRAMES)),
    ),
    axis="frames at most (20: all)",
)
FRAMES_TRAINING = Exhibit(
    "frames_training",
    "Frames at training",
    "DeepSUM for N frames, trained and tested with as many, on scenes of 15 to 20.",
    curves=_curve(
        "DeepSUM",
        tuple(map(float, rows.TRAIN_FRAMES)),
        tuple(map(rows.with_frames, rows.TRAIN_FRAMES)),
    ),
    axis="N",
)

EXHIBITS = (
    TABLE2, TABLE1, REGISTRATION, ABLATIONS, PANELS, BRIGHTNESS, HAZE, SENSOR, REFERENCE_FRAME,
    FRAMES_TEST, FRAMES_TRAINING, STEPS, AGREEMENT,
)  # fmt: skip
"""In the order of the report, which is that in which `experiments all` runs them."""

ROWS = {row.name: row for e in EXHIBITS for row in (*e.rows, *e.needs)}
"""All rows by name."""
