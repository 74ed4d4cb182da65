"""Flat search over pooled vectors (DPR-XM): one vector per passage, every one compared, through faiss.

Axes, used as suffixes:  A queries · B documents · H embedding · k results
Vectors of unit length make the inner product the cosine (Eq. 9).
"""

import numpy as np

from xmlib.index import store

KIND = "dense"


class DenseIndex:
    """Pooled vectors in float32 on disk, held by a faiss flat index in memory."""

    def __init__(self, stored: store.Stored) -> None:
        import faiss  # takes a second; only who searches pays

        self.stored = stored
        self.ids = stored.ids
        vectors_BH = stored.arrays["vectors"]
        self.flat = faiss.IndexFlatIP(vectors_BH.shape[1])
        self.flat.add(np.ascontiguousarray(vectors_BH))

    def search(self, q_AH: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each query: scores_Ak (float32), positions_Ak (int64), best first, ties by position.

        Where there are fewer than k passages the row ends in -inf and -1.
        """
        A, B = len(q_AH), self.flat.ntotal
        scores_Ak = np.full((A, k), -np.inf, dtype=np.float32)
        positions_Ak = np.full((A, k), -1)
        kept = min(k, B)
        n = kept
        while True:  # faiss cuts a tie at the last place arbitrarily: look further until the tie ends
            n = min(2 * n, B)
            scores, positions = self.flat.search(np.ascontiguousarray(q_AH, dtype=np.float32), n)
            if n == B or (scores[:, -1] < scores[:, kept - 1]).all():
                break
        order = np.lexsort((positions, -scores), axis=1)[:, :kept]
        scores_Ak[:, :kept] = np.take_along_axis(scores, order, axis=1)
        positions_Ak[:, :kept] = np.take_along_axis(positions, order, axis=1)
        return scores_Ak, positions_Ak


def build(folder, chunks, ids: list[str], origin: dict, chunk_passages: int = 1000) -> DenseIndex:
    """Store the vectors of a collection and open it. A build that was cut off goes on where it stopped.

    `chunks(start, stop)` returns the vectors (B, H) of the passages at these positions.
    """
    parts = store.Parts(folder, ids, kind=KIND, origin=origin, chunk_passages=chunk_passages)
    done = [
        parts.once(f"vectors-{start}", lambda span=(start, stop): arrays_of(store.encode(chunks, *span)))
        for start, stop in store.chunks_of(len(ids), chunk_passages)
    ]
    store.create(folder, KIND, origin, {}, ids, store.join(done))
    return open(folder)


def open(folder) -> DenseIndex:
    return DenseIndex(store.open(folder, KIND))


def arrays_of(vectors_BH: np.ndarray) -> dict[str, np.ndarray]:
    return {"vectors": vectors_BH.astype(np.float32)}
