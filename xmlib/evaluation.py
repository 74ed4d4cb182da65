"""How good a ranking is: runs, metrics through ranx, tests between systems, and the rows that tables are made of.

Conventions, those of the official MS MARCO and Mr. TyDi scripts: the mean is over every judged query, and one without
results counts 0; recall@k is the share of a query's relevant passages found, relevant meaning a grade of at least 1;
nDCG takes the grade itself as gain. Where two scores are equal in float32, the smaller pid (as a string) comes first:
ranx's own sort is unstable there, so it is given ranks that are settled already.

ranx compiles with numba, some 5 s a metric, once per environment: numba keeps the result on disk, beside ranx or, where
that is not writable, in the user's cache. Importing this module loads neither.
"""

import csv
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

from xmlib.data.collection import Collection

METRICS = ("mrr", "recall", "ndcg")  # each as name@k

RESULT_COLUMNS = [
    "system", "model", "collection", "split", "lang", "metric", "value", "n_queries",
    "seed", "profile", "device", "commit", "seconds", "energy_kwh",
]  # fmt: skip
RESULT_KEY = ["system", "collection", "split", "lang", "metric", "seed", "profile"]


@dataclass
class Run:
    """What a system found: qid -> pid -> score, best first, ties by pid. Any order goes in; scores become float32."""

    name: str
    rankings: dict[str, dict[str, float]]

    def __post_init__(self):
        self.rankings = {qid: _ranked(qid, found) for qid, found in self.rankings.items()}

    @classmethod
    def from_search(
        cls, name: str, qids: Sequence[str], pids: Sequence[str], scores_Ak: np.ndarray, positions_Ak: np.ndarray
    ) -> "Run":
        """From what an index returns: positions in `pids`, -1 where there was nothing more to find."""
        rankings = {}
        found = {i: pids[i] for i in np.unique(positions_Ak).tolist() if i >= 0}  # ids may have to be read and decoded
        for qid, score_k, position_k in zip(qids, scores_Ak.tolist(), positions_Ak.tolist(), strict=True):
            rankings[qid] = {found[i]: score for score, i in zip(score_k, position_k, strict=True) if i >= 0}
        return cls(name, rankings)

    def save(self, path: str | Path) -> None:
        """Write a TREC run file: qid Q0 pid rank score tag, ranks from 1. A query without results has no line."""
        tag = "_".join(self.name.split())
        with _replacing(path) as file:
            for qid, found in self.rankings.items():
                for rank, (pid, score) in enumerate(found.items(), start=1):
                    file.write(f"{qid} Q0 {pid} {rank} {score:.9g} {tag}\n")

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """Read a TREC run file. The score column decides, as in trec_eval; ranks are not looked at."""
        rankings: dict[str, dict[str, float]] = {}
        tag = Path(path).stem
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                columns = line.split()
                if len(columns) != 6:
                    expected = "expected six columns 'qid Q0 pid rank score tag'"
                    raise ValueError(f"{path} line {number}: {expected}, found {len(columns)} in {line!r:.80}")
                qid, _, pid, _, score, tag = columns
                found = rankings.setdefault(qid, {})
                if pid in found:
                    raise ValueError(f"{path} line {number}: passage {pid!r} is there twice for query {qid!r}")
                found[pid] = float(score)
        return cls(tag, rankings)


def evaluate(
    run: Run, qrels: Mapping[str, Mapping[str, int]], metrics: Sequence[str] = ("mrr@10", "recall@100")
) -> pd.DataFrame:
    """The value of each metric for every judged query: index qid, one column per metric. `.mean()` is the score.

    Metrics are mrr@k, recall@k and ndcg@k. Queries that only the run has are ignored.
    """
    cuts = [_name_and_cut(metric) for metric in metrics]
    if not qrels:
        raise ValueError("no judged queries")
    if run.rankings and not any(qid in run.rankings for qid in qrels):  # an empty run found nothing
        raise ValueError(f"run {run.name!r} has none of the {len(qrels)} judged queries: is it of another collection?")

    from ranx.metrics import metric_switch

    qrels_AR2, run_AK2 = _as_arrays(run, qrels, depth=max(k for _, k in cuts))
    values = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="unsafe cast from uint64")  # numba on ranx's loops, when it compiles
        for metric, (name, k) in zip(metrics, cuts, strict=True):
            values[metric] = metric_switch(name)(qrels_AR2, run_AK2, k, 1)
    return pd.DataFrame(values, index=pd.Index(list(qrels), name="qid"))


def compare(
    values_a: Mapping[str, pd.Series], values_b: Mapping[str, pd.Series], resamples: int = 9999, seed: int = 0
) -> pd.DataFrame:
    """Is system b different from system a? Per language a paired, two-sided randomisation test over its queries.

    Both map language -> per-query values of one metric (a column of `evaluate`). Returns one row per language:
    lang, mean_a, mean_b, difference (b - a), p, p_holm, n. `p_holm` is corrected for the number of languages (Holm).
    Up to 2^n <= `resamples` the test is exact.
    """
    from scipy.stats import permutation_test

    if values_a.keys() != values_b.keys():
        raise ValueError(f"languages differ: {', '.join(values_a)} against {', '.join(values_b)}")
    rows = []
    for lang, a in values_a.items():
        b = values_b[lang]
        if set(a.index) != set(b.index) or len(a) != len(b):
            raise ValueError(f"{lang}: the systems were not evaluated on the same queries ({len(a)} and {len(b)})")
        difference = (b.reindex(a.index) - a).to_numpy()
        moved = difference[difference != 0]  # a query without difference is the same with either sign
        p = 1.0  # also of a single one, whose sign is as good as its opposite
        if len(moved) > 1:
            how = dict(permutation_type="samples", vectorized=True, batch=1000)
            p = float(permutation_test((moved,), np.sum, n_resamples=resamples, rng=seed, **how).pvalue)
        rows.append((lang, a.mean(), b.mean(), difference.mean(), p, len(a)))
    table = pd.DataFrame(rows, columns=["lang", "mean_a", "mean_b", "difference", "p", "n"])
    table.insert(5, "p_holm", holm(table["p"].to_numpy()))
    return table


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's correction: the smallest of m p-values times m, the next times m - 1, ...; never falling, at most 1."""
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def result_rows(
    values: pd.DataFrame,
    collection: Collection,
    *,
    system: str,
    model: str,
    seed: int,
    profile: str,
    device: str,
    commit: str,
    seconds: float | None = None,
    energy_kwh: float | None = None,
) -> pd.DataFrame:
    """One row per metric of `values` (from `evaluate`), with all that says where the number came from.

    `seconds` and `energy_kwh` are those of the ranking, without its index; energy only where a counter measured it.
    """
    origin = dict(
        system=system, model=model, collection=collection.name, split=collection.split, lang=collection.lang,
        n_queries=len(values), seed=seed, profile=profile, device=device, commit=commit,
        seconds=seconds, energy_kwh=energy_kwh,
    )  # fmt: skip
    rows = [{**origin, "metric": metric, "value": values[metric].mean()} for metric in values]
    return pd.DataFrame(rows, columns=RESULT_COLUMNS)


def write_results(path: str | Path, rows: pd.DataFrame) -> None:
    """Put result rows into a CSV file: a row with the same `RESULT_KEY` is replaced where it stands, others are added.

    The folder is locked meanwhile, so that notebooks that run side by side do not lose each other's rows.
    """
    import fcntl

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = rows[RESULT_COLUMNS].astype(object).where(rows[RESULT_COLUMNS].notna(), "").to_dict("records")
    lock = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = _read_csv(path) if path.exists() else []
        merged = {tuple(str(row[column]) for column in RESULT_KEY): row for row in [*old, *new]}
        with _replacing(path) as file:
            writer = csv.DictWriter(file, RESULT_COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(merged.values())
    finally:
        os.close(lock)


def read_results(path: str | Path) -> pd.DataFrame:
    """The rows of a CSV file of results."""
    text = dict.fromkeys(["system", "model", "collection", "split", "lang", "profile", "device", "commit"], str)
    empty = dict.fromkeys(["seconds", "energy_kwh"], "")
    rows = pd.read_csv(path, dtype=text, na_values=empty, keep_default_na=False)  # no name is taken for "missing"
    _check_columns(path, list(rows.columns))
    return rows


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    _check_columns(path, reader.fieldnames)
    return rows


def _check_columns(path: str | Path, found: Sequence[str] | None) -> None:
    if found != RESULT_COLUMNS:
        raise ValueError(f"{path}: expected the columns {', '.join(RESULT_COLUMNS)}; found {', '.join(found or [])}")


def _ranked(qid: str, found: Mapping[str, float]) -> dict[str, float]:
    scores = np.fromiter(found.values(), dtype=np.float32, count=len(found))
    if np.isnan(scores).any():
        raise ValueError(f"query {qid!r} has a score that is not a number")
    pairs = zip(found, scores.tolist(), strict=True)
    if (scores[1:] < scores[:-1]).all():  # the usual case: in order, no ties
        return dict(pairs)
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def _name_and_cut(metric: str) -> tuple[str, int]:
    name, _, k = metric.partition("@")
    if name not in METRICS or not k.isdecimal() or int(k) == 0:
        have = ", ".join(f"{name}@k" for name in METRICS)
        raise ValueError(f"unknown metric {metric!r}; have: {have}, with k at least 1")
    return name, int(k)


def _as_arrays(run: Run, qrels: Mapping[str, Mapping[str, int]], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """What ranx's metrics read: (id, grade) and (id, score) pairs, padded with id -1, best first.

    Ids are numbers within the query, 0 for its first judged passage; -1 is any passage without judgement. Plain arrays
    instead of ranx's own Qrels and Run spare the typed dictionaries, most of its compile time, and its sort.
    """
    most = max(len(judged) for judged in qrels.values())
    qrels_AR2 = np.zeros((len(qrels), most, 2))
    qrels_AR2[:, :, 0] = -1
    run_AK2 = np.full((len(qrels), depth, 2), -1.0)
    run_AK2[:, :, 1] = -np.arange(depth)
    for a, (qid, judged) in enumerate(qrels.items()):
        best = sorted(judged.items(), key=lambda pair: -pair[1])
        number = {pid: i for i, (pid, _) in enumerate(best)}
        qrels_AR2[a, : len(best)] = [(i, grade) for i, (_, grade) in enumerate(best)]
        for rank, pid in zip(range(depth), run.rankings.get(qid, ()), strict=False):
            run_AK2[a, rank, 0] = number.get(pid, -1)
    return qrels_AR2, run_AK2


@contextmanager
def _replacing(path: str | Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path` when it is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
