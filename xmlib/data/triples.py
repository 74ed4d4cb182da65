"""Training triples: a query, a passage that answers it, and a hard negative: one that a retriever mistakes for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from xmlib.data.collection import Collection

if TYPE_CHECKING:  # training needs triples on machines that have no pandas
    from xmlib.evaluation import Run


@dataclass(frozen=True)
class Triples:
    """Examples as positions into the texts of a collection: query, its positive, its hard negative.

    `skipped` says what was left out when they were drawn: reason → number.
    """

    queries: Sequence[str]
    passages: Sequence[str]
    rows_E3: np.ndarray  # int64, (examples, 3)
    lang: str
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows_E3)


@dataclass(frozen=True)
class Tuples:
    """Examples for distillation: a query, its positive and N - 1 hard negatives, with a teacher's score for each."""

    queries: Sequence[str]
    passages: Sequence[str]
    rows_EM: np.ndarray  # int64, (examples, 1 + N): query, positive, negatives
    scores_EN: np.ndarray  # float32, (examples, N): of the positive and the negatives, in the order of `rows_EM`
    lang: str
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows_EM)


def mine(collection: Collection, run: "Run", per_query: int = 4, depth: int = 50, seed: int = 42) -> np.ndarray:
    """Rows of triples whose negatives come from the first `depth` results of `run`. Returns (examples, 3) int64.

    `run` is any ranking of the collection's queries: BM25's, or that of a model of a first round. Every relevant
    passage of a query is paired with `per_query` of its wrong results, drawn without replacement where there are
    enough. A query without a wrong result gives no triple. Columns: position of the query, positive, negative.
    """
    rng = np.random.default_rng(seed)
    positions = {pid: i for i, pid in enumerate(collection.passages.ids)}
    rows = []
    for query, qid in enumerate(collection.queries):
        judged = collection.qrels.get(qid, {})
        wrong = [positions[pid] for pid in list(run.rankings.get(qid, {}))[:depth] if judged.get(pid, 0) <= 0]
        if not wrong:
            continue
        for pid, grade in judged.items():
            if grade > 0:
                drawn = rng.choice(wrong, size=per_query, replace=len(wrong) < per_query)
                rows += [(query, positions[pid], negative) for negative in drawn]
    if not rows:
        raise ValueError(f"{collection.name} ({collection.split}) gives no triple: no judged query has a wrong result")
    return np.array(rows, dtype=np.int64)
