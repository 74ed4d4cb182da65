"""BM25 document at a time, with dynamic pruning: the way of PISA (Mallia et al., 2019). Exact.

A term's postings lie in runs of RUN passages, each with the highest weight in it. While a search has its k results, the
worst of them is the mark to beat, and bounds say what cannot beat it:

    MaxScore         terms whose highest weights together stay below the mark cannot bring up a passage; they are only
                     asked about passages that other terms bring up, and only while those can still make it
    block-max        where the highest weights of the runs at hand stay below the mark, the runs are skipped undecoded

What the runs at hand hold of up to WINDOW passages is summed up at once, then looked at passage by passage: the same
answer as stepping from passage to passage, at a fraction of the steps.

Passage numbers are kept as gaps and, like counts, packed in as many bits as the largest of their run needs. Bounds and
scores are sums of the same float32 weights, exact in float64: nothing is lost to rounding, ties included.

Axes, used as suffixes:  V terms of the vocabulary · P postings · R runs · B documents · N terms of a query · k results
"""

from typing import NamedTuple

import numpy as np

from xmlib.index import store
from xmlib.index.inverted import Lexical, Postings, compiled, get, idf, norm, put, weight, width_of
from xmlib.ragged import offsets_of

RUN = 64  # passages; a longer run takes less to describe and is skipped less often
WINDOW = 1024


class Index(NamedTuple):
    """What a search reads."""

    idf_V: np.ndarray
    norm_B: np.ndarray
    runs_V1: np.ndarray
    size_R: np.ndarray
    bit_R1: np.ndarray  # where each run's bits begin
    widths_R2: np.ndarray  # of a gap, of a count
    last_R: np.ndarray  # passage
    best_R: np.ndarray  # weight
    best_V: np.ndarray
    words: np.ndarray


class Cursors(NamedTuple):
    """Where a search is in each of its terms, those with the lowest bounds first."""

    term_N: np.ndarray
    repeats_N: np.ndarray
    run_N: np.ndarray  # at hand
    end_N: np.ndarray
    read_N: np.ndarray  # the run that is being decoded, up to and with
    place_N: np.ndarray  # this posting in it,
    at_N: np.ndarray  # whose passage this is;
    bit_N: np.ndarray  # the next one's gap is here


class DocumentAtATime(Lexical):
    """Postings in runs, as memory maps."""

    KIND = "bm25-document-at-a-time"

    def __init__(self, stored: store.Stored) -> None:
        super().__init__(stored)
        arrays, settings = stored.arrays, stored.settings
        frequency_V = np.asarray(arrays["frequencies"]).astype(np.int64)
        widths_R2 = np.asarray(arrays["widths"])
        runs_V1 = offsets_of(-(-frequency_V // RUN))
        size_R = np.full(runs_V1[-1], RUN)
        size_R[runs_V1[1:] - 1] = frequency_V - RUN * (np.diff(runs_V1) - 1)  # a term's last run
        best_R = np.asarray(arrays["best"])
        self._index = Index(
            idf(frequency_V, len(self.ids)),
            norm(np.asarray(arrays["lengths"]), settings["k1"], settings["b"]),
            runs_V1,
            size_R,
            offsets_of(size_R * widths_R2.sum(axis=1, dtype=np.int64)),
            widths_R2,
            np.asarray(arrays["last"]),
            best_R,
            np.maximum.reduceat(best_R, runs_V1[:-1]),
            np.asarray(arrays["bits"]),
        )

    @staticmethod
    def pack(postings: Postings, weight_P: np.ndarray) -> tuple[dict, dict[str, np.ndarray]]:
        frequency_V = np.diff(postings.offsets_V1)
        last_R, best_R, widths_R2, words = _pack(
            postings.offsets_V1, offsets_of(-(-frequency_V // RUN)), postings.document_P, postings.count_P, weight_P
        )
        arrays = {"frequencies": frequency_V.astype(np.uint32), "last": last_R, "best": best_R, "widths": widths_R2}
        return {"run": RUN}, arrays | {"bits": words, "lengths": postings.length_B}

    def find(self, query: tuple[np.ndarray, np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of a query as `encode` makes it, or fewer: scores and positions, best first."""
        return _search(*query, min(k, len(self.ids)), self._index)


@compiled
def _pack(offsets_V1, runs_V1, document_P, count_P, weight_P):
    R = runs_V1[-1]
    last_R, best_R = np.empty(R, np.uint32), np.empty(R, np.float32)
    widths_R2 = np.empty((R, 2), np.uint8)
    bit_R1 = np.zeros(R + 1, np.int64)
    for v in range(len(runs_V1) - 1):
        before = -1
        for r in range(runs_V1[v], runs_V1[v + 1]):
            start = offsets_V1[v] + RUN * (r - runs_V1[v])
            stop = min(start + RUN, offsets_V1[v + 1])
            gaps = counts = 0  # all of them together have as many bits as the largest
            for p in range(start, stop):
                gaps |= np.int64(document_P[p]) - before - 1
                counts |= np.int64(count_P[p]) - 1
                before = np.int64(document_P[p])
            last_R[r], best_R[r] = before, weight_P[start:stop].max()
            widths_R2[r, 0], widths_R2[r, 1] = width_of(gaps), width_of(counts)
            bit_R1[r + 1] = bit_R1[r] + (stop - start) * (width_of(gaps) + width_of(counts))
    words = np.zeros((bit_R1[-1] >> 5) + 2, np.uint32)
    for v in range(len(runs_V1) - 1):
        before = -1
        for r in range(runs_V1[v], runs_V1[v + 1]):
            start = offsets_V1[v] + RUN * (r - runs_V1[v])
            stop = min(start + RUN, offsets_V1[v + 1])
            gap, count = np.int64(widths_R2[r, 0]), np.int64(widths_R2[r, 1])
            for p in range(start, stop):
                put(words, bit_R1[r] + (p - start) * gap, gap, np.int64(document_P[p]) - before - 1)
                put(words, bit_R1[r] + (stop - start) * gap + (p - start) * count, count, np.int64(count_P[p]) - 1)
                before = np.int64(document_P[p])
    return last_R, best_R, widths_R2, words


@compiled
def _search(term_N, repeats_N, k, index):
    B, N = len(index.norm_B), len(term_N)
    bound_N = repeats_N * index.best_V[term_N].astype(np.float64)
    order = np.argsort(bound_N)
    bound_N = bound_N[order]
    below_N = np.cumsum(bound_N)  # what a passage can have at most from this term and all before it
    run_N, end_N = index.runs_V1[term_N[order]], index.runs_V1[term_N[order] + 1]
    at_N = np.full(N, -1, np.int64)
    unread, nowhere = np.full(N, -1, np.int64), np.zeros(N, np.int64)
    cursors = Cursors(term_N[order], repeats_N[order], run_N, end_N, unread, nowhere, at_N, nowhere.copy())
    for i in range(N):
        _seek(i, 0, cursors, index)
    score_k, position_k, found = np.empty(k, np.float32), np.empty(k, np.int64), 0
    sum_W = np.zeros(WINDOW)
    mark = np.float32(0)
    first = 0  # terms before it cannot bring up a passage by themselves
    passage = _nearest(at_N, first, B)
    while passage < B:
        others = below_N[first - 1] if first else 0.0
        until, bound = B, others  # up to here the runs at hand have all postings, and no passage has more than this
        for i in range(first, N):
            if at_N[i] < B:
                until = min(until, np.int64(index.last_R[run_N[i]]) + 1)
                bound += cursors.repeats_N[i] * np.float64(index.best_R[run_N[i]])
        if np.float32(bound) <= mark:
            for i in range(first, N):
                if at_N[i] < until:
                    _seek(i, until, cursors, index)
            passage = _nearest(at_N, first, B)
            continue
        until = min(until, passage + WINDOW)
        for i in range(first, N):
            if at_N[i] < until:
                _add(i, passage, until, sum_W, cursors, index)
        for w in range(until - passage):
            score = sum_W[w]
            sum_W[w] = 0.0
            if score == 0.0 or np.float32(score + others) <= mark:
                continue
            hopeful = True
            for i in range(first - 1, -1, -1):
                if np.float32(score + below_N[i]) <= mark:
                    hopeful = False
                    break
                if at_N[i] < passage + w:
                    while run_N[i] < end_N[i] and index.last_R[run_N[i]] < passage + w:
                        run_N[i] += 1
                    bound = below_N[i - 1] if i else 0.0
                    if run_N[i] < end_N[i]:
                        bound += cursors.repeats_N[i] * np.float64(index.best_R[run_N[i]])
                    if np.float32(score + bound) <= mark:
                        hopeful = False
                        break
                    _seek(i, passage + w, cursors, index)
                if at_N[i] == passage + w:
                    score += _part(i, cursors, index)
            if hopeful and np.float32(score) > mark:
                if found < k:
                    score_k[found], position_k[found] = score, passage + w
                    found += 1
                    _rise(score_k, position_k, found - 1)
                else:
                    score_k[0], position_k[0] = score, passage + w
                    _sink(score_k, position_k, found)
                if found == k:
                    mark = score_k[0]
        while first < N and np.float32(below_N[first]) <= mark:
            first += 1
        passage = _nearest(at_N, first, B)
    order = np.argsort(position_k[:found])
    score_k, position_k = score_k[order], position_k[order]
    order = np.argsort(-score_k, kind="mergesort")
    return score_k[order], position_k[order]


@compiled
def _nearest(at_N, first, B):
    passage = B
    for i in range(first, len(at_N)):
        passage = min(passage, at_N[i])
    return passage


@compiled
def _seek(i, wanted, cursors, index):
    """Move a cursor on to the first passage from `wanted` on, or behind the last of all."""
    r = cursors.run_N[i]
    while r < cursors.end_N[i] and index.last_R[r] < wanted:
        r += 1
    cursors.run_N[i] = r
    if r == cursors.end_N[i]:
        cursors.at_N[i] = len(index.norm_B)
        return
    passage, place, bit = cursors.at_N[i], cursors.place_N[i], cursors.bit_N[i]
    if cursors.read_N[i] != r:
        cursors.read_N[i] = r
        passage = np.int64(index.last_R[r - 1]) if r > index.runs_V1[cursors.term_N[i]] else -1
        place, bit = -1, index.bit_R1[r]
    width = np.int64(index.widths_R2[r, 0])
    while passage < wanted:
        passage += get(index.words, bit, width) + 1
        bit += width
        place += 1
    cursors.at_N[i], cursors.place_N[i], cursors.bit_N[i] = passage, place, bit


@compiled
def _add(i, start, until, sum_W, cursors, index):
    """Add a term's part to the sums of the passages from `start` on, all in the run at hand, and move its cursor."""
    r, idf, repeats = cursors.run_N[i], index.idf_V[cursors.term_N[i]], cursors.repeats_N[i]
    passage, place, bit = cursors.at_N[i], cursors.place_N[i], cursors.bit_N[i]
    n, width, count_width = index.size_R[r], np.int64(index.widths_R2[r, 0]), np.int64(index.widths_R2[r, 1])
    count_bit = index.bit_R1[r] + n * width + place * count_width
    while passage < until:
        count = np.float32(get(index.words, count_bit, count_width) + 1)
        sum_W[passage - start] += repeats * np.float64(weight(idf, count, index.norm_B[passage]))
        place += 1
        if place == n:
            _seek(i, until, cursors, index)
            return
        passage += get(index.words, bit, width) + 1
        bit += width
        count_bit += count_width
    cursors.at_N[i], cursors.place_N[i], cursors.bit_N[i] = passage, place, bit


@compiled
def _part(i, cursors, index):
    """What a term adds to the score of the passage where its cursor is."""
    r = cursors.run_N[i]
    gap, width = np.int64(index.widths_R2[r, 0]), np.int64(index.widths_R2[r, 1])
    bit = index.bit_R1[r] + index.size_R[r] * gap + cursors.place_N[i] * width
    count = np.float32(get(index.words, bit, width) + 1)
    found = weight(index.idf_V[cursors.term_N[i]], count, index.norm_B[cursors.at_N[i]])
    return cursors.repeats_N[i] * np.float64(found)


# --- a heap with the worst result on top: the lowest score and, of equal ones, the last passage


@compiled
def _worse(score_k, position_k, i, j):
    return score_k[i] < score_k[j] or (score_k[i] == score_k[j] and position_k[i] > position_k[j])


@compiled
def _swap(score_k, position_k, i, j):
    score_k[i], score_k[j] = score_k[j], score_k[i]
    position_k[i], position_k[j] = position_k[j], position_k[i]


@compiled
def _rise(score_k, position_k, i):
    while i > 0 and _worse(score_k, position_k, i, (i - 1) // 2):
        _swap(score_k, position_k, i, (i - 1) // 2)
        i = (i - 1) // 2


@compiled
def _sink(score_k, position_k, found):
    i = 0
    while 2 * i + 1 < found:
        child = 2 * i + 1
        if child + 1 < found and _worse(score_k, position_k, child + 1, child):
            child += 1
        if not _worse(score_k, position_k, child, i):
            break
        _swap(score_k, position_k, i, child)
        i = child
