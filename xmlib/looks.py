"""How tables and figures look: colours, fonts, how numbers are written, and files that come out the same every time.

A system has the same colour, marker and place everywhere; languages keep the order of the paper's tables.
"""

import functools
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# System → colour and marker, in the order of every table and legend. The colours are those of Okabe and Ito, made to be
# told apart by people who see colours differently; related systems share a hue.
SYSTEMS = {
    "BM25": ("#6E6E6E", "X"),
    "mT5-base": ("#CC79A7", "v"),
    "mMiniLM-L6": ("#A35083", "<"),
    "mono-XM": ("#6B2C58", ">"),
    "DPR-X": ("#56B4E9", "p"),
    "mE5-base": ("#009E73", "P"),
    "DPR-XM": ("#0072B2", "s"),
    "mColBERT": ("#E69F00", "D"),
    "ColBERT-XM with English adapters": ("#F0A27A", "^"),
    "ColBERT-XM": ("#D55E00", "o"),
}
FAMILIES = {
    "Lexical systems": ("BM25",),
    "Cross-encoders": ("mT5-base", "mMiniLM-L6", "mono-XM"),
    "Single-vector bi-encoders": ("DPR-X", "mE5-base", "DPR-XM"),
    "Multi-vector bi-encoders": ("mColBERT", "ColBERT-XM with English adapters", "ColBERT-XM"),
}
METRICS = {"mrr": "MRR", "recall": "R", "ndcg": "nDCG"}
INK, SOFT, FAINT = "#222222", "#7A7A7A", "#D9D9D9"
SEEN, UNSEEN = "#FBE3CF", "#DCEBF7"  # languages met in training, and zero-shot ones: orange and blue, as in the paper


def in_order(names: Sequence[str], order: Sequence[str]) -> list[str]:
    """The different names, those of `order` first and in its order, others as they come."""
    there = list(dict.fromkeys(names))
    return [name for name in order if name in there] + [name for name in there if name not in order]


def family(system: str) -> str:
    """The heading that a system stands under in Table 1."""
    return next((name for name, systems in FAMILIES.items() if system in systems), "Other systems")


def colour(system: str) -> str:
    return SYSTEMS.get(system, (INK, "o"))[0]


def mark(system: str, size: float) -> dict:
    """How a system's dot is drawn; a white edge keeps dots apart that touch."""
    fill, shape = SYSTEMS.get(system, (INK, "o"))
    return dict(color=fill, marker=shape, ms=size, mec="white", mew=0.7, ls="none", zorder=3)


def style():
    """The context in which everything is drawn and saved."""
    return matplotlib.rc_context(
        {
            "font.family": _families(),
            "font.size": 9,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.labelsize": 8.5,
            "axes.titlesize": 9.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.edgecolor": SOFT,
            "axes.linewidth": 0.7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.color": INK,
            "ytick.color": INK,
            "xtick.major.size": 0,
            "ytick.major.size": 3,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8,
            "figure.titlesize": 9.5,
            "figure.titleweight": "bold",
            "legend.frameon": False,
            "legend.fontsize": 8,
            "legend.handletextpad": 0.3,
            "legend.columnspacing": 1.2,
            "figure.facecolor": "white",
            "savefig.dpi": 200,
            "svg.hashsalt": "xmlib",
            "svg.fonttype": "path",
        }
    )


def score(value: float) -> str:
    """0.372 → "37.2"; a dash where there is none."""
    return "–" if np.isnan(value) else f"{100 * value:.1f}"


def metric_name(metric: str) -> str:
    name, _, cut = metric.partition("@")
    return f"{METRICS[name]}@{cut}"


def digits(value: float) -> str:
    """Three significant digits, or all that stand before the point: 7.5, 230.4 → 230, 0.000123."""
    if np.isnan(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else np.format_float_positional(value, 4, fractional=False, trim="-")


def millions(value: float, tenths: bool = True) -> str:
    """6.4 → "6.4M", 0.0064 → "6.4k", 0.000064 → "64"; without tenths 86 → "86M"."""
    if value < 0.0005:
        return f"{1e6 * value:.0f}"
    if value < 1:
        return f"{1000 * value:.1f}k"
    return f"{value:.1f}M" if tenths or value < 10 else f"{value:.0f}M"


def size(count: float) -> str:
    """Bytes, in thousands as on a disk: 28e9 → "28 GB", 1.2e9 → "1.2 GB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000


def duration(hours: float) -> str:
    for unit, seconds in (("h", 3600), ("min", 60)):
        if hours * 3600 >= seconds:
            return f"{digits(hours * 3600 / seconds)} {unit}"
    return f"{digits(hours * 3600)} s"


def energy(kwh: float) -> str:
    return f"{digits(kwh)} kWh" if kwh >= 0.1 else f"{digits(1000 * kwh)} Wh"


def counts(values) -> str:
    """ "200", or "200 to 916" where they differ."""
    least, most = int(min(values)), int(max(values))
    return f"{least}" if least == most else f"{least} to {most}"


def banner(profile: str) -> str:
    """What a caption begins with where numbers only show that everything runs: nobody shall quote a demo."""
    return f"{profile.upper()}. " if profile in ("smoke", "demo") else ""


def figure(width: float, height: float):
    """A figure with one pair of axes, in inches. Not through pyplot: nothing is left open, no window is needed."""
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.add_subplot()


def footnote(fig: Figure, text: str) -> None:
    fig.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color=SOFT, linespacing=1.4)


def save_pair(fig: Figure, path: Path) -> list[Path]:
    """Save as .svg and .png beside the CSV file `path`."""
    return [save(fig, path.with_suffix(suffix)) for suffix in (".svg", ".png")]


def save(fig: Figure, path: Path) -> Path:
    """Save a figure; the suffix names the format. No date and no version goes into the file."""
    beside, kind = path.with_name(f".{path.name}"), path.suffix[1:]
    with style():
        fig.savefig(beside, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    os.replace(beside, path)
    return path


def readable(text: str) -> str:
    """The text, with what no installed font can draw spelt in Latin letters: भारत → bhaarata, 中 → ⟨4E2D⟩.

    The spelling follows the characters' Unicode names. It is meant for recognising a token, not for reading aloud.
    """
    spelt = ""
    for char in text:
        name, kind = unicodedata.name(char, "?"), unicodedata.category(char)
        last = name.split()[-1].lower()
        if char in _drawable():
            spelt += char
        elif "VOWEL SIGN" in name:  # takes the place of the vowel that Indic consonants carry
            spelt = spelt.removesuffix("a") + last
        elif last == "virama":
            spelt = spelt.removesuffix("a")
        elif last in ("anusvara", "candrabindu"):
            spelt += "m"
        elif kind == "Nd":
            spelt += str(unicodedata.digit(char))
        elif kind[0] in "PZS":
            spelt += unicodedata.normalize("NFKC", char) if unicodedata.normalize("NFKC", char).isascii() else "."
        elif kind[0] in "MC":
            continue
        elif name.startswith(("HANGUL SYLLABLE", "HIRAGANA LETTER", "KATAKANA LETTER")) or " LETTER " in name:
            spelt += last
        else:
            spelt += f"⟨{ord(char):04X}⟩"
    return spelt


@functools.cache
def _families() -> list[str]:
    """DejaVu Sans, which comes with matplotlib, then whatever is installed for other scripts."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    others = ("Noto Sans", "Arial Unicode MS", "Hiragino Sans", "Malgun Gothic", "Nirmala UI", "WenQuanYi")
    return ["DejaVu Sans", *sorted(name for name in installed if name.startswith(others))]


@functools.cache
def _drawable() -> set[str]:
    from matplotlib import font_manager

    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in _families()]
    return {chr(code) for font in fonts for code in font.get_charmap()}
