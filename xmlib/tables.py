"""The paper's tables with our rows: result rows in, cells of one CSV file out, and a grid drawn from such cells.

    by_language(rows, "demo", metrics=["mrr@10"], table=1)   # Tables 1, 2 and 4: one column per language
    energy(ours)                                             # Table 3
    efficiency(ours, "demo")                                 # Table 5

Each has a `draw_…` that makes a `Grid` of its cells. What the paper prints stands in grey, in rows of its own; a system
of the paper without a result here is marked "not run".
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from xmlib import carbon, looks, reported
from xmlib.grid import MARKS, NOT_RUN, Cell, Grid
from xmlib.languages import LANGUAGES, TRAINING_LANGUAGE
from xmlib.looks import (
    SEEN,
    SYSTEMS,
    UNSEEN,
    banner,
    counts,
    digits,
    duration,
    in_order,
    metric_name,
    millions,
    score,
    size,
)

LEVEL = 0.05  # of significance
COLLECTIONS = {"mmarco": "mMARCO small dev", "mrtydi": "Mr. TyDi test"}  # what the paper's numbers belong to
FILLS = {"yes": SEEN, "no": UNSEEN, "": ""}
SMALL = ("smoke", "demo", "small")  # profiles whose models stand in for the published ones
STAND_IN = " †"
TRAINING = {"examples_millions": "examples", "languages": "lang.", "parameters_millions": "param."}  # → heading

CELL_COLUMNS = [
    "source", "table", "row", "system", "lang", "metric", "value", "trained_on_lang", "better_than", "profile",
    "collection", "split", "n_queries", "n_seeds", "model", "seed", "device", "commit", "seconds", "energy_kwh",
]  # fmt: skip
ENERGY_COLUMNS = [
    "source", "system", "what", "hardware", "power_w", "hours", "energy_kwh", "emission_kg", "again_kwh", "again_kg",
    "basis", "how", "model", "device", "commit", "profile",
]  # fmt: skip
EFFICIENCY = {  # metric → heading of Table 5
    "index_gb": "disk",
    "index_to_text_ratio": "× text",
    "cpu_latency_ms": "CPU ms",
    "cpu_p95_ms": "95 %",
    "cpu_with_encoding_ms": "+ encoding",
    "gpu_latency_ms": "GPU ms",
    "gpu_p95_ms": "GPU 95 %",
    "gpu_with_encoding_ms": "GPU + encoding",
    "gpu_recall_of_exact": "GPU of exact",
    "gpu_mrr@10": "GPU MRR@10",
    "recall_of_exact": "of exact",
    "mrr@10": "MRR@10",
}
PRINTED_EFFICIENCY = ("index_gb", "index_to_text_ratio", "gpu_latency_ms", "cpu_latency_ms")  # in the paper's order
EFFICIENCY_COLUMNS = [
    "source", "system", "engine", "setting", "metric", "value", "k", "n", "device", "collection", "split", "lang",
    "model", "commit", "profile",
]  # fmt: skip
ENGINES = {  # the engines of Table 5 → how ours of the same kind works
    "JASS": "score at a time",
    "Anserini": "Lucene",
    "PISA": "document at a time",
}


# --- Tables 1, 2 and 4


def by_language(
    rows: pd.DataFrame,
    profile: str,
    significance: Mapping[tuple[str, str], pd.DataFrame],
    metrics: Sequence[str],
    table: int | None,
    training: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The cells of a table with one column per language, `CELL_COLUMNS`; see `reporting.main_table`."""
    chosen = choose(rows, profile, metrics, none_allowed=table is not None)
    cells = _our_cells(chosen, _beaten(significance), metrics[0])
    if table:
        cells += _printed_cells(table, metrics)
    for made in [] if training is None else training[training["system"].isin(chosen["system"])].to_dict("records"):
        cells += [dict(source="ours", system=made["system"], metric=name, value=made[name]) for name in TRAINING]
    return pd.DataFrame(cells, columns=CELL_COLUMNS)


def _our_cells(rows: pd.DataFrame, beaten: Mapping[tuple[str, str], list[str]], tested: str) -> list[dict]:
    """One per system, language and metric. Seeds are averaged."""
    if rows.empty:
        return []
    where = {name: only(rows, name) for name in ("profile", "collection", "split")}
    cells, sized = [], "examples" in rows
    rows = rows.reindex(columns=dict.fromkeys([*rows.columns, *CELL_COLUMNS, "examples"]))  # older files have fewer
    for (system, examples, lang, metric), group in rows.groupby(
        ["system", "examples", "lang", "metric"], sort=False, dropna=False
    ):
        origin = {
            name: "; ".join(group[name].dropna().astype(str).unique()) for name in ("model", "seed", "device", "commit")
        }
        cost = {name: group[name].astype(float).mean() for name in ("seconds", "energy_kwh")}
        cells.append(
            dict(source="ours", system=system, lang=lang, metric=metric, value=group["value"].mean())
            | dict(row=millions(examples / 1e6) if sized else system)
            | dict(trained_on_lang=_trained_on(system, lang, origin["model"]))
            | dict(better_than=";".join(beaten.get((system, lang), [])) if metric == tested else "")
            | dict(n_queries=group["n_queries"].iloc[0], n_seeds=group["seed"].nunique())
            | where | origin | cost
        )  # fmt: skip
    return cells


def _printed_cells(table: int, metrics: Sequence[str]) -> list[dict]:
    cells = []
    for row in reported.rows(table):
        cell = {"source": "paper", "table": table} | {name: row[name] for name in ("system", "lang", "metric", "value")}
        if row["metric"] in metrics and row["lang"]:
            trained = "" if row["system"] == "BM25" else _WORDS[row["trained_on_lang"]]
            name = row["setting"].split()[0] if table == 4 else row["system"]
            collection = "mrtydi" if table == 2 else "mmarco"
            cells.append(
                cell | dict(value=row["value"] / 100, row=name, trained_on_lang=trained, collection=collection)
            )
        elif row["metric"] in TRAINING:
            cells.append(cell)
    return cells


def _beaten(significance: Mapping[tuple[str, str], pd.DataFrame]) -> dict[tuple[str, str], list[str]]:
    """(system, language) → the systems it is significantly better than."""
    found: dict[tuple[str, str], list[str]] = {}
    for (a, b), comparison in significance.items():
        for row in comparison.itertuples():
            if row.p_holm < LEVEL:
                better, worse = (b, a) if row.difference > 0 else (a, b)
                found.setdefault((better, row.lang), []).append(worse)
    return found


_WORDS = {True: "yes", False: "no", None: ""}


def _trained_on(system: str, lang: str, model: str) -> str:
    """Was `lang` among the training languages? What is trained here saw English only; of others the paper tells."""
    if system == "BM25":
        return ""
    printed = {row["lang"]: row["trained_on_lang"] for row in reported.rows(1) if row["system"] == system}
    if not printed or is_trained_here(model):
        return "yes" if lang == TRAINING_LANGUAGE else "no"
    return _WORDS[printed.get(lang, False)]


def is_trained_here(model: str) -> bool:
    """Whether a result row's model, as `systems.version` names it, was made by this project; else it is a hub id."""
    return re.fullmatch(r"[0-9a-f]{12}( \(made here\))?", model) is not None


def draw_by_language(cells: pd.DataFrame) -> Grid:
    """Systems below each other, in families; each with the paper's row under it."""
    training, cells = cells[cells["lang"] == ""], cells[cells["lang"] != ""]
    ours, paper = (cells[cells["source"] == source] for source in ("ours", "paper"))
    languages = in_order(ours["lang"] if len(ours) else paper.loc[paper["lang"] != "avg", "lang"], LANGUAGES)
    averages = _averages(languages) if len(ours) else {"avg": languages}
    first = {name: short for name, short in TRAINING.items() if name in set(training["metric"])}
    letters = dict(zip(in_order(ours["system"], SYSTEMS), MARKS, strict=False)) if any(ours["better_than"]) else {}
    metrics = list(dict.fromkeys(cells["metric"]))

    grid = Grid(["", *first.values(), *languages, *averages], caption=_caption(ours, paper, averages))
    for metric in metrics:
        here, printed = (side[side["metric"] == metric] for side in (ours, paper))
        if len(metrics) > 1:
            grid.rows.append([Cell(metric_name(metric), bold=True)])
        values = {"ours": _values(here, languages, averages), "paper": _values(printed, [*languages, "avg"], {})}
        heading = ""
        for side, name, label in _lines(here, printed):
            if len(metrics) == 1 and len(paper) and side != "paper" and looks.family(name) != heading:
                heading = looks.family(name)
                grid.rows.append([Cell(heading, bold=True)])
            if side == NOT_RUN:
                grid.rows.append(_not_run(label, grid))
                continue
            label = f"{label} {letters.get(name, '')}".strip() if side == "ours" else label
            found = (here if side == "ours" else printed).query("row == @name")
            about = training.query("source == @side and system == @found.system.iloc[0]")
            known = about.drop_duplicates("metric").set_index("metric")["value"]
            line = [Cell(_training_text(known, column), grey=side == "paper") for column in first]
            line += _score_cells(found, values[side], name, [*languages, *averages], letters)
            grid.rows.append([Cell(label, grey=side == "paper"), *line])
    return grid


def _lines(ours: pd.DataFrame, paper: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Every line from top to bottom: ours, paper or not run; the name of the row; its label."""
    mine, theirs = list(dict.fromkeys(ours["row"])), list(dict.fromkeys(paper["row"]))
    if any(ours["row"] != ours["system"]) or any(paper["row"] != paper["system"]):  # by number of examples
        yield from [("ours", name, name) for name in mine] or [(NOT_RUN, "", "ours")]
        yield from (("paper", name, f"{name}, paper") for name in theirs)
        return
    for name in in_order([*mine, *theirs], SYSTEMS):
        if name in mine:
            small = len(theirs) > 0 and any(_stands_in(ours[ours["system"] == name]))
            yield "ours", name, name + (STAND_IN if small else "")
        else:
            yield NOT_RUN, name, name
        if name in theirs:
            yield "paper", name, "    paper"


def _stands_in(ours: pd.DataFrame) -> pd.Series:
    return pd.Series([is_trained_here(row.model) and row.profile in SMALL for row in ours.itertuples()], dtype=bool)


def _not_run(label: str, grid: Grid) -> list[Cell]:
    return [Cell(label), Cell(NOT_RUN, grey=True), *[Cell("")] * (len(grid.header) - 2)]


def _averages(languages: Sequence[str]) -> dict[str, Sequence[str]]:
    """Name of a column → the languages that it averages."""
    others = [lang for lang in languages if lang != TRAINING_LANGUAGE]
    if len(languages) < 2:
        return {}
    return {"avg": languages} | ({"zero-shot": others} if 1 < len(others) < len(languages) else {})


def _values(cells: pd.DataFrame, columns: Sequence[str], averages: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    values = cells.pivot(index="row", columns="lang", values="value").reindex(columns=columns).astype(float)
    for name, over in averages.items():
        values[name] = values[over].mean(axis=1, skipna=False)
    return values


def _score_cells(
    found: pd.DataFrame, values: pd.DataFrame, name: str, columns: Sequence[str], letters: Mapping[str, str]
) -> list[Cell]:
    """One row's cells of one metric; `values` has all rows, so that the best of a column is known."""
    ours, by_lang = found["source"].iloc[0] == "ours", {row["lang"]: row for _, row in found.iterrows()}
    cells = []
    for column in columns:
        value, top = (values.at[name, column], values[column].max()) if column in values else (np.nan, np.nan)
        best = len(values) > 1 and not np.isnan(value) and score(value) == score(top)
        cell = Cell(score(value), bold=best, grey=not ours)
        if column in by_lang:
            row = by_lang[column]
            cell.fill, cell.origin = FILLS[row["trained_on_lang"]], _origin(row)
            cell.mark = "".join(letters[other] for other in letters if other in row["better_than"].split(";"))
        elif ours and not np.isnan(value):
            mean = {"language": f"{column}: mean of the languages", "value": f"{100 * value:.3f}"}
            cell.origin = _origin(found.iloc[0]) | mean
        cells.append(cell)
    return cells


def _origin(row: pd.Series) -> dict[str, str]:
    """Where a number is from, for the report."""
    language = LANGUAGES[row["lang"]].name if row["lang"] in LANGUAGES else row["lang"]
    what = {"system": row["system"], "language": language, "metric": metric_name(row["metric"])}
    if row["source"] == "paper":
        printed = f"the paper's Table {row['table']:.0f}, on {COLLECTIONS[row['collection']]}"
        return what | {"value": score(row["value"]), "printed in": printed}
    if row["row"] != row["system"]:
        what["examples"] = row["row"]
    known = {
        "value": f"{100 * row['value']:.3f}",
        "collection": f"{row['collection']}, {row['split']}",
        "queries": f"{row['n_queries']:.0f}",
        "model": row["model"],
        "seed": row["seed"],
        "profile": row["profile"],
        "device": row["device"],
        "commit": row["commit"],
        "seconds": "not recorded" if np.isnan(row["seconds"]) else f"{row['seconds']:.1f}",
        "energy": "not measured" if np.isnan(row["energy_kwh"]) else f"{row['energy_kwh']:.3g} kWh",
    }
    return what | {name: value for name, value in known.items() if value}


def _training_text(known: pd.Series, metric: str) -> str:
    if metric not in known or np.isnan(known[metric]):
        return "–"
    return f"{known[metric]:.0f}" if metric == "languages" else millions(known[metric], metric == "examples_millions")


def _caption(ours: pd.DataFrame, paper: pd.DataFrame, averages: Mapping[str, Sequence[str]]) -> str:
    text = [_about_ours(ours, averages)] if len(ours) else ["Ours: not run."]
    if any(ours["better_than"]):
        text.append(f"Superscripts: better than that system, paired test, p < {LEVEL} with Holm's correction.")
    if any(ours["trained_on_lang"]) or any(paper["trained_on_lang"]):
        text.append("Orange: language seen in training; blue: zero-shot.")
    if len(paper):
        if _stands_in(ours).any() and all(ours["row"] == ours["system"]):
            text.append(f"{STAND_IN.strip()}: a small model of that architecture, trained here.")
        printed = paper.iloc[0]
        text.append(
            f"Grey: printed in the paper's Table {printed['table']:.0f}, on {COLLECTIONS[printed['collection']]}; "
            f"its avg is over its own {paper['lang'].nunique() - 1} languages."
        )
    return " ".join(text)


def _about_ours(ours: pd.DataFrame, averages: Mapping[str, Sequence[str]]) -> str:
    first, seeds = ours.iloc[0], int(ours["n_seeds"].max())
    names = ", ".join(metric_name(metric) for metric in dict.fromkeys(ours["metric"]))
    text = [
        f"{banner(first['profile'])}{names} × 100 on {first['collection']}, {first['split']}; "
        f"{counts(ours['n_queries'])} queries per language{f'; mean of {seeds} seeds' if seeds > 1 else ''}."
    ]
    n = len(averages.get("avg", ()))
    if "zero-shot" in averages:
        text.append(f"avg: all {n} languages, English included; zero-shot: the {n - 1} others.")
    elif averages:
        included = TRAINING_LANGUAGE in averages["avg"]
        text.append(f"avg: all {n} languages, English {'included' if included else 'not among them'}.")
    if ours["row"].nunique() > 1:
        text.append("Bold: best of ours, and of the paper's.")
    return " ".join(text)


# --- Table 3


def energy(ours: pd.DataFrame, profile: str, intensity: float) -> pd.DataFrame:
    """The cells of Table 3, printed and computed again, and `ours`: rows of a ledger (`carbon.LEDGER_COLUMNS`)."""
    cells: list[dict] = []
    for (system, hardware), group in reported.frame(3).groupby(["system", "setting"], sort=False):
        row = group.set_index("metric")["value"]
        kwh = carbon.energy_kwh(row["tdp_w"], row["hours"], row["devices"])
        cells.append(
            dict(source="paper", system=system, hardware=f"{row['devices']:.0f}× {hardware}", basis="assumed")
            | dict(power_w=row["tdp_w"], hours=row["hours"])
            | dict(energy_kwh=row["energy_kwh"], emission_kg=row["emission_kgco2eq"])
            | dict(again_kwh=kwh, again_kg=carbon.emission_kg(kwh, carbon.INTENSITY["paper"]))
        )
    for row in ours[ours["profile"] == profile].to_dict("records"):
        kg = carbon.emission_kg(row["energy_kwh"], intensity)
        cells.append({name: row.get(name) for name in ENERGY_COLUMNS} | dict(source="ours", emission_kg=kg))
    return pd.DataFrame(cells, columns=ENERGY_COLUMNS)


def draw_energy(cells: pd.DataFrame) -> Grid:
    """What the paper prints, with the same products computed again beside it; then ours."""
    header = ["", "hardware", "power W", "time", "kWh", "kg CO₂eq", "kWh again", "kg again", "difference", "energy is"]
    ours = cells[cells["source"] == "ours"]
    grid = Grid(header, caption=_energy_caption(ours))
    grid.rows.append([Cell("Printed in the paper", bold=True)])
    for row in cells[cells["source"] == "paper"].to_dict("records"):
        apart = f"{row['emission_kg'] - row['again_kg']:+.4f}".replace("-", "−")
        again = [f"{row['again_kwh']:.3f}", f"{row['again_kg']:.4f}", apart]
        texts = [*_energy_texts(row)[:3], f"{row['energy_kwh']:.1f}", f"{row['emission_kg']:.2f}"]
        grid.rows.append([Cell(text, grey=True) for text in [row["system"], *texts, *again, row["basis"]]])
    grid.rows.append([Cell("Trained here", bold=True)])
    for row in ours.to_dict("records"):
        names = ("system", "what", "how", "model", "device", "commit", "profile")
        origin = {name: str(row[name]) for name in names if row[name]}
        texts = [*_energy_texts(row), "–", "–", "–", row["basis"]]
        grid.rows.append([Cell(f"{row['system']}, {row['what']}"), *(Cell(text, origin=origin) for text in texts)])
    if ours.empty:
        grid.rows.append(_not_run("ours", grid))
    return grid


def _energy_texts(row: dict) -> list[str]:
    power, kwh, kg = (digits(row[name]) for name in ("power_w", "energy_kwh", "emission_kg"))
    return [row["hardware"], power, duration(row["hours"]), kwh, kg]


def _energy_caption(ours: pd.DataFrame) -> str:
    return (
        f"{banner(ours['profile'].iloc[0]) if len(ours) else ''}Training: energy is power × time, emission is energy × "
        "carbon intensity, which is Eq. 10 with its plus sign read as ×. Grey: printed in the paper; “again” is the "
        "same product, computed here, and the difference is printed minus computed, in kg. The paper counts "
        "fine-tuning alone, neither pre-training nor the overhead of a data centre (PUE). Assumed: power from a data "
        "sheet; measured: by a meter."
    )


# --- Table 5


def efficiency(ours: pd.DataFrame, profile: str) -> pd.DataFrame:
    """The cells of Table 5. `ours`: system, engine, metric (of `EFFICIENCY`), value, profile; setting, n, … if known.

    Languages are averaged.
    """
    cells = [
        dict(source="paper", engine=row["setting"]) | {name: row[name] for name in ("system", "metric", "value")}
        for row in reported.rows(5)
    ]
    chosen = ours[ours["profile"] == profile].reindex(columns=EFFICIENCY_COLUMNS).assign(source="ours")
    words = ["setting", "model", "lang", "split"]
    chosen[words] = chosen[words].astype(object).fillna("")
    for metric in set(chosen["metric"]) - set(EFFICIENCY):
        raise ValueError(f"unknown metric {metric!r} of an engine; have: {', '.join(EFFICIENCY)}")
    for _, group in chosen.groupby(["system", "engine", "setting", "metric"], sort=False, dropna=False):
        together = {name: "; ".join(group[name].dropna().astype(str).unique()) for name in ("lang", "model", "device")}
        cells.append(group.iloc[0].to_dict() | together | dict(value=group["value"].mean()))
    return pd.DataFrame(cells, columns=EFFICIENCY_COLUMNS)


def draw_efficiency(cells: pd.DataFrame) -> Grid:
    """A row per engine and setting: our columns, then the paper's, where it has an engine of that kind."""
    ours, paper = (cells[cells["source"] == source] for source in ("ours", "paper"))
    mine = [metric for metric in EFFICIENCY if metric in set(ours["metric"])] or list(EFFICIENCY)[:3]
    header = ["", *(EFFICIENCY[metric] for metric in mine), *(f"paper {EFFICIENCY[m]}" for m in PRINTED_EFFICIENCY)]
    grid = Grid(header, caption=_efficiency_caption(ours))
    for group in (*looks.FAMILIES, looks.family("")):
        known = [name for name in in_order(cells["system"], SYSTEMS) if looks.family(name) == group]
        if not known:
            continue
        printed = paper[paper["system"].isin(known)]
        here = [name for name in known if name in set(ours["system"])]
        if not here:
            grid.rows.append([Cell(", ".join(dict.fromkeys(printed["system"])), bold=True)])
            for engine, block in printed.groupby("engine", sort=False):
                grid.rows.append(_engine_row(engine, {}, mine, block))
        for system in here:
            block = ours[ours["system"] == system]
            beside = [name for name in dict.fromkeys(printed["system"]) if name != system]
            stand_in = STAND_IN if any(_stands_in(block)) else ""
            title = f"{system}{stand_in}" + (f", beside the paper's {', '.join(beside)}" if beside else "")
            grid.rows.append([Cell(title, bold=True)])
            for engine in in_order([*block["engine"], *printed["engine"]], _ENGINE_ORDER):
                label, first = _engine_name(engine), printed[printed["engine"] == engine]
                settings = block[block["engine"] == engine].groupby("setting", sort=False)
                for i, (setting, found) in enumerate(settings):
                    values = found.drop_duplicates("metric").set_index("metric").to_dict("index")
                    words = f"    {setting}" if i else f"{label}, {setting}" if setting else label
                    grid.rows.append(_engine_row(words, values, mine, first if i == 0 else first[:0]))
                if not len(settings):
                    grid.rows.append(_engine_row(label, {}, mine, first))
    return grid


_ENGINE_ORDER = ("bm25s", "flat", "exact", "JASS", "Anserini", "PISA", "HNSW", "IVF-Flat", "v1", "v2", "PLAID")


def _engine_name(engine: str) -> str:
    """What the paper calls it, and, where ours is of the same kind and not the same program, how it works."""
    return f"as {engine}: {ENGINES[engine]}" if engine in ENGINES else engine


def _engine_row(label: str, values: dict[str, dict], mine: Sequence[str], printed: pd.DataFrame) -> list[Cell]:
    line = [_efficiency_cell(metric, values.get(metric)) for metric in mine]
    if not values:
        line = [Cell(NOT_RUN, grey=True), *[Cell("")] * (len(mine) - 1)]
    of_paper = printed.set_index("metric").to_dict("index")
    grey = [_printed_cell(metric, of_paper.get(metric)) if of_paper else Cell("") for metric in PRINTED_EFFICIENCY]
    return [Cell(label), *line, *grey]


def _efficiency_cell(metric: str, row: dict | None) -> Cell:
    if row is None:
        return Cell("–")
    names = ("system", "engine", "setting", "k", "n", "device", "collection", "lang", "model", "commit")
    known = {name: f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in names}
    origin = {name: text for name, text in known.items() if text not in ("", "nan")}
    value = row["value"]
    text = size(1e9 * value) if metric == "index_gb" else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    text = score(value) if metric.endswith(("recall_of_exact", "mrr@10")) else text
    return Cell(text, origin={"metric": metric, "value": f"{value:.6g}"} | origin)


def _printed_cell(metric: str, row: dict | None) -> Cell:
    if row is None:
        return Cell("–", grey=True)
    text = f"{row['value']:g} GB" if metric == "index_gb" else digits(row["value"])
    origin = {"system": row["system"], "engine": row["engine"], "metric": metric, "value": f"{row['value']:g}"}
    return Cell(text, grey=True, origin=origin | {"printed in": "the paper's Table 5, on MS MARCO"})


def _efficiency_caption(ours: pd.DataFrame) -> str:
    about = "Ours: not run."
    if len(ours):
        first, languages = ours.iloc[0], list(dict.fromkeys("; ".join(ours["lang"].astype(str)).split("; ")))
        where = f"{first['collection']}{f', {first.split}' if first.split else ''}"
        mean = f", mean of {len(languages)} languages" if len(languages) > 1 else f", {languages[0]}"
        depth = f"the best {first['k']:.0f} passages" if first["k"] == first["k"] else "the best passages"
        asked = f" of {counts(ours['n'])} queries" if ours["n"].notna().all() else ""
        devices = "; ".join(dict.fromkeys(ours["device"].astype(str)))
        small = f" {STAND_IN.strip()}: a small model, trained here." if _stands_in(ours).any() else ""
        about = (
            f"{banner(first['profile'])}Ours: {where}{mean}, on {devices}. Time to find {depth} for one query, median "
            f"and 95th percentile{asked}, one at a time, CPU time on one thread, the query encoded beforehand; “+ "
            f"encoding” is the median with that. “of exact”: share (%) of what exact search finds.{small}"
        )
    return (
        f"Size of the index, alone and against the plain text, and time per query. {about} Grey, in columns of their "
        "own: printed in the paper's Table 5, on MS MARCO, averages for the best 1000, in parts quoted from other "
        "papers and measured on other machines."
    )


def choose(rows: pd.DataFrame, profile: str, metrics: Sequence[str], none_allowed: bool = False) -> pd.DataFrame:
    """The rows of one profile and some metrics."""
    chosen = rows[(rows["profile"] == profile) & rows["metric"].isin(metrics)]
    if chosen.empty and not none_allowed:
        have = ", ".join(sorted({f"{row.profile} {row.metric}" for row in rows.itertuples()})) or "none"
        raise ValueError(f"no result of profile {profile!r} with metric {' or '.join(metrics)!r}; have: {have}")
    return chosen


def only(rows: pd.DataFrame, column: str) -> str:
    """The one value of a column; a table must not mix, say, two collections."""
    values = rows[column].unique()
    if len(values) != 1:
        raise ValueError(f"the rows mix several values of {column!r}: {', '.join(map(str, values))}; choose one")
    return values[0]
