"""The centroid index of Appendix A: compressed token vectors, found through the centroids they lie at.

A search narrows down, and every stage is MaxSim, of ever better approximations of the token vectors:

    1. every passage, as if each token lay at its centroid: one byte per query token and centroid, looked up and
       maximised. So cheap that inverted lists pay only beyond WHOLE tokens: there passages add up, for every query
       token, the best of the n_probe centroids nearest to it that they have a token at, and the first LISTED times
       n_candidates by that sum are looked at
    2. the best n_candidates, from centroid and residual: 16-bit tables of what a residual byte adds to each product.
       Below the highest effort only the tokens that may decide a score are read: those whose centroids are about as
       near to a query token as the nearest of their passage
    3. where there is a side file of 8-bit vectors, the best n_rescored of these once more

Scores are those of the last stage there is.

Axes, used as suffixes:  A queries · B documents · N candidates · S query tokens · T document tokens · C centroids
                         H embedding · R bytes of a residual · L = S filled up to a multiple of LANES · k results
                         P blocks of BLOCK passages · K tokens that contend

Beyond WHOLE tokens nothing is unpacked into memory: an index opens at once and searches what is mapped.
"""

import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial

import numpy as np

from xmlib.index import exact, kernels, residual, store
from xmlib.index.vectors import TokenVectors
from xmlib.ragged import offsets_of, rows_of

KIND = "plaid-pq"
WHOLE = 10_000_000  # tokens up to which the first stage looks at every passage
PROBED = 64  # centroids per query token beyond that, and one more for each 16 of the k
LISTED = 8  # passages out of the lists for each candidate
BLOCK = 1 << 16  # passages whose place within their block fits in 16 bits, and whose scores stay in cache
CACHE_LINE = 64  # bytes
PARTS = 8  # of one query, at most: handing out more of them takes longer than it saves
LIST_BYTES = 256 << 20  # of inverted lists in memory while they are built
# n_candidates, so many and so many for each of the k; and how many standard deviations of what residuals add a token's
# centroid may be behind the nearest one of its passage for the token to be read.
EFFORTS = {1: (100, 1.5, 2.0), 2: (300, 4, 3.0), 3: (800, 8, 5.0), 4: (3000, 16, math.inf)}


class PlaidIndex:
    """An open index. Residuals stay memory maps; codes are unpacked on the first search."""

    def __init__(self, stored: store.Stored) -> None:
        arrays = stored.arrays
        self.stored = stored
        self.codec = _codec(arrays)
        self.offsets_B1 = offsets_of(arrays["lengths"])
        self.residuals_TR = np.asarray(arrays["residuals"])  # still mapped, without the cost of np.memmap per access
        self.fine_TH = np.asarray(arrays["fine"]) if "fine" in arrays else None
        self._spare = []  # memory of searches that are over, for the next ones

    @property
    def ids(self) -> list[str]:
        return self.stored.ids

    @cached_property
    def codes_T(self) -> np.ndarray:
        return residual.unpack_codes(self.stored.arrays["codes"], self.codec.code_bits, len(self.residuals_TR))

    @cached_property
    def gains_T(self) -> np.ndarray:
        return residual.unpack_codes(self.stored.arrays["gains"], residual.GAIN_BITS, len(self.residuals_TR))

    def search(
        self,
        q_ASH: np.ndarray,
        q_mask_AS: np.ndarray,
        k: int,
        effort: int = 2,
        n_candidates: int | None = None,
        n_rescored: int | None = None,
        n_probe: int | None = None,
        threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each query: scores_Ak (float32), positions_Ak (int64), best first, ties by position.

        `effort`, 1 to 4, trades time for recall: of exact search's top 10 over 2.0 million real tokens every effort
        found 0.985 to 0.99 with the side file and 0.945 to 0.95 without; of its top 100, efforts 1 to 4 found 0.95,
        0.99, 0.99 and 0.99, and 0.93, 0.96, 0.97 and 0.97. Effort 4 reads every token of a candidate. The rest is for
        experts, and follows from k and effort where it is not given.

        Where fewer than k passages are found the row ends in -inf and -1. Queries are shared among `threads`, by
        default OMP_NUM_THREADS or the number of processors; fewer queries than that are each shared among all of them.
        The result is the same. `n_probe` is for an index with inverted lists.
        """
        if effort not in EFFORTS:
            raise ValueError(f"effort must be one of {', '.join(map(str, EFFORTS))}, not {effort!r}")
        if self._lists is None and n_probe is not None:
            raise ValueError(f"n_probe={n_probe}: {self.stored.path} has no inverted lists, every passage is looked at")
        n_probe = n_probe or PROBED + k // 16
        some, each, reach = EFFORTS[effort]
        n_candidates = max(k, n_candidates or some + int(each * k))
        n_rescored = max(k, n_rescored or k + k // 4 + 10 * effort)
        scores_Ak = np.full((len(q_ASH), k), -np.inf, dtype=np.float32)
        positions_Ak = np.full((len(q_ASH), k), -1)
        if self._lists is None:
            self.codes_T, self.gains_T  # noqa: B018, made once, before there are threads

        def one(a: int, spread: Spread) -> None:
            q_SH = q_ASH[a][q_mask_AS[a]]
            if len(q_SH):
                limits = (k, n_candidates, n_rescored, n_probe, reach)
                scores, positions = self._search(self.codec.rotate(q_SH), *limits, spread)
                scores_Ak[a, : len(scores)] = scores
                positions_Ak[a, : len(scores)] = positions

        threads = threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count())
        few = len(q_ASH) < threads  # so that one thread for each query would leave some idle
        with ThreadPoolExecutor(threads) as pool:  # which starts a thread when there is something for it
            spread = partial(_on_all, pool, min(threads, PARTS)) if few else _on_this
            list((map if few or threads == 1 else pool.map)(partial(one, spread=spread), range(len(q_ASH))))
        return scores_Ak, positions_Ak

    def _search(
        self, q_SH: np.ndarray, k: int, n_candidates: int, n_rescored: int, n_probe: int, reach: float, spread: "Spread"
    ) -> tuple[np.ndarray, np.ndarray]:
        """One rotated query of real tokens only. Scores and positions, best first."""
        S, H = q_SH.shape
        L = -(-S // kernels.LANES) * kernels.LANES
        q_HL = np.zeros((H, L), np.float32)
        q_HL[:, :S] = q_SH.T
        try:
            memory = self._spare.pop()
        except IndexError:  # asking first whether there is one would let two threads take the last
            memory = _Memory(self)
        memory.fit(L)
        # 16 bits must hold the product with any decoded vector.
        longest = np.linalg.norm(q_SH, axis=1).max(initial=1e-6)
        factor = np.float32(32767 / (1.01 * self.codec.longest * longest))

        def products(part: slice) -> None:
            kernels.centroid_table(self.codec.centroids_CH[part], q_HL, factor, memory.table_CL[part])

        spread(products, memory.C)
        low_L = (self._mean_H @ q_HL * factor).astype(np.int16)
        step = kernels.to_bytes(memory.table_CL, low_L, memory.bytes_CL) * factor / 2**15  # bytes in a product of 1

        if self._lists is None:
            positions_N = self._everything
        else:
            positions_N = self._listed(memory, S, n_probe, LISTED * n_candidates)
        at_N, offsets_B1, codes_T, rows_T = self._codes(positions_N)
        first_N = memory.score_B[: len(positions_N)]

        def approximate(part: slice) -> None:
            kernels.approximate(at_N[part], offsets_B1, codes_T, memory.bytes_CL, first_N[part])

        spread(approximate, len(at_N))
        best_N = kernels.best(first_N, n_candidates)
        positions_N, at_N = positions_N[best_N], at_N[best_N]

        margin = np.uint8(min(reach * self.codec.spread * longest * step, 255))
        score_N = np.empty(len(at_N), np.float32)
        kernels.residual_table(self.codec.codebook_RWd, q_HL, factor, memory.table_RWL)

        def rerank(part: slice) -> None:
            starts_N, stops_N = offsets_B1[at_N[part]], offsets_B1[at_N[part] + 1]
            row_K = np.empty((stops_N - starts_N).sum(), np.int64)
            offsets_N1 = kernels.contenders(at_N[part], offsets_B1, codes_T, memory.bytes_CL, S, margin, row_K)
            row_K = row_K[: offsets_N1[-1]]
            codes_K = codes_T.take(row_K)
            if rows_T is not None:
                row_K = rows_T.take(row_K)
            tables = (self._gains, memory.table_CL, memory.table_RWL)
            gains_K = self._gains_at(row_K)
            kernels.rerank(row_K, offsets_N1, codes_K, gains_K, self.residuals_TR, *tables, factor, score_N[part])

        spread(rerank, len(at_N))
        self._spare.append(memory)
        if self.fine_TH is not None:
            positions_N = np.sort(positions_N[np.argsort(-score_N, kind="stable")[:n_rescored]])
            q_HL *= self.stored.arrays["fine_scales"][:, None]
            score_N = np.empty(len(positions_N), np.float32)

            def rescore(part: slice) -> None:
                kernels.rescore(positions_N[part], self.offsets_B1, self.fine_TH, q_HL, score_N[part])

            spread(rescore, len(positions_N))
        best = np.argsort(-score_N, kind="stable")[:k]
        return score_N[best], positions_N[best]

    def _codes(self, positions_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Where some passages stand, between which offsets, of which codes: all there are, or their own, just read.

        Last the rows that these codes are of; None for all.
        """
        if self._lists is None:
            return positions_N, self.offsets_B1, self.codes_T, None
        rows_T, offsets_N1 = rows_of(self.offsets_B1, positions_N)
        codes_T = residual.unpack_rows(self.stored.arrays["codes"], self.codec.code_bits, rows_T)
        return np.arange(len(positions_N)), offsets_N1, codes_T, rows_T

    def _gains_at(self, row_K: np.ndarray) -> np.ndarray:
        if self._lists is None:
            return self.gains_T.take(row_K)
        return residual.unpack_rows(self.stored.arrays["gains"], residual.GAIN_BITS, row_K)

    def _listed(self, memory: "_Memory", S: int, n_probe: int, n: int) -> np.ndarray:
        """The n passages that the inverted lists of the centroids nearest to each query token speak for most."""
        cell_N, above_N, start_S1 = kernels.highest(memory.bytes_CL, S, n_probe, memory.threshold_L)
        memory.score_B[:] = -1
        kernels.accumulate(cell_N, above_N, start_S1, *self._lists, _blocks(len(self.stored)), memory.score_B)
        return kernels.best(memory.score_B, n)

    @cached_property
    def _lists(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Where each run of passages starts and the passages, by centroid and block; None where all are looked at."""
        arrays = self.stored.arrays
        return (np.asarray(arrays["posting_at"]), np.asarray(arrays["postings"])) if "postings" in arrays else None

    @cached_property
    def _everything(self) -> np.ndarray:
        return np.arange(len(self.stored))

    @cached_property
    def _mean_H(self) -> np.ndarray:
        return self.codec.centroids_CH.mean(axis=0)

    @cached_property
    def _gains(self) -> np.ndarray:
        return np.rint(self.codec.gain_levels * 2**15).astype(np.int32)

    @cached_property
    def decoded(self) -> TokenVectors:
        """Every vector as the second stage sees it, in memory."""
        return TokenVectors(self.codec.decode(self.codes_T, self.gains_T, self.residuals_TR), self.offsets_B1)

    def add(self, ids: list[str], vectors: TokenVectors) -> None:
        """Append passages, encoded with the codec the index has. On disk when this returns, all or none."""
        store.check_new(self.ids, ids, len(vectors))
        new = _compress(self.codec, self.stored.arrays.get("fine_scales"), vectors.vectors_TH)
        arrays = {name: [getattr(self, f"{name}_{axes}"), new[name]] for name, axes in self._token_arrays.items()}
        self._update(self.ids + ids, arrays, [self.stored.arrays["lengths"], vectors.lengths_B.astype(np.int32)])

    def remove(self, ids: list[str]) -> None:
        """Take passages out; later ones move up. On disk when this returns, all or none."""
        kept = store.kept_without(self.ids, ids)
        rows_T, _ = rows_of(self.offsets_B1, kept)
        arrays = {name: [getattr(self, f"{name}_{axes}")[rows_T]] for name, axes in self._token_arrays.items()}
        self._update([self.ids[position] for position in kept], arrays, self.stored.arrays["lengths"][kept])

    @property
    def _token_arrays(self) -> dict[str, str]:
        return {"codes": "T", "gains": "T", "residuals": "TR"} | ({} if self.fine_TH is None else {"fine": "TH"})

    def _update(self, ids, arrays, lengths) -> None:
        arrays = arrays | {"lengths": lengths if isinstance(lengths, list) else [lengths]}
        lists = {} if self._lists is None else _lists_of(arrays, len(ids), len(self.codec.centroids_CH))
        store.update(self.stored, ids, _packed(arrays, self.codec) | lists)
        stored = store.open(self.stored.path, KIND)
        self.__dict__.clear()  # as if opened just now: what was cached of the old index goes
        self.__init__(stored)

    def size_report(self) -> dict[str, float]:
        """Bytes on disk: of the token vectors, by the paper's formula, of the side file, and of all the rest."""
        size = self.stored.file_bytes
        T, H = len(self.residuals_TR), len(self.codec.rotation_HH)
        return {
            "tokens": T,
            "token_bytes": size["codes"] + size["gains"] + size["residuals"],
            "formula_bytes": T * (self.codec.n_bits * H + self.codec.code_bits) / 8,
            "list_bytes": size.get("postings", 0) + size.get("posting_at", 0),
            "rescore_bytes": size.get("fine", 0) + size.get("fine_scales", 0),
            "codec_bytes": sum(size[name] for name in ("centroids", "rotation", "codebook", "gain_levels")),
            "length_bytes": size["lengths"],
            "id_bytes": size["ids"],
            "meta_bytes": size["meta"],
            "total_bytes": sum(size.values()),
        }


Spread = Callable[[Callable[[slice], None], int], None]  # (work, n): work on the rows 0 to n, in parts


def _on_this(work: Callable[[slice], None], n: int) -> None:
    """On this thread, in one part."""
    work(slice(0, n))


def _on_all(pool: ThreadPoolExecutor, n_parts: int, work: Callable[[slice], None], n: int) -> None:
    """In parts, each on a thread of the pool."""
    parts = [slice(n * i // n_parts, n * (i + 1) // n_parts) for i in range(n_parts)]
    list(pool.map(work, parts))


class _Memory:
    """What one search at a time writes into. Kept, because fresh memory costs a page fault every 4 KiB."""

    def __init__(self, index: PlaidIndex) -> None:
        self.C, self.RW = len(index.codec.centroids_CH), index.codec.codebook_RWd.shape[:2]
        self.score_B = np.empty(len(index.stored), np.int32)
        self.L = 0

    def fit(self, L: int) -> None:
        if self.L != L:
            self.L = L
            self.table_CL = _in_lines((self.C, L), np.int16)
            self.bytes_CL = _in_lines((self.C, L), np.uint8)
            self.table_RWL = _in_lines((*self.RW, L), np.int16)
            self.threshold_L = np.empty(L, np.uint8)


def _in_lines(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An empty array that begins with a line of the cache: rows that straddle two slow re-ranking by a quarter."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def build(
    folder,
    chunks,
    ids: list[str],
    origin: dict,
    n_bits: int = 2,
    n_centroids: int | None = None,
    seed: int = 42,
    chunk_passages: int = 1000,
    rescore: bool | None = None,
    lists: bool | None = None,
) -> PlaidIndex:
    """Index a collection and open it. A build that was cut off goes on where it stopped.

    `chunks(start, stop)` returns the TokenVectors of the passages at these positions and is asked once for each. A
    random set of chunks is the sample: kept uncompressed until the codec is trained on it. Without `n_centroids`
    their number follows the number of tokens. With `rescore` a side file of H bytes per token is kept for the last
    stage of a search; by default where the collection is small, up to about WHOLE tokens. With `lists` there are
    inverted lists, 2 bytes and more per token; by default where it is larger.

    One chunk at a time is in memory, the sample that the codec is trained on, LIST_BYTES of inverted lists, and what
    grows with the collection: its ids, and 4 bytes per centroid and BLOCK passages.
    """
    choices = {
        "n_bits": n_bits,
        "n_centroids": n_centroids,
        "seed": seed,
        "chunk_passages": chunk_passages,
        "rescore": rescore,
        "lists": lists,
    }
    parts = store.Parts(folder, ids, kind=KIND, origin=origin, **choices)
    spans = store.chunks_of(len(ids), chunk_passages)
    n_sampled = math.ceil(sample_passages(len(ids)) / chunk_passages)
    sampled = np.sort(np.random.default_rng(seed).permutation(len(spans))[:n_sampled])

    def encode(i: int) -> dict:
        return exact.arrays_of(store.encode(chunks, *spans[i]))

    def train(sample: list[dict]) -> dict:
        n_passages = sum(len(part["lengths"]) for part in sample)
        n_sample = sum(len(part["vectors"]) for part in sample)
        if not n_sample:
            raise ValueError("no token vectors to train centroids on: every passage of the sample is empty")
        n_tokens = n_sample * len(ids) // n_passages  # about
        C = n_centroids or residual.n_centroids_for(n_tokens)
        # No more than the training looks at, in memory; evenly from all parts.
        share = min(1, (2 * residual.POINTS_PER_CENTROID * C + residual.CODEWORD_SAMPLE) / n_sample)
        drawn = [
            residual.draw(part["vectors"], math.ceil(share * len(part["vectors"])), seed + i)
            for i, part in enumerate(sample)
        ]
        vectors_TH = np.concatenate(drawn)
        codec = residual.train(vectors_TH, min(C, len(vectors_TH)), n_bits, seed)
        trained = {
            "rotation": codec.rotation_HH,
            "centroids": codec.centroids_CH.astype(np.float16),
            "codebook": codec.codebook_RWd,
            "gain_levels": codec.gain_levels,
        }
        if rescore or (rescore is None and n_tokens <= WHOLE):
            trained["fine_scales"] = np.maximum(np.abs(codec.rotate(vectors_TH)).max(axis=0), 1e-6) / np.float32(127)
        return trained

    def compress(part: dict) -> dict:
        return _compress(codec, trained.get("fine_scales"), part["vectors"]) | {"lengths": part["lengths"]}

    sample = {i: parts.once(f"tokens-{i}", lambda i=i: encode(i)) for i in sampled}
    trained = parts.once("codec", lambda: train(list(sample.values())))
    codec = _codec(trained)
    done = [parts.once(f"codes-{i}", lambda i=i: compress(sample.get(i) or encode(i))) for i in range(len(spans))]
    arrays = store.join(done)
    n_tokens = sum(int(lengths_B.sum()) for lengths_B in arrays["lengths"])
    if lists or (lists is None and n_tokens > WHOLE):
        trained = {**trained, **_lists_of(arrays, len(ids), len(codec.centroids_CH))}
    store.create(folder, KIND, origin, choices, ids, _packed(arrays, codec) | {**trained})
    return open(folder)


def open(folder) -> PlaidIndex:
    return PlaidIndex(store.open(folder, KIND))


def sample_passages(n_passages: int) -> int:
    """How many passages the centroids are trained on: 16 · sqrt(120 · passages), as in the released recipe."""
    return min(n_passages, math.ceil(16 * math.sqrt(120 * n_passages)))


def _compress(codec: residual.Codec, fine_scales: np.ndarray | None, vectors_TH: np.ndarray) -> dict[str, np.ndarray]:
    codes_T, gains_T, residuals_TR = codec.encode(vectors_TH)
    arrays = {"codes": codes_T, "gains": gains_T, "residuals": residuals_TR}
    if fine_scales is not None:
        arrays["fine"] = np.clip(np.rint(codec.rotate(vectors_TH) / fine_scales), -127, 127).astype(np.int8)
    return arrays


def _packed(arrays: dict, codec: residual.Codec) -> dict:
    """As they go to disk: codes and gains as strings of bits."""
    codes = residual.pack_parts(arrays["codes"], codec.code_bits)
    return arrays | {"codes": codes, "gains": residual.pack_parts(arrays["gains"], residual.GAIN_BITS)}


def _lists_of(arrays: dict, B: int, C: int) -> dict:
    """Inverted lists: the passages that have a token at each centroid, in order, as their place within their block.

    A pass over the codes counts; further ones write, as many centroids at a time as LIST_BYTES hold.
    """
    last_C, count_CP = np.full(C, -1), np.zeros((C, _blocks(B)), np.uint32)
    for codes_T, lengths_B, first in _spans(arrays):
        kernels.count_postings(codes_T, lengths_B, first, last_C, count_CP)
    size_C = count_CP.sum(axis=1, dtype=np.int64)
    posting_at = offsets_of(count_CP.ravel())
    if posting_at[-1] >= 2**32:
        raise ValueError(f"{posting_at[-1]:,} entries of inverted lists are too many for one index: build shards")

    def postings():
        first = np.searchsorted(offsets_of(size_C), np.arange(0, posting_at[-1], LIST_BYTES // 2), side="right") - 1
        for low, high in itertools.pairwise([*np.unique(first), C]):
            posting_N, last_C = np.empty(size_C[low:high].sum(), np.uint16), np.full(high - low, -1)
            next_C = offsets_of(size_C[low:high])[:-1]
            for codes_T, lengths_B, first in _spans(arrays):
                kernels.fill_postings(codes_T, lengths_B, first, low, last_C, next_C, posting_N)
            yield posting_N

    return {"posting_at": posting_at.astype(np.uint32), "postings": postings()}


def _spans(arrays: dict):
    """Codes and lengths of run after run of passages, and where the run starts."""
    first = 0
    for codes_T, lengths_B in zip(arrays["codes"], arrays["lengths"], strict=True):
        yield np.asarray(codes_T), np.asarray(lengths_B), first
        first += len(lengths_B)


def _blocks(B: int) -> int:
    return -(-B // BLOCK)


def _codec(arrays: dict[str, np.ndarray]) -> residual.Codec:
    return residual.Codec(
        np.array(arrays["rotation"]),
        arrays["centroids"].astype(np.float32),
        np.array(arrays["codebook"]),
        np.array(arrays["gain_levels"]),
    )
