"""Every table and figure, each drawn from a CSV file and from nothing else.

    reporting.main_table(rows, "demo", significance)     # figures/demo/tab1_mmarco.{csv,md,tex,png}
    reporting.single_vs_multi(rows, comparison, "demo")  # figures/demo/fig4_single_vs_multi.{csv,svg,png}
    reporting.redraw("demo")                             # all of them again, from the CSV files alone

Such a function writes what was computed to a CSV file in long format, and calls the function of the same name with
`draw_` in front on that file. All return the paths they wrote; `show` puts the picture into a notebook. Scores are
shown times 100 with one decimal. Our numbers and the paper's have rows of their own.

`rows` are result rows (`evaluation.RESULT_COLUMNS`); those of other profiles and metrics are passed over, and seeds are
averaged. A comparison is what `evaluation.compare(a, b)` returns for two systems.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

from xmlib import looks, processes, reported, tables
from xmlib.grid import Cell, Grid, write_text
from xmlib.languages import LANGUAGES, TRAINING_LANGUAGE
from xmlib.looks import (
    FAINT,
    INK,
    SOFT,
    SYSTEMS,
    banner,
    colour,
    counts,
    footnote,
    in_order,
    mark,
    metric_name,
    save_pair,
    style,
)  # fmt: skip
from xmlib.paths import FIGURES
from xmlib.tables import LEVEL

FIGURE_4 = ("DPR-XM", "ColBERT-XM")  # the two systems that it compares
TEXT_COLUMNS = {
    *(
        "source",
        "row",
        "system",
        "setting",
        "lang",
        "metric",
        "better_than",
        "trained_on_lang",
        "profile",
        "collection",
        "split",
    ),
    *("model", "seed", "device", "commit", "engine", "hardware", "what", "how", "basis", "title", "caption"),
    *("q_token", "d_token", "multi_system", "single_system", "adapters"),
}
NOT_FROM_ZERO = "(the axis does not start at 0)"


# --- the paper's tables


def main_table(
    rows: pd.DataFrame,
    profile: str,
    significance: Mapping[tuple[str, str], pd.DataFrame] | None = None,
    metric: str | Sequence[str] = "mrr@10",
    table: int | None = 1,
    stem: str = "tab1_mmarco",
    training: pd.DataFrame | None = None,
) -> list[Path]:
    """One row per system, one column per language; what the paper's Table `table` prints in grey, in rows of its own.

    With `table=None` nothing of the paper's stands beside ours; with none of ours, each system of the paper is marked
    as not run. Several metrics stand one below the other. `significance` maps the names of two systems (a, b) to their
    comparison by the first metric. `training` has a row per trained system with the columns `tables.TRAINING`: the
    first columns of Table 1. Where `rows` have a column `examples` there is a row for each number of them (Table 4).
    """
    metrics = [metric] if isinstance(metric, str) else list(dict.fromkeys(metric))
    cells = tables.by_language(rows, profile, significance or {}, metrics, table, training)
    path = write_csv(cells, profile, stem)
    return [path, *draw_table(path)]


def main_grid(path: Path) -> Grid:
    """The table in a file that `main_table` wrote."""
    return tables.draw_by_language(read_csv(path))


def energy_table(ledger: pd.DataFrame, profile: str, intensity: float, stem: str = "tab3_energy") -> list[Path]:
    """Table 3: what training took, and what of the paper's products can be had again. See `carbon`."""
    path = write_csv(tables.energy(ledger, profile, intensity), profile, stem)
    return [path, *draw_table(path)]


def energy_grid(path: Path) -> Grid:
    return tables.draw_energy(read_csv(path))


def efficiency_table(rows: pd.DataFrame, profile: str, stem: str = "tab5_efficiency") -> list[Path]:
    """Table 5: `rows` have at least the columns system, engine, metric (of `tables.EFFICIENCY`), value and profile."""
    path = write_csv(tables.efficiency(rows, profile), profile, stem)
    return [path, *draw_table(path)]


def efficiency_grid(path: Path) -> Grid:
    return tables.draw_efficiency(read_csv(path))


# --- any other table


def write_table(frame: pd.DataFrame, profile: str, stem: str, caption: str) -> list[Path]:
    """A table as it stands, floats with one decimal. The first column names the row."""
    path = write_csv(frame.assign(caption=banner(profile) + caption), profile, stem)
    return [path, *draw_table(path)]


def plain_grid(path: Path) -> Grid:
    frame = read_csv(path)
    grid = Grid([name for name in frame.columns if name != "caption"], caption=frame["caption"].iloc[0])
    columns = [_texts(frame[name]) for name in grid.header]
    grid.rows = [[Cell(text) for text in row] for row in zip(*columns, strict=True)]
    return grid


def draw_table(path: Path) -> list[Path]:
    """Any table, from its CSV file: .md, .tex and .png."""
    return grid_of(path).save(path)


def grid_of(path: Path) -> Grid:
    """What a table's CSV file shows; the beginning of its name tells how it is drawn."""
    return GRIDS[max((prefix for prefix in GRIDS if path.name.startswith(prefix)), key=len)](path)


def _texts(column: pd.Series) -> list[str]:
    if not pd.api.types.is_numeric_dtype(column):
        return column.tolist()
    digits = 0 if (column.dropna() % 1 == 0).all() else 1
    return ["–" if np.isnan(value) else f"{value:.{digits}f}" for value in column]


# --- figures


def single_vs_multi(
    rows: pd.DataFrame,
    comparison: pd.DataFrame,
    profile: str,
    metric: str = "mrr@10",
    systems: tuple[str, str] = FIGURE_4,
    stem: str = "fig4_single_vs_multi",
    title: str = "One vector per text or one per token",
) -> list[Path]:
    """Figure 4: one vector per text against one per token, in every language; `comparison` is of single and multi.

    Any other pair of `systems` is drawn the same way, under a `title` of its own and without the paper's margins.
    """
    rows = tables.choose(rows, profile, [metric])
    for system in systems:
        if system not in set(rows["system"]):
            raise ValueError(f"no row of {system!r}; systems there: {', '.join(rows['system'].unique())}")
    rows = rows[rows["system"].isin(systems)]
    values = rows.groupby(["lang", "system"])["value"].mean().unstack()
    languages = in_order(values.index, LANGUAGES)
    frame = pd.DataFrame(
        dict(lang=languages, single=values.loc[languages, systems[0]], multi=values.loc[languages, systems[1]])
        | dict(p_holm=comparison.set_index("lang").loc[languages, "p_holm"], n_queries=rows["n_queries"].iloc[0])
        | dict(single_system=systems[0], multi_system=systems[1], metric=metric, profile=profile, title=title)
        | dict(
            collection=tables.only(rows, "collection"), split=tables.only(rows, "split"), n_seeds=rows["seed"].nunique()
        )
    )
    path = write_csv(frame, profile, stem)
    return [path, *draw_single_vs_multi(path)]


def draw_single_vs_multi(path: Path) -> list[Path]:
    frame = read_csv(path)
    first, names = frame.iloc[0], (frame["single_system"].iloc[0], frame["multi_system"].iloc[0])
    zero_shot = frame[frame["lang"] != TRAINING_LANGUAGE]
    split = 0 < len(zero_shot) < len(frame)  # English and others: they get a gap between them
    x = np.arange(len(frame)) + 0.6 * ((frame["lang"] != TRAINING_LANGUAGE) & split)
    with style():
        fig, ax = looks.figure(max(7.2, 0.48 * len(frame) + 2.4), 3.7)
        for at, row in zip(x, frame.itertuples(), strict=True):
            _dumbbell(ax, at, names, (100 * row.single, 100 * row.multi), certain=row.p_holm < LEVEL)
        at, means, labels = x.iloc[-1], (row.single, row.multi), list(frame["lang"])
        if len(zero_shot) > 1:
            at, means = at + 1.7, (zero_shot["single"].mean(), zero_shot["multi"].mean())
            labels.append(f"avg of\n{len(zero_shot)}")
            ax.axvspan(at - 0.6, at + 0.6, color="#F4F4F4", lw=0, zorder=0)
            _dumbbell(ax, at, names, (100 * means[0], 100 * means[1]), large=True)
        ax.margins(y=0.12)
        for name, y in zip(names, _apart([100 * mean for mean in means], 0.06 * np.ptp(ax.get_ylim())), strict=True):
            ax.annotate(name, (at + 0.75, y), va="center", color=colour(name), weight="bold")
        ax.set_xticks([*x, at][: len(labels)], labels)
        ax.set_xlim(x.iloc[0] - 0.7, at + 3.2)
        ax.spines["bottom"].set_bounds(x.iloc[0] - 0.7, at + 0.6)
        if split:
            ax.axvline((x.iloc[0] + x.iloc[1]) / 2, color=FAINT, lw=0.8, ls=(0, (4, 3)))
            above = dict(xycoords=("data", "axes fraction"), textcoords="offset points", color=SOFT, fontsize=7.5)
            ax.annotate("trained", (x.iloc[0], 1), (0, 3), ha="center", **above)
            ax.annotate("zero-shot", (x.iloc[1] - 0.25, 1), (0, 3), **above)
        ax.set_ylabel(f"{metric_name(first['metric'])} × 100\n{NOT_FROM_ZERO}")
        ax.set_title(f"{banner(first['profile'])}{first['title']}: {first['collection']}, {first['split']}", pad=18)
        seeds = f", mean of {first['n_seeds']} seeds" if first["n_seeds"] > 1 else ""
        note = (
            f"Numbers: {names[1]} minus {names[0]}{seeds}; {counts(frame['n_queries'])} queries per language. "
            f"° not significant (paired test, p ≥ {LEVEL} with Holm's correction)."
        )
        if names == FIGURE_4:
            paper = reported.FIGURE_4_MARGIN
            note += (
                f"\nThe paper, on mMARCO: +{paper['en']} in English, +{paper['others']} on average over the 13 others."
            )
        footnote(fig, note)
    return save_pair(fig, path)


def _dumbbell(ax, x: float, names: Sequence[str], values: Sequence[float], certain=True, large=False) -> None:
    """Two systems' dots, a line between them, and the difference above."""
    ax.plot((x, x), values, color=FAINT, lw=2.2, zorder=1, solid_capstyle="butt")
    for name, value in zip(names, values, strict=True):
        ax.plot(x, value, **mark(name, 8.0 if large else 5.5))
    label = f"{values[1] - values[0]:+.1f}".replace("-", "−") + ("" if certain else "°")
    look = dict(fontsize=9, weight="bold") if large else dict(fontsize=7.5)
    offset = dict(textcoords="offset points", ha="center", color=INK if certain else SOFT)
    ax.annotate(label, (x, max(values)), (0, 8 if large else 6), **look, **offset)


def examples_table(scaling: pd.DataFrame, profile: str, stem: str = "tab4_examples") -> list[Path]:
    """Table 4: `scaling` are result rows with a column `examples`, empty for systems that are only compared with."""
    curve = scaling.dropna(subset="examples")
    return main_table(curve, profile, None, [row["metric"] for row in reported.rows(4)], 4, stem)


def examples_curve(scaling: pd.DataFrame, profile: str, stem: str = "fig3_examples") -> list[Path]:
    """Figure 3: averages over languages against the number of training examples, the paper's above ours.

    `scaling` are result rows with a column `examples`, which is empty for a system to compare with, such as mE5:
    trained on all it ever saw, it is a line across. The paper prints its MRR@10 alone.
    """
    cells = []
    for row in reported.rows(4):
        if row["lang"] == "avg":
            examples = float(row["setting"].split("M")[0])
            cells.append(dict(source="paper", system="ColBERT-XM", metric=row["metric"], examples_millions=examples))
            cells[-1] |= dict(value=row["value"] / 100, n_languages=14, collection="mMARCO small dev", profile="")
    printed = next(row["value"] for row in reported.rows(1) if row["system"] == "mE5-base" and row["lang"] == "avg")
    cells.append(cells[0] | dict(system="mE5-base", metric="mrr@10", examples_millions=None, value=printed / 100))
    ours = scaling[scaling["profile"] == profile]
    if len(ours):
        where = dict(source="ours", collection=tables.only(ours, "collection"), profile=profile)
        for (system, metric, examples), group in ours.groupby(["system", "metric", "examples"], dropna=False):
            made = dict(system=system, metric=metric, examples_millions=examples / 1e6)
            cells.append(where | made | dict(value=group["value"].mean(), n_languages=group["lang"].nunique()))
    path = write_csv(pd.DataFrame(cells), profile, stem)
    return [path, *draw_examples_curve(path)]


def draw_examples_curve(path: Path) -> list[Path]:
    frame = read_csv(path)
    sources = [source for source in ("paper", "ours") if source in set(frame["source"])]
    metrics = list(dict.fromkeys(frame.loc[frame["system"] == "ColBERT-XM", "metric"]))
    with style():
        fig = Figure(figsize=(2.15 * len(metrics) + 0.6, 2.35 * len(sources) + 0.35), layout="constrained")
        for axes, source in zip(fig.subplots(len(sources), len(metrics), squeeze=False), sources, strict=True):
            block = frame[frame["source"] == source]
            for ax, metric in zip(axes, metrics, strict=True):
                _example_panel(ax, block[block["metric"] == metric], metric)
            first = block.iloc[0]
            who = "The paper" if source == "paper" else f"{banner(first['profile'])}Ours"
            axes[0].set_ylabel(f"{who}\n{first['collection']}, average of {first['n_languages']:.0f}", fontsize=8)
        note = "Scores × 100; no axis starts at 0, and examples are evenly spaced. "
        note += "Dashed: another system; of mE5 the paper prints MRR@10 alone."
        footnote(fig, note + ("" if "ours" in sources else " Ours: not run."))
    return save_pair(fig, path)


def _example_panel(ax, cells: pd.DataFrame, metric: str) -> None:
    """One metric: a curve over the numbers of examples, evenly spaced, and other systems as lines across."""
    curve = cells[cells["system"] == "ColBERT-XM"].sort_values("examples_millions")
    x, y = np.arange(len(curve)), 100 * curve["value"]
    ax.plot(x, y, color=colour("ColBERT-XM"), lw=1.6)
    ax.plot(x, y, **mark("ColBERT-XM", 5.5))
    for at, value in zip(x, y, strict=True):
        ax.annotate(f"{value:.1f}", (at, value), (0, 5), textcoords="offset points", ha="center", fontsize=7)
    for row in cells[cells["system"] != "ColBERT-XM"].itertuples():
        look = dict(color=colour(row.system))
        ax.axhline(100 * row.value, lw=1.1, ls=(0, (4, 3)), zorder=1, **look)
        beside = dict(xytext=(0, 3), textcoords="offset points", fontsize=7, **look)
        words = f"{row.system} {100 * row.value:.1f}"
        ax.annotate(words, (0.02, 100 * row.value), xycoords=("axes fraction", "data"), **beside)
    ax.locator_params(axis="y", nbins=5)
    ax.set_xticks(x, [looks.millions(value) for value in curve["examples_millions"]], fontsize=6.5)
    ax.margins(x=0.14, y=0.3)
    ax.set_title(metric_name(metric))


def quality_by_energy(
    cells: pd.DataFrame, results: pd.DataFrame, profile: str, metric: str = "mrr@10", stem: str = "fig5_energy"
) -> list[Path]:
    """What training took, and what came of it. `cells` are those of Table 3 (`tables.energy`).

    The score is the average over all languages of the paper's Table 1, or of ours.
    """
    printed = {row["system"]: float(row["value"]) / 100 for row in reported.rows(1) if row["lang"] == "avg"}
    chosen = results[(results["profile"] == profile) & (results["metric"] == metric)]
    ours = chosen.groupby("system")["value"].mean()
    frame = cells[["source", "system", "what", "basis", "energy_kwh"]].assign(metric=metric, profile=profile)
    fine_tuned = frame["what"].fillna("").isin(("", "fine-tuning"))
    scores = [printed.get(row.system) if row.source == "paper" else ours.get(row.system) for row in frame.itertuples()]
    frame["value"] = pd.Series(scores, index=frame.index, dtype=float).where(fine_tuned)
    frame["collection"] = np.where(
        frame["source"] == "paper", "mMARCO small dev", ", ".join(chosen["collection"].unique())
    )
    path = write_csv(frame, profile, stem)
    return [path, *draw_quality_by_energy(path)]


def draw_quality_by_energy(path: Path) -> list[Path]:
    frame = read_csv(path)
    sources = [source for source in ("paper", "ours") if source in set(frame["source"])]
    bars = {source: frame[frame["source"] == source].groupby(["system", "what"], sort=False) for source in sources}
    heights = [0.27 * bars[source].ngroups + 0.95 for source in sources]
    with style():
        fig = Figure(figsize=(8.6, sum(heights) + 0.5), layout="constrained")
        grid = fig.subplots(len(sources), 2, squeeze=False, height_ratios=heights, width_ratios=(1.25, 1))
        for (left, right), source in zip(grid, sources, strict=True):
            block = frame[frame["source"] == source]
            who = "The paper" if source == "paper" else f"{banner(block['profile'].iloc[0])}Ours"
            _energy_bars(left, bars[source], f"{who}: energy of training")
            _energy_dots(right, block, f"{who}: quality by energy")
        footnote(fig, "Hatched: assumed, power from a data sheet × time. Solid: measured by a meter.")
    return save_pair(fig, path)


def _energy_bars(ax, groups, title: str) -> None:
    """A bar per model: the measured part solid, the assumed part hatched, never one number for both."""
    total = 0.0
    for y, ((system, _), group) in enumerate(groups):
        parts, start = group.groupby("basis")["energy_kwh"].sum(), 0.0
        for basis in ("measured", "assumed"):
            if basis in parts:
                _bar(ax, y, start, parts[basis], system, hatched=basis == "assumed")
                start += parts[basis]
        words = ", ".join(
            f"{looks.energy(parts[basis])} {basis}" for basis in ("measured", "assumed") if basis in parts
        )
        ax.annotate(words, (start, y), (4, 0), textcoords="offset points", va="center", fontsize=7.5)
        total = max(total, start)
    ax.set_yticks(range(groups.ngroups), [f"{system}, {what}" if what else system for system, what in groups.groups])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.45 * total)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    ax.set_title(title)


def _bar(ax, y: float, start: float, width: float, system: str, hatched: bool) -> None:
    fill = dict(facecolor="white", hatch="/////") if hatched else dict(facecolor=colour(system))
    ax.barh(y, width, left=start, height=0.62, edgecolor=colour(system), lw=1.0, **fill)


def _energy_dots(ax, block: pd.DataFrame, title: str) -> None:
    """Score against energy. What is measured and what is assumed of one model are two dots, solid and hatched."""
    points = block.groupby(["system", "basis"], sort=False, as_index=False).agg(
        energy_kwh=("energy_kwh", "sum"), value=("value", "first")
    )
    points = points.dropna(subset="value")
    if points.empty:
        ax.set_axis_off()
        return
    near_P2 = np.stack([np.log(points["energy_kwh"]), points["value"]], axis=1)
    near_P2 = near_P2 / np.maximum(np.ptp(near_P2, axis=0), 1e-9)
    for (system, basis, x, value), here in zip(points.itertuples(index=False), near_P2, strict=True):
        fill = dict(facecolor=colour(system)) if basis == "measured" else dict(facecolor="white", hatch="//////")
        look = dict(marker=mark(system, 1)["marker"], edgecolor=colour(system))
        ax.scatter([x], [100 * value], s=90, lw=1.2, zorder=3, **look, **fill)
        across, above = (near_P2 - here).T  # in shares of the panel; a label gives way to a dot just above
        under = ((np.abs(across) < 0.2) & (above > 0) & (above < 0.15)).any()
        place = dict(xytext=(0, -8), va="top") if under else dict(xytext=(0, 8))
        text = dict(textcoords="offset points", ha="center", fontsize=7.5, color=colour(system))
        ax.annotate(system, (x, 100 * value), **place, **text)
    ax.margins(x=0.22, y=0.28)
    _factors(ax, looks.energy)
    first = block.iloc[0]
    ax.set_xlabel("energy (equal steps are equal factors)")
    ax.set_ylabel(f"{metric_name(first['metric'])} × 100, average\n{NOT_FROM_ZERO}", fontsize=8)
    ax.set_title(title)


def per_language_dots(
    rows: pd.DataFrame, profile: str, stem: str, metric: str = "mrr@10", title: str = ""
) -> list[Path]:
    """One dot per system and language, every system in its own colour and marker."""
    rows = tables.choose(rows, profile, [metric])
    frame = rows.groupby(["system", "lang"], sort=False, as_index=False)["value"].mean()
    frame = frame.assign(
        metric=metric,
        profile=profile,
        title=title or f"{tables.only(rows, 'collection')}, {tables.only(rows, 'split')}",
    )
    path = write_csv(frame, profile, stem)
    return [path, *draw_per_language_dots(path)]


def draw_per_language_dots(path: Path) -> list[Path]:
    frame = read_csv(path)
    first = frame.iloc[0]
    languages, systems = in_order(frame["lang"], LANGUAGES), in_order(frame["system"], SYSTEMS)
    values = 100 * frame.pivot(index="lang", columns="system", values="value").reindex(index=languages, columns=systems)
    with style():
        fig, ax = looks.figure(max(6.4, 0.42 * len(languages) + 1.6), 3.5)
        ax.vlines(range(len(languages)), values.min(axis=1), values.max(axis=1), color=FAINT, lw=1.2, zorder=1)
        for system in systems:
            ax.plot(range(len(languages)), values[system], **mark(system, 5.5), label=system)
        ax.set_xticks(range(len(languages)), languages)
        ax.set_xlim(-0.6, len(languages) - 0.4)
        ax.margins(y=0.08)
        ax.set_ylabel(f"{metric_name(first['metric'])} × 100\n{NOT_FROM_ZERO}")
        ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=min(4, len(systems)), borderaxespad=0.3)
        fig.suptitle(banner(first["profile"]) + first["title"], x=0.01, ha="left")
    return save_pair(fig, path)


def engine_figures(rows: pd.DataFrame, profile: str) -> list[Path]:
    """What Table 5 says in pictures: latency against recall, and size against quality. `rows` are as there."""
    cells = tables.efficiency(rows, profile)
    cells = cells[cells["source"] == "ours"]
    about = ["system", "engine", "setting", "k", "n", "collection", "lang", "device", "profile"]
    where = cells[cells["metric"] == "cpu_latency_ms"].set_index(["system", "engine", "setting"])
    wide = cells.pivot_table(index=["system", "engine", "setting"], columns="metric", values="value", sort=False)
    frame = wide.join(where[about[3:]]).reset_index()
    written = []
    for stem, metrics in (
        ("fig6_latency", ["cpu_latency_ms", "recall_of_exact"]),
        ("fig7_bytes", ["index_to_text_ratio", "mrr@10"]),
    ):
        path = write_csv(frame[[*about, *metrics]], profile, stem)
        written += [path, *DRAW[stem[:5]](path)]
    return written


def draw_engine_latency(path: Path) -> list[Path]:
    """A panel per system; the settings of an engine are a line."""
    frame = read_csv(path)
    names = in_order(frame["system"], SYSTEMS)
    with style():
        fig = Figure(figsize=(3.1 * len(names) + 0.5, 3.3), layout="constrained")
        for ax, name in zip(fig.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            block = frame[frame["system"] == name]
            for i, (engine, line) in enumerate(block.groupby("engine", sort=False)):
                x, y = line["cpu_latency_ms"], 100 * line["recall_of_exact"]
                ax.plot(x, y, color=colour(name), lw=1.0, alpha=0.5, zorder=2)
                ax.plot(x, y, **mark(name, 6) | dict(marker=_SHAPES[i % len(_SHAPES)]), label=engine)
            ax.margins(0.12)
            _factors(ax)
            ax.legend(loc="best", handlelength=1.0)
            ax.set_title(name)
            ax.set_xlabel("ms per query (equal steps are equal factors)")
        first = frame.iloc[0]
        fig.axes[0].set_ylabel(f"% of exact search's top {first['k']:.0f}\n{NOT_FROM_ZERO}")
        note = f"{banner(first['profile'])}{first['collection']}, {first['lang']}: median of {first['n']:.0f} queries, "
        footnote(fig, f"{note}one at a time, CPU time on one thread, without encoding. {first['device']}.")
    return save_pair(fig, path)


def draw_engine_bytes(path: Path) -> list[Path]:
    """A dot per engine, at its best setting."""
    frame = read_csv(path)
    best = frame.loc[frame.groupby(["system", "engine"], sort=False)["mrr@10"].idxmax()]
    with style():
        fig, ax = looks.figure(6.6, 3.4)
        for name in in_order(best["system"], SYSTEMS):
            for i, row in enumerate(best[best["system"] == name].to_dict("records")):
                look = mark(name, 7) | dict(marker=_SHAPES[i % len(_SHAPES)], label=f"{name}, {row['engine']}")
                ax.plot(row["index_to_text_ratio"], 100 * row["mrr@10"], **look)
        ax.margins(0.12, 0.15)
        _factors(ax)
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        first = best.iloc[0]
        ax.set_xlabel("bytes of the index for each byte of text (equal steps are equal factors)")
        ax.set_ylabel(f"{metric_name('mrr@10')} × 100\n{NOT_FROM_ZERO}")
        ax.set_title(f"{banner(first['profile'])}What a byte buys: {first['collection']}, {first['lang']}")
        footnote(fig, f"The best setting of each engine, {first['n']:.0f} queries, top {first['k']:.0f}.")
    return save_pair(fig, path)


def _factors(ax, words: Callable[[float], str] = "{:g}".format) -> None:
    """A logarithmic axis with plain numbers at 1, 2, 5, 10, …; fewer over many powers of ten, more within one."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high < 5 * low else (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(subs=subs))
    ax.xaxis.set_major_formatter(lambda x, position: words(x))
    ax.xaxis.set_minor_formatter(lambda x, position: "")
    ax.tick_params(axis="x", which="major", length=4)  # longer than those without a number


_SHAPES = "os^DvPX<>"  # of engines, where a panel is all one system


def loss_curve(logs: Mapping[str, Sequence[dict]], profile: str, stem: str = "fig1_loss") -> list[Path]:
    """Loss by training step. `logs` maps a name to a training log: records with `step` and `loss`."""
    frame = pd.concat([pd.DataFrame(log)[["step", "loss"]].assign(system=name) for name, log in logs.items()])
    path = write_csv(frame.assign(profile=profile), profile, stem)
    return [path, *draw_loss_curve(path)]


def draw_loss_curve(path: Path) -> list[Path]:
    frame = read_csv(path)
    logs = {name: frame[frame["system"] == name].sort_values("step") for name in in_order(frame["system"], SYSTEMS)}
    smooth = {name: log["loss"].ewm(span=max(2, len(log) / 25)).mean() for name, log in logs.items()}
    with style():
        fig, ax = looks.figure(5.4, 3.1)
        for name, log in logs.items():
            ax.plot(log["step"], log["loss"], color=colour(name), lw=0.6, alpha=0.22, zorder=1)
            ax.plot(log["step"], smooth[name], color=colour(name), lw=1.8, zorder=2)
        top = 1.05 * max(log["loss"].quantile(0.995) for log in logs.values())
        ax.set(xlabel="training step", ylabel="loss", ylim=(0, top))
        ax.margins(x=0)
        ends = _apart([curve.iloc[-1] for curve in smooth.values()], 0.065 * top)
        for name, y in zip(logs, ends, strict=True):
            label = dict(xytext=(6, 0), textcoords="offset points", annotation_clip=False)
            ax.annotate(name, (frame["step"].max(), y), va="center", color=colour(name), weight="bold", **label)
        ax.set_title(f"{banner(frame['profile'].iloc[0])}Training loss (thin: each step; bold: moving average)")
    return save_pair(fig, path)


def token_similarity(
    q_tokens: Sequence[str], d_tokens: Sequence[str], sim_ST: np.ndarray, profile: str, stem: str, title: str = ""
) -> list[Path]:
    """MaxSim at work: the cosine of every query token with every passage token, each row's best one framed."""
    sim_ST = np.asarray(sim_ST, dtype=float)
    if sim_ST.shape != (len(q_tokens), len(d_tokens)):
        raise ValueError(
            f"similarities of shape {sim_ST.shape} for {len(q_tokens)} query, {len(d_tokens)} passage tokens"
        )
    s, t = np.indices(sim_ST.shape).reshape(2, -1)
    frame = pd.DataFrame(dict(s=s, t=t, q_token=np.array(q_tokens)[s], d_token=np.array(d_tokens)[t]))
    path = write_csv(frame.assign(sim=sim_ST.ravel().round(5), profile=profile, title=title), profile, stem)
    return [path, *draw_token_similarity(path)]


def draw_token_similarity(path: Path, widest: int = 48) -> list[Path]:
    frame = read_csv(path)
    sim_ST = frame.pivot(index="s", columns="t", values="sim").to_numpy()
    S, T = sim_ST.shape
    shown = np.sort(np.argsort(-sim_ST.max(axis=0), kind="stable")[:widest])  # columns that can matter, in text order
    texts = [frame.drop_duplicates("s")["q_token"], frame.drop_duplicates("t")["d_token"].iloc[shown]]
    q_labels, d_labels = ([_cut(looks.readable(text)) for text in side] for side in texts)
    title = banner(frame["profile"].iloc[0]) + looks.readable(frame["title"].iloc[0])

    # Laid out by hand, in inches: the cells are squares of one size whatever the number of tokens.
    cell, letter = 0.24, 0.062
    left, bottom = (0.42 + letter * max(map(len, labels)) for labels in (q_labels, d_labels))
    wide, high = cell * len(shown), cell * S
    lines = textwrap.wrap(title, max(30, int((wide + 1.2) / 0.083))) or [""]
    width, height = left + max(wide + 1.5, 0.083 * max(map(len, lines))), bottom + high + 0.3 + 0.16 * len(lines)
    with style():
        fig = Figure(figsize=(width, height))
        ax = fig.add_axes((left / width, bottom / height, wide / width, high / height))
        image = ax.imshow(sim_ST[:, shown], cmap="Blues", vmin=min(0.0, sim_ST.min()), vmax=1, aspect="auto")
        for s, (t, top) in enumerate(zip(sim_ST.argmax(axis=1), sim_ST.max(axis=1), strict=True)):
            for at in np.flatnonzero(shown == t):
                frame_of = dict(fill=False, ec=colour("ColBERT-XM"), lw=1.6, clip_on=False)
                ax.add_patch(Rectangle((at - 0.5, s - 0.5), 1, 1, **frame_of))
            ax.annotate(f"{top:.2f}", (1, s), (6, 0), va="center", fontsize=7.5, **_BESIDE)
        ax.annotate("max", (1, -0.5), (6, 4), fontsize=7.5, color=SOFT, **_BESIDE)
        total = f"sum\n{sim_ST.max(axis=1).sum():.2f}"
        ax.annotate(total, (1, S - 0.5), (6, -4), va="top", weight="bold", color=colour("ColBERT-XM"), **_BESIDE)
        ax.set_xticks(range(len(shown)), d_labels, rotation=90)
        ax.set_yticks(range(S), q_labels)
        ax.tick_params(length=0, labelsize=8)
        ax.spines[:].set_visible(False)
        few = f": the {len(shown)} of {T} most similar to any query token" if len(shown) < T else ""
        fig.text(left / width, 0.04 / height, f"passage tokens{few}", fontsize=8.5)
        fig.text(0.06 / width, (bottom + high / 2) / height, "query tokens", fontsize=8.5, rotation=90, va="center")
        fig.text(left / width, 1 - 0.06 / height, "\n".join(lines), fontsize=9.5, weight="bold", va="top")
        bar = min(high, 1.6)
        color_ax = fig.add_axes(
            ((left + wide + 0.65) / width, (bottom + high - bar) / height, 0.12 / width, bar / height)
        )
        fig.colorbar(image, cax=color_ax, label="cosine").outline.set_visible(False)
    return save_pair(fig, path)


def new_language_curve(rows: pd.DataFrame, profile: str, stem: str = "fig8_new_language") -> list[Path]:
    """Figure 1d in numbers: one panel per metric, against the amount of text that the new adapters were trained on.

    `rows` are result rows of one language with two columns more: `adapters`, the language whose adapters the text went
    through (empty for BM25), and `texts`, how many its own were trained on. Zero texts are the English adapters, which
    the new ones begin as. The metric "loss" is of masked-LM.
    """
    columns = ["system", "adapters", "texts", "metric", "value", "lang", "collection", "split", "n_queries", "profile"]
    path = write_csv(rows.loc[rows["profile"] == profile, columns], profile, stem)
    return [path, *draw_new_language_curve(path)]


def draw_new_language_curve(path: Path) -> list[Path]:
    frame = read_csv(path)
    first, metrics = frame.iloc[0], list(dict.fromkeys(frame["metric"]))
    name = LANGUAGES[first["lang"]].name
    with style():
        fig = Figure(figsize=(3.3 * len(metrics) + 0.4, 3.2), layout="constrained")
        for ax, metric in zip(fig.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            _new_language_panel(ax, frame[frame["metric"] == metric], metric, first["lang"])
        title = f"{banner(first['profile'])}{name}, added afterwards: {first['collection']}, {first['split']}"
        fig.suptitle(title, x=0.01, ha="left")
        note = f"Scores of {first['n_queries']:.0f} queries; no axis starts at 0, and amounts are evenly spaced. "
        footnote(fig, note + "Grey: through other languages' adapters.")
    return save_pair(fig, path)


def _new_language_panel(ax, cells: pd.DataFrame, metric: str, lang: str) -> None:
    """One metric: a curve over amounts of text, beginning at the English adapters; other adapters are lines across."""
    scale, shown = (1, "{:.2f}") if metric == "loss" else (100, "{:.1f}")
    curve = cells[cells["adapters"].isin((lang, TRAINING_LANGUAGE))].sort_values("texts")
    x, y = np.arange(len(curve)), scale * curve["value"].to_numpy()
    ax.plot(x, y, color=colour("ColBERT-XM"), lw=1.6, zorder=2)
    for at, value, adapters in zip(x, y, curve["adapters"], strict=True):
        own = adapters == lang
        ax.plot(at, value, **mark("ColBERT-XM" if own else "ColBERT-XM with English adapters", 6.5))
        ax.annotate(shown.format(value), (at, value), (0, 7), textcoords="offset points", ha="center", fontsize=7.5)
    others = cells[~cells["adapters"].isin(("", lang, TRAINING_LANGUAGE))]
    beside = dict(xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5, annotation_clip=False)
    ax.set_xlim(-0.4, len(x) - 0.6)
    ax.margins(y=0.25)
    for row in others.itertuples():
        ax.axhline(scale * row.value, color=FAINT, lw=1.1, zorder=1)
    heights = _apart(scale * others["value"], 0.06 * np.ptp(ax.get_ylim()))
    for row, height in zip(others.itertuples(), heights, strict=True):
        ax.annotate(row.adapters, (len(x) - 0.6, height), color=SOFT, **beside)
    for value in scale * cells.loc[cells["system"] == "BM25", "value"]:  # far above: drawn, it would flatten the rest
        ax.annotate(
            f"BM25: {shown.format(value)}", (0.02, 0.98), xycoords="axes fraction", va="top", color=colour("BM25")
        )
    ax.set_xticks(x, ["English\nadapters", *(f"{texts:,.0f}" for texts in curve["texts"].iloc[1:])])
    ax.set_xlabel("texts that its own adapters were trained on")
    title = "Guessing hidden tokens: loss" if metric == "loss" else f"Retrieval: {metric_name(metric)} × 100"
    ax.set_title(title, weight="normal")


_BESIDE = dict(xycoords=("axes fraction", "data"), textcoords="offset points", annotation_clip=False)


# --- redrawing and showing


# What draws a CSV file is decided by the longest of these that its name begins with.
GRIDS: dict[str, Callable[[Path], Grid]] = {
    "tab": plain_grid,
    "tab1_": main_grid,
    "tab2_": main_grid,
    "tab3_": energy_grid,
    "tab4_": main_grid,
    "tab5_": efficiency_grid,
    "tab_eval_": main_grid,
}
DRAW: dict[str, Callable[[Path], list[Path]]] = {
    "tab": draw_table,
    "fig": draw_per_language_dots,
    "fig1_": draw_loss_curve,
    "fig2_": draw_token_similarity,
    "fig3_": draw_examples_curve,
    "fig4_": draw_single_vs_multi,
    "fig5_": draw_quality_by_energy,
    "fig6_": draw_engine_latency,
    "fig7_": draw_engine_bytes,
    "fig8_": draw_new_language_curve,
}


def redraw(profile: str) -> list[Path]:
    """Draw every CSV file in figures/<profile> again. Returns what was written."""
    tasks = [(path,) for path in sorted((FIGURES / profile).glob("*.csv")) if path.name.startswith(tuple(DRAW))]
    return [path for written in processes.each(_draw, tasks, "draw", "file") for path in written]


def _draw(path: Path) -> list[Path]:
    return DRAW[max((prefix for prefix in DRAW if path.name.startswith(prefix)), key=len)](path)


def show(written: Sequence[Path]) -> None:
    """Show the pictures among the written files in a notebook, at the size they were drawn for."""
    from IPython.display import Image, display

    for path in written:
        if path.suffix == ".png":
            display(Image(filename=str(path), retina=True))


def write_csv(frame: pd.DataFrame, profile: str, stem: str) -> Path:
    """Write what was computed to figures/<profile>/<stem>.csv, in full precision."""
    path = FIGURES / profile / f"{stem}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def read_csv(path: Path) -> pd.DataFrame:
    """Only an empty field is missing, and a missing text is an empty one: "NA" and "null" are words like others."""
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(sorted(TEXT_COLUMNS), str))
    return frame.fillna(dict.fromkeys(frame.select_dtypes(exclude="number").columns, ""))


# --- small things that everything above shares


def _cut(text: str, most: int = 18) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _apart(heights: Sequence[float], least: float) -> list[float]:
    """The same heights, moved so that no two labels are closer than `least`."""
    moved = np.array(heights, dtype=float)
    for lower, upper in pairwise(np.argsort(moved)):
        moved[upper] = max(moved[upper], moved[lower] + least)
    return list(moved)
