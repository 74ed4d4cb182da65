"""BM25 score at a time, over impact-ordered postings: the way of JASS (Trotman and Crane, 2019).

A term's weight in a passage is rounded to one of LEVELS impacts, and the passages of one impact are a segment. A search
adds up whole numbers, the segments with the highest impacts first; there is nothing else to decide. So time follows the
number of postings, and a budget of them, rho, bounds it: what would go beyond is left out. Without rho the ranking is
exactly that of the rounded weights. Rounding moves the score by at most a step per term, `step` = highest weight /
LEVELS, and by half a step for all but the faintest weights, which are rounded up to the first impact.

Axes, used as suffixes:  V terms of the vocabulary · P postings · G segments · B documents · N terms of a query
                         k results
"""

import numpy as np

from xmlib.index import store
from xmlib.index.inverted import Lexical, Postings, compiled, get, put, width_of
from xmlib.ragged import offsets_of

LEVELS = 255
NO_BUDGET = np.iinfo(np.int64).max


class ScoreAtATime(Lexical):
    """Segments, as memory maps, and a sum per passage, which one search at a time can use."""

    KIND = "bm25-score-at-a-time"

    def __init__(self, stored: store.Stored) -> None:
        super().__init__(stored)
        arrays = stored.arrays
        self.step = stored.settings["step"]
        size_G, width_G = np.asarray(arrays["sizes"]), np.asarray(arrays["widths"])
        self._index = (
            offsets_of(np.asarray(arrays["segments"])),
            np.asarray(arrays["impacts"]),
            size_G,
            width_G,
            offsets_of(size_G.astype(np.int64) * width_G),  # where each segment's bits begin
            np.asarray(arrays["bits"]),
        )
        self._sum_B = np.zeros(len(self.ids), np.int32)  # zero again after every search

    @staticmethod
    def pack(postings: Postings, weight_P: np.ndarray) -> tuple[dict, dict[str, np.ndarray]]:
        step = np.float64(weight_P.max()) / LEVELS
        impact_P = np.maximum(np.rint(weight_P / step), 1).astype(np.uint8)
        term_P = np.repeat(np.arange(len(postings.vocabulary)), np.diff(postings.offsets_V1))
        order = np.lexsort((-impact_P.astype(np.int16), term_P))  # stable: passages stay in order
        key_P = term_P[order] * (LEVELS + 1) + impact_P[order]
        starts_G = np.flatnonzero(np.diff(key_P, prepend=-1))
        sizes_G = np.diff(starts_G, append=len(key_P)).astype(np.uint32)
        widths_G, words = _pack(sizes_G, postings.document_P[order])
        segments_V = np.bincount(term_P[order][starts_G], minlength=len(postings.vocabulary)).astype(np.uint8)
        impacts_G = impact_P[order][starts_G]
        arrays = {"segments": segments_V, "impacts": impacts_G, "sizes": sizes_G, "widths": widths_G, "bits": words}
        return {"step": float(step)}, arrays

    def find(
        self, query: tuple[np.ndarray, np.ndarray], k: int, rho: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of a query as `encode` makes it, or fewer: scores and positions, best first.

        At most `rho` postings are looked at.
        """
        sums, positions = _search(*query, k, NO_BUDGET if rho is None else rho, self._sum_B, *self._index)
        return (sums * self.step).astype(np.float32), positions


@compiled
def _pack(size_G, document_P):
    width_G, bit, start = np.empty(len(size_G), np.uint8), 0, 0
    for g in range(len(size_G)):
        gaps, before = 0, -1
        for p in range(start, start + size_G[g]):
            gaps |= np.int64(document_P[p]) - before - 1
            before = np.int64(document_P[p])
        width_G[g] = width_of(gaps)
        bit += np.int64(size_G[g]) * width_G[g]
        start += size_G[g]
    words, bit, start = np.zeros((bit >> 5) + 2, np.uint32), 0, 0
    for g in range(len(size_G)):
        before = -1
        for p in range(start, start + size_G[g]):
            put(words, bit, width_G[g], np.int64(document_P[p]) - before - 1)
            before = np.int64(document_P[p])
            bit += np.int64(width_G[g])
        start += size_G[g]
    return width_G, words


@compiled
def _search(term_N, repeats_N, k, rho, sum_B, segments_V1, impact_G, size_G, width_G, bit_G1, words):
    M = 0
    for v in term_N:
        M += segments_V1[v + 1] - segments_V1[v]
    segment_M, impact_M, m, highest = np.empty(M, np.int64), np.empty(M, np.int64), 0, 0
    for i, v in enumerate(term_N):
        for g in range(segments_V1[v], segments_V1[v + 1]):
            segment_M[m], impact_M[m] = g, repeats_N[i] * np.int64(impact_G[g])
            m += 1
        if segments_V1[v] < segments_V1[v + 1]:
            highest += repeats_N[i] * np.int64(impact_G[segments_V1[v]])

    # What has a sum is written down, so that neither clearing nor choosing looks at the whole collection.
    room = 0
    order = np.argsort(-impact_M, kind="mergesort")
    for m in order:
        room += size_G[segment_M[m]]
    touched, found, seen = np.empty(min(room, rho, len(sum_B)), np.int64), 0, 0
    for m in order:
        g, impact = segment_M[m], impact_M[m]
        seen += np.int64(size_G[g])
        if seen > rho:
            break
        bit, width, b = bit_G1[g], np.int64(width_G[g]), -1
        for _ in range(size_G[g]):
            b += get(words, bit, width) + 1
            bit += width
            if sum_B[b] == 0:
                touched[found] = b
                found += 1
            sum_B[b] += impact

    # The k highest sums: how many there are of each tells the lowest that gets in, and how many of those.
    count = np.zeros(highest + 1, np.int64)
    for b in touched[:found]:
        count[sum_B[b]] += 1
    least, above = highest + 1, 0
    while least > 1 and above + count[least - 1] <= k:
        least -= 1
        above += count[least]
    tied = np.empty(count[least - 1], np.int64) if least > 1 else np.empty(0, np.int64)
    chosen, n, ties = np.empty(above, np.int64), 0, 0
    for b in touched[:found]:
        if sum_B[b] >= least:
            chosen[n] = b
            n += 1
        elif sum_B[b] == least - 1:
            tied[ties] = b
            ties += 1
    positions = np.concatenate((np.sort(chosen), np.sort(tied)[: k - above]))
    sums = sum_B[positions]
    for b in touched[:found]:
        sum_B[b] = 0
    best_first = np.argsort(-sums, kind="mergesort")
    return sums[best_first], positions[best_first]
