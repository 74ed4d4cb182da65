"""Fewer vectors per passage: tokens that are alike share one, their mean (Clavié et al., 2024, arXiv 2409.14683).

Which ones are alike is decided by Ward's criterion, as there: clusters are joined, two at a time, where that adds least
to the squared distances of vectors to the mean of their cluster, until there are few enough.

Axes, used as suffixes:  N tokens of one passage · C clusters of them · H embedding
"""

import numpy as np

from xmlib.index.vectors import TokenVectors


def pooled(vectors: TokenVectors, factor: int) -> TokenVectors:
    """Every passage with one vector of unit length for each `factor` of its tokens, rounded up; 1 changes nothing.

    With fewer where tokens are the same. Their order means nothing.
    """
    if factor < 1 or int(factor) != factor:
        raise ValueError(f"pool must be a whole number of tokens for each vector, 1 or more, not {factor!r}")
    if factor == 1:
        return vectors
    parts = [_means(vectors.slice(b, b + 1).vectors_TH, factor) for b in range(len(vectors))]
    lengths_B = [len(part) for part in parts]
    return TokenVectors.from_lengths(np.concatenate(parts).astype(vectors.vectors_TH.dtype), lengths_B)


def _means(vectors_NH: np.ndarray, factor: int) -> np.ndarray:
    n_clusters = -(-len(vectors_NH) // factor)
    if n_clusters == len(vectors_NH):  # none or one
        return vectors_NH
    from scipy.cluster.hierarchy import fcluster, ward

    vectors_NH = vectors_NH.astype(np.float32)
    cluster_N = fcluster(ward(vectors_NH), n_clusters, "maxclust")
    order_N = np.argsort(cluster_N, kind="stable")
    starts_C = np.flatnonzero(np.diff(cluster_N[order_N], prepend=0))  # clusters count from 1
    sum_CH = np.add.reduceat(vectors_NH[order_N], starts_C)
    return sum_CH / np.maximum(np.linalg.norm(sum_CH, axis=1, keepdims=True), 1e-6)
