"""Residual compression of token vectors (paper, Appendix A): the nearest centroid, and the rest in 1, 2 or 4 bits.

    vector ≈ gain · (centroid + residual),   stored in  n_bits · H + ceil(log2 C) + 4  bits instead of 16 · H

The paper gives every dimension of a residual its own bits. Here a byte holds 8 / n_bits dimensions together, as the
number of the nearest of 256 codewords (product quantisation), at the same size. Before that the dimensions are
rotated so that each byte gets its share of the variance: models spread it unevenly, and bits spent on dimensions that
hardly vary are lost. The gain, 4 bits, brings the sum back to unit length. On the demo's vectors 2 bits so leave a
quarter of the squared error that one bucket per dimension leaves.

Vectors are kept in the rotated space: a rotation changes no inner product, so a query is rotated once instead.

Axes, used as suffixes:  T document tokens · C centroids · H embedding · R = H · n_bits / 8, the bytes of a residual
                         W codewords · d = H / R dimensions of a codeword
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from xmlib.index import kernels
from xmlib.index.threads import Spread, alone, among, count
from xmlib.ragged import offsets_of

N_BITS = (1, 2, 4)
ITERATIONS = 4  # of k-means, as in the released recipe
POINTS_PER_CENTROID = 4  # 8 take twice the time and find the same top 10
SHARE = 0.75  # how centroids grow with the tokens of a type; 0.5 finds less
REST = -1  # the types that share centroids
CODEWORDS = 256
CODEWORD_ITERATIONS = 12
CODEWORD_SAMPLE = 1 << 14  # vectors whose residuals set rotation, codewords and gains
GAIN_BITS = 4
GROUPED = 2048  # centroids from which on the nearest is looked for in a part of them
MANY = 4096  # centroids from which on there are families
FAMILY = 32
FEW = 16  # times fewer vectors than centroids are compared with all of them
SHARED = 1 << 22  # products, and
ROWS = 2048  # vectors, from which on a part of them is worth handing to another thread
BLOCK = 1 << 20  # codes packed at a time; a multiple of 8, so that every block starts on a whole byte

Assign = Callable[[np.ndarray, np.ndarray], np.ndarray]  # vectors (T, H), centroids (C, H) → codes (T,), int32


@dataclass
class Codec:
    """All it takes to encode a vector and to read it back."""

    rotation_HH: np.ndarray  # float32, orthogonal: vectors @ rotation are in the rotated space
    centroids_CH: np.ndarray  # float32, though only float16 values: what is stored is what encoding saw; rotated
    codebook_RWd: np.ndarray  # float32, rotated
    gain_levels: np.ndarray  # float32, (2 ** GAIN_BITS,), evenly spaced
    types_C: np.ndarray | None = None  # int32, ascending: the type of token that each centroid is of, or REST; if known
    family_C: np.ndarray | None = None  # int32: which family each centroid is of, if there are any

    @property
    def n_bits(self) -> int:
        return 8 // self.codebook_RWd.shape[2]

    @property
    def code_bits(self) -> int:
        """ceil(log2 C)"""
        return (len(self.centroids_CH) - 1).bit_length()

    def encode(
        self, vectors_TH: np.ndarray, types_T: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns codes_T (int32), gains_T (uint8, numbers of levels) and residuals_TR (uint8).

        Where centroids and tokens have types, a token is compared with the centroids of its own alone, if there are.
        """
        rotated_TH = self.rotate(vectors_TH)
        if types_T is None or self.types_C is None:
            codes_T = self._assigned(rotated_TH)
        else:
            codes_T = assigned_by_type(rotated_TH, types_T, self.centroids_CH, self.types_C, self._assigned)
        sum_TH = self.centroids_CH.take(codes_T, axis=0)
        residuals_TR = nearest_codewords(rotated_TH - sum_TH, self.codebook_RWd)
        sum_TH += self._values(residuals_TR)
        gain_T = 1 / np.linalg.norm(sum_TH, axis=1)
        step = self.gain_levels[1] - self.gain_levels[0]
        gains_T = np.clip(np.rint((gain_T - self.gain_levels[0]) / step), 0, 2**GAIN_BITS - 1).astype(np.uint8)
        return codes_T, gains_T, residuals_TR

    def decode(self, codes_T: np.ndarray, gains_T: np.ndarray, residuals_TR: np.ndarray) -> np.ndarray:
        """Returns vectors (T, H), float32, of about unit length."""
        sum_TH = self.centroids_CH.take(codes_T, axis=0) + self._values(residuals_TR)
        sum_TH *= self.gain_levels.take(gains_T)[:, None]
        return sum_TH @ self.rotation_HH.T

    def checked(self, vectors_TH: np.ndarray) -> np.ndarray:
        """These vectors in float32. ValueError where they have another number of dimensions."""
        if vectors_TH.shape[-1] != len(self.rotation_HH):
            raise ValueError(f"the index holds {len(self.rotation_HH)} dimensions, the vectors {vectors_TH.shape[-1]}")
        return vectors_TH.astype(np.float32, copy=False)

    def rotate(self, vectors_TH: np.ndarray) -> np.ndarray:
        vectors_TH = np.ascontiguousarray(self.checked(vectors_TH))
        rotated_TH = np.empty_like(vectors_TH)

        def rotate(rows: slice) -> None:
            kernels.product(vectors_TH[rows], self.rotation_HH, rotated_TH[rows])

        _among(len(vectors_TH) // ROWS)(rotate, len(vectors_TH))
        return rotated_TH

    @cached_property
    def paired_centroids(self) -> tuple[np.ndarray, np.float32]:
        """`kernels.paired` centroids, (C, H / 2) and their unit."""
        return kernels.paired(self.centroids_CH)

    @cached_property
    def families(self) -> "Families | None":
        return None if self.family_C is None else Families(self.centroids_CH, self.family_C)

    @cached_property
    def longest(self) -> float:
        """No decoded vector is longer."""
        codeword_R = np.square(self.codebook_RWd).sum(axis=2).max(axis=1)
        centroid = np.linalg.norm(self.centroids_CH, axis=1).max()
        return float(self.gain_levels[-1] * (centroid + np.sqrt(codeword_R.sum())))

    @cached_property
    def spread(self) -> float:
        """The standard deviation of the product of a residual and a vector of unit length, over all directions."""
        return float(np.sqrt(np.square(self.codebook_RWd).sum(axis=2).mean(axis=1).sum() / len(self.rotation_HH)))

    def _assigned(self, rotated_TH: np.ndarray) -> np.ndarray:
        few = len(rotated_TH) * FEW < len(self.centroids_CH)  # so that grouping the centroids would take longer
        return assigned(rotated_TH, self.centroids_CH, None if few else self._groups)

    @cached_property
    def _groups(self) -> tuple[np.ndarray, np.ndarray] | None:
        return groups(self.centroids_CH)

    def _values(self, residuals_TR: np.ndarray) -> np.ndarray:
        R, W, d = self.codebook_RWd.shape
        rows = residuals_TR + W * np.arange(R)  # take is several times faster than indexing by two arrays
        return self.codebook_RWd.reshape(R * W, d).take(rows, axis=0).reshape(len(residuals_TR), R * d)


class Families:
    """Centroids that lie near each other, so that a query need not be compared with all. Axis G: families."""

    def __init__(self, centroids_CH: np.ndarray, family_C: np.ndarray) -> None:
        self.members_C = np.argsort(family_C, kind="stable")  # family after family
        size_G = np.bincount(family_C)
        self.offsets_G1 = offsets_of(size_G)
        sum_GH = np.add.reduceat(centroids_CH.take(self.members_C, axis=0), self.offsets_G1[:-1])
        self.means_GH = sum_GH / size_G[:, None].astype(np.float32)
        self.paired = kernels.paired(self.means_GH)


def families_of(centroids_CH: np.ndarray) -> np.ndarray | None:
    """family_C, of FAMILY centroids each on average; None where there are too few to gain by it."""
    if len(centroids_CH) < MANY:
        return None
    middles_GH = kmeans(centroids_CH, len(centroids_CH) // FAMILY, seed=0)
    family_C = nearly_nearest(centroids_CH, middles_GH)
    return np.unique(family_C, return_inverse=True)[1].astype(np.int32)  # none is empty


def nearly_nearest(vectors_TH: np.ndarray, centroids_CH: np.ndarray) -> np.ndarray:
    """As `assigned`, by groups of these centroids where there are enough of them."""
    return assigned(vectors_TH, centroids_CH, groups(centroids_CH))


def train(
    vectors_TH: np.ndarray,
    n_centroids: int,
    n_bits: int,
    seed: int = 42,
    assign: Assign = nearly_nearest,
    types_T: np.ndarray | None = None,
) -> Codec:
    """Centroids by k-means on these vectors; rotation, codewords and gains from what the centroids leave over.

    With `types_T` every type of token has centroids of its own, as many as `kmeans_by_type` gives it.
    """
    if n_bits not in N_BITS:
        raise ValueError(f"n_bits must be one of {', '.join(map(str, N_BITS))}, not {n_bits}")
    H = vectors_TH.shape[1]
    if H * n_bits % 8:
        raise ValueError(f"{H} dimensions of {n_bits} bits do not fill whole bytes")
    # A fresh draw: k-means leaves smaller residuals on the vectors it was trained on than on all others.
    rows_N = drawn(len(vectors_TH), CODEWORD_SAMPLE, seed + 1)
    draw_TH = vectors_TH[rows_N].astype(np.float32, copy=False)
    if types_T is None:
        centroids_CH, types_C = kmeans(vectors_TH, n_centroids, seed, assign), None
        codes_T = assign(draw_TH, centroids_CH)
    else:
        centroids_CH, types_C = kmeans_by_type(vectors_TH, types_T, n_centroids, seed)
        others = partial(assign, centroids_CH=centroids_CH)
        codes_T = assigned_by_type(draw_TH, types_T[rows_N], centroids_CH, types_C, others)
    rotation_HH = balanced_rotation(draw_TH - centroids_CH[codes_T], H * n_bits // 8)
    centroids_CH = (centroids_CH @ rotation_HH).astype(np.float16).astype(np.float32)
    residuals_TH = draw_TH @ rotation_HH - centroids_CH[codes_T]
    codebook_RWd = codewords(residuals_TH, H * n_bits // 8, seed)
    codec = Codec(rotation_HH, centroids_CH, codebook_RWd, np.ones(1, np.float32), types_C)
    sum_TH = centroids_CH[codes_T] + codec._values(nearest_codewords(residuals_TH, codec.codebook_RWd))
    low, high = np.quantile(1 / np.linalg.norm(sum_TH, axis=1), (0.001, 0.999))
    codec.gain_levels = np.linspace(low, max(high, low + 1e-3), 2**GAIN_BITS, dtype=np.float32)
    return codec


def balanced_rotation(residuals_TH: np.ndarray, n_groups: int) -> np.ndarray:
    """The principal axes (H, H), dealt to the groups so that the product of variances is about equal in each.

    Greedy, widest axis first, each to the group whose product is smallest so far (eigenvalue allocation, as in
    optimised product quantisation, arXiv 1311.4055).
    """
    variance_H, axes_HH = np.linalg.eigh(residuals_TH.T @ residuals_TH / len(residuals_TH))
    H = len(variance_H)
    log_variance_H = np.log(np.maximum(variance_H, 1e-9))
    log_variance_H -= log_variance_H.min() - 1  # all positive, so that a group with fewer axes has the smaller product
    groups, product = [[] for _ in range(n_groups)], np.zeros(n_groups)
    for axis in range(H - 1, -1, -1):
        group = min((g for g in range(n_groups) if len(groups[g]) < H // n_groups), key=product.__getitem__)
        groups[group].append(axis)
        product[group] += log_variance_H[axis]
    return np.ascontiguousarray(axes_HH[:, np.concatenate(groups)], dtype=np.float32)


def codewords(residuals_TH: np.ndarray, n_groups: int, seed: int) -> np.ndarray:
    """k-means on each run of H / n_groups dimensions. Returns (R, 256, d), float32."""
    T, H = residuals_TH.shape
    R, W, d = n_groups, CODEWORDS, H // n_groups
    first = np.random.default_rng(seed).choice(T, W, replace=T < W)
    codebook_RWd = np.ascontiguousarray(residuals_TH[first].reshape(W, R, d).transpose(1, 0, 2))
    for _ in range(CODEWORD_ITERATIONS):
        sum_RWd, count_RW = np.zeros((R, W, d), np.float32), np.zeros((R, W), np.int64)
        kernels.codeword_sums(residuals_TH, nearest_codewords(residuals_TH, codebook_RWd), sum_RWd, count_RW)
        np.divide(sum_RWd, count_RW[..., None], out=codebook_RWd, where=count_RW[..., None] > 0)  # others stay
    return codebook_RWd


def nearest_codewords(residuals_TH: np.ndarray, codebook_RWd: np.ndarray) -> np.ndarray:
    """Returns (T, R), uint8."""
    code_TR = np.empty((len(residuals_TH), len(codebook_RWd)), np.uint8)
    residuals_TH = np.ascontiguousarray(residuals_TH)
    twice_RdW = np.ascontiguousarray(-2 * codebook_RWd.transpose(0, 2, 1))
    square_RW = np.square(codebook_RWd).sum(axis=2)

    def look(rows: slice) -> None:
        kernels.nearest_codewords(residuals_TH[rows], twice_RdW, square_RW, code_TR[rows])

    _among(len(residuals_TH) // ROWS)(look, len(residuals_TH))
    return code_TR


def kmeans(vectors_TH: np.ndarray, n_centroids: int, seed: int, assign: Assign = nearly_nearest) -> np.ndarray:
    """Unit-length centroids (C, H), float32. The same on every run with the same vectors and seed.

    Spherical: vectors of unit length are nearest where their inner product is largest, and centroids of unit length
    keep it so for the query tokens that probe them, whether a cluster is tight or loose. They start as vectors drawn
    without replacement; one that no vector is nearest to stays where it is.
    """
    vectors_TH = draw(vectors_TH, n_centroids * POINTS_PER_CENTROID, seed)
    first = np.random.default_rng(seed).choice(len(vectors_TH), n_centroids, replace=len(vectors_TH) < n_centroids)
    centroids_CH = _unit(vectors_TH[first])
    for _ in range(ITERATIONS):
        codes_T = assign(vectors_TH, centroids_CH)
        sum_RCH, count_RC = np.zeros((1, *centroids_CH.shape), np.float32), np.zeros((1, n_centroids), np.int64)
        kernels.codeword_sums(vectors_TH, codes_T[:, None], sum_RCH, count_RC)
        used_C = count_RC[0] > 0
        centroids_CH[used_C] = _unit(sum_RCH[0, used_C])
    return centroids_CH


def kmeans_by_type(
    vectors_TH: np.ndarray, types_T: np.ndarray, n_centroids: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `kmeans`, apart for each type of token. Returns centroids_CH and types_C, ascending; at most n_centroids.

    A type has a share of them that grows with the number of its tokens to the power of SHARE, so that rare ones, which
    tell passages apart, have more than k-means would leave them. Types whose share is less than one are one: REST.
    A tenth of the time of `kmeans` over 2.6 million tokens of 3,600 types, and smaller residuals (Martinico et al.,
    2026, arXiv 2604.28142, whose idea this is).
    """
    types, runs = _runs(types_T)
    counts = np.array([len(run) for run in runs])
    share = counts**SHARE
    n_own = np.minimum(n_centroids * share / share.sum(), counts).astype(int)
    if (n_own == 0).any():
        rest = np.concatenate([run for run, n in zip(runs, n_own, strict=True) if n == 0])
        n_rest = min(max(n_centroids - n_own.sum(), 1), len(rest))
        types, runs, n_own = np.append(REST, types), [rest, *runs], np.append(n_rest, n_own)
    found = [kmeans(vectors_TH[run], n, seed) for run, n in zip(runs, n_own, strict=True) if n]
    return np.concatenate(found), np.repeat(types, n_own).astype(np.int32)


def nearest(vectors_TH: np.ndarray, centroids_CH: np.ndarray, spread: Spread | None = None) -> np.ndarray:
    """The centroid of largest inner product, the first of equal ones. Returns codes_T, int32.

    Rows are shared among threads as `spread` says; by default where there are many products.
    """
    codes_T = np.empty(len(vectors_TH), np.int32)
    vectors_TH, centroids_CH = np.ascontiguousarray(vectors_TH), np.ascontiguousarray(centroids_CH)
    spread = spread or _among(len(vectors_TH) * len(centroids_CH) // SHARED)
    spread(lambda rows: kernels.nearest(vectors_TH[rows], centroids_CH, codes_T[rows]), len(vectors_TH))
    return codes_T


def _among(most: int) -> Spread:
    """A few parts for every thread, so that all end together, and no more than `most`."""
    return among(count(), min(4 * count() if count() > 1 else 1, most))


def groups(centroids_CH: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Middles of groups of centroids (G, H), and the centroids nearest to each (G, N), of which groups share many.

    None where there are fewer than GROUPED centroids.
    """
    C = len(centroids_CH)
    if C < GROUPED:
        return None
    N = min(C // 16, 8 * math.isqrt(C))  # so that every centroid is in 32 groups, whatever their number
    middles_GH = kmeans(centroids_CH, 4 * math.isqrt(C), seed=0)
    members_GN = np.empty((len(middles_GH), N), np.int32)
    for g in range(0, len(middles_GH), 16):  # all at once are gigabytes of products
        product_GC = middles_GH[g : g + 16] @ centroids_CH.T
        members_GN[g : g + 16] = np.sort(np.argpartition(-product_GC, N, axis=1)[:, :N], axis=1)
    return middles_GH, members_GN


def assigned(vectors_TH: np.ndarray, centroids_CH: np.ndarray, grouping: tuple | None) -> np.ndarray:
    """As `nearest`; where there are `groups`, a hardly worse centroid for one vector in forty, in a tenth of the time.

    A vector is then compared with the centroids of its group alone. Vectors of a group go together, so that
    its centroids are gathered once.
    """
    if grouping is None:
        return nearest(vectors_TH, centroids_CH)
    middles_GH, members_GN = grouping
    group_T = nearest(vectors_TH, middles_GH)
    order_T = np.argsort(group_T, kind="stable")
    codes_T = np.empty(len(vectors_TH), np.int32)
    for rows in np.split(order_T, np.cumsum(np.bincount(group_T, minlength=len(middles_GH)))[:-1]):
        if len(rows):
            members_N = members_GN[group_T[rows[0]]]
            codes_T[rows] = members_N[nearest(vectors_TH[rows], centroids_CH.take(members_N, axis=0))]
    return codes_T


def assigned_by_type(
    vectors_TH: np.ndarray,
    types_T: np.ndarray,
    centroids_CH: np.ndarray,
    types_C: np.ndarray,
    others: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """The nearest of the centroids of each vector's own type; where it has none, what others(vectors_TH) says."""
    place_T = np.minimum(np.searchsorted(types_C, types_T), len(types_C) - 1)
    own_T = types_C[place_T] == types_T
    codes_T = np.empty(len(vectors_TH), np.int32)
    codes_T[~own_T] = others(vectors_TH[~own_T])
    at_N = np.flatnonzero(own_T)
    types, runs = _runs(types_T[at_N])
    firsts, lasts = (np.searchsorted(types_C, types, side) for side in ("left", "right"))

    def assign(some: slice) -> None:
        for run, first, last in zip(runs[some], firsts[some], lasts[some], strict=True):
            codes_T[at_N[run]] = first + nearest(vectors_TH[at_N[run]], centroids_CH[first:last], alone)

    _among(len(at_N) // ROWS)(assign, len(runs))
    return codes_T


def _runs(types_T: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The types there are, ascending, and where each stands."""
    order_T = np.argsort(types_T, kind="stable")
    types, starts = np.unique(types_T[order_T], return_index=True)
    return types, np.split(order_T, starts)[1:]


def n_centroids_for(n_tokens: int) -> int:
    """2 ** floor(log2(16 · sqrt(tokens))), as PLAID has it, and never more than there are tokens."""
    return 1 << (int(min(16 * np.sqrt(n_tokens), n_tokens)).bit_length() - 1)


def pack_codes(codes_T: np.ndarray, n_bits: int) -> np.ndarray:
    """Codes as one string of bits, n_bits each, lowest first. Returns uint8, (ceil(T * n_bits / 8),)."""
    blocks = [
        np.packbits((codes_T[t : t + BLOCK, None] >> np.arange(n_bits)).astype(np.uint8) & 1, bitorder="little")
        for t in range(0, len(codes_T), BLOCK)
    ]
    return np.concatenate([np.zeros(0, np.uint8), *blocks])


def pack_parts(parts: Iterable[np.ndarray], n_bits: int) -> Iterator[np.ndarray]:
    """As pack_codes of all parts together, one part in memory at a time."""
    rest = np.zeros(0, np.int32)
    for part in parts:
        codes = np.concatenate([rest, part])
        whole = len(codes) // 8 * 8  # so many fill whole bytes
        yield pack_codes(codes[:whole], n_bits)
        rest = codes[whole:]
    yield pack_codes(rest, n_bits)


def unpack_codes(packed: np.ndarray, n_bits: int, starts: int | np.ndarray, stops: int | np.ndarray) -> np.ndarray:
    """The codes of a run of a string of bits, or of runs, end to end, in the smallest unsigned type that holds them."""
    starts_N, stops_N = (np.atleast_1d(np.asarray(at, np.int64)) for at in (starts, stops))
    codes_T = np.empty((stops_N - starts_N).sum(), _code_type(n_bits))
    kernels.unpack(_words(packed), n_bits, starts_N, stops_N, codes_T)
    return codes_T


def unpack_rows(packed: np.ndarray, n_bits: int, rows_N: np.ndarray) -> np.ndarray:
    """The codes of some rows."""
    codes_N = np.empty(len(rows_N), _code_type(n_bits))
    kernels.unpack_some(_words(packed), n_bits, rows_N, codes_N)
    return codes_N


def _words(packed: np.ndarray) -> np.ndarray:
    """At least one word, which is what the kernels read at a time."""
    return np.asarray(packed) if len(packed) >= kernels.WORD else np.append(packed, np.zeros(kernels.WORD, np.uint8))


def _code_type(n_bits: int) -> type:
    return np.uint8 if n_bits <= 8 else np.uint16 if n_bits <= 16 else np.uint32


def _unit(vectors_TH: np.ndarray) -> np.ndarray:
    return vectors_TH / np.maximum(np.linalg.norm(vectors_TH, axis=1, keepdims=True), 1e-6)


def draw(vectors_TH: np.ndarray, n: int, seed: int) -> np.ndarray:
    """At most n of the vectors, drawn without replacement, in float32."""
    return np.ascontiguousarray(vectors_TH[drawn(len(vectors_TH), n, seed)], dtype=np.float32)


def drawn(T: int, n: int, seed: int) -> np.ndarray | slice:
    """Rows of at most n of T vectors, drawn without replacement, in order."""
    if T <= n:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(T, n, replace=False, shuffle=False))
