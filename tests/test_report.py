"""The report: one page that loads nothing, and says what is missing."""

from __future__ import annotations

import base64
import dataclasses
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import contents, refuser
from PIL import Image

from experiments import report

VOID = {"meta", "link", "img", "br", "hr"}
CAPTION = "`python -m experiments.any`; date 2026-01-01, commit abc, seeds 0."
CSV = b"system,cpsnr\r\n\xc2\xb5,40.5\r\n# said here\n"


@dataclasses.dataclass(frozen=True)
class Exhibit:
    name: str
    title: str = "A title"
    about: str = "What is asked?"
    command: str = "python -m experiments.any --workdir DIR"


class Page(HTMLParser):
    """A page as its parts; asserts that every tag is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []  # "tag.class", what it holds
        self.feed(text)
        self.close()
        assert text.startswith("<!DOCTYPE html>") and not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.append((f"{tag}.{attributes.get('class', '')}", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.texts and self.texts[-1][1] == "":
            self.texts[-1] = (self.texts[-1][0], data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def held(self, where: str) -> list[str]:
        return [text for name, text in self.texts if name == where]


def picture(path: Path, colour: int) -> bytes:
    Image.new("L", (2, 2), colour).save(path)
    return path.read_bytes()


def write(folder: Path, name: str, body: str, title: str = "Found") -> None:
    (folder / f"{name}.md").write_text(f"# {title}\n\n{body}\n\n{CAPTION}\n", "utf-8")


def table(*rows: str) -> str:
    return "\n".join(["| system | dB | on |", "|---|---|---|", *rows])


def states(folder: Path, *exhibits: Exhibit) -> list[str]:
    return [section.state for section in report.read(folder, exhibits)]


def body(folder: Path, *exhibits: Exhibit) -> str:
    """What the first exhibit reads."""
    return report.read(folder, exhibits)[0].body


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder where `full` is complete, `holes` has gaps, and `never` has not run."""
    folder = tmp_path / "results"
    folder.mkdir()
    write(folder, "full", table("| A | 40.5 | 3 of 4 |", "| B | 1,000 | – |"), "All & <more>")
    picture(folder / "full.png", 1)
    picture(folder / "full_RED.png", 3)
    picture(folder / "full_NIR.png", 2)
    (folder / "full.csv").write_bytes(CSV)
    write(folder, "holes", table("| A | 40.5 | |", "| B | not run | |"))
    return folder


EXHIBITS = (Exhibit("full"), Exhibit("holes"), Exhibit("never", "Never & <none>"))


def test_page_is_valid_and_loads_nothing(results: Path) -> None:
    write(results, "holes", '[a](https://a.org/?x&y "t") ![b](b.png) <https://c.org>\n\n---\n')
    text = report.page(results, EXHIBITS)
    page = Page(text)
    assert page.all("html") == [{"lang": "en"}] and page.held("title.")
    assert {m.get("name") for m in page.all("meta")} >= {"viewport"}
    addresses = [a[k] for _, a in page.tags for k in ("src", "href", "srcset", "action") if k in a]
    assert len(addresses) == 8  # icon, three anchors, three pictures, one file of data
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\(|@import", text)
    assert "default-src 'none'" in text
    # What a link says stays to be read.
    assert "a (https://a.org/?x&amp;y) !b (b.png) &lt;https://c.org&gt;" in text


def test_overview(results: Path) -> None:
    page = Page(report.page(results, EXHIBITS))
    anchors = [a["href"] for a in page.all("a") if "download" not in a]
    assert anchors == ["#full", "#holes", "#never"]
    assert [s["id"] for s in page.all("section")] == ["full", "holes", "never"]
    assert page.held("h2.") == ["All & <more>", "Found", "Never & <none>"]
    shown = [(where, text) for where, text in page.texts if where.startswith("span.state")]
    assert shown == [
        ("span.state complete", "complete"),
        ("span.state with-gaps", "with gaps"),
        ("span.state not-run", "not run"),
    ]
    assert re.search(r"1 complete, 1 with gaps, 1 not run. Built \d{4}-", page.held("p.")[0])
    assert report.package_version() in page.held("p.")[0]


def test_gaps_are_said(results: Path) -> None:
    full, holes, never = report.read(results, EXHIBITS)
    assert "gap" not in full.body and EXHIBITS[0].command not in full.body
    assert '<td class="gap number">not run</td>' in holes.body
    assert "have not run" in holes.body and EXHIBITS[1].command in holes.body
    assert "Not run." in never.body and EXHIBITS[2].command in never.body


@pytest.mark.parametrize(
    "text, gap",
    [
        ("| A | *Not run* | |", True),
        ("| A | not run (1 of 3 seeds) | |", True),
        ("| A | | |\n\nnot run", True),
        ("| A | did not run | |", False),
        ("| not runnable | | |", False),
    ],
)
def test_what_is_a_gap(tmp_path: Path, text: str, gap: bool) -> None:
    write(tmp_path, "a", table(text))
    assert states(tmp_path, Exhibit("a")) == ["with gaps" if gap else "complete"]


@pytest.mark.parametrize("nothing", [" \n", "[a]: b\n"])
def test_pictures_without_text_are_not_shown(tmp_path: Path, nothing: str) -> None:
    """Nothing tells of which run they are."""
    picture(tmp_path / "a.png", 1)
    (tmp_path / "a.md").write_text(nothing)
    text = body(tmp_path, Exhibit("a"))
    assert states(tmp_path, Exhibit("a")) == ["not run"]
    assert "<img" not in text and "without a.md are not shown" in text
    assert "not shown" not in body(tmp_path, Exhibit("b"))


def test_every_file_has_one_owner(tmp_path: Path) -> None:
    """The longest name counts, and a name ends at a file's end or at an underscore."""
    exhibits = [Exhibit(name) for name in ("curve", "curve_test", "table1", "table10")]
    owners = {"curve.png": 0, "curve_test.png": 1, "curve_test_2.png": 1, "curve_testing.png": 0,
              "table1.png": 2, "table10.png": 3, "table1_B.png": 2}  # fmt: skip
    expected: list[list[bytes]] = [[], [], [], []]
    for colour, (name, owner) in enumerate(sorted(owners.items())):
        expected[owner].append(picture(tmp_path / name, colour))
    picture(tmp_path / "table.png", 100)  # nobody's
    picture(tmp_path / "table100.png", 101)
    for exhibit in exhibits:
        write(tmp_path, exhibit.name, "text")
    for section, pictures in zip(report.read(tmp_path, exhibits), expected):
        found = re.findall(r'src="data:image/png;base64,([^"]*)"', section.body)
        assert [base64.b64decode(data) for data in found] == pictures


def test_pictures_tell_what_they_are(results: Path) -> None:
    page = Page(report.page(results, EXHIBITS))
    titles = ["All & <more>", "All & <more>: NIR", "All & <more>: RED"]
    assert [image["alt"] for image in page.all("img")] == titles
    assert page.held("figcaption.") == ["NIR", "RED"]


def test_data_come_back_whole(results: Path) -> None:
    page = Page(report.page(results, EXHIBITS))
    (link,) = (a for a in page.all("a") if "download" in a)
    kind, data = link["href"].split(",")
    assert link["download"] == "full.csv" and kind == "data:text/csv;base64"
    assert base64.b64decode(data) == CSV


def test_html_is_escaped(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    write(
        tmp_path, "a", f"{table(f'| {attack} | 1 | 2 |')}\n\n{attack}\n\n[x](javascript:y)", attack
    )
    picture(tmp_path / 'a_"><script>.png', 1)
    exhibits = [Exhibit("a", attack, attack), Exhibit("b", attack, attack, attack)]
    page = Page(report.page(tmp_path, exhibits))
    assert not page.all("script")
    assert attack in page.held("h2.") and attack in page.held("td.") and attack in page.held("p.")
    assert page.held("code.")[-1] == attack


def test_layout_of_a_text(tmp_path: Path) -> None:
    """Quantities stand right, names left; tables scroll; the caption comes after the picture."""
    rows = ["| A | -0.1 (-0.5 to +0.3) | 3×3 median |", "| B | not run | 5 |", "| C | – | |"]
    write(tmp_path, "a", f"{table(*rows)}\n\n## More\n\n# Most\n\ntext")
    picture(tmp_path / "a.png", 1)
    text = body(tmp_path, Exhibit("a"))
    assert re.findall(r"<th( class=\"number\")?>", text) == ["", ' class="number"', ""]
    assert len(re.findall(r"<td class=\"(gap )?number", text)) == 3
    assert re.search(r'<div class="scroll"[^>]*><table>', text) and "</table></div>" in text
    assert "<h3>More</h3>" in text and "<h3>Most</h3>" in text and "<h1" not in text
    assert text.index("<p>text") < text.index("<img") < text.index('<p class="caption"><code>')


def test_a_text_may_have_no_title_or_caption(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("\ufeff" + table("| A | 1 | |"), "utf-8")
    (section,) = report.read(tmp_path, [Exhibit("a")])
    assert section.title == "A title" and "caption" not in section.body
    write(tmp_path, "a", "")
    assert body(tmp_path, Exhibit("a")).count("<p class") == 2


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with this file's exhibits."""
    monkeypatch.setitem(sys.modules, "experiments.exhibits", SimpleNamespace(EXHIBITS=EXHIBITS))


@pytest.mark.usefixtures("listed")
def test_command(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(results)
    report.main(["--input", str(results)])
    output = results / "report.html"
    expected = f"{output}: 1 complete, 1 with gaps, 1 not run\n"
    assert capsys.readouterr().out == expected
    assert {**contents(results), "report.html": ""} == {**before, "report.html": ""}
    first = Page(output.read_text("utf-8"))
    report.main(["--input", str(results)])  # its own page is not an exhibit
    assert capsys.readouterr().out == expected
    assert len(Page(output.read_text("utf-8")).tags) == len(first.tags)


@pytest.mark.usefixtures("listed")
def test_an_empty_folder_is_all_gaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    report.main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "new" / "page.html")])
    assert "0 complete, 0 with gaps, 3 not run" in capsys.readouterr().out
    assert Page((tmp_path / "new" / "page.html").read_text("utf-8")).all("section")
    assert not contents(tmp_path / "in")


@pytest.mark.usefixtures("listed")
def test_refusals(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the culprit, and nothing is written or lost."""
    refused = refuser(capsys)
    (results / "report.html").write_text("older")

    def refuse(culprit: str, *arguments: object) -> None:
        before = contents(results)
        assert culprit in refused(report.main, *arguments)
        assert contents(results) == before

    refuse("missing: No such file", "--input", results / "missing")
    refuse("full.md: Not a directory", "--input", results / "full.md")
    refuse("--output", "--input", results, "--output", results)
    (results / "full.png").write_bytes(b"GIF89a")
    refuse("full.png: expected a PNG", "--input", results)
    (results / "full.md").write_bytes(b"# \xb5")
    refuse("full.md: expected UTF-8", "--input", results)
    (results / "full.md").unlink()
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "markdown_it", None)
        refuse("pip install 'deepsum_jax[report]'", "--input", results)
    with monkeypatch.context() as m:
        # A lone surrogate cannot be written, which shows when the file is already open.
        m.setattr(report, "render", lambda _: "half" + "\ud800")
        refuse("surrogates", "--input", results)
