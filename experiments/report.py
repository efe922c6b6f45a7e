"""One page that shows what every experiment found, and says what has not run.

    python -m experiments report --input DIR [--output FILE]

Style, pictures and data lie inside the page: it is one HTML file and loads nothing.
An exhibit NAME is shown from NAME.md (its last paragraph is the caption), NAME.png and
NAME_*.png; NAME.csv is offered for download.
"""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Protocol

from deepsum_jax import cli, files
from deepsum_jax.bundle import package_version

COMPLETE, GAPS, NOT_RUN = "complete", "with gaps", "not run"
_GAP = re.compile(r"[\s*_`(]*not run\b", re.IGNORECASE)
# A quantity is 0.31, -0.1 (-0.5 to +0.3), 11 of 24, ~3 s; a name is "3×3 median".
_QUANTITY = re.compile(r"[^\w\s]*\d(?!.*[^\W\d_]{4})")


class ExhibitLike(Protocol):
    """What is known of an experiment before its folder is looked into."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def about(self) -> str: ...
    @property
    def command(self) -> str: ...


@dataclass(frozen=True)
class Section:
    """An exhibit as found, its body in HTML."""

    name: str
    title: str  # the Markdown's, else the exhibit's
    state: str
    body: str


def _markdown() -> Any:
    """A renderer that escapes HTML and refers to nothing outside the page."""
    try:
        from markdown_it import MarkdownIt
    except ImportError:
        raise ValueError("needs markdown-it-py: pip install 'deepsum_jax[report]'") from None

    def address(_: Any, tokens: Sequence[Any], i: int, *__: Any) -> str:
        start = next(t for t in reversed(tokens[:i]) if t.type == "link_open")
        return f" ({escape(start.attrs['href'])})"

    md = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
    md.disable(["image", "autolink"])  # an image then reads as a link: its text (its address)
    md.add_render_rule("link_open", lambda *_: "")
    md.add_render_rule("link_close", address)
    box = '<div class="scroll" role="region" aria-label="table" tabindex="0"><table>\n'
    md.add_render_rule("table_open", lambda *_: box)
    md.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return md


def _mark(tokens: Sequence[Any]) -> bool:
    """Gives classes to gaps and to columns of quantities; returns whether there is a gap."""
    gap = False
    rows: list[list[tuple[Any, str]]] = []
    for token, inside in zip(tokens, [*tokens[1:], None]):
        if token.type.startswith("heading"):
            token.tag = f"h{min(6, max(3, int(token.tag[1]) + 1))}"  # below the section's h2
        elif token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append((token, inside.content.strip()))
        elif token.type == "table_close":
            for column in zip(*rows):
                known = [t for _, t in column[1:] if re.search(r"\w", t) and not _GAP.match(t)]
                if known and all(map(_QUANTITY.match, known)):
                    for cell, _ in column:
                        cell.attrJoin("class", "number")
            rows = []
        if token.type in ("td_open", "paragraph_open") and _GAP.match(inside.content):
            token.attrJoin("class", "gap")
            gap = True
    return gap


def _owner(path: Path, names: Sequence[str]) -> str:
    """The exhibit that a file belongs to: the longest NAME of which it is NAME.* or NAME_*.*."""
    return max((n for n in names if f"{path.stem}_".startswith(f"{n}_")), key=len, default="")


def _data(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _picture(path: Path, name: str, title: str) -> str:
    if not path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"{path}: expected a PNG image, found something else")
    part = path.stem.removeprefix(name).strip("_").replace("_", " ")
    alt = escape(f"{title}: {part}" if part else title)
    caption = f"<figcaption>{escape(part)}</figcaption>" if part else ""
    return f'<figure><img src="{_data(path, "image/png")}" alt="{alt}">{caption}</figure>\n'


def _section(exhibit: ExhibitLike, source: Path, owned: Sequence[Path]) -> Section:
    md, env = _markdown(), dict[str, Any]()
    body = f'<p class="about">{escape(exhibit.about)}</p>\n'
    command = f"<pre><code>{escape(exhibit.command)}</code></pre>\n"
    pictures = [p for p in owned if p.suffix == ".png"]
    try:
        text = source.read_text("utf-8-sig") if source in owned else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: expected UTF-8, found {error.reason}") from None
    title, tokens, caption = exhibit.title, md.parse(text, env), []
    if not tokens:
        # Pictures that no text vouches for may be of any run.
        left = f" Pictures without {source.name} are not shown." if pictures else ""
        body += f'<p class="gap">Not run. This command makes it.{escape(left)}</p>\n{command}'
        return Section(exhibit.name, title, NOT_RUN, body)

    if tokens[0].tag == "h1":
        title, tokens = tokens[1].content, tokens[3:]
    gaps = _mark(tokens)
    if tokens and tokens[-1].type == "paragraph_close":
        tokens, caption = tokens[:-3], tokens[-3:]
        caption[0].attrJoin("class", "caption")
    body += md.renderer.render(tokens, md.options, env)
    if gaps:
        body += f'<p class="gap">Parts have not run. This command makes them.</p>\n{command}'
    body += "".join(_picture(p, exhibit.name, title) for p in pictures)
    body += md.renderer.render(caption, md.options, env)
    for p in (p for p in owned if p.suffix == ".csv"):
        link = f'<a download="{escape(p.name)}" href="{_data(p, "text/csv")}">{escape(p.name)}</a>'
        body += f'<p class="download">{link}</p>\n'
    return Section(exhibit.name, title, GAPS if gaps else COMPLETE, body)


_STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #22252a; --soft: #666c75;
  --line: #dcdcd6; --link: #2a5f93; --good: #33703f; --gap: #8f4a00; --wash: #fdf1dd }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #dfe1e4; --soft: #9a9fa8; --line: #34373c; --link: #8fbbe6;
    --good: #86c793; --gap: #f0b768; --wash: #35290f } }
* { box-sizing: border-box }
body { margin: auto; padding: 2.5rem 1.25rem; max-width: 60rem; overflow-wrap: break-word;
  background: var(--paper); color: var(--ink); font: 1rem/1.6 system-ui, sans-serif }
h1, h2, h3 { margin: 0 0 .4rem; line-height: 1.25; font-weight: 600; text-wrap: balance }
p, pre, figure, .scroll { margin: 0 0 1rem } a { color: var(--link) }
section { margin-top: 2.5rem; padding-top: 2rem; border-top: 1px solid var(--line) }
.about, .caption, header p, figcaption { max-width: 46rem; color: var(--soft) }
.caption, .download, .state, figcaption { font-size: .85rem }
ul.overview { margin: 1.5rem 0 0; padding: 0; list-style: none }
.overview li { display: flex; justify-content: space-between; align-items: baseline; gap: 1rem;
  padding: .35rem 0; border-top: 1px solid var(--line) }
.state { flex: none; color: var(--good) } .gap, .with-gaps, .not-run { color: var(--gap) }
p.gap { padding: .4rem .75rem; border-left: 3px solid; background: var(--wash) }
td.gap { font-style: italic; background: var(--wash) } .scroll, pre { overflow-x: auto }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .6rem; line-height: 1.4; text-align: left;
  border-bottom: 1px solid var(--line) }
th { vertical-align: bottom; font-weight: 600; border-color: var(--soft) }
td:first-child:not(.number) { min-width: 9rem }
tr > :first-child { padding-left: 0 } tr > :last-child { padding-right: 0 }
.number { text-align: right } td.number { white-space: nowrap }
code { font: .92em ui-monospace, Menlo, Consolas, monospace }
pre { padding: .6rem .75rem; border: 1px solid var(--line); border-radius: 4px }
img { display: block; max-width: 100%; background: #fff; border-radius: 4px }
@media print { body { max-width: none; padding: 0; background: none; font-size: 10pt }
  table { font-size: 8pt } h2, .about { break-after: avoid } .caption { break-before: avoid }
  .scroll { overflow: visible } pre, td.number { white-space: pre-wrap } .download { display: none }
  tr, figure { break-inside: avoid } }
"""
# The policy makes a browser hold the page to its word.
_PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>DeepSUM in JAX: experiments</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,"><style>$style</style></head>
<body><header><h1>DeepSUM in JAX: experiments</h1>
<p>$counts. Built $built with deepsum_jax $version.</p>
<ul class="overview">
$overview</ul></header><main>
$sections</main></body></html>
""")


def read(folder: Path, exhibits: Sequence[ExhibitLike]) -> list[Section]:
    """Every exhibit as found in a folder; errors name the file that cannot be read."""
    paths, names = sorted(folder.iterdir()), [e.name for e in exhibits]
    owned = {name: [p for p in paths if _owner(p, names) == name] for name in names}
    return [_section(e, folder / f"{e.name}.md", owned[e.name]) for e in exhibits]


def counts(sections: Sequence[Section]) -> str:
    """How many exhibits there are of every state."""
    states = [s.state for s in sections]
    return ", ".join(f"{states.count(s)} {s}" for s in (COMPLETE, GAPS, NOT_RUN))


def render(sections: Sequence[Section]) -> str:
    """The page of some sections."""
    overview, body = "", ""
    for s in sections:
        anchor, title = escape(s.name), escape(s.title)
        state = f'<span class="state {s.state.replace(" ", "-")}">{s.state}</span>'
        overview += f'<li><a href="#{anchor}">{title}</a> {state}</li>\n'
        body += f'<section id="{anchor}">\n<h2>{title}</h2>\n{s.body}</section>\n'
    built = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return _PAGE.substitute(
        style=_STYLE, counts=counts(sections), built=built, version=package_version(),
        overview=overview, sections=body,
    )  # fmt: skip


def page(folder: Path, exhibits: Sequence[ExhibitLike]) -> str:
    """The whole page, from what lies in a folder."""
    return render(read(folder, exhibits))


def main(argv: Sequence[str] | None = None) -> None:
    p = cli.parser("python -m experiments report", __doc__ or "")
    p.add_argument("--input", required=True, type=Path, metavar="DIR", help="folder of results")
    p.add_argument("--output", type=Path, metavar="FILE", help="default: DIR/report.html")
    args = p.parse_args(argv)
    from experiments.exhibits import EXHIBITS  # here: the list draws in every experiment

    output = args.output or args.input / "report.html"
    sections = read(args.input, EXHIBITS)
    files.check_target(output, "--output")
    with files.written_aside(output) as aside:
        aside.write_text(render(sections), "utf-8")
    print(f"{output}: {counts(sections)}")


if __name__ == "__main__":
    cli.run(main)
