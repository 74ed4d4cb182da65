"""Residual compression of token vectors (paper, Appendix A): the nearest centroid, and the rest in 1, 2 or 4 bits.

    vector ≈ normalise(centroid + residual),   stored in  n_bits · H + ceil(log2 C)  bits instead of 16 · H

Each dimension of a residual, divided by the scale of that dimension, falls into one of 2 ** n_bits buckets and comes
back as the bucket's weight times the scale. Scales and buckets are fitted to the residuals of a sample; all dimensions
share the buckets. Where a model spreads its dimensions unevenly the scales save a third of the squared error or more.

Axes, used as suffixes:  T document tokens · C centroids · H embedding · R = H · n_bits / 8, the bytes of a residual
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

N_BITS = (1, 2, 4)
ITERATIONS = 4  # of k-means, as in the released recipe
POINTS_PER_CENTROID = 4  # 8 take twice the time and find the same top 10
BUCKET_ITERATIONS = 50
BUCKET_SAMPLE = 10_000  # vectors whose residuals set the buckets: over a million values
BLOCK = 1 << 20  # codes packed at a time; a multiple of 8, so that every block starts on a whole byte


@dataclass
class Codec:
    """Centroids, scales and buckets: all it takes to encode a vector and to read it back."""

    centroids_CH: np.ndarray  # float32, though only float16 values: what is stored is what encoding saw
    scales_H: np.ndarray  # float32
    cutoffs: np.ndarray  # float32, (2 ** n_bits - 1,), ascending
    weights: np.ndarray  # float32, (2 ** n_bits,), ascending

    @property
    def n_bits(self) -> int:
        return len(self.weights).bit_length() - 1

    @property
    def code_bits(self) -> int:
        """ceil(log2 C)"""
        return (len(self.centroids_CH) - 1).bit_length()

    def encode(self, vectors_TH: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns codes_T, int32, and residuals_TR, uint8."""
        if vectors_TH.shape[1] != self.centroids_CH.shape[1]:
            raise ValueError(
                f"the index holds {self.centroids_CH.shape[1]} dimensions, the vectors {vectors_TH.shape[1]}"
            )
        vectors_TH = vectors_TH.astype(np.float32, copy=False)
        codes_T = nearest(vectors_TH, self.centroids_CH)
        residuals_TH = (vectors_TH - self.centroids_CH[codes_T]) / self.scales_H
        buckets_TH = np.zeros(residuals_TH.shape, dtype=np.uint8)
        for cutoff in self.cutoffs:  # a dozen plain comparisons beat one binary search per value
            buckets_TH += residuals_TH > cutoff
        return codes_T, pack_buckets(buckets_TH, self.n_bits)

    def decode(self, codes_T: np.ndarray, residuals_TR: np.ndarray) -> np.ndarray:
        """Returns unit vectors (T, H), float32."""
        # take is several times faster than indexing, and every byte is looked up once for all the values it holds.
        vectors_TH = self.centroids_CH.take(codes_T, axis=0)
        R = residuals_TR.shape[1]
        vectors_TH += self._values_of_byte.take(residuals_TR + 256 * np.arange(R), axis=0).reshape(vectors_TH.shape)
        vectors_TH /= np.sqrt(np.einsum("th,th->t", vectors_TH, vectors_TH))[:, None]
        return vectors_TH

    @cached_property
    def _values_of_byte(self) -> np.ndarray:
        """(R * 256, 8 / n_bits): the values that each possible byte stands for at each place of a residual."""
        shifts = np.arange(0, 8, self.n_bits)
        weights = self.weights[(np.arange(256)[:, None] >> shifts) & (2**self.n_bits - 1)]
        return (weights * self.scales_H.reshape(-1, 1, len(shifts))).reshape(-1, len(shifts))


def train(vectors_TH: np.ndarray, n_centroids: int, n_bits: int, seed: int = 42) -> Codec:
    """Centroids by k-means on these vectors, scales and buckets from what the centroids leave over."""
    if n_bits not in N_BITS:
        raise ValueError(f"n_bits must be one of {', '.join(map(str, N_BITS))}, not {n_bits}")
    H = vectors_TH.shape[1]
    if H * n_bits % 8:
        raise ValueError(f"{H} dimensions of {n_bits} bits do not fill whole bytes")
    centroids_CH = kmeans(vectors_TH, n_centroids, seed).astype(np.float16).astype(np.float32)
    # A fresh draw: k-means leaves smaller residuals on the vectors it was trained on than on all others.
    draw_TH = _draw(vectors_TH, BUCKET_SAMPLE, seed + 1)
    residuals_TH = draw_TH - centroids_CH[nearest(draw_TH, centroids_CH)]
    scales_H = np.maximum(np.sqrt(np.square(residuals_TH).mean(axis=0)), 1e-6)  # a dimension may leave nothing over
    return Codec(centroids_CH, scales_H, *buckets(residuals_TH / scales_H, n_bits))


def buckets(residuals_TH: np.ndarray, n_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Cutoffs and weights that lose least of these scaled residuals, float32.

    Starts from quantiles, then moves each weight to its bucket's mean and each cutoff half-way between two weights
    (Lloyd's algorithm in one dimension). At 2 bits that leaves a quarter less squared error than quantiles alone.
    """
    values = np.sort(residuals_TH, axis=None)
    sums = np.concatenate([[0], np.cumsum(values, dtype=np.float64)])
    weights = np.quantile(values, np.arange(0.5, 2**n_bits) / 2**n_bits)
    for _ in range(BUCKET_ITERATIONS):
        cutoffs = (weights[1:] + weights[:-1]) / 2
        edges = np.concatenate([[0], np.searchsorted(values, cutoffs, side="right"), [len(values)]])
        counts = np.diff(edges)
        np.divide(np.diff(sums[edges]), counts, out=weights, where=counts > 0)  # an empty bucket keeps its weight
    return cutoffs.astype(np.float32), weights.astype(np.float32)


def kmeans(vectors_TH: np.ndarray, n_centroids: int, seed: int) -> np.ndarray:
    """Unit-length centroids (C, H), float32. The same on every run with the same vectors and seed.

    Spherical: vectors of unit length are nearest where their inner product is largest, and centroids of unit length
    keep it so for the query tokens that probe them, whether a cluster is tight or loose.
    """
    import faiss

    clustering = faiss.Kmeans(
        vectors_TH.shape[1],
        n_centroids,
        niter=ITERATIONS,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,  # fewer than faiss likes are no reason for a warning
        max_points_per_centroid=POINTS_PER_CENTROID,
    )
    clustering.train(_draw(vectors_TH, n_centroids * POINTS_PER_CENTROID, seed))
    return clustering.centroids


def nearest(vectors_TH: np.ndarray, centroids_CH: np.ndarray) -> np.ndarray:
    """The centroid of largest inner product. Returns codes_T, int32."""
    import faiss

    flat = faiss.IndexFlatIP(centroids_CH.shape[1])
    flat.add(np.ascontiguousarray(centroids_CH))
    return flat.search(np.ascontiguousarray(vectors_TH), 1)[1][:, 0].astype(np.int32)


def n_centroids_for(n_tokens: int) -> int:
    """2 ** floor(log2(16 · sqrt(tokens))), as PLAID has it, and never more than there are tokens."""
    return 1 << (int(min(16 * np.sqrt(n_tokens), n_tokens)).bit_length() - 1)


def pack_buckets(buckets_TH: np.ndarray, n_bits: int) -> np.ndarray:
    """Several values to a byte, the first in the lowest bits. Returns (T, H * n_bits / 8), uint8."""
    place = np.uint8(1) << np.arange(0, 8, n_bits, dtype=np.uint8)
    T, H = buckets_TH.shape
    return buckets_TH.reshape(T, H // len(place), len(place)) @ place


def pack_codes(codes_T: np.ndarray, n_bits: int) -> np.ndarray:
    """Codes as one string of bits, n_bits each, lowest first. Returns uint8, (ceil(T * n_bits / 8),)."""
    blocks = [
        np.packbits((codes_T[t : t + BLOCK, None] >> np.arange(n_bits)).astype(np.uint8) & 1, bitorder="little")
        for t in range(0, len(codes_T), BLOCK)
    ]
    return np.concatenate([np.zeros(0, np.uint8), *blocks])


def unpack_codes(packed: np.ndarray, n_bits: int, T: int) -> np.ndarray:
    """The T codes in a string of bits. Returns int32."""
    codes_T = np.zeros(T, dtype=np.int32)
    for t in range(0, T, BLOCK):
        block = codes_T[t : t + BLOCK]
        start = t * n_bits // 8
        bits = np.unpackbits(packed[start : start + BLOCK * n_bits // 8], count=len(block) * n_bits, bitorder="little")
        for place, bit in enumerate(bits.reshape(len(block), n_bits).T):
            block |= bit.astype(np.int32) << place
    return codes_T


def _draw(vectors_TH: np.ndarray, n: int, seed: int) -> np.ndarray:
    """At most n of the vectors, drawn without replacement, in float32."""
    if len(vectors_TH) > n:
        rows = np.random.default_rng(seed).choice(len(vectors_TH), n, replace=False, shuffle=False)
        vectors_TH = vectors_TH[np.sort(rows)]
    return np.ascontiguousarray(vectors_TH, dtype=np.float32)
