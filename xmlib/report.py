"""All tables and figures of a profile on one page, `figures/<profile>/report.html`, that needs nothing but a browser.

    report.write("demo", sections)      # sections: (title, text, stems of tables and figures)

Tables are drawn from their CSV files, as grids; figures are put in as SVG. A number tells where it is from when it is
pointed at, clicked or reached with the keyboard; without JavaScript the same stands in its tooltip. No font, script or
picture is fetched from elsewhere, and the page follows the reader's choice of light or dark.
"""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from xmlib import reporting, stages
from xmlib.grid import NOT_RUN, Cell, Grid, write_text
from xmlib.languages import LANGUAGES
from xmlib.looks import SEEN, UNSEEN, banner
from xmlib.reported import audit


def write(profile: str, sections: Sequence[tuple[str, str, Sequence[str]]]) -> Path:
    """The page. A stem without a CSV file is passed over; a section with none of its files says that it was not run."""
    folder, origins = reporting.FIGURES / profile, Origins()
    parts = [_section(number, folder, origins, *section) for number, section in enumerate(sections, 1)]
    parts.append(_audit(len(sections) + 1))
    titles = [title for title, _, _ in sections] + ["Does the paper add up?"]
    contents = "".join(
        f'<li><a href="#s{number}">{html.escape(title)}</a></li>' for number, title in enumerate(titles, 1)
    )
    warning = (
        "<p class=warning><b>Demo numbers.</b> Small models, trained in minutes on a generated collection. They show "
        "that everything runs; they say nothing about the published models.</p>"
        if banner(profile)
        else ""
    )
    page = PAGE.format(
        style=STYLE.replace("UNSEEN_FILL", UNSEEN).replace("SEEN_FILL", SEEN),
        profile=html.escape(profile),
        commit=stages.commit(),
        warning=warning,
        contents=contents,
        body="\n".join(parts),
        origins=json.dumps(origins.texts, ensure_ascii=False).replace("</", "<\\/"),
        script=SCRIPT,
    )
    return write_text(folder / "report.html", page)


class Origins:
    """The provenance of all numbers of a page, each different one once: a number refers to it by its place."""

    def __init__(self):
        self.texts: list[dict[str, str]] = []
        self._places: dict[str, int] = {}

    def place(self, origin: dict[str, str]) -> int:
        key = json.dumps(origin)
        if key not in self._places:
            self._places[key] = len(self.texts)
            self.texts.append(origin)
        return self._places[key]


def table(grid: Grid, origins: Origins) -> str:
    """A grid as an HTML table. Headings span it; the paper's rows, or columns, can be told by their class."""
    sides = _sides(grid)
    head = "".join(
        f"<th scope=col{_language(name)}{f' class={side}' if side else ''}>{html.escape(name)}</th>"
        for name, side in zip(grid.header, sides, strict=True)
    )
    rows = []
    for number, row in enumerate(grid.rows):
        if len(row) == 1:
            rows.append(
                f"<tr class=heading><th colspan={len(grid.header)} scope=rowgroup>{html.escape(row[0].text)}</th></tr>"
            )
            continue
        kind = "paper" if row[0].grey else "missing" if row[1].text == NOT_RUN else "ours"
        kind = "both" if any(sides) else kind  # the choice of sides then hides cells, not rows
        kind += " ruled" if number in grid.rules else ""
        if kind == "missing":
            cells = f"<td colspan={len(row) - 1}>{NOT_RUN}</td>"
        else:
            cells = "".join(_cell(cell, origins, side) for cell, side in zip(row[1:], sides[1:], strict=True))
        rows.append(f'<tr class="{kind}"><th scope=row>{html.escape(row[0].text.strip())}</th>{cells}</tr>')
    caption = html.escape(grid.caption)
    return (
        f"<figure class=table><div class=scroll tabindex=0><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div><figcaption>{caption}</figcaption></figure>"
    )


def _sides(grid: Grid) -> list[str]:
    """Whose each column is, ours or the paper's, where a table keeps them apart by columns; else nothing."""
    if not any(name.startswith("paper ") for name in grid.header):
        return [""] * len(grid.header)
    return ["", *("paper" if name.startswith("paper ") else "ours" for name in grid.header[1:])]


def _cell(cell: Cell, origins: Origins, side: str = "") -> str:
    named = (("best", cell.bold), ("seen", cell.fill == SEEN), ("unseen", cell.fill == UNSEEN), (side, side))
    kinds = [name for name, on in named if on]
    attributes = f' class="{" ".join(kinds)}"' if kinds else ""
    if cell.origin:
        words = "\n".join(f"{name}: {value}" for name, value in cell.origin.items())
        attributes += f' data-o={origins.place(cell.origin)} tabindex=0 title="{html.escape(words)}"'
    mark = f"<sup>{html.escape(cell.mark)}</sup>" if cell.mark else ""
    return f"<td{attributes}>{html.escape(cell.text)}{mark}</td>"


def _language(code: str) -> str:
    return f' title="{LANGUAGES[code].name}"' if code in LANGUAGES else ""


def _section(number: int, folder: Path, origins: Origins, title: str, text: str, stems: Sequence[str]) -> str:
    shown = [_shown(folder / f"{stem}.csv", origins) for stem in stems if (folder / f"{stem}.csv").exists()]
    body = "".join(shown) or f"<p class=missing>{NOT_RUN} in this profile</p>"
    return f"<section id=s{number}><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{body}</section>"


def _shown(path: Path, origins: Origins) -> str:
    if path.stem.startswith("tab"):
        return table(reporting.grid_of(path), origins)
    svg = path.with_suffix(".svg").read_text(encoding="utf-8")
    svg = re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)  # no XML header inside of HTML
    ids = set(re.findall(r'\bid="([^"]+)"', svg))  # several pictures on one page must not share names
    for name in sorted(ids, key=len, reverse=True):
        svg = svg.replace(f'"{name}"', f'"{path.stem}-{name}"').replace(f'"#{name}"', f'"#{path.stem}-{name}"')
        svg = svg.replace(f"url(#{name})", f"url(#{path.stem}-{name})")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{path.stem}" ', 1)
    return f"<figure class=picture>{svg}<figcaption>{path.stem}: the numbers are in {path.name}</figcaption></figure>"


def _audit(number: int) -> str:
    checked, wrong = audit.checks(), audit.mismatches()
    texts = (
        f"{len(checked)} printed averages, products and ratios were computed again; these {len(wrong)} do not agree."
    )
    frames = [pd.DataFrame(wrong), pd.DataFrame(audit.differences())]
    tables = [_words(frame) for frame in frames]
    return (
        f"<section id=s{number}><h2>Does the paper add up?</h2><p>{texts}</p>{tables[0]}"
        "<p>And this the paper states otherwise than the code, the data or the checkpoints released with it.</p>"
        f"{tables[1]}</section>"
    )


def _words(frame: pd.DataFrame) -> str:
    """A table of words, which may break into lines."""
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in frame.columns)
    rows = ["".join(f"<td>{html.escape(_text(value))}</td>" for value in row) for row in frame.itertuples(index=False)]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f"<table class=words><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class=scroll tabindex=0>{table}</div>"


def _text(value: object) -> str:
    """A recomputed number has as many digits as it needs, and at most four behind the point."""
    return value if isinstance(value, str) else f"{round(value, 4).normalize():f}"


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ColBERT-XM, {profile}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>ColBERT-XM, table by table</h1>
<p class=lead>What the paper prints (Louis et al., 2024, arXiv 2402.15059), and what this repository measures.
The two never share a row, or, where they stand side by side, a column. Point at a number, or select it with the
keyboard, to see where it came from.</p>
{warning}
<p class=legend><span class=seen>seen in training</span> <span class=unseen>zero-shot</span> <b>best</b>
<span class=grey>printed in the paper</span> <span>ᵃ better than system a, p &lt; 0.05</span></p>
<p class=choice role=group aria-label="Rows to show">Show
<label><input type=radio name=rows value=both checked> both</label>
<label><input type=radio name=rows value=ours> ours</label>
<label><input type=radio name=rows value=paper> the paper's</label></p>
<nav><ol>{contents}</ol></nav>
</header>
<main>
{body}
</main>
<footer>Profile {profile} · commit {commit} · drawn by 10_paper from the CSV files in this folder.</footer>
<aside id=origin aria-live=polite hidden></aside>
<script type="application/json" id=origins>{origins}</script>
<script>{script}</script>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#fff, #16181b); --ink: light-dark(#1d1f22, #e8e6e3);
  --soft: light-dark(#6a6d72, #a3a6ab); --line: light-dark(#dcdee1, #34383d); --card: light-dark(#f6f7f8, #1f2226);
  --seen: light-dark(SEEN_FILL, #5d3a1c); --unseen: light-dark(UNSEEN_FILL, #1d3c55);
  --accent: light-dark(#a84600, #ff9a57) }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3.5rem) 9rem; max-width: 96rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
h1 { font-size: 2.1rem; line-height: 1.15; margin: 0 0 .6rem; letter-spacing: -.015em }
h2 { font-size: 1.35rem; margin: 3.2rem 0 .4rem; letter-spacing: -.01em }
p { max-width: 46rem; margin: .5rem 0 1rem } .lead { font-size: 1.1rem; color: var(--soft) }
a { color: var(--accent); text-underline-offset: .15em }
nav ol { columns: 3 15rem; padding-left: 1.4rem; margin: 1.2rem 0 0 } nav li { margin: .15rem 0; break-inside: avoid }
.warning { border-left: 4px solid var(--accent); background: var(--card); padding: .7rem 1rem }
.legend { display: flex; flex-wrap: wrap; gap: .4rem 1.1rem; font-size: .9rem } .legend .seen, .legend .unseen
{ padding: 0 .55rem; border-radius: 3px } .grey { color: var(--soft) }
.choice label { margin-left: .7rem; cursor: pointer }
.scroll { overflow-x: auto; border-radius: 4px }
.scroll:focus-visible, td:focus-visible { outline: 2px solid var(--accent) }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums;
  border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink) }
thead th { font-weight: 500; color: var(--soft); border-bottom: 1px solid var(--ink); text-align: right }
th, td { padding: .28rem .55rem; white-space: nowrap } td { text-align: right }
th[scope=row], thead th:first-child { text-align: left; font-weight: 500; position: sticky; left: 0; z-index: 1;
  background: var(--paper) }
.heading th { text-align: left; padding-top: .85rem; font-weight: 650 }
.heading + tr > *, tr.ours > *, .both > *, .missing > * { border-top: 1px solid var(--line) }
.paper > *, td.paper, th.paper { color: var(--soft) } .paper th[scope=row] { padding-left: 1.5rem; font-weight: 400 }
.missing td { text-align: left; color: var(--soft); font-style: italic }
p.missing { color: var(--soft); font-style: italic }
.best { font-weight: 750 } .seen { background: var(--seen) } .unseen { background: var(--unseen) }
sup { font-size: .95em; line-height: 0; vertical-align: baseline; color: var(--accent) }
td[data-o] { cursor: help } td[data-o]:hover { box-shadow: inset 0 0 0 2px var(--accent) }
td.pinned { box-shadow: inset 0 0 0 2px var(--accent) }
figure { margin: 1.2rem 0 2rem }
figcaption { font-size: .82rem; color: var(--soft); max-width: 62rem; margin-top: .55rem }
.picture svg { width: min(100%, 58rem); height: auto; background: #fff; border-radius: 6px; padding: .6rem }
.words td, .words th { white-space: normal; text-align: left; vertical-align: top; min-width: 5.5rem }
.words tr + tr td { border-top: 1px solid var(--line) } .words thead th { position: static }
body:has([value=ours]:checked) .paper, body:has([value=paper]:checked) :is(.ours, tr.missing) { display: none }
#origin { position: fixed; right: 1rem; bottom: 1rem; width: min(27rem, calc(100vw - 2rem)); background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; box-shadow: 0 6px 28px #0003;
  padding: .8rem 1rem; font-size: .86rem; z-index: 5 }
#origin dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem .9rem; margin: 0 }
#origin dt { color: var(--soft) } #origin dd { margin: 0; overflow-wrap: anywhere }
#origin dd.value { font-weight: 700 }
#origin small { color: var(--soft); display: block; margin-top: .5rem }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .85rem }
@media print { .choice, nav, #origin { display: none } table { font-size: .6rem } }
"""

SCRIPT = """
const origins = JSON.parse(document.getElementById("origins").textContent), box = document.getElementById("origin");
let pinned = null;
function show(cell) {
  const list = document.createElement("dl");
  for (const [name, value] of Object.entries(origins[cell.dataset.o])) {
    const term = document.createElement("dt"), words = document.createElement("dd");
    term.textContent = name; words.textContent = value; words.className = name;
    list.append(term, words);
  }
  const hint = document.createElement("small");
  hint.textContent = pinned ? "click again, or press Escape, to let go" : "click to keep";
  box.replaceChildren(list, hint); box.hidden = false;
}
function pin(cell) {
  if (pinned) pinned.classList.remove("pinned");
  pinned = cell === pinned ? null : cell;
  if (pinned) { pinned.classList.add("pinned"); show(pinned); } else box.hidden = true;
}
for (const cell of document.querySelectorAll("td[data-o]")) {
  cell.removeAttribute("title");
  cell.addEventListener("mouseenter", () => pinned || show(cell));
  cell.addEventListener("focus", () => pinned || show(cell));
  cell.addEventListener("mouseleave", () => pinned || (box.hidden = true));
  cell.addEventListener("blur", () => pinned || (box.hidden = true));
  cell.addEventListener("click", () => pin(cell));
  cell.addEventListener("keydown", event => { if (event.key === "Enter") pin(cell); });
}
addEventListener("keydown", event => { if (event.key === "Escape" && pinned) pin(pinned); });
"""
