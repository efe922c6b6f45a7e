"""Every table, figure and measurement by its name: `python -m experiments NAME [arguments…]`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from deepsum_jax import cli
from deepsum_jax.config import nearest
from experiments.exhibits import EXHIBITS

OTHERS = {
    "all": ("run", "every table and figure as one resumable queue, then the report"),
    "report": ("report", "one page of what a folder of results holds"),
    "benchmark": ("benchmark", "speed and memory against the machine's own matrix product"),
    "scaling": ("scaling", "how the network's cost grows with frames, pixels and features"),
    "real": ("real", "all systems on real dates, on changing ground, and with spoilt frames"),
    "default": ("default", "the parameters that the package ships, trained anew"),
    "ground": ("ground", "the simulator's changing ground held against real dates"),
    "trust": ("trust", "how far the shipped system can be trusted"),
    "landsat": ("landsat", "a trained network on real Landsat 8 dates"),
}
"""What is no exhibit: its module, and what it does."""


def listing() -> str:
    """Every name with a line of its own."""
    about = {e.name: e.title for e in EXHIBITS} | {n: text for n, (_, text) in OTHERS.items()}
    width = max(map(len, about))
    lines = [f"  {name:<{width}}  {text}" for name, text in about.items()]
    return "\n".join(
        [
            "usage: python -m experiments NAME [arguments…]",
            "",
            "tables and figures (several may be named at once), and the rest:",
            *lines,
            "",
            "python -m experiments NAME --help tells a name's arguments",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help"):
        print(listing())
        return
    count = next((n for n, text in enumerate(given) if text.startswith("-")), len(given))
    names, rest = list(dict.fromkeys(given[:count])), given[count:]
    if not names:
        raise ValueError(f"found {given[0]} first, expected a NAME; --help lists them")
    exhibits = {e.name: e for e in EXHIBITS}
    for name in names:
        if name not in exhibits and name not in OTHERS:
            raise ValueError(f"unknown experiment {name!r}; {nearest(name, [*exhibits, *OTHERS])}")
    apart = [name for name in names if name in OTHERS]
    if apart and len(names) > 1:
        raise ValueError(f"{apart[0]}: found it among {len(names)} names, expected it alone")
    if apart:
        module = importlib.import_module(f"experiments.{OTHERS[apart[0]][0]}")
        module.main(rest)
        return
    from experiments import run

    run.run([exhibits[name] for name in names], rest)


if __name__ == "__main__":
    cli.run(main)
