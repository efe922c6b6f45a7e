"""Pictures of the systems' results, band by band, and RegNet's filters on their frames."""

from __future__ import annotations

from pathlib import Path

from deepsum_jax import figures, files
from experiments import pictures
from experiments.cells import Bench
from experiments.exhibits import PANELS

SCENES = 2  # of each band


def draw(bench: Bench, output: Path, seed: int, caption: str) -> None:
    """Draws the pictures of whatever systems are trained; the others are named as missing."""
    shown = [row for row in PANELS.needs if bench.is_trained(row, seed)]
    gaps = [row.label for row in PANELS.needs if row not in shown]
    bundles = {row.name: bench.tested(row, seed) for row in shown}
    systems = [(row.label, bundles[row.name]) for row in shown]
    lines = [f"# {PANELS.title}", PANELS.about]
    shown_scenes = {band: bench.held_out_scenes(band, SCENES) for band in bench.bands()}
    for band, scenes in shown_scenes.items():
        figure = pictures.comparison(
            systems, [scene for scene, _ in scenes], bench.max_frames, bench.base.compute
        )
        figures.save(figure, output / f"{PANELS.name}_{band or 'band'}.png", caption)
        names = ", ".join(scene.name for scene, _ in scenes)
        lines.append(f"Band {band}: scenes {names}.")
    if "deepsum" in bundles:
        scene, truth = next(iter(shown_scenes.values()))[0]
        figure = pictures.filters_on_frames(bundles["deepsum"], scene, truth, bench.base.compute)
        figures.save(figure, output / f"{PANELS.name}_filters.png", caption)
    lines += [f"| {label} |\n|---|\n| not run |" for label in gaps]
    with files.written_aside(output / f"{PANELS.name}.md") as aside:
        aside.write_text("\n\n".join([*lines, caption]) + "\n")
