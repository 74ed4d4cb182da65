"""MS MARCO's mined hard negatives: the paper's training triples, and n-way tuples with a teacher's scores.

For every training query, 13 retrievers (BM25 and 12 dense ones) gave what they rank high and no judge called relevant;
a cross-encoder scored all of it. A negative that scores within a margin of the query's worst positive is likely to be
an answer that nobody judged, and is left out. The released code samples from all 13 retrievers with a margin of 3.0;
the paper speaks of the 12 dense ones: `systems=DENSE`.

    triples = msmarco.triples(open_collection("mmarco", "en", "train"), count=6_400_000)

The two files (1.2 GB of JSON, 1.4 GB of pickled scores) are converted once into arrays that are mapped ever after, in a
memory of some hundred megabytes. Drawing is then a matter of arrays: round r visits every query once, in an order and
with a positive and negatives that the seed and r alone decide.

Axes: Q queries of the file · U those that can be used · P positives · C candidates (negatives) · E examples
"""

import gzip
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from xmlib.data import hub
from xmlib.data.collection import Collection
from xmlib.data.hub import HubFile
from xmlib.data.triples import Triples, Tuples
from xmlib.paths import DATA
from xmlib.stages import fingerprint, stage

SYSTEMS = (
    "bm25",
    "msmarco-distilbert-base-tas-b",
    "msmarco-distilbert-base-v3",
    "msmarco-MiniLM-L-6-v3",
    "distilbert-margin_mse-cls-dot-v2",
    "distilbert-margin_mse-cls-dot-v1",
    "distilbert-margin_mse-mean-dot-v1",
    "mpnet-margin_mse-mean-v1",
    "co-condenser-margin_mse-cls-v1",
    "distilbert-margin_mse-mnrl-mean-v1",
    "distilbert-margin_mse-sym_mnrl-mean-v1",
    "distilbert-margin_mse-sym_mnrl-mean-v2",
    "co-condenser-margin_mse-sym_mnrl-mean-v1",
)
DENSE = SYSTEMS[1:]
MARGIN = 3.0  # of the cross-encoder's score

REPO, REVISION = "sentence-transformers/msmarco-hard-negatives", "094614d3a0d3395455a4f5254033cab1110033a8"
MINED = HubFile(REPO, "msmarco-hard-negatives.jsonl.gz", REVISION)
SCORES = HubFile(REPO, "cross-encoder-ms-marco-MiniLM-L-6-v2-scores.pkl.gz", REVISION)
LICENCE = "none stated; of MS MARCO: non-commercial research"
MAKES = 3.0  # bytes of arrays, those in between included, per byte downloaded: a guess
BLOCK = 20_000  # queries handled at a time


def triples(
    collection: Collection,
    count: int = 6_400_000,
    systems: Sequence[str] = SYSTEMS,
    margin: float = MARGIN,
    seed: int = 42,
    say: Callable = print,
) -> Triples:
    """`count` training triples over `collection`: the split train of mMARCO in any language, whole or reduced."""
    folder = _draw(collection, count, 2, systems, margin, seed, say)
    rows_E3 = np.load(folder / "rows.npy", mmap_mode="r")
    return Triples(*_texts(collection), rows_E3, collection.lang, _skipped(folder), fingerprint(folder))


def tuples(
    collection: Collection,
    count: int,
    nway: int = 32,
    systems: Sequence[str] = SYSTEMS,
    margin: float | None = None,
    seed: int = 42,
    say: Callable = print,
) -> Tuples:
    """`count` tuples of a positive and `nway` - 1 negatives with the cross-encoder's scores, for distillation.

    Without a margin nothing is left out for its score: the teacher says itself how relevant a negative is.
    """
    folder = _draw(collection, count, nway, systems, margin, seed, say)
    rows_EM, scores_EN = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("rows", "scores"))
    return Tuples(*_texts(collection), rows_EM, scores_EN, collection.lang, _skipped(folder), fingerprint(folder))


@dataclass(frozen=True)
class Negatives:
    """The two files as arrays. Positives and candidates of query q: from `…_ends[q]` up to `…_ends[q + 1]`.

    A candidate's `systems` has bit i set where SYSTEMS[i] found it. A score that is not known is NaN.
    """

    folder: Path
    qids_Q: np.ndarray  # int32
    positive_ends: np.ndarray  # int64, Q + 1
    positives_P: np.ndarray  # int32, passage ids
    positive_scores_P: np.ndarray  # float32
    candidate_ends: np.ndarray  # int64, Q + 1
    candidates_C: np.ndarray  # int32, passage ids, without the positives
    candidate_scores_C: np.ndarray  # float32
    systems_C: np.ndarray  # uint16

    def positives(self) -> Iterator[tuple[int, np.ndarray]]:
        """Stream (query id, its relevant passage ids)."""
        for q, qid in enumerate(self.qids_Q.tolist()):
            yield qid, self.positives_P[self.positive_ends[q] : self.positive_ends[q + 1]]


ARRAYS = {
    "qids_Q": "<i4", "positive_ends": "<i8", "positives_P": "<i4", "positive_scores_P": "<f4",
    "candidate_ends": "<i8", "candidates_C": "<i4", "candidate_scores_C": "<f4", "systems_C": "<u2",
}  # fmt: skip


def open_negatives(say: Callable = print) -> Negatives:
    """The arrays; the first time, download and convert the files."""

    def build(into: Path) -> None:
        mined, scores = hub.fetch([MINED, SCORES], "MS MARCO hard negatives", LICENCE, MAKES)
        convert(mined.path, scores.path, into)
        (into / "sources.json").write_text(json.dumps([mined.record(), scores.record()]))

    inputs = {"files": [[file.repo, file.revision, file.path] for file in (MINED, SCORES)]}
    return read(stage(DATA / "published", "msmarco-negatives", 1, inputs, build, say))


def read(folder: Path) -> Negatives:
    """Map the arrays that `convert` wrote."""
    arrays = {}
    for name, kind in ARRAYS.items():
        path = folder / f"{name}.bin"
        arrays[name] = np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.zeros(0, kind)
    return Negatives(folder, **arrays)


def convert(mined: Path, scores: Path, into: Path, progress: bool = True) -> None:
    """Write the arrays of `Negatives` from the two files as they are published."""
    teacher = _Teacher(into / "scores", scores, progress)
    files = {name: (into / f"{name}.bin").open("wb") for name in ARRAYS}
    ends = {"positive_ends": 0, "candidate_ends": 0}
    for name in ends:
        files[name].write(bytes(8))
    with gzip.open(mined) as lines, tqdm(lines, desc="hard negatives", unit=" queries", disable=not progress) as bar:
        for number, line in enumerate(bar, start=1):
            try:
                row = json.loads(line)
                qid, positives, found = row["qid"], np.array(row["pos"], dtype=np.int32), _merged(row["neg"])
            except (ValueError, KeyError, TypeError) as error:
                expected = 'expected {"qid": …, "pos": […], "neg": {retriever: […]}}'
                raise ValueError(f"{mined} line {number}: {expected} ({error}), found {line!r:.80}") from error
            wanted = ~np.isin(found[0], positives)
            pids, systems = found[0][wanted], found[1][wanted]
            ends["positive_ends"] += len(positives)
            ends["candidate_ends"] += len(pids)
            written = {
                "qids_Q": [qid], "positives_P": positives, "positive_scores_P": teacher.scores(qid, positives),
                "candidates_C": pids, "candidate_scores_C": teacher.scores(qid, pids), "systems_C": systems,
                **{name: [end] for name, end in ends.items()},
            }  # fmt: skip
            for name, values in written.items():
                files[name].write(np.asarray(values, dtype=ARRAYS[name]))
    for file in files.values():
        file.close()
    shutil.rmtree(into / "scores")


def _merged(found: dict[str, list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """All passages that the retrievers found, each once, by id; and which of them found it, as bits."""
    for name in found:
        if name not in SYSTEMS:
            raise ValueError(f"unknown retriever {name!r}; have: {', '.join(SYSTEMS)}")
    lists = [found.get(name, []) for name in SYSTEMS]
    pids = np.array([pid for pids in lists for pid in pids], dtype=np.int32)
    bits = np.repeat(1 << np.arange(len(SYSTEMS)), [len(pids) for pids in lists]).astype(np.uint16)
    if not len(pids):
        return pids, bits
    order = np.argsort(pids, kind="stable")
    pids, bits = pids[order], bits[order]
    starts = np.flatnonzero(np.diff(pids, prepend=-1))
    return pids[starts], np.bitwise_or.reduceat(bits, starts)


class _Teacher:
    """The cross-encoder's scores, on disk while they are looked up: they come in another order than the queries."""

    def __init__(self, folder: Path, path: Path, progress: bool):
        from xmlib.data import pickled_scores

        folder.mkdir(parents=True, exist_ok=True)
        names = {"pids": "<i4", "scores": "<f4"}
        if not (folder / "queries.npy").exists():
            qids, counts = [], []
            with (
                (folder / "pids").open("wb") as pids_file,
                (folder / "scores").open("wb") as scores_file,
                tqdm(desc="cross-encoder scores", unit=" scores", unit_scale=True, disable=not progress) as bar,
            ):
                for qids_S, pids_S, scores_S in pickled_scores.read(path):
                    starts = np.flatnonzero(np.diff(qids_S, prepend=qids_S[0] - 1))
                    qids.append(qids_S[starts])
                    counts.append(np.diff(starts, append=len(qids_S)))
                    pids_file.write(pids_S)
                    scores_file.write(scores_S)
                    bar.update(len(qids_S))
            runs = np.concatenate(qids), np.concatenate(counts)
            np.save(folder / "queries.npy", np.stack([*runs, np.cumsum(runs[1]) - runs[1]]))
        self._pids, self._scores = (np.memmap(folder / name, dtype=kind, mode="r") for name, kind in names.items())
        self._runs: dict[int, list[tuple[int, int]]] = {}
        for qid, count, start in np.load(folder / "queries.npy").T.tolist():
            self._runs.setdefault(qid, []).append((start, start + count))  # two, where a chunk ended in a query

    def scores(self, qid: int, pids: np.ndarray) -> np.ndarray:
        """The scores of `pids` for a query, float32; NaN where the teacher gave none."""
        runs = self._runs.get(qid, [])
        if not runs or not len(pids):
            return np.full(len(pids), np.nan, dtype=np.float32)
        known = np.concatenate([self._pids[start:end] for start, end in runs])
        scores = np.concatenate([self._scores[start:end] for start, end in runs])
        order = np.argsort(known, kind="stable")
        at = order[np.searchsorted(known, pids, sorter=order).clip(max=len(known) - 1)]
        return np.where(known[at] == pids, scores[at], np.float32(np.nan))


def _draw(
    collection: Collection,
    count: int,
    nway: int,
    systems: Sequence[str],
    margin: float | None,
    seed: int,
    say: Callable,
) -> Path:
    """The stage's folder with rows.npy, scores.npy (for more than triples) and what was left out."""
    for name in systems:
        if name not in SYSTEMS:
            raise ValueError(f"unknown retriever {name!r}; have: {', '.join(SYSTEMS)}")
    negatives = open_negatives(say)
    inputs = {
        "negatives": fingerprint(negatives.folder),
        "collection": collection.fingerprint,
        "count": count,
        "nway": nway,
        "systems": [name for name in SYSTEMS if name in systems],
        "margin": margin,
        "seed": seed,
    }

    def build(into: Path) -> None:
        pool = _Pool(negatives, collection, systems, margin, nway - 1)
        pool.draw(count, seed, into)
        (into / "skipped.json").write_text(json.dumps(pool.skipped, indent=1))

    # 2: neighbouring seeds draw apart
    folder = stage(DATA / "published", f"msmarco-{nway}way-{collection.lang}", 2, inputs, build, say)
    left_out = "; ".join(f"{number} x {reason}" for reason, number in _skipped(folder).items())
    say(f"{folder.name} left out {left_out or 'nothing'}")
    return folder


def _skipped(folder: Path) -> dict[str, int]:
    return json.loads((folder / "skipped.json").read_text())


def _texts(collection: Collection) -> tuple[list[str], Sequence[str]]:
    return list(collection.queries.values()), collection.passages.texts


class _Pool:
    """The queries that can be used, each with its positives and those of its candidates that may be drawn."""

    def __init__(
        self, negatives: Negatives, collection: Collection, systems: Sequence[str], margin: float | None, number: int
    ):
        self.number = number
        self.skipped: dict[str, int] = {}
        bits = sum(1 << i for i, name in enumerate(SYSTEMS) if name in systems)
        positions = _positions(collection)
        query_positions = {qid: i for i, qid in enumerate(collection.queries)}
        blocks = [
            self._block(
                negatives,
                slice(start, min(start + BLOCK, len(negatives.qids_Q))),
                bits,
                margin,
                positions,
                query_positions,
            )
            for start in range(0, len(negatives.qids_Q), BLOCK)
        ]
        columns = [np.concatenate(column) for column in zip(*blocks, strict=True)] if blocks else [np.zeros(0, int)] * 7
        self.queries_U, self.positive_counts_U, self.counts_U = columns[:3]
        self.positives_P, self.positive_scores_P, self.candidates_C, self.scores_C = columns[3:]
        self.positive_starts_U = np.cumsum(self.positive_counts_U) - self.positive_counts_U
        self.starts_U = np.cumsum(self.counts_U) - self.counts_U
        if not len(self.queries_U):
            left_out = ", ".join(f"{number} x {reason}" for reason, number in self.skipped.items())
            raise ValueError(
                f"{collection.name} ({collection.split}): no query of the hard negatives can be used: {left_out}"
            )

    def _block(
        self, negatives, rows: slice, bits: int, margin: float | None, positions: np.ndarray, query_positions: dict
    ):
        """What of the queries `rows` can be used: positions, counts, and the positives and candidates themselves."""
        queries_Q = np.array([query_positions.get(str(qid), -1) for qid in negatives.qids_Q[rows].tolist()])
        ends = negatives.positive_ends[rows.start : rows.stop + 1]
        part = slice(ends[0], ends[-1])
        of_P = np.repeat(np.arange(len(queries_Q)), np.diff(ends))
        positives_P, positive_scores_P = (
            _look_up(positions, negatives.positives_P[part]),
            negatives.positive_scores_P[part],
        )
        lowest_Q = np.full(len(queries_Q), np.inf)
        np.fmin.at(lowest_Q, of_P, np.where(np.isnan(positive_scores_P), np.inf, positive_scores_P))
        # As in the released code the threshold is that of all positives, in this collection or not.
        usable_P = (positives_P >= 0) & ~np.isnan(positive_scores_P)
        positive_counts_Q = np.bincount(of_P[usable_P], minlength=len(queries_Q))

        ends = negatives.candidate_ends[rows.start : rows.stop + 1]
        part = slice(ends[0], ends[-1])
        of_C = np.repeat(np.arange(len(queries_Q)), np.diff(ends))
        candidates_C, scores_C = _look_up(positions, negatives.candidates_C[part]), negatives.candidate_scores_C[part]
        reasons = {
            "candidate of a retriever that was not asked for": (negatives.systems_C[part] & bits) == 0,
            "candidate that is not in the collection": candidates_C < 0,
            "candidate without a score": np.isnan(scores_C),
        }
        if margin is not None:
            reasons["candidate that may be an answer"] = scores_C > (lowest_Q - margin)[of_C]
        asked_C = (queries_Q >= 0)[of_C] & (positive_counts_Q > 0)[of_C]
        usable_C = asked_C.copy()
        for reason, where_C in reasons.items():
            self._skip(reason, usable_C & where_C)
            usable_C &= ~where_C
        counts_Q = np.bincount(of_C[usable_C], minlength=len(queries_Q))

        judged_Q = np.bincount(of_P, minlength=len(queries_Q)) > 0
        usable_Q = np.ones(len(queries_Q), dtype=bool)
        for reason, where_Q in {
            "query without a positive": ~judged_Q,
            "query that is not in the collection": queries_Q < 0,
            "query without a scored positive in the collection": positive_counts_Q == 0,
            f"query with fewer than {self.number} negatives": counts_Q < self.number,
        }.items():
            self._skip(reason, usable_Q & where_Q)
            usable_Q &= ~where_Q
        usable_P &= usable_Q[of_P]
        usable_C &= usable_Q[of_C]
        return (
            queries_Q[usable_Q], positive_counts_Q[usable_Q], counts_Q[usable_Q],
            positives_P[usable_P], positive_scores_P[usable_P], candidates_C[usable_C], scores_C[usable_C],
        )  # fmt: skip

    def _skip(self, reason: str, where: np.ndarray) -> None:
        if where.any():
            self.skipped[reason] = self.skipped.get(reason, 0) + int(where.sum())

    def draw(self, count: int, seed: int, into: Path) -> None:
        """Write `count` examples, round after round: one of every query, in a new order, until there are enough."""
        shape = (count, 2 + self.number)
        rows_EM = np.lib.format.open_memmap(into / "rows.npy", "w+", dtype=np.int64, shape=shape)
        scores_EN = None
        if self.number > 1:
            scores_EN = np.lib.format.open_memmap(
                into / "scores.npy", "w+", dtype=np.float32, shape=(count, shape[1] - 1)
            )
        for start in range(0, count, len(self.queries_U)):
            rng = np.random.default_rng([seed, start // len(self.queries_U)])
            order_U = rng.permutation(len(self.queries_U))[: count - start]
            here = slice(start, start + len(order_U))
            positive_U = self.positive_starts_U[order_U] + rng.integers(0, self.positive_counts_U[order_U])
            rows_EM[here, 0] = self.queries_U[order_U]
            rows_EM[here, 1] = self.positives_P[positive_U]
            drawn_UN = self.starts_U[order_U, None] + _distinct(rng, self.counts_U[order_U], self.number)
            rows_EM[here, 2:] = self.candidates_C[drawn_UN]
            if scores_EN is not None:
                scores_EN[here, 0] = self.positive_scores_P[positive_U]
                scores_EN[here, 1:] = self.scores_C[drawn_UN]
        for array in (rows_EM, scores_EN):
            if array is not None:
                array.flush()


def _positions(collection: Collection) -> np.ndarray:
    """Passage id → position in the collection, -1 where it is not there. The ids of MS MARCO are numbers."""
    try:
        pids_B = np.fromiter(map(int, collection.passages.ids), dtype=np.int64, count=len(collection.passages))
    except ValueError as error:
        raise ValueError(f"{collection.name} is not of MS MARCO, whose passage ids are numbers: {error}") from None
    positions = np.full(pids_B.max(initial=-1) + 2, -1, dtype=np.int32)  # the last one is of every id that is larger
    positions[pids_B] = np.arange(len(pids_B))
    return positions


def _look_up(positions: np.ndarray, pids: np.ndarray) -> np.ndarray:
    return positions[np.minimum(pids, len(positions) - 1)]


def _distinct(rng: np.random.Generator, counts_U: np.ndarray, number: int) -> np.ndarray:
    """`number` different whole numbers below each of `counts_U`, every set as likely. Returns (U, number).

    Floyd's way: for each of the last `number` values, draw one up to it; if that one is taken, take the value itself.
    """
    drawn_UN = np.empty((len(counts_U), number), dtype=np.int64)
    for i in range(number):
        last_U = counts_U - number + i
        new_U = rng.integers(0, last_U + 1)
        taken_U = (drawn_UN[:, :i] == new_U[:, None]).any(axis=1)
        drawn_UN[:, i] = np.where(taken_U, last_U, new_U)
    return drawn_UN
