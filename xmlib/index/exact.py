"""Exact MaxSim search: every query against every passage, tile by tile. The yardstick for every other index.

Axes, used as suffixes:  A queries · B documents · S query tokens · T document tokens · H embedding · k results
A tile is a run of whole documents. Memory is bounded by tile_tokens x TILE_QUERIES similarities and a block of tiles in
float32, whatever the size of the collection; the vectors may be a memory map, and are read once.
"""

import numpy as np

from xmlib.index import kernels, store
from xmlib.index.vectors import TokenVectors
from xmlib.ragged import offsets_of

KIND = "exact"
TILE_QUERIES = 64  # 64 queries of 32 tokens times 1,024 document tokens are 8 MB of similarities: they stay in cache
BLOCK_TOKENS = 1 << 16  # widened to float32 and merged into the results together


def search(
    vectors: TokenVectors, q_ASH: np.ndarray, q_mask_AS: np.ndarray, k: int, tile_tokens: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The k best documents of each query: scores_Ak (float32) and positions_Ak (int64), best first, ties by position.

    Where fewer than k documents are found the row ends in -inf and -1. A document with no token is never found, nor
    is anything by a query with no token.
    """
    A, _, H = q_ASH.shape
    scores_Ak = np.full((A, k), -np.inf, dtype=np.float32)
    positions_Ak = np.full((A, k), -1)
    for first, last in _tiles(vectors.offsets_B1, BLOCK_TOKENS):
        block = vectors.slice(first, last)
        d_TH = block.vectors_TH.astype(np.float32, copy=False)
        for a in range(0, A, TILE_QUERIES):
            q = slice(a, a + TILE_QUERIES)
            q_offsets_A1 = offsets_of(q_mask_AS[q].sum(axis=1))
            Q = q_offsets_A1[-1]
            q_QH = np.zeros((-(-Q // kernels.LANES) * kernels.LANES, H), np.float32)
            q_QH[:Q] = q_ASH[q][q_mask_AS[q]]
            score_AB = np.empty((len(q_offsets_A1) - 1, len(block)), np.float32)
            for start, stop in _tiles(block.offsets_B1, tile_tokens):
                offsets_N1 = block.offsets_B1[start : stop + 1]
                sim_TQ = d_TH[offsets_N1[0] : offsets_N1[-1]] @ q_QH.T
                kernels.maxsim_tile(sim_TQ, offsets_N1 - offsets_N1[0], q_offsets_A1, score_AB[:, start:stop])
            scores_Ak[q], positions_Ak[q] = merge(scores_Ak[q], positions_Ak[q], score_AB, np.arange(first, last))
    return scores_Ak, positions_Ak


def merge(
    scores_Ak: np.ndarray, positions_Ak: np.ndarray, score_AB: np.ndarray, position_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of what was found so far and of further documents, which must stand at higher positions.

    The sort is stable and earlier documents come first, so ties go to the lower position.
    """
    k = scores_Ak.shape[1]
    scores = np.concatenate([scores_Ak, score_AB], axis=1)
    positions = np.concatenate([positions_Ak, np.broadcast_to(position_B, score_AB.shape)], axis=1)
    order_Ak = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    scores_Ak = np.take_along_axis(scores, order_Ak, axis=1)
    return scores_Ak, np.where(scores_Ak > -np.inf, np.take_along_axis(positions, order_Ak, axis=1), -1)


class ExactIndex:
    """Token vectors in float16 on disk, searched exactly."""

    def __init__(self, stored: store.Stored) -> None:
        self.stored = stored
        self.ids = stored.ids
        arrays = stored.arrays
        self.vectors = TokenVectors(arrays["vectors"], offsets_of(arrays["lengths"]), arrays.get("types"))

    def search(self, q_ASH: np.ndarray, q_mask_AS: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return search(self.vectors, q_ASH, q_mask_AS, k)

    def to(self, device):
        """A copy in the memory of a PyTorch device, to be searched there."""
        from xmlib.index import gpu  # PyTorch takes seconds; only who has a GPU pays

        return gpu.ExactOnDevice(self, device)


def build(folder, chunks, ids: list[str], origin: dict, chunk_passages: int = 1000) -> ExactIndex:
    """Store the vectors of a collection and open it. A build that was cut off goes on where it stopped.

    `chunks(start, stop)` returns the TokenVectors of the passages at these positions.
    """
    parts = store.Parts(folder, ids, kind=KIND, origin=origin, chunk_passages=chunk_passages)
    done = [
        parts.once(f"tokens-{start}", lambda span=(start, stop): arrays_of(store.encode(chunks, *span)))
        for start, stop in store.chunks_of(len(ids), chunk_passages)
    ]
    store.create(folder, KIND, origin, {}, ids, store.join(done))
    return open(folder)


def open(folder) -> ExactIndex:
    return ExactIndex(store.open(folder, KIND))


def arrays_of(vectors: TokenVectors) -> dict[str, np.ndarray]:
    """What is stored of token vectors: float16, and lengths in place of offsets, which count on from chunk to chunk."""
    arrays = {"vectors": vectors.vectors_TH.astype(np.float16), "lengths": vectors.lengths_B.astype(np.int32)}
    return arrays if vectors.types_T is None else arrays | {"types": vectors.types_T.astype(np.int32)}


def _tiles(offsets_B1: np.ndarray, tile_tokens: int):
    """Runs of documents of at most tile_tokens tokens; a longer document is a tile of its own."""
    B = len(offsets_B1) - 1
    start = 0
    while start < B:
        fits = int(np.searchsorted(offsets_B1, offsets_B1[start] + tile_tokens, side="right")) - 1
        stop = max(fits, start + 1)
        yield start, stop
        start = stop
