"""A run of the passages of a centroid index in arrays of its own: what a search does with them, and how they are made.

An index begins as one segment. Passages that are added later make another one, and those taken out are marked, so that
a change writes about as much as it changes. All segments share the codec, and with it the tables of a query.

Axes, used as suffixes:  B passages of the segment, those taken out included · N some of them · S query tokens
                         T document tokens · C centroids · H embedding · R bytes of a residual · K tokens that contend
                         L = S filled up to a multiple of LANES · P blocks of BLOCK passages
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from xmlib.index import kernels, residual, store
from xmlib.index.threads import Spread, alone
from xmlib.ragged import offsets_of, rows_of

WHOLE = 10_000_000  # tokens up to which codes are unpacked in memory, and the first stage may look at every passage
LISTS = 2_000_000  # tokens from which on there are inverted lists
MOST = 1 / 6  # of the tokens; to look at them all is quicker than to go through lists of more passages than these
CACHE_LINE = 64  # bytes
FAMILIES = 5  # of centroids, for each query token, times k ** 0.2
PROBED = 256  # centroids of these at most
POSTINGS = 180  # passages in their lists, times the fourth root of all passages, times k ** 0.6
UNSEEN = 2 / 3  # of what a query token's last list adds, which a passage in none of its lists is taken to have
LISTED = (1.5, 10)  # passages out of the lists, for each candidate and for each of the k
LIST_BYTES = 256 << 20  # of inverted lists in memory while they are built
RUN = 10_000  # passages in memory while a segment is written anew
TOKEN_ARRAYS = ("codes", "gains", "residuals", "fine")  # a row or so many bits for each token; fine is the side file
ARRAYS = (*TOKEN_ARRAYS, "lengths", "posting_at", "postings")


class Tables:
    """What a query makes with centroids and with every residual byte: the same for all segments.

    Kept from query to query, because fresh memory costs a page fault every 4 KiB.
    """

    def __init__(self, codec: residual.Codec, n_passages: int) -> None:
        self.codec = codec
        self.mean_H = codec.centroids_CH.mean(axis=0)
        self.gains = np.rint(codec.gain_levels * 2**15).astype(np.int32)
        self.score_B = np.empty(n_passages, np.int32)  # of all segments
        C = len(codec.centroids_CH)
        self.every_C = np.arange(C)
        self.known_C = np.zeros(-(-C // kernels.LANES) * kernels.LANES, np.uint8)  # 1: has rows in the tables
        self.L = 0

    def fill(self, q_SH: np.ndarray, reach: float, n_families: int | None, spread: Spread) -> None:
        """Those of one rotated query of real tokens only, with all centroids or those of so many near families."""
        self.S, H = q_SH.shape
        self._fit(-(-self.S // kernels.LANES) * kernels.LANES)
        self.q_LH = np.zeros((self.L, H), np.float32)
        self.q_LH[: self.S] = q_SH
        # 16 bits must hold the product with any decoded vector.
        longest = np.linalg.norm(q_SH, axis=1).max(initial=1e-6)
        self.factor = np.float32(32767 / (1.01 * self.codec.longest * longest))

        self.query = kernels.paired_query(self.q_LH)
        low_L = (self.q_LH @ self.mean_H * self.factor).astype(np.int16)
        self.near_N = self.every_C
        if self.codec.families is not None and n_families is not None:
            self.near_N = self._near(self.codec.families, n_families, low_L)
        self._multiply(self.codec.paired_centroids, self.near_N, self.table_CL, spread)
        self.range = _byte_range(self.table_CL, self.near_N, low_L)
        kernels.to_bytes(self.table_CL, self.near_N, *self.range, self.bytes_CL)
        self.known_C[:] = 0
        self.known_C[self.near_N] = 1
        self.step = self.range[2] * self.factor / 2**15  # bytes in a product of 1
        self.margin = np.uint8(min(reach * self.codec.spread * longest * self.step, 255))

    def add_residuals(self) -> None:
        """What residual bytes add, just before it is read: the first stage would drive it out of the cache."""
        q_HL = np.ascontiguousarray(self.q_LH.T)
        kernels.residual_table(self.codec.codebook_RWd, q_HL, self.factor, self.table_RWL)

    def complete(self, codes_N: np.ndarray, spread: Spread) -> None:
        """Rows of these centroids as well, of which the same may come often."""
        missing_N = kernels.missing(codes_N, self.known_C)
        self._multiply(self.codec.paired_centroids, missing_N, self.table_CL, spread)
        kernels.to_bytes(self.table_CL, missing_N, *self.range, self.bytes_CL)

    def _near(self, families: residual.Families, n: int, low_L: np.ndarray) -> np.ndarray:
        """The centroids of the n families that are nearest to each query token."""
        every_G = np.arange(len(families.means_GH))
        self._multiply(families.paired, every_G, self.table_GL, alone)
        kernels.to_bytes(self.table_GL, every_G, *_byte_range(self.table_GL, every_G, low_L), self.bytes_GL)
        nearest_N, _, _ = kernels.highest(self.bytes_GL, every_G, self.S, n, self.threshold_L)
        rows_N, _ = rows_of(families.offsets_G1, np.unique(nearest_N))
        return families.members_C.take(rows_N)

    def _multiply(self, paired: tuple[np.ndarray, np.float32], rows_N: np.ndarray, table, spread: Spread) -> None:
        vectors_CP, unit = paired
        q_PL, q_unit = self.query

        def products(part: slice) -> None:
            kernels.centroid_table(vectors_CP, rows_N[part], q_PL, unit * q_unit * self.factor, table)

        spread(products, len(rows_N))

    def _fit(self, L: int) -> None:
        if self.L != L:
            self.L, C = L, len(self.codec.centroids_CH)
            self.table_CL = _in_lines((C, L), np.int16)
            self.bytes_CL = _in_lines((C, L), np.uint8)
            self.table_RWL = _in_lines((*self.codec.codebook_RWd.shape[:2], L), np.int16)
            self.threshold_L = np.empty(L, np.uint8)
            if self.codec.families is not None:
                G = len(self.codec.families.means_GH)
                self.table_GL, self.bytes_GL = _in_lines((G, L), np.int16), _in_lines((G, L), np.uint8)


def _byte_range(table_NL: np.ndarray, rows_N: np.ndarray, low_L: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    low_L, high_L = low_L.copy(), np.empty_like(low_L)
    return low_L, high_L, kernels.byte_range(table_NL, rows_N, low_L, high_L)


def _in_lines(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An empty array that begins with a line of the cache: rows that straddle two slow re-ranking by a quarter."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + size].view(dtype).reshape(shape)


class Listing(NamedTuple):
    """How much of the inverted lists a search goes through."""

    n_families: int  # of centroids that each query token is compared with
    n_probe: int  # of these centroids, for each query token, at most
    n_postings: int | None  # passages in their lists, for each query token, about; None for no limit
    n_passages: int  # that come out of them

    @classmethod
    def of(cls, k: int, n_candidates: int, n_indexed: int, n_probe: int | None) -> "Listing":
        """What finds the candidates for the k best of n_indexed passages; lists of n_probe centroids if given."""
        n_postings = math.ceil(POSTINGS * n_indexed**0.25 * k**0.6) if n_probe is None else None
        for_candidate, for_wanted = LISTED
        n_passages = math.ceil(for_candidate * n_candidates + for_wanted * k)
        return cls(math.ceil(FAMILIES * k**0.2), n_probe or PROBED, n_postings, n_passages)


@dataclass
class Found:
    """The passages that a first stage scored, and where their codes are."""

    position_N: np.ndarray
    at_N: np.ndarray  # where each stands in offsets_B1
    offsets_B1: np.ndarray
    codes_T: np.ndarray
    shift_N: np.ndarray | None  # what the rows that a passage's codes are of have more than places here; None for 0


class Segment:
    """Residuals stay memory maps. Codes are unpacked on the first search, where every passage is looked at."""

    def __init__(self, number: int, arrays: Mapping[str, np.ndarray], codec: residual.Codec, gone_N: np.ndarray):
        self.number = number
        self.arrays = arrays  # ARRAYS, of which fine and the lists may be missing
        self.codec = codec
        self.gone_N = gone_N  # taken out, though still in the arrays
        self.offsets_B1 = offsets_of(arrays["lengths"])
        self.residuals_TR = np.asarray(arrays["residuals"])  # still mapped, without the cost of np.memmap per access
        self.fine_TH = np.asarray(arrays["fine"]) if "fine" in arrays else None
        self.lists = None  # where each run of passages starts and the passages, by centroid and block
        if "postings" in arrays:
            self.lists = np.asarray(arrays["posting_at"]), np.asarray(arrays["postings"])

    def __len__(self) -> int:
        """How many passages the arrays hold, those taken out included."""
        return len(self.offsets_B1) - 1

    @property
    def n_live(self) -> int:
        return len(self) - len(self.gone_N)

    def uses_lists(self, S: int, listing: Listing) -> bool:
        """Whether a query of S tokens goes through inverted lists: where there are some, unless they take longer."""
        if self.lists is None or not self._is_unpacked or listing.n_postings is None:
            return self.lists is not None
        return S * listing.n_postings <= MOST * len(self.residuals_TR)

    def approximate(self, tables: Tables, score_B: np.ndarray, listing: Listing, spread: Spread) -> Found:
        """The first stage: all passages, or those that the inverted lists speak for most. Scores go to score_B."""
        everything = not self.uses_lists(tables.S, listing)
        found = self._everything if everything else self._listed(tables, listing, spread)
        score_N = score_B[: len(found.position_N)]
        tables.complete(self._used_N if everything else found.codes_T, spread)

        def approximate(part: slice) -> None:
            kernels.approximate(found.at_N[part], found.offsets_B1, found.codes_T, tables.bytes_CL, score_N[part])

        spread(approximate, len(score_N))
        if everything:
            score_N[self.gone_N] = -1  # which no later stage looks at
        return found

    def rerank(self, tables: Tables, found: Found, best_N: np.ndarray, score_N: np.ndarray, spread: Spread) -> None:
        """The second stage: scores of the passages that stand at best_N among those found."""
        at_N, offsets_B1 = found.at_N[best_N], found.offsets_B1

        def rerank(part: slice) -> None:
            starts_N, stops_N = offsets_B1[at_N[part]], offsets_B1[at_N[part] + 1]
            row_K = np.empty((stops_N - starts_N).sum(), np.int64)
            within = (at_N[part], offsets_B1, found.codes_T, tables.bytes_CL, tables.S, tables.margin)
            offsets_N1 = kernels.contenders(*within, row_K)
            row_K = row_K[: offsets_N1[-1]]
            codes_K = found.codes_T.take(row_K)
            if found.shift_N is not None:
                row_K += np.repeat(found.shift_N[at_N[part]], np.diff(offsets_N1))
            codes = (codes_K, self._gains_at(row_K), self.residuals_TR)
            of = (tables.gains, tables.table_CL, tables.table_RWL)
            kernels.rerank(row_K, offsets_N1, *codes, *of, tables.factor, score_N[part])

        spread(rerank, len(at_N))

    def rescore(
        self, query: tuple[np.ndarray, np.float32], position_N: np.ndarray, score_N: np.ndarray, spread: Spread
    ) -> None:
        """The third stage, from the side file; the query, of `kernels.paired_query`, carries each dimension's scale."""

        def rescore(part: slice) -> None:
            kernels.rescore(position_N[part], self.offsets_B1, self.fine_TH, *query, score_N[part])

        spread(rescore, len(position_N))

    def unpack(self) -> None:
        """Do now what would be done on the first search, before there are threads."""
        self.codec.paired_centroids, self.codec.families  # noqa: B018
        if self._is_unpacked:
            self._everything, self._used_N, self._gains_T  # noqa: B018
        if self.lists is not None:
            self._size_C  # noqa: B018

    def runs(self) -> list["Run"]:
        """The passages that were not taken out, so many at a time."""
        live_N = np.delete(np.arange(len(self)), self.gone_N)
        return [Run(self, live_N[start:stop]) for start, stop in store.chunks_of(len(live_N), RUN)]

    @property
    def _is_unpacked(self) -> bool:
        return self.lists is None or len(self.residuals_TR) <= WHOLE

    @cached_property
    def _everything(self) -> Found:
        codes_T = residual.unpack_codes(self.arrays["codes"], self.codec.code_bits, 0, len(self.residuals_TR))
        position_B = np.arange(len(self))
        return Found(position_B, position_B, self.offsets_B1, codes_T, None)

    @cached_property
    def _used_N(self) -> np.ndarray:
        """The centroids that there are tokens at."""
        return np.flatnonzero(np.bincount(self._everything.codes_T))

    @cached_property
    def _size_C(self) -> np.ndarray:
        """How many passages the list of each centroid holds."""
        return np.diff(self.lists[0][:: _blocks(len(self))].astype(np.int64))

    @cached_property
    def _gains_T(self) -> np.ndarray:
        return residual.unpack_codes(self.arrays["gains"], residual.GAIN_BITS, 0, len(self.residuals_TR))

    def _listed(self, tables: Tables, listing: Listing, spread: Spread) -> Found:
        """The passages that the inverted lists of the centroids nearest to each query token speak for most."""
        if tables.S >= 1 << kernels.TOKEN_BITS:
            raise ValueError(
                f"a query of {tables.S} tokens; inverted lists take {(1 << kernels.TOKEN_BITS) - 1} at most"
            )
        cell_N, above_N, start_S1 = kernels.highest(
            tables.bytes_CL, tables.near_N, tables.S, listing.n_probe, tables.threshold_L
        )
        stop_S = start_S1[1:]
        if listing.n_postings is not None:
            stop_S = kernels.ends_within(cell_N, start_S1, self._size_C, listing.n_postings)
        kernels.less_unseen(above_N, start_S1, stop_S, UNSEEN)
        n, n_blocks, parts = listing.n_passages, _blocks(len(self)), {}

        def look(blocks: slice) -> None:
            span = (blocks.start, blocks.stop)
            cells = (cell_N, above_N, start_S1, stop_S)
            parts[span] = kernels.listed(*cells, *self.lists, n_blocks, span, self.gone_N, n)

        spread(look, n_blocks)
        position_N, score_N = map(np.concatenate, zip(*(parts[span] for span in sorted(parts)), strict=True))
        position_N = position_N[kernels.best(score_N, n)]
        starts_N, stops_N = self.offsets_B1[position_N], self.offsets_B1[position_N + 1]
        offsets_N1 = offsets_of(stops_N - starts_N)
        codes_T = residual.unpack_codes(self.arrays["codes"], self.codec.code_bits, starts_N, stops_N)
        return Found(position_N, np.arange(len(position_N)), offsets_N1, codes_T, starts_N - offsets_N1[:-1])

    def _codes_at(self, rows_N: np.ndarray) -> np.ndarray:
        return residual.unpack_rows(self.arrays["codes"], self.codec.code_bits, rows_N)

    def _gains_at(self, rows_N: np.ndarray) -> np.ndarray:
        if self._is_unpacked:
            return self._gains_T.take(rows_N)
        return residual.unpack_rows(self.arrays["gains"], residual.GAIN_BITS, rows_N)


@dataclass
class Run(Mapping):
    """Some passages of a segment as `compress` made them: arrays by name, each read when it is asked for."""

    segment: Segment
    position_N: np.ndarray

    def __getitem__(self, name: str) -> np.ndarray:
        if name == "lengths":
            return self.segment.arrays["lengths"][self.position_N]
        rows_T, _ = rows_of(self.segment.offsets_B1, self.position_N)
        if name in ("codes", "gains"):
            return getattr(self.segment, f"_{name}_at")(rows_T)
        return self.segment.arrays[name].take(rows_T, axis=0)

    def __iter__(self) -> Iterator[str]:
        return (name for name in (*TOKEN_ARRAYS, "lengths") if name in self.segment.arrays)

    def __len__(self) -> int:
        return len(list(iter(self)))


def compress(
    codec: residual.Codec,
    fine_scales: np.ndarray | None,
    vectors_TH: np.ndarray,
    lengths_B: np.ndarray,
    types_T: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Passages as segments hold them, though not yet packed."""
    codes_T, gains_T, residuals_TR = codec.encode(vectors_TH, types_T)
    arrays = {"codes": codes_T, "gains": gains_T, "residuals": residuals_TR, "lengths": lengths_B.astype(np.int32)}
    if fine_scales is not None:
        arrays["fine"] = np.clip(np.rint(codec.rotate(vectors_TH) / fine_scales), -127, 127).astype(np.int8)
    return arrays


def packed(parts: list[Mapping[str, np.ndarray]], codec: residual.Codec, lists: bool | None) -> dict:
    """The arrays of a segment of all these passages, as they go to disk: codes and gains as strings of bits.

    With `lists` there are inverted lists; by default where it has more than LISTS tokens.
    """
    arrays = store.join(parts)
    size_P = [(len(lengths_B), int(lengths_B.sum())) for lengths_B in arrays["lengths"]]
    n_passages, n_tokens = (sum(sizes) for sizes in zip(*size_P, strict=True))
    if lists or (lists is None and n_tokens > LISTS):
        arrays |= lists_of(arrays, n_passages, len(codec.centroids_CH))
    codes = residual.pack_parts(arrays["codes"], codec.code_bits)
    return arrays | {"codes": codes, "gains": residual.pack_parts(arrays["gains"], residual.GAIN_BITS)}


def lists_of(arrays: Mapping, B: int, C: int) -> dict:
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


def _spans(arrays: Mapping):
    """Codes and lengths of run after run of passages, and where the run starts."""
    first = 0
    for codes_T, lengths_B in zip(arrays["codes"], arrays["lengths"], strict=True):
        yield np.asarray(codes_T), np.asarray(lengths_B), first
        first += len(lengths_B)


def _blocks(B: int) -> int:
    return -(-B // kernels.BLOCK)
