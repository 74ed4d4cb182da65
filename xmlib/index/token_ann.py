"""ColBERT's first generation: faiss finds tokens, the passages they are from are scored exactly (arXiv 2004.12832).

    1. for each query token the n_tokens nearest document tokens, in an IVFPQ index of all token vectors
    2. the passages that any of them is from, by MaxSim over their vectors in half precision

Everything is kept twice, as compressed codes to find and as vectors to score: the size that residual compression
(second generation) does away with.

Axes, used as suffixes:  A queries · B documents · N candidates · S query tokens · T document tokens · H embedding
                         k results
"""

import numpy as np

from xmlib.index import exact, residual, store
from xmlib.index.vectors import TokenVectors
from xmlib.ragged import offsets_of, rows_of
from xmlib.scoring import maxsim_packed

KIND = "token-ann"
BYTES = 16  # of a product-quantised token, as in the paper's recipe
POINTS_PER_LIST = 40  # to train on


class TokenIndex:
    """An open index: the IVFPQ part in memory, the vectors as a memory map."""

    def __init__(self, stored: store.Stored) -> None:
        import faiss

        self.stored = stored
        self.ids = stored.ids
        self.vectors = TokenVectors(stored.arrays["vectors"], offsets_of(stored.arrays["lengths"]))
        self.faiss = faiss.deserialize_index(np.array(stored.arrays["faiss"]))
        self._document_T = np.repeat(np.arange(len(self.ids)), stored.arrays["lengths"])

    def search(
        self, q_ASH: np.ndarray, q_mask_AS: np.ndarray, k: int, n_probe: int = 32, n_tokens: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each query: scores_Ak (float32), positions_Ak (int64), best first, ties by position.

        Without `n_tokens` each query token brings k / 2 document tokens, and at least 128.
        """
        self.faiss.nprobe = n_probe
        scores_Ak = np.full((len(q_ASH), k), -np.inf, dtype=np.float32)
        positions_Ak = np.full((len(q_ASH), k), -1)
        for a, (q_SH, q_mask_S) in enumerate(zip(q_ASH, q_mask_AS, strict=True)):
            if not q_mask_S.any():
                continue
            q_SH = np.ascontiguousarray(q_SH[q_mask_S], dtype=np.float32)
            _, tokens = self.faiss.search(q_SH, n_tokens or max(k // 2, 128))
            found_N = np.unique(self._document_T[tokens[tokens >= 0]])
            rows_T, offsets_N1 = rows_of(self.vectors.offsets_B1, found_N)
            score_N = maxsim_packed(q_SH, self.vectors.vectors_TH[rows_T], offsets_N1)
            best = np.argsort(-score_N, kind="stable")[:k]
            scores_Ak[a, : len(best)], positions_Ak[a, : len(best)] = score_N[best], found_N[best]
        return scores_Ak, positions_Ak

    def add(self, ids: list[str], vectors: TokenVectors) -> None:
        """Append passages. On disk when this returns, all or none."""
        store.check_new(self.ids, ids, len(vectors))
        new = exact.arrays_of(vectors)
        self.faiss.add(new["vectors"].astype(np.float32))
        arrays = self.stored.arrays
        self._update(self.ids + ids, [arrays["vectors"], new["vectors"]], np.append(arrays["lengths"], new["lengths"]))

    def remove(self, ids: list[str]) -> None:
        """Take passages out; later ones move up. On disk when this returns, all or none."""
        kept = store.kept_without(self.ids, ids)
        rows_T, _ = rows_of(self.vectors.offsets_B1, kept)
        vectors_TH = self.vectors.vectors_TH[rows_T]
        self.faiss.reset()  # positions move up: the trained lists stay, what is in them is added again
        self.faiss.add(vectors_TH.astype(np.float32))
        self._update([self.ids[position] for position in kept], vectors_TH, self.stored.arrays["lengths"][kept])

    def _update(self, ids, vectors, lengths) -> None:
        arrays = {"vectors": vectors, "lengths": lengths, "faiss": _bytes(self.faiss)}
        store.update(self.stored, ids, arrays)
        self.__init__(store.open(self.stored.path, KIND))

    def size_report(self) -> dict[str, float]:
        size = self.stored.file_bytes
        return {
            "tokens": len(self.vectors.vectors_TH),
            "token_bytes": size["vectors"] + size["faiss"],
            "length_bytes": size["lengths"],
            "id_bytes": size["ids"],
            "meta_bytes": size["meta"],
            "total_bytes": sum(size.values()),
        }


def build(
    folder, chunks, ids: list[str], origin: dict, n_lists: int | None = None, seed: int = 42, chunk_passages: int = 1000
) -> TokenIndex:
    """Index a collection and open it. A build that was cut off goes on where it stopped.

    `chunks(start, stop)` returns the TokenVectors of the passages at these positions. Without `n_lists` there are
    4 · sqrt(tokens).
    """
    choices = {"n_lists": n_lists, "seed": seed, "chunk_passages": chunk_passages}
    parts = store.Parts(folder, ids, kind=KIND, origin=origin, **choices)
    done = [
        parts.once(f"tokens-{start}", lambda span=(start, stop): exact.arrays_of(store.encode(chunks, *span)))
        for start, stop in store.chunks_of(len(ids), chunk_passages)
    ]
    T = sum(len(part["vectors"]) for part in done)
    if not T:
        raise ValueError("no token vectors to train on: every passage is empty")
    lists = min(n_lists or 4 * int(np.sqrt(T)), T)
    share = min(1, max(lists * POINTS_PER_LIST, 1 << 14) / T)
    sample_TH = np.concatenate(
        [residual.draw(part["vectors"], int(np.ceil(share * len(part["vectors"]))), seed) for part in done]
    )
    index = _trained(sample_TH, lists, seed)
    for part in done:
        index.add(part["vectors"].astype(np.float32))
    arrays = {name: store.Column(done, name) for name in ("vectors", "lengths")}
    store.create(folder, KIND, origin, choices, ids, arrays | {"faiss": _bytes(index)})
    return open(folder)


def open(folder) -> TokenIndex:
    return TokenIndex(store.open(folder, KIND))


def _trained(sample_TH: np.ndarray, lists: int, seed: int):
    """An empty IVFPQ index. Its parts are trained here: faiss takes far longer for codewords of few dimensions."""
    import faiss

    H = sample_TH.shape[1]
    m = next(m for m in range(min(BYTES, H), 0, -1) if H % m == 0)
    centroids_CH = residual.kmeans(sample_TH, lists, seed)
    residuals_TH = sample_TH - centroids_CH[residual.nearest(sample_TH, centroids_CH)]
    quantizer = faiss.IndexFlatIP(H)
    quantizer.add(centroids_CH)
    index = faiss.IndexIVFPQ(quantizer, H, lists, m, 8, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(residual.codewords(residuals_TH, m, seed).ravel(), index.pq.centroids)
    index.is_trained = True
    return faiss.deserialize_index(_bytes(index))  # which owns its quantizer, as this one does not


def _bytes(index) -> np.ndarray:
    import faiss

    return faiss.serialize_index(index)
