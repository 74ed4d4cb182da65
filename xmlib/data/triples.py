"""Training triples: a query, a passage that answers it, and a hard negative: one that a retriever mistakes for it.

With a teacher's scores and more than one negative they are tuples, for distillation. Examples are positions into texts;
`batches` turns those of a step into tokens. A set of texts that is small is tokenised once; of millions only what a
step needs, while the step before it is computed.

Axes: E examples · N passages of an example · M = 1 + N, its query included · A queries of a batch · S query tokens
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from xmlib.data.collection import Collection
from xmlib.tokens import Pieces, Tokens

UP_FRONT = 150_000  # texts; with up to so many, tokens are made once and kept: some hundred megabytes

if TYPE_CHECKING:  # training needs triples on machines that have no pandas
    from xmlib.evaluation import Run


@dataclass(frozen=True)
class Triples:
    """Examples as positions into the texts of a collection: query, its positive, its hard negative.

    `skipped` says what was left out when they were drawn: reason → number. `identity` stands for all of it in the key
    of a stage, where the stage that drew them is known; without it the texts themselves are read.
    """

    queries: Sequence[str]
    passages: Sequence[str]
    rows_E3: np.ndarray  # int64, (examples, 3)
    lang: str
    skipped: dict[str, int] = field(default_factory=dict)
    identity: str = ""

    @property
    def rows_EM(self) -> np.ndarray:
        """The same as of tuples: a triple has two passages."""
        return self.rows_E3

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
    identity: str = ""

    @property
    def rows_E3(self) -> np.ndarray:
        """As triples, with the first hard negative alone."""
        return self.rows_EM[:, :3]

    def __len__(self) -> int:
        return len(self.rows_EM)


def batches(
    examples: Triples | Tuples,
    rows_of: Callable[[int], np.ndarray],
    tokenize_queries: Callable[[Sequence[str]], Tokens],
    tokenize_passages: Callable[[Sequence[str]], Tokens],
) -> Callable[[int], tuple[np.ndarray, Tokens, Tokens]]:
    """A function of the step: which examples it takes (`rows_of`), the tokens of their queries and of their passages.

    Passages are in the order of the examples, the positive of each first.
    """
    queries, passages = _Texts(examples.queries, tokenize_queries), _Texts(examples.passages, tokenize_passages)

    def batch(step: int) -> tuple[np.ndarray, Tokens, Tokens]:
        rows = rows_of(step)
        rows_AM = examples.rows_EM[rows]
        return rows, queries.take(rows_AM[:, 0]), passages.take(rows_AM[:, 1:].ravel())

    small = queries.tokens is not None and passages.tokens is not None
    return batch if small else _Ahead(batch)


class _Texts:
    """Texts to take tokens from: of all, made at once, or of those taken."""

    def __init__(self, texts: Sequence[str] | Pieces, tokenize: Callable[[Sequence[str] | Pieces], Tokens]):
        self.texts, self.tokenize = texts, tokenize
        self.tokens = tokenize(texts) if len(texts) <= UP_FRONT else None

    def take(self, positions: np.ndarray) -> Tokens:
        if self.tokens is not None:
            return self.tokens.take(positions)
        mapped = isinstance(self.texts, Pieces)
        return self.tokenize(self.texts[positions] if mapped else [self.texts[i] for i in positions.tolist()])


class _Ahead:
    """A function of the step, computed one step ahead on a thread: the tokenizer leaves the interpreter free."""

    def __init__(self, function: Callable):
        self.function, self.thread = function, ThreadPoolExecutor(1, "tokenize")
        self.next: tuple[int, Future] | None = None

    def __call__(self, step: int):
        if self.next is None or self.next[0] != step:  # the first step, and the first after a resume
            self.next = step, self.thread.submit(self.function, step)
        done = self.next[1]
        self.next = step + 1, self.thread.submit(self.function, step + 1)
        return done.result()


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
