"""What systems are worth on ground that changes: real dates, and stacks with spoilt frames.

    python -m experiments real --dates DIR --workdir W [--output DIR]

Real dates of one place (GeoTIFFs) are degraded by Wald's protocol; columns beyond the first 300 are
reported; nothing has been trained on them. Stacks hold all dates, ten looks at one date, or five
of each. Beside them stand simulated scenes of steady and of changing ground, of seeds that nothing
was trained on. Learned systems are the tables' own (`experiments table2` in the same W), trained on
simulated scenes of steady ground.

The second table spoils frames of kept-back stacks of looks: how far below IBP of the reference
alone does a system fall, in the mean and at worst? Then it spoils the reference of all stacks.
"""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from deepsum_jax import Bundle, ModelConfig, cli, figures, files, load_params
from deepsum_jax.config import ChangingGround, Compute, SimulationConfig
from deepsum_jax.data.frames import reference_frame
from deepsum_jax.data.scene import Scene
from deepsum_jax.predict import predict
from deepsum_jax.pretrained import DEFAULT
from deepsum_jax.scoring.company import COMPANY
from deepsum_jax.scoring.report import panel
from deepsum_jax.scoring.scene import evaluate_scene, score_image
from deepsum_jax.scoring.summary import bootstrap
from deepsum_jax.simulation.changing import simulate_changing_scene
from deepsum_jax.simulation.dates import read_dates
from deepsum_jax.simulation.steady import simulate_scene
from deepsum_jax.simulation.wald import WaldConfig, cut_scenes
from deepsum_jax.systems.ibp import ibp
from experiments import rows, tables
from experiments.benchmark import machine
from experiments.dates import add_dates, rasters

SEED = 20_261  # of simulated scenes and of offsets; nothing was trained on it
SIMULATED = 16  # scenes of each kind
BANDS = {"NIR": 4, "RED": 1}  # of NAIP's rasters
REPORTED = 300  # the first column that is reported
LEARNED = (rows.SISR, rows.SISR_MEAN, rows.DUF, rows.DEEPSUM)
CLASSICAL = {"robust_ibp": "robust IBP"}
SHIPPED = {"unrolled": "unrolled"}
STEADY = "simulated, steady ground"
LED = f"{STEADY}, led by the frame nearest to HR in time"  # not by the clearest
OWN = "unrolled_own"  # the shipped system, above its own result from one frame

Scenes = Sequence[Scene]


# --- the stacks ----------------------------------------------------------------------------------


def real_stacks(folder: Path) -> dict[str, Scenes]:
    """Scenes of the reported columns by what their stacks hold."""
    paths = rasters(folder)
    names = {"all": "all years", "one": "looks at one date", "half": "half looks, half other years"}
    stacks: dict[str, Scenes] = {}
    for band, number in BANDS.items():
        dates = read_dates(paths, number)
        end = dates.values.shape[2]
        for years, name in names.items():
            cut = cut_scenes(
                dates.values[:, :, REPORTED:end],
                dates.masks[:, :, REPORTED:end],
                WaldConfig(years=years),
                seed=SEED,
                band=band,
            )
            stacks[f"{band}, {name}"] = [scene for scene, _ in cut]
    return stacks


def simulated_stacks() -> dict[str, Scenes]:
    """Simulated scenes of both kinds of ground."""
    steady = SimulationConfig(lr_size=64, max_frames=12)
    changing = ChangingGround(min_frames=9, max_frames=12)
    indices = range(SIMULATED)
    return {
        STEADY: [simulate_scene(SEED, n, steady)[0] for n in indices],
        "simulated, changing ground": [
            simulate_changing_scene(SEED, n, changing)[0] for n in indices
        ],
    }


# --- spoilt stacks -------------------------------------------------------------------------------

Spoil = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def _cloud(frame: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A bright cloud over half of the frame that no mask knows."""
    y, x = np.indices(frame.shape) / frame.shape[0]
    angle = rng.uniform(0, 2 * np.pi)
    edge = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
    opacity = 1 / (1 + np.exp(-edge / 0.05))
    return np.asarray(frame + opacity * (1.5 * frame.max() - frame))


SPOILS: dict[str, Spoil] = {
    "another place": lambda frame, other, rng: other,
    "an unmasked cloud": _cloud,
    "noise": lambda frame, other, rng: rng.normal(frame.mean(), frame.std(), frame.shape),
    "shifted beyond the search": lambda frame, other, rng: np.roll(
        frame, (frame.shape[0] // 2, frame.shape[1] // 2), (0, 1)
    ),
    "gain halved": lambda frame, other, rng: frame / 2,
}
SPOILT_REFERENCES = ("another place", "an unmasked cloud")


def spoilt(scene: Scene, other: Scene, spoil: Spoil, count: int, seed: int) -> Scene:
    """A scene with so many frames, not the reference, replaced."""
    rng = np.random.default_rng([SEED, seed])
    lr, frames = scene.lr.astype(np.float32), list(range(len(scene.lr)))
    frames.remove(reference_index(scene))
    for n in rng.permutation(frames)[:count]:
        lr[n] = spoil(lr[n], other.lr[n % len(other.lr)].astype(np.float32), rng)
    return dataclasses.replace(scene, lr=lr)


def spoilt_reference(scene: Scene, other: Scene, spoil: Spoil, seed: int) -> Scene:
    """A scene whose reference is replaced; no mask tells it apart any more."""
    rng = np.random.default_rng([SEED, seed])
    lr, n = scene.lr.astype(np.float32), reference_index(scene)
    lr[n] = spoil(lr[n], other.lr[n % len(other.lr)].astype(np.float32), rng)
    return dataclasses.replace(scene, lr=lr, masks=np.ones_like(scene.masks))


def reference_index(scene: Scene) -> int:
    index = reference_frame(scene, "given")
    assert index is not None
    return index


# --- scores --------------------------------------------------------------------------------------


def score_stacks(
    stacks: dict[str, Scenes], bundles: dict[str, Bundle], max_frames: int
) -> dict[str, dict[str, list[float]]]:
    """cPSNR by stack, then system: the company's and every bundle's, scene by scene."""
    out: dict[str, dict[str, list[float]]] = {}
    for name, scenes in stacks.items():
        values: dict[str, list[float]] = {key: [] for key in (*COMPANY, *bundles)}
        for scene in tqdm(scenes, name, unit="scene"):
            for n, (label, bundle) in enumerate(bundles.items()):
                score = evaluate_scene(bundle, scene, max_frames=max_frames)
                values[label].append(score.cpsnr)
                if n == 0:
                    for key, value in score.company.items():
                        values[key].append(value)
        out[name] = values
    return out


def by_given(bundle: Bundle) -> Bundle:
    """A bundle that takes the reference that a scene names."""
    return dataclasses.replace(bundle, info=dataclasses.replace(bundle.info, reference="given"))


def image_cpsnr(
    bundle: Bundle, scene: Scene, reference: int | None, max_frames: int | None = None,
    compute: Compute = Compute(),
) -> float:  # fmt: skip
    """cPSNR of what `predict` makes of a scene, whatever frames it leaves out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frames left out are what is asked for
        image = predict(
            bundle, scene.lr, scene.masks, reference=reference, max_frames=max_frames,
            compute=compute,
        )  # fmt: skip
    return score_image(image[..., None], scene, border=3)[0]


def score_spoilt(
    scenes: Scenes, others: Scenes, bundles: dict[str, Bundle]
) -> list[dict[str, Any]]:
    """How far each system lies above IBP of the reference alone, when other frames are spoilt; the
    shipped one also above what it makes of the reference alone, which frames must not take away.
    """
    table = []
    pairs = list(zip(scenes, others))
    alone = [_alone(scene) for scene in scenes]
    own = []
    if "unrolled" in bundles:
        own = [image_cpsnr(bundles["unrolled"], s, reference_index(s), 1) for s in scenes]
    for name, spoil in SPOILS.items():
        for what, share in (("one", 0.0), ("half", 0.5), ("all others", 1.0)):
            bad = [
                spoilt(scene, other, spoil, max(1, round(share * (len(scene.lr) - 1))), n)
                for n, (scene, other) in enumerate(pairs)
            ]
            entry: dict[str, Any] = {"spoilt": f"{what}: {name}"}
            for label, bundle in bundles.items():
                found = [image_cpsnr(bundle, scene, reference_index(scene)) for scene in bad]
                entry[label] = [f - a for f, a in zip(found, alone)]
                if label == "unrolled":
                    entry[OWN] = [f - o for f, o in zip(found, own)]
            table.append(entry)
    return table


def score_spoilt_references(
    stacks: dict[str, Scenes], bundles: dict[str, Bundle]
) -> list[dict[str, Any]]:
    """How far each system lies above IBP of the good frames, when the reference is spoilt.

    The truth stays the spoilt reference's; it is off by the others' offset, which cPSNR's search
    forgives, and where they are of other years, by what changed, so that which of them a system
    follows is partly luck.
    """
    table = []
    for stack, scenes in stacks.items():
        good = [_good_frames(scene) for scene in scenes]
        others = [*scenes[1:], scenes[0]]
        for name in SPOILT_REFERENCES:
            entry: dict[str, Any] = {"spoilt": f"the reference of {stack}: {name}"}
            bad = [
                spoilt_reference(scene, other, SPOILS[name], n)
                for n, (scene, other) in enumerate(zip(scenes, others))
            ]
            for label, bundle in bundles.items():
                entry[label] = [image_cpsnr(bundle, b, None) - g for b, g in zip(bad, good)]
            table.append(entry)
    return table


def _alone(scene: Scene) -> float:
    n = reference_index(scene)
    image = ibp(scene.lr[[n]][..., None], scene.masks[[n]], scene.scale or 1)
    return score_image(image, scene, border=3)[0]


def _good_frames(scene: Scene) -> float:
    """IBP of all frames but the reference."""
    rest = [n for n in range(len(scene.lr)) if n != reference_index(scene)]
    image = ibp(scene.lr[rest][..., None], scene.masks[rest], scene.scale or 1)
    return score_image(image, scene, border=3)[0]


# --- what is written -----------------------------------------------------------------------------


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    table = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table) + "\n"


def stacks_markdown(scores: dict[str, dict[str, list[float]]], labels: dict[str, str]) -> str:
    """Mean cPSNR and, beside it, the 95 % interval of the difference from bicubic."""
    lines = []
    for name, values in scores.items():
        base, line = np.array(values["bicubic"]), [f"{name} ({len(values['bicubic'])})"]
        best = max(np.mean(values[key]) for key in labels)
        for key in labels:
            mean = float(np.mean(values[key]))
            text = f"**{mean:.2f}**" if mean == best else f"{mean:.2f}"
            if key != "bicubic":
                low, high = bootstrap(np.array(values[key]) - base)
                text += f" ({low:+.2f} to {high:+.2f})"
            line.append(text)
        lines.append(line)
    return markdown(["stack (scenes)", *labels.values()], lines)


def worst_markdown(scores: dict[str, dict[str, list[float]]], labels: dict[str, str]) -> str:
    """The scene on which each system falls furthest below the better of bicubic and IBP of one."""
    lines = []
    for name, values in scores.items():
        safe = np.maximum(values["bicubic"], values["ibp_one"])
        shown = [key for key in labels if key not in ("bicubic", "ibp_one")]
        lines.append([name, *(f"{np.min(np.array(values[k]) - safe):+.2f}" for k in shown)])
    heads = [label for key, label in labels.items() if key not in ("bicubic", "ibp_one")]
    return markdown(["worst scene", *heads], lines)


def spoilt_markdown(table: Sequence[dict[str, Any]], labels: dict[str, str]) -> str:
    lines = [
        [
            entry["spoilt"],
            *(
                f"{np.mean(entry[k]):+.2f} (worst {np.min(entry[k]):+.2f})" if k in entry else ""
                for k in labels
            ),
        ]
        for entry in table
    ]
    return markdown(["frames spoilt", *labels.values()], lines)


def chart(scores: dict[str, dict[str, list[float]]], labels: dict[str, str]) -> Figure:
    """Every system's difference from bicubic of the reference, stack by stack."""
    figure = Figure(figsize=(9, 0.75 * len(scores) + 1.6), layout="constrained")
    axis = figure.subplots()
    shown = [key for key in labels if key != "bicubic"]
    for n, key in enumerate(shown):
        means = [np.mean(v[key]) - np.mean(v["bicubic"]) for v in scores.values()]
        heights = np.arange(len(scores)) + (n / len(shown) - 0.5) * 0.6
        axis.plot(means, heights, "o", label=labels[key])
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(scores)), [textwrap.fill(name, 32) for name in scores])
    axis.invert_yaxis()
    axis.set(
        xlabel="mean cPSNR above bicubic of the reference frame, dB",
        title="What systems are worth where the ground changes, and where it stays",
    )
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def parser() -> argparse.ArgumentParser:
    p = tables.parser(
        "python -m experiments real", "Systems on real dates and on changing simulated ground."
    )
    add_dates(p)
    p.add_argument(
        "--params", type=Path, metavar="DIR", help="unrolled's (default: those that are shipped)"
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    bench = tables.make_bench(args)
    about = tables.caption("python -m experiments real --dates DIR", args, bench.base)
    made = machine()
    about += f" Made {made['date']} of commit {made['commit']} on {made['cores']} cores."
    bundles = {key: Bundle({}, ModelConfig(system=key)) for key in CLASSICAL}
    bundles["unrolled"] = load_params(args.params or DEFAULT)
    labels = {**COMPANY, **CLASSICAL, **SHIPPED}
    for row in LEARNED:
        if not args.no_run or bench.is_trained(row, args.seeds[0]):
            bundles[row.name], labels[row.name] = bench.system(row, args.seeds[0])[0], row.label
    real = real_stacks(args.dates)
    simulated, most = simulated_stacks(), bench.max_frames + 1
    scores = score_stacks({**real, **simulated}, bundles, most)
    led = {name: by_given(bundle) for name, bundle in bundles.items()}
    scores |= score_stacks({LED: simulated[STEADY]}, led, most)
    looks = real["NIR, looks at one date"]
    spared = ("robust_ibp", "unrolled")
    untrained = {"ibp": Bundle({}, ModelConfig(system="ibp")), **{k: bundles[k] for k in spared}}
    spoils = score_spoilt(looks, [*looks[1:], looks[0]], untrained)
    spoils += score_spoilt_references(real, untrained)
    output = args.output or args.workdir
    first = stacks_markdown(scores, labels)
    shown = {key: labels[key] for key in untrained} | {OWN: "unrolled, above its own from one"}
    second = spoilt_markdown(spoils, shown)
    files.write_json(output / "real.json", {"stacks": scores, "spoilt": spoils, "about": about})
    with files.written_aside(output / "real.md") as aside:
        aside.write_text(
            f"# On ground that changes\n\n{first}\ncPSNR in dB, in brackets the 95 % interval of "
            "the difference from bicubic of the reference.\n\n"
            f"{worst_markdown(scores, labels)}\nThe scene on which a system falls furthest below "
            "the better of bicubic and IBP of the reference alone, dB.\n\n# With spoilt frames\n\n"
            f"{second}\ndB above IBP of the reference alone, on NIR looks at one date; for a "
            "spoilt reference, whose year stays the truth, above IBP of the good frames. "
            f"{about}\n"
        )
    figures.save(chart(scores, labels), output / "real.png", about)
    scene = real["NIR, half looks, half other years"][0]
    score = evaluate_scene(bundles["unrolled"], scene, max_frames=bench.max_frames + 1)
    figures.save(panel([score]), output / "unrolled.png", about)
    print(f"{first}\n{second}")


if __name__ == "__main__":
    cli.run(main)
