"""The centroid index of Appendix A: compressed token vectors, found through the centroids they lie at.

A search narrows down, and every stage is MaxSim, of ever better approximations of the token vectors:

    1. every passage, as if each token lay at its centroid: one byte per query token and centroid, looked up and
       maximised. From LISTS tokens on there are inverted lists: passages add up, for every query token, the best of
       the centroids nearest to it that they have a token at, or most of what the last of these is worth where they
       have none, and the first by that sum are looked at, a few times n_candidates. The nearest centroids are looked
       for in families of them, and taken until their lists hold POSTINGS passages, so that a frequent word does not
       cost more than a rare one
    2. the best n_candidates, from centroid and residual: 16-bit tables of what a residual byte adds to each product.
       Below the highest effort only the tokens that may decide a score are read: those whose centroids are about as
       near to a query token as the nearest of their passage; and only the passages that may be among the k best, as
       the first quarter of them tells
    3. where there is a side file of 8-bit vectors, the best n_rescored of these once more

Scores are those of the last stage there is. The stages themselves are in `segment`: passages added later lie in arrays
of their own.

Axes, used as suffixes:  A queries · N candidates · S query tokens · C centroids · H embedding · k results
                         L = S filled up to a multiple of kernels.LANES · G passages taken out

Beyond WHOLE tokens nothing is unpacked into memory: an index opens at once and searches what is mapped.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from xmlib.index import exact, kernels, residual, store
from xmlib.index.pooling import pooled
from xmlib.index.segment import ARRAYS, LISTS, WHOLE, Found, Listing, Segment, Tables, compress, packed
from xmlib.index.threads import Spread, alone, among, count, pool
from xmlib.index.vectors import TokenVectors
from xmlib.ragged import offsets_of

KIND = "plaid-pq"
CODEC = ("rotation", "centroids", "codebook", "gain_levels", "centroid_types", "centroid_families")
PARTS = 8  # of one query, at most: handing out more of them takes longer than it saves
FIRST = 4  # the part of the candidates, as a divisor, that tells which of the others have to be read
SURE = 3.0  # standard deviations
WEIGHED = 200  # others, of which fewer are read sooner than it is found out which can matter
SMALL = 1000  # passages; a change writes segments of no more anew rather than leave them as they are
GONE = 1 / 4  # of a segment's passages; where more were taken out, the rest is written anew
# n_candidates, so many and so many for each of the k; and how many standard deviations of what residuals add a token's
# centroid may be behind the nearest one of its passage for the token to be read.
EFFORTS = {1: (100, 1.5, 2.0), 2: (300, 4, 3.0), 3: (800, 8, 5.0), 4: (3000, 16, math.inf)}


class PlaidIndex:
    """An open index. A passage's position is that of its id, whatever segment it lies in."""

    def __init__(self, stored: store.Stored) -> None:
        arrays = stored.arrays
        self.stored = stored
        self.codec = _codec(arrays)
        numbers = np.asarray(arrays.get("segments", [0])).tolist()
        lengths = [arrays[_named("lengths", number)] for number in numbers]
        self._starts = offsets_of(list(map(len, lengths)))
        self._gone_G = np.asarray(arrays.get("gone", []), dtype=np.int64)  # in order, counted over all segments
        self.segments = [
            self._segment(number, start, stop, self._gone_G)
            for number, (start, stop) in zip(numbers, itertools.pairwise(self._starts), strict=True)
        ]
        self._spare = []  # tables of searches that are over, for the next ones

    @property
    def ids(self) -> list[str]:
        return self.stored.ids

    @property
    def rescores(self) -> bool:
        """Whether there is a side file for the last stage."""
        return "fine_scales" in self.stored.arrays

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

        `effort`, 1 to 4, trades time for recall: of exact search's top 10, 100 and 1,000 over 2.6 million real tokens
        (record S20) effort 1 found 0.98 to 0.99 with the side file and the others 0.99; without it effort 1 found 0.97
        to 0.98 and the others 0.98 to 0.99. Effort 4 reads every candidate with all its tokens. The rest is for
        experts, and follows from k and effort where it is not given.

        Where fewer than k passages are found the row ends in -inf and -1. Queries are shared among `threads`, by
        default OMP_NUM_THREADS or the number of processors; fewer queries than that are each shared among all of them.
        The result is the same. `n_probe`, for an index with inverted lists: look at the lists of so many centroids for
        each query token, however long they are.
        """
        n_candidates, n_rescored, reach = limits(k, effort, n_candidates, n_rescored)
        if n_probe is not None and all(segment.lists is None for segment in self.segments):
            raise ValueError(f"n_probe={n_probe}: {self.stored.path} has no inverted lists, every passage is looked at")
        listing = Listing.of(k, n_candidates, self._starts[-1], n_probe)
        scores_Ak = np.full((len(q_ASH), k), -np.inf, dtype=np.float32)
        positions_Ak = np.full((len(q_ASH), k), -1)
        for segment in self.segments:
            segment.unpack()

        def one(a: int, spread: Spread) -> None:
            q_SH = q_ASH[a][q_mask_AS[a]]
            if len(q_SH):
                limits = (k, n_candidates, n_rescored, listing, reach)
                scores, positions = self._search(self.codec.rotate(q_SH), *limits, spread)
                scores_Ak[a, : len(scores)] = scores
                positions_Ak[a, : len(scores)] = positions

        n_threads = threads or count()
        few = len(q_ASH) < n_threads  # so that one thread for each query would leave some idle
        spread = among(n_threads, min(n_threads, PARTS)) if few else alone
        list((map if few or n_threads == 1 else pool(n_threads).map)(partial(one, spread=spread), range(len(q_ASH))))
        return scores_Ak, positions_Ak

    def _search(
        self,
        q_SH: np.ndarray,
        k: int,
        n_candidates: int,
        n_rescored: int,
        listing: Listing,
        reach: float,
        spread: Spread,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One rotated query of real tokens only. Scores and positions, best first."""
        try:
            tables = self._spare.pop()
        except IndexError:  # asking first whether there is one would let two threads take the last
            tables = Tables(self.codec, self._starts[-1])
        lists = any(segment.uses_lists(len(q_SH), listing) for segment in self.segments)
        tables.fill(q_SH, reach, listing.n_families if lists else None, spread)

        found, ends = [], [0]
        for segment in self.segments:
            score_B = tables.score_B[ends[-1] : ends[-1] + len(segment)]
            found.append(segment.approximate(tables, score_B, listing, spread))
            ends.append(ends[-1] + len(found[-1].position_N))
        best_N = kernels.best(tables.score_B[: ends[-1]], n_candidates)
        tables.add_residuals()
        score_N = self._rerank(tables, found, ends, best_N, n_rescored if self.rescores else k, reach, spread)
        position_N = np.empty(len(best_N), np.int64)
        for i, own in enumerate(_between(best_N, ends)):
            position_N[own] = self._starts[i] + found[i].position_N[best_N[own] - ends[i]]

        if self.rescores:
            position_N = np.sort(position_N[np.argsort(-score_N, kind="stable")[:n_rescored]])
            score_N = np.empty(len(position_N), np.float32)
            query = kernels.paired_query(tables.q_LH * self.stored.arrays["fine_scales"])
            for i, own in enumerate(_between(position_N, self._starts)):
                self.segments[i].rescore(query, position_N[own] - self._starts[i], score_N[own], spread)
        self._spare.append(tables)

        best = np.argsort(-score_N, kind="stable")[:k]
        position_N = position_N[best]
        return score_N[best], position_N - np.searchsorted(self._gone_G, position_N)

    def _rerank(
        self,
        tables: Tables,
        found: Sequence[Found],
        ends: Sequence[int],
        best_N: np.ndarray,
        wanted: int,
        reach: float,
        spread: Spread,
    ) -> np.ndarray:
        """The second stage: scores of the passages at best_N, -inf for those that can hardly be among the wanted ones.

        Those with the highest rough scores tell what residuals add to one, on average and in their spread. A passage
        that with SURE standard deviations more than the average stays behind the last wanted one is not read.
        """
        score_N = np.full(len(best_N), -np.inf, np.float32)

        def rerank(some: np.ndarray) -> None:
            for i, own in enumerate(_between(best_N[some], ends)):
                scores = np.empty(own.stop - own.start, np.float32)
                self.segments[i].rerank(tables, found[i], best_N[some[own]] - ends[i], scores, spread)
                score_N[some[own]] = scores

        rough_N = tables.score_B[best_N]
        first = kernels.best(rough_N, max(len(best_N) // FIRST, wanted + wanted // FIRST))
        if reach == math.inf or len(best_N) - len(first) < WEIGHED:
            rerank(np.arange(len(best_N)))
            return score_N
        rerank(first)
        added = score_N[first] - rough_N[first] / tables.step
        least = np.partition(score_N[first], -wanted)[-wanted]
        hopeful_N = rough_N / tables.step + (added.mean() + SURE * added.std()) >= least
        hopeful_N[first] = False
        rerank(np.flatnonzero(hopeful_N))
        return score_N

    @property
    def decoded(self) -> TokenVectors:
        """Every vector as the second stage sees it, in memory."""
        arrays = self.arrays()
        codes = zip(arrays["codes"], arrays["gains"], arrays["residuals"], strict=True)
        vectors_TH = np.concatenate([self.codec.decode(*part) for part in codes])
        return TokenVectors.from_lengths(vectors_TH, np.concatenate(list(arrays["lengths"])))

    def to(self, device):
        """A copy in the memory of a PyTorch device, to be searched there."""
        from xmlib.index import gpu  # PyTorch takes seconds; only who has a GPU pays

        return gpu.PlaidOnDevice(self, device)

    def arrays(self) -> dict[str, store.Column]:
        """Codes, gains, residuals and lengths of all passages, and what the side file holds, in parts."""
        return store.join([run for segment in self.segments for run in segment.runs()])

    def add(self, ids: list[str], vectors: TokenVectors) -> None:
        """Append passages, encoded with the codec the index has. On disk when this returns, all or none.

        They make a segment of their own, together with the segments before them that are not over twice as large. So
        each segment is over twice as large as the next but for the SMALL ones, and a passage is written anew a number
        of times that grows with the logarithm of all.
        """
        store.check_new(self.ids, ids, len(vectors))
        n, stay = len(ids), len(self.segments)
        while stay and self.segments[stay - 1].n_live <= max(SMALL, 2 * n):
            stay -= 1
            n += self.segments[stay].n_live
        joined = [run for segment in self.segments[stay:] for run in segment.runs()]
        vectors = pooled(vectors, self.stored.settings.get("pool", 1))
        scales = self.stored.arrays.get("fine_scales")
        new = compress(self.codec, scales, vectors.vectors_TH, vectors.lengths_B, vectors.types_T)
        self._change(self.ids + ids, [*self.segments[:stay], [*joined, new]])

    def remove(self, ids: list[str]) -> None:
        """Take passages out; later ones move up. On disk when this returns, all or none.

        What they hold of the disk is free once GONE of their segment's passages were taken out.
        """
        known = self.ids
        kept = store.kept_without(known, ids)
        everything = np.arange(self._starts[-1])
        gone_G = np.delete(everything, np.delete(everything, self._gone_G)[kept])
        plan = []
        for old, (start, stop) in zip(self.segments, itertools.pairwise(self._starts), strict=True):
            segment = self._segment(old.number, start, stop, gone_G)
            if segment.n_live:
                stays = len(segment) > SMALL and len(segment.gone_N) <= GONE * len(segment)
                plan.append(segment if stays or not len(segment.gone_N) else segment.runs())
        self._change([known[position] for position in kept], plan)

    def _segment(self, number: int, start: int, stop: int, gone_G: np.ndarray) -> Segment:
        """The segment of this number, whose passages are counted from start to stop, without those that are gone."""
        arrays = self.stored.arrays
        own = {name: arrays[_named(name, number)] for name in ARRAYS if _named(name, number) in arrays}
        first, last = np.searchsorted(gone_G, [start, stop])
        return Segment(number, own, self.codec, gone_G[first:last] - start)

    def _change(self, ids: list[str], plan: Sequence[Segment | list[Mapping]]) -> None:
        """Replace the segments by these: such as stay, and lists of parts that make a new one."""
        numbers, gone, written, at = [], [np.zeros(0, np.int64)], {}, 0
        new = 1 + max(segment.number for segment in self.segments)
        for item in plan:
            if isinstance(item, Segment):
                numbers.append(item.number)
                gone.append(at + item.gone_N)
                at += len(item)
            else:
                arrays = packed(item, self.codec, self.stored.settings.get("lists"))
                written |= {_named(name, new): array for name, array in arrays.items()}
                numbers.append(new)
                new += 1
                at += sum(len(part["lengths"]) for part in item)
        written |= {"segments": np.array(numbers), "gone": np.concatenate(gone)}
        left = [segment.number for segment in self.segments if segment.number not in numbers]
        store.update(self.stored, ids, written, drop={_named(name, number) for name in ARRAYS for number in left})
        stored = store.open(self.stored.path, KIND)
        self.__dict__.clear()  # as if opened just now: what was cached of the old index goes
        self.__init__(stored)

    def size_report(self) -> dict[str, float]:
        """Bytes on disk: of the token vectors, by the paper's formula, of the side file, and of all the rest.

        Passages taken out are counted for as long as they are in the files.
        """
        size = self.stored.file_bytes

        def of(*names: str) -> int:
            return sum(size.get(_named(name, segment.number), 0) for name in names for segment in self.segments)

        T, H = sum(len(segment.residuals_TR) for segment in self.segments), len(self.codec.rotation_HH)
        return {
            "tokens": T,
            "token_bytes": of("codes", "gains", "residuals"),
            "formula_bytes": T * (self.codec.n_bits * H + self.codec.code_bits) / 8,
            "list_bytes": of("postings", "posting_at"),
            "rescore_bytes": of("fine") + size.get("fine_scales", 0),
            "codec_bytes": sum(size.get(name, 0) for name in CODEC),
            "length_bytes": of("lengths") + size.get("segments", 0) + size.get("gone", 0),
            "id_bytes": size["ids"],
            "meta_bytes": size["meta"],
            "total_bytes": sum(size.values()),
        }


def limits(
    k: int, effort: int = 2, n_candidates: int | None = None, n_rescored: int | None = None
) -> tuple[int, int, float]:
    """How many passages the second and the third stage see, and the reach of the second, at this effort.

    A number that is given stays, unless it is less than k.
    """
    if effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(map(str, EFFORTS))}, not {effort!r}")
    some, each, reach = EFFORTS[effort]
    return max(k, n_candidates or some + int(each * k)), max(k, n_rescored or k + k // 4 + 10 * effort), reach


def _named(name: str, number: int) -> str:
    """What an array of the segment of this number is called among those of the index."""
    return f"{name}-{number}" if number else name


def _between(position_N: np.ndarray, ends: Sequence[int]) -> list[slice]:
    """Where those of the ascending positions stand that lie between each end and the next."""
    return [slice(first, last) for first, last in itertools.pairwise(np.searchsorted(position_N, ends))]


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
    pool: int = 1,
    device=None,
) -> PlaidIndex:
    """Index a collection and open it. A build that was cut off goes on where it stopped.

    `chunks(start, stop)` returns the TokenVectors of the passages at these positions and is asked once for each. A
    random set of chunks is the sample: kept uncompressed until the codec is trained on it. Without `n_centroids`
    their number follows the number of tokens. Where the vectors say which types of token they are, every type has
    centroids of its own: quicker, and nearer. With `rescore` a side file of H bytes per token is kept for the last
    stage of a search; by default where the collection is small, up to about WHOLE tokens. With `lists` there are
    inverted lists, 2 bytes per token; by default from LISTS tokens on. Of every `pool` tokens of a passage that
    are alike one vector is kept (`pooling`): 2 halve the index, and cost 4 points of MRR@10 of 56 over 10,000 real
    passages. Centroids and codes are found on a PyTorch `device` where one is given, as pays on a GPU.

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
        "pool": pool,
    }
    parts = store.Parts(folder, ids, kind=KIND, origin=origin, **choices)
    assign = residual.nearly_nearest
    if device is not None:
        from xmlib.index import gpu

        assign = partial(gpu.nearest, device=device)
    spans = store.chunks_of(len(ids), chunk_passages)
    n_sampled = math.ceil(sample_passages(len(ids)) / chunk_passages)
    sampled = np.sort(np.random.default_rng(seed).permutation(len(spans))[:n_sampled])

    def encode(i: int) -> dict:
        return exact.arrays_of(pooled(store.encode(chunks, *spans[i]), pool))

    def train(sample: list[dict]) -> dict:
        n_passages = sum(len(part["lengths"]) for part in sample)
        n_sample = sum(len(part["vectors"]) for part in sample)
        if not n_sample:
            raise ValueError("no token vectors to train centroids on: every passage of the sample is empty")
        n_tokens = n_sample * len(ids) // n_passages  # about
        C = n_centroids or residual.n_centroids_for(n_tokens)
        # No more than the training looks at, in memory; evenly from all parts.
        share = min(1, (2 * residual.POINTS_PER_CENTROID * C + residual.CODEWORD_SAMPLE) / n_sample)
        sizes = [len(part["vectors"]) for part in sample]
        rows = [residual.drawn(size, math.ceil(share * size), seed + i) for i, size in enumerate(sizes)]

        def drawn(name: str, dtype: type) -> np.ndarray:  # copies: a view would keep its file open
            return np.concatenate([np.array(part[name][some], dtype) for part, some in zip(sample, rows, strict=True)])

        vectors_TH = drawn("vectors", np.float32)
        types_T = drawn("types", np.int32) if all("types" in part for part in sample) else None
        codec = residual.train(vectors_TH, min(C, len(vectors_TH)), n_bits, seed, assign, types_T)
        trained = {
            "rotation": codec.rotation_HH,
            "centroids": codec.centroids_CH.astype(np.float16),
            "codebook": codec.codebook_RWd,
            "gain_levels": codec.gain_levels,
        }
        if codec.types_C is not None:
            trained["centroid_types"] = codec.types_C
        if lists or (lists is None and n_tokens > LISTS):
            families = residual.families_of(codec.centroids_CH)
            trained |= {} if families is None else {"centroid_families": families}
        if rescore or (rescore is None and n_tokens <= WHOLE):
            trained["fine_scales"] = np.maximum(np.abs(codec.rotate(vectors_TH)).max(axis=0), 1e-6) / np.float32(127)
        return trained

    def coded(part: Mapping) -> dict:
        return compress(coder, trained.get("fine_scales"), part["vectors"], part["lengths"], part.get("types"))

    sample = {i: parts.once(f"tokens-{i}", lambda i=i: encode(i)) for i in sampled}
    trained = parts.once("codec", lambda: train(list(sample.values())))
    codec = _codec(trained)
    coder = codec if device is None else gpu.CodecOnDevice(codec, device)
    done = [parts.once(f"codes-{i}", lambda i=i: coded(sample.get(i) or encode(i))) for i in range(len(spans))]
    store.create(folder, KIND, origin, choices, ids, packed(done, codec, lists) | {**trained})
    return open(folder)


def open(folder) -> PlaidIndex:
    return PlaidIndex(store.open(folder, KIND))


def sample_passages(n_passages: int) -> int:
    """How many passages the centroids are trained on: 16 · sqrt(120 · passages), as in the released recipe."""
    return min(n_passages, math.ceil(16 * math.sqrt(120 * n_passages)))


def _codec(arrays: dict[str, np.ndarray]) -> residual.Codec:
    return residual.Codec(
        np.array(arrays["rotation"]),
        arrays["centroids"].astype(np.float32),
        np.array(arrays["codebook"]),
        np.array(arrays["gain_levels"]),
        *(np.array(arrays[name]) if name in arrays else None for name in ("centroid_types", "centroid_families")),
    )
