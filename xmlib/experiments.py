"""What a notebook asks of many systems and many languages at once: indexes, rankings, scores.

    scores = score_all(rows, [("sample", "ar"), ("sample", "sw")], k=100, metrics=("mrr@10",), profile="demo", seed=42)
    scores.rows                              # result rows: what tables and figures are drawn from
    scores.values["BM25", "sample", "ar"]    # one value per question: what is tested for significance

Systems and languages are independent, so they are worked on side by side, one process on each core of a CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from xmlib import carbon, notebook, processes, stages, systems
from xmlib.data.sources import open_collection
from xmlib.evaluation import Run, evaluate, result_rows
from xmlib.systems import System

Place = tuple[str, str]  # source and language, as `open_collection` takes them


@dataclass(frozen=True)
class Scores:
    """Result rows, and per (system, source, language) a frame of one row per judged question, one column per metric."""

    rows: pd.DataFrame
    values: dict[tuple[str, str, str], pd.DataFrame]


def score_all(
    rows: Sequence[System],
    places: Sequence[Place],
    k: int = 100,
    metrics: Sequence[str] = ("mrr@10", "recall@100"),
    *,
    profile: str,
    seed: int,
    queries: int = 0,
    keep: bool = True,
    title: str = "score",
) -> Scores:
    """Every system on every place, on `queries` questions of each (0: all).

    Rankings are kept as TREC run files and found again, unless `keep` is false, for those that are only scored once.
    """
    origin = dict(seed=seed, profile=profile, device=notebook.device_name(), commit=stages.commit())
    tasks = [(system, *place, k, tuple(metrics), queries, keep, origin) for place in places for system in rows]
    done = processes.each(_score, tasks, title, "ranking")
    values = {(task[0].name, *task[1:3]): found for task, (_, found) in zip(tasks, done, strict=True)}
    return Scores(pd.concat([cells for cells, _ in done], ignore_index=True), values)


def index_all(system: System, places: Sequence[Place], title: str = "index") -> list[Path]:
    """The folders of `systems.index` for one system and every place."""
    return processes.each(_index, [(system, *place) for place in places], title, "index")


def _score(
    system: System, source: str, lang: str, k: int, metrics: Sequence[str], queries: int, keep: bool, origin: dict
) -> tuple[pd.DataFrame, pd.DataFrame]:
    collection = systems.some_queries(open_collection(source, lang), queries)
    if keep:
        folder = systems.ranking(system, collection, k, progress=False)
        run = Run.load(folder / systems.RUN_FILE)
        cost = dict(seconds=stages.record(folder)["seconds"], energy_kwh=carbon.measured(folder))
    else:
        with carbon.Meter() as meter:
            run = systems.search(system, collection, k, progress=False)
        cost = dict(seconds=round(meter.seconds, 3), energy_kwh=meter.energy_kwh("measured"))
    values = evaluate(run, collection.qrels, metrics)
    rows = result_rows(values, collection, system=system.name, model=systems.version(system), **cost, **origin)
    return rows, values


def _index(system: System, source: str, lang: str) -> Path:
    return systems.index(system, open_collection(source, lang), progress=False)
