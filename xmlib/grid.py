"""One table in four forms: Markdown, LaTeX, a picture, and plain text for a terminal."""

import os
import textwrap
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from xmlib.looks import INK, SOFT, save, style

NOT_RUN = "not run"  # the first field of a row that has no numbers yet
MARKS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"  # superscripts that are characters; Unicode has no q
TEX = {
    "–": "--", "−": "$-$", "×": r"$\times$", "±": r"$\pm$", "≥": r"$\geq$", "≤": r"$\leq$", "→": r"$\to$",
    "·": r"$\cdot$", "°": r"\textdegree{}", "§": r"\S{}", "†": r"$\dagger$", "₂": "$_2$", "…": r"\dots{}",
    "ρ": r"$\rho$", "“": "``", "”": "''", "’": "'",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
}  # fmt: skip


@dataclass
class Cell:
    """One field. `mark` is its superscript, `fill` a background colour or nothing, `origin` what is known of it."""

    text: str
    bold: bool = False
    grey: bool = False
    mark: str = ""
    fill: str = ""
    origin: dict[str, str] = field(default_factory=dict)


@dataclass
class Grid:
    """A table ready to be drawn. The first column is text and the others are numbers.

    A row of a single cell is a heading. `rules` are the rows that get a line above them.
    """

    header: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    caption: str = ""
    rules: list[int] = field(default_factory=list)

    def save(self, path: Path) -> list[Path]:
        """Write the table beside its CSV file: .md, .tex and .png."""
        return [
            write_text(path.with_suffix(".md"), self.markdown()),
            write_text(path.with_suffix(".tex"), self.latex()),
            save(self.figure(), path.with_suffix(".png")),
        ]

    def lines(self) -> list[list[Cell]]:
        """The rows, with headings filled up to the full width."""
        return [row + [Cell("")] * (len(self.header) - len(row)) for row in self.rows]

    def markdown(self) -> str:
        """Padded, so that it reads well as text too. Grey becomes italic, a heading bold."""

        def text(cell: Cell) -> str:
            words = cell.text.strip()
            around = "*" * (2 * cell.bold + cell.grey) if words.strip("–") else ""
            return f"{around}{words}{around}{cell.mark}"

        lines = [self.header, *([text(cell) for cell in row] for row in self.lines())]
        widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(self.header))]
        lines = _padded(lines, widths)
        rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
        body = "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
        return f"{body}\n\n{self.caption.replace('Grey:', 'Italics:')}\n"

    def text(self) -> str:
        """For a terminal: turned on its side, so that many languages fit, and without the grey rows."""
        rows = [row for row in self.rows if len(row) > 1 and not row[0].grey and row[1].text != NOT_RUN]
        columns = [[name, *(row[i].text.rstrip(f" {MARKS}") for row in rows)] for i, name in enumerate(self.header)]
        widths = [max(len(column[i]) for column in columns) for i in range(len(rows) + 1)]
        body = "\n".join("  ".join(line).rstrip() for line in _padded(columns, widths))
        return f"{body}\n\n{textwrap.fill(self.caption.split(' Bold:')[0], 100)}\n"

    def latex(self) -> str:
        """A booktabs table. The first line names the packages it needs."""

        def text(cell: Cell) -> str:
            out = tex(cell.text.strip())
            out = rf"\textbf{{{out}}}" if cell.bold else out
            out = rf"\textcolor{{gray}}{{{out}}}" if cell.grey and out else out
            out += rf"\textsuperscript{{{tex(cell.mark)}}}" if cell.mark else ""
            return (rf"\cellcolor[HTML]{{{cell.fill[1:]}}}" if cell.fill else "") + out

        lines = [" & ".join(tex(name) for name in self.header) + r" \\", r"\midrule"]
        for number, row in enumerate(self.rows):
            lines += [r"\midrule"] if number in self.rules else []
            heading = len(row) == 1 and len(self.header) > 1
            body = (
                rf"\multicolumn{{{len(self.header)}}}{{l}}{{{text(row[0])}}}" if heading else " & ".join(map(text, row))
            )
            lines.append(body + r" \\")
        table = "\n".join(lines)
        return (
            "% \\usepackage{booktabs} \\usepackage[table]{xcolor} \\usepackage{graphicx}\n"
            "\\begin{table*}\n\\centering\n\\resizebox{\\textwidth}{!}{%\n"
            f"\\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}\n\\toprule\n"
            f"{table}\n\\bottomrule\n\\end{{tabular}}}}\n"
            f"\\caption{{{tex(self.caption)}}}\n\\end{{table*}}\n"
        )

    def figure(self) -> Figure:
        """The table as a picture: three rules, shaded cells, the caption below."""
        line, letter, gap, note = 0.25, 0.079, 0.2, 0.17  # inches: a row, a character, between columns, a caption line
        texts = [[Cell(name) for name in self.header], *self.lines()]
        room = 0.6 * letter * max(len(cell.mark) for row in texts for cell in row[1:])  # for superscripts, to the right
        widths = [
            gap + (room if i else 0) + letter * max(len(row[i].text) for row in texts[:1] + self.rows if len(row) > 1)
            for i in range(len(texts[0]))
        ]
        rights = np.cumsum(widths)
        width = max(rights[-1], 4.5)
        caption = textwrap.wrap(self.caption, int(width / 0.059))
        height = line * len(texts) + note * len(caption) + 0.3
        with style():
            fig = Figure(figsize=(width + 0.2, height))
            ax = fig.add_axes((0, 0, 1, 1), xlim=(-0.1, width + 0.1), ylim=(0.1 - height, 0.1))
            ax.axis("off")
            for number, row in enumerate(texts):
                y = -line * (number + 0.5)
                for i, cell in enumerate(row):
                    if cell.fill:
                        shade = dict(color=cell.fill, alpha=0.45 if cell.grey else 1.0, lw=0)
                        ax.fill_between((rights[i] - widths[i], rights[i]), y - line / 2, y + line / 2, **shade)
                    look = dict(va="center_baseline", color=SOFT if cell.grey or number == 0 else INK)
                    x = rights[i] - gap / 2 - room if i else 0.04
                    weight = "bold" if cell.bold else "normal"
                    ax.text(x, y, cell.text, ha="right" if i else "left", weight=weight, **look)
                    ax.text(x + 0.01, y, cell.mark, ha="left", fontsize=8, **look)
            rules = [(0, 1.2), (1, 0.6), (len(texts), 1.2), *((rule + 1, 0.4) for rule in self.rules)]
            for number, weight in rules:
                ax.plot((0, rights[-1]), [-line * number] * 2, color=INK, lw=weight)
            for number, words in enumerate(caption):
                ax.text(0.04, -line * len(texts) - note * (number + 0.85), words, fontsize=7.5, color=SOFT, va="center")
        return fig


def tex(text: str) -> str:
    """Text for LaTeX: special characters escaped, superscript letters as letters."""
    letters = {mark: unicodedata.normalize("NFKD", mark) for mark in MARKS}
    special = {char: f"\\{char}" for char in "&%$#_{}"} | {char: f"${char}$" for char in "<>"}
    return "".join((letters | special | TEX).get(char, char) for char in text)


def write_text(path: Path, text: str) -> Path:
    beside = path.with_name(f".{path.name}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
    return path


def _padded(lines: list[list[str]], widths: list[int]) -> list[list[str]]:
    """The first column to the left, the others to the right."""
    return [
        [
            words.rjust(width) if i else words.ljust(width)
            for i, (words, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
