"""Search over pooled vectors (DPR-XM, mE5): one vector per passage, through faiss, in one of three engines.

    flat        every vector is compared: exact, and the yardstick of the others
    ivf-flat    vectors in lists by their nearest centroid; those of the n_probe lists nearest to a query are compared
                (Sivic and Zisserman, 2003)
    hnsw        a graph of near neighbours, walked from far to near with ef candidates in hand
                (Malkov and Yashunin, 2020)

All keep the vectors in float32. Vectors of unit length make the inner product the cosine (Eq. 9).

Axes, used as suffixes:  A queries · B documents · C lists · H embedding · k results
"""

import numpy as np

from xmlib.index import residual, store

KIND = "dense"
ENGINES = ("flat", "ivf-flat", "hnsw")
POINTS_PER_LIST = 40  # that its centroid is trained on
LINKS = 32  # neighbours of a passage in the graph, twice as many on its ground floor
EF_BUILD = 200  # candidates in hand while the graph grows
SEARCHED = {"ivf-flat": "n_probe", "hnsw": "ef"}  # what trades time for recall


class DenseIndex:
    """Pooled vectors on disk, held by a faiss index in memory."""

    def __init__(self, stored: store.Stored) -> None:
        import faiss  # takes a second; only who searches pays

        self.stored = stored
        self.ids = stored.ids
        self.engine = stored.settings.get("engine", "flat")
        if self.engine == "flat":
            vectors_BH = stored.arrays["vectors"]
            self.faiss = faiss.IndexFlatIP(vectors_BH.shape[1])
            self.faiss.add(np.ascontiguousarray(vectors_BH))
        else:
            self.faiss = faiss.deserialize_index(np.array(stored.arrays["faiss"]))
        self.deepest = len(self.ids)  # that faiss is able to look

    def search(
        self, q_AH: np.ndarray, k: int, n_probe: int | None = None, ef: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each query: scores_Ak (float32), positions_Ak (int64), best first, ties by position.

        Where fewer than k are found the row ends in -inf and -1. `n_probe` lists of an ivf-flat index are looked
        through, by default a tenth; an hnsw index keeps `ef` candidates in hand, by default 2 · k.
        """
        for name, value in (("n_probe", n_probe), ("ef", ef)):
            if value is not None and SEARCHED.get(self.engine) != name:
                raise ValueError(f"{name}={value} says nothing to an index of engine {self.engine!r}")
        if self.engine == "ivf-flat":
            self.faiss.nprobe = n_probe or -(-self.faiss.nlist // 10)
        elif self.engine == "hnsw":
            self.faiss.hnsw.efSearch = max(k, ef or 2 * k)
        scores_Ak = np.full((len(q_AH), k), -np.inf, dtype=np.float32)
        positions_Ak = np.full((len(q_AH), k), -1)
        kept = min(k, self.deepest)
        n = kept
        while True:  # faiss cuts a tie at the last place arbitrarily: look further until the tie ends
            n = min(2 * n, self.deepest) if self.engine == "flat" else kept
            scores, positions = self.faiss.search(np.ascontiguousarray(q_AH, dtype=np.float32), n)
            if n == self.deepest or self.engine != "flat" or (scores[:, -1] < scores[:, kept - 1]).all():
                break
        scores[positions < 0] = -np.inf
        order = np.lexsort((positions, -scores), axis=1)[:, :kept]
        scores_Ak[:, :kept] = np.take_along_axis(scores, order, axis=1)
        positions_Ak[:, :kept] = np.take_along_axis(positions, order, axis=1)
        return scores_Ak, positions_Ak

    def to_gpu(self) -> "DenseIndex":
        """Move the faiss index to the first GPU, where faiss was built for one. A graph has to stay where it is."""
        import faiss

        if self.engine == "hnsw":
            raise ValueError("faiss searches an hnsw graph on the CPU only")
        self._resources = faiss.StandardGpuResources()  # must outlive the index
        self.faiss = faiss.index_cpu_to_gpu(self._resources, 0, self.faiss)
        self.deepest = min(self.deepest, 2048)  # all that faiss selects there
        return self

    def size_report(self) -> dict[str, int]:
        size = self.stored.file_bytes
        vector_bytes = size["vectors"] if self.engine == "flat" else size["faiss"]
        return {
            "vector_bytes": vector_bytes,  # with lists or graph
            "id_bytes": size["ids"],
            "meta_bytes": size["meta"],
            "total_bytes": sum(size.values()),
        }


def build(
    folder, chunks, ids: list[str], origin: dict, chunk_passages: int = 1000, engine: str = "flat", seed: int = 42
) -> DenseIndex:
    """Index the vectors of a collection and open it. A build that was cut off goes on where it stopped.

    `chunks(start, stop)` returns the vectors (B, H) of the passages at these positions.
    """
    if engine not in ENGINES:
        raise ValueError(f"no dense engine {engine!r}; have: {', '.join(ENGINES)}")
    parts = store.Parts(folder, ids, kind=KIND, origin=origin, chunk_passages=chunk_passages)
    done = [
        parts.once(f"vectors-{start}", lambda span=(start, stop): arrays_of(store.encode(chunks, *span)))
        for start, stop in store.chunks_of(len(ids), chunk_passages)
    ]
    if engine == "flat":
        store.create(folder, KIND, origin, {}, ids, store.join(done))
    else:
        import faiss

        index = _ivf_flat(done, len(ids), seed) if engine == "ivf-flat" else _hnsw(done)
        store.create(
            folder, KIND, origin, {"engine": engine, "seed": seed}, ids, {"faiss": faiss.serialize_index(index)}
        )
    return open(folder)


def open(folder) -> DenseIndex:
    return DenseIndex(store.open(folder, KIND))


def arrays_of(vectors_BH: np.ndarray) -> dict[str, np.ndarray]:
    return {"vectors": vectors_BH.astype(np.float32)}


def _ivf_flat(parts: list[dict[str, np.ndarray]], B: int, seed: int):
    """Lists around about 4 · sqrt(B) centroids, trained on as many vectors as k-means needs."""
    import faiss

    C = min(4 * int(np.sqrt(B)), B)
    share = min(1, POINTS_PER_LIST * C / B)
    sample_TH = np.concatenate(
        [residual.draw(part["vectors"], int(np.ceil(share * len(part["vectors"]))), seed) for part in parts]
    )
    centroids_CH = residual.kmeans(sample_TH, min(C, len(sample_TH)), seed)
    quantizer = faiss.IndexFlatIP(centroids_CH.shape[1])
    quantizer.add(centroids_CH)
    index = faiss.IndexIVFFlat(quantizer, centroids_CH.shape[1], len(centroids_CH), faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True
    for part in parts:
        index.add(np.ascontiguousarray(part["vectors"]))
    return faiss.deserialize_index(faiss.serialize_index(index))  # which owns its quantizer, as this one does not


def _hnsw(parts: list[dict[str, np.ndarray]]):
    """With one thread, the same graph every time."""
    import faiss

    index = faiss.IndexHNSWFlat(parts[0]["vectors"].shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_BUILD
    for part in parts:
        index.add(np.ascontiguousarray(part["vectors"]))
    return index
