"""The centroid index of Appendix A: compressed token vectors, found through the centroids they lie at.

A search takes two stages. Both are MaxSim over decoded vectors, of different token sets:

    1. the tokens at the n_probe centroids nearest to each query token. A passage's score over some of its tokens is a
       lower bound on its score over all of them; the n_candidates passages with the highest bounds go on
    2. all tokens of those passages. These scores are final

With n_probe = C the first stage sees every token, and the search is exact over the decoded vectors.

Axes, used as suffixes:  A queries · B documents · N candidates · S query tokens · T document tokens · C centroids
                         H embedding · R bytes of a residual · k results
"""

import math
from functools import cached_property

import numpy as np

from xmlib.index import exact, residual, store
from xmlib.index.vectors import TokenVectors, offsets_of, rows_of
from xmlib.scoring import maxsim_packed

KIND = "plaid"
QUERIES_AT_ONCE = 64  # whose products with the centroids are held together
SMALL = 1 << 18  # tokens


class PlaidIndex:
    """An open index. Residuals are a memory map; codes are unpacked and inverted lists made on opening."""

    def __init__(self, stored: store.Stored) -> None:
        arrays = stored.arrays
        self.stored = stored
        self.ids = stored.ids
        self.codec = _codec(arrays)
        self.offsets_B1 = offsets_of(arrays["lengths"])
        self.residuals_TR = np.asarray(arrays["residuals"])  # still mapped, without the cost of np.memmap per access
        self.codes_T = residual.unpack_codes(arrays["codes"], self.codec.code_bits, len(self.residuals_TR))
        self.document_T = np.repeat(np.arange(len(self.ids)), arrays["lengths"])
        # Inverted lists: the tokens sorted by centroid, and where each centroid's run of them starts.
        self.token_of_list = np.argsort(self.codes_T, kind="stable")
        self.list_offsets_C1 = offsets_of(np.bincount(self.codes_T, minlength=len(self.codec.centroids_CH)))

    def search(
        self,
        q_ASH: np.ndarray,
        q_mask_AS: np.ndarray,
        k: int,
        n_probe: int | None = None,
        n_candidates: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each query: scores_Ak (float32), positions_Ak (int64), best first, ties by position.

        Without `n_probe` an index of up to SMALL tokens is scored whole, which is faster there and loses nothing; a
        larger one probes 8 centroids per query token.

        Without `n_candidates` four times k passages, and at least 256, are scored in full. Where fewer than k are found
        the row ends in -inf and -1.
        """
        if n_probe is None and len(self.codes_T) <= SMALL:
            return exact.search(self.decoded, q_ASH, q_mask_AS, k)
        n_probe = n_probe or 8
        n_candidates = max(k, n_candidates or max(256, 4 * k))
        scores_Ak = np.full((len(q_ASH), k), -np.inf, dtype=np.float32)
        positions_Ak = np.full((len(q_ASH), k), -1)
        for a, (q_SH, cells) in enumerate(self._probe(q_ASH, q_mask_AS, n_probe)):
            if len(q_SH):
                candidates_N = self._candidates(q_SH, cells, n_candidates)
                rows_T, offsets_N1 = rows_of(self.offsets_B1, candidates_N)
                score_N = maxsim_packed(q_SH, self._decode(rows_T), offsets_N1)
                best = np.argsort(-score_N, kind="stable")[:k]
                scores_Ak[a, : len(best)] = score_N[best]
                positions_Ak[a, : len(best)] = candidates_N[best]
        return scores_Ak, positions_Ak

    def _probe(self, q_ASH: np.ndarray, q_mask_AS: np.ndarray, n_probe: int):
        """For each query its real tokens, and the centroids nearest to any of them."""
        C = len(self.codec.centroids_CH)
        n_probe = min(n_probe, C)
        for a in range(0, len(q_ASH), QUERIES_AT_ONCE):
            some = slice(a, a + QUERIES_AT_ONCE)
            sim_ASC = q_ASH[some] @ self.codec.centroids_CH.T
            cells_ASn = np.argpartition(sim_ASC, C - n_probe, axis=-1)[..., C - n_probe :]
            for q_SH, q_mask_S, cells_Sn in zip(q_ASH[some], q_mask_AS[some], cells_ASn, strict=True):
                yield q_SH[q_mask_S], np.unique(cells_Sn[q_mask_S])

    def _candidates(self, q_SH: np.ndarray, cells: np.ndarray, n: int) -> np.ndarray:
        """First stage: the n passages with the highest lower bounds, in order of position."""
        rows, _ = rows_of(self.list_offsets_C1, cells)
        token_T = np.sort(self.token_of_list[rows])  # in order of position, so each passage's tokens lie together
        documents_N, starts_N = np.unique(self.document_T[token_T], return_index=True)
        bound_N = maxsim_packed(q_SH, self._decode(token_T), np.append(starts_N, len(token_T)))
        return np.sort(documents_N[np.argsort(-bound_N, kind="stable")[:n]])

    def _decode(self, rows_T: np.ndarray) -> np.ndarray:
        return self.codec.decode(self.codes_T[rows_T], self.residuals_TR.take(rows_T, axis=0))

    @cached_property
    def decoded(self) -> TokenVectors:
        """Every vector as this index sees it, in memory."""
        return TokenVectors(self.codec.decode(self.codes_T, self.residuals_TR), self.offsets_B1)

    def add(self, ids: list[str], vectors: TokenVectors) -> None:
        """Append passages, encoded with the centroids the index has. On disk when this returns, all or none."""
        known = set(self.ids)
        for pid in ids:
            if pid in known:
                raise ValueError(f"passage id {pid!r} is in the index already")
        if len(ids) != len(vectors):
            raise ValueError(f"{len(ids)} ids for {len(vectors)} passages")
        codes_T, residuals_TR = self.codec.encode(vectors.vectors_TH)
        self._update(
            self.ids + ids,
            np.concatenate([self.codes_T, codes_T]),
            [self.residuals_TR, residuals_TR],
            [self.stored.arrays["lengths"], vectors.lengths_B.astype(np.int32)],
        )

    def remove(self, ids: list[str]) -> None:
        """Take passages out; later ones move up. On disk when this returns, all or none."""
        gone = set(ids)
        unknown = gone - set(self.ids)
        if unknown:
            raise ValueError(f"passage id {min(unknown)!r} is not in the index")
        if len(gone) < len(ids):
            raise ValueError("an id to remove is given twice")
        kept = np.array([position for position, pid in enumerate(self.ids) if pid not in gone], dtype=np.int64)
        rows_T, _ = rows_of(self.offsets_B1, kept)
        self._update(
            [self.ids[position] for position in kept],
            self.codes_T[rows_T],
            self.residuals_TR[rows_T],
            self.stored.arrays["lengths"][kept],
        )

    def _update(self, ids, codes_T, residuals, lengths) -> None:
        packed = residual.pack_codes(codes_T, self.codec.code_bits)
        store.update(self.stored, ids, {"codes": packed, "residuals": residuals, "lengths": lengths})
        stored = store.open(self.stored.path, KIND)
        self.__dict__.clear()  # as if opened just now: what was cached of the old index goes
        self.__init__(stored)

    def size_report(self) -> dict[str, float]:
        """Bytes on disk: of the token vectors, by the paper's formula, and of all the rest."""
        size = self.stored.file_bytes
        T, H = len(self.codes_T), self.codec.centroids_CH.shape[1]
        return {
            "tokens": T,
            "token_bytes": size["codes"] + size["residuals"],
            "formula_bytes": T * (self.codec.n_bits * H + self.codec.code_bits) / 8,
            "codec_bytes": size["centroids"] + size["scales"] + size["cutoffs"] + size["weights"],
            "length_bytes": size["lengths"],
            "id_bytes": size["ids"],
            "meta_bytes": size["meta"],
            "total_bytes": sum(size.values()),
        }


def build(
    folder,
    chunks,
    ids: list[str],
    origin: dict,
    n_bits: int = 2,
    n_centroids: int | None = None,
    seed: int = 42,
    chunk_passages: int = 1000,
) -> PlaidIndex:
    """Index a collection and open it. A build that was cut off goes on where it stopped.

    `chunks(start, stop)` returns the TokenVectors of the passages at these positions and is asked once for each. A
    random set of chunks is the sample: kept uncompressed until the centroids are trained on it. Without `n_centroids`
    their number follows the number of tokens.
    """
    choices = {"n_bits": n_bits, "n_centroids": n_centroids, "seed": seed, "chunk_passages": chunk_passages}
    parts = store.Parts(folder, ids, kind=KIND, origin=origin, **choices)
    spans = store.chunks_of(len(ids), chunk_passages)
    n_sampled = math.ceil(sample_passages(len(ids)) / chunk_passages)
    sampled = np.sort(np.random.default_rng(seed).permutation(len(spans))[:n_sampled])

    def encode(i: int) -> dict:
        return exact.arrays_of(store.encode(chunks, *spans[i]))

    def train(sample: list[dict]) -> dict:
        vectors_TH = np.concatenate([part["vectors"] for part in sample])
        if not len(vectors_TH):
            raise ValueError("no token vectors to train centroids on: every passage of the sample is empty")
        n_passages = sum(len(part["lengths"]) for part in sample)
        n_tokens = len(vectors_TH) * len(ids) // n_passages
        codec = residual.train(vectors_TH, n_centroids or residual.n_centroids_for(n_tokens), n_bits, seed)
        return {
            "centroids": codec.centroids_CH.astype(np.float16),
            "scales": codec.scales_H,
            "cutoffs": codec.cutoffs,
            "weights": codec.weights,
        }

    def compress(part: dict) -> dict:
        codes_T, residuals_TR = codec.encode(part["vectors"])
        return {"codes": codes_T, "residuals": residuals_TR, "lengths": part["lengths"]}

    sample = {i: parts.once(f"tokens-{i}", lambda i=i: encode(i)) for i in sampled}
    trained = parts.once("codec", lambda: train(list(sample.values())))
    codec = _codec(trained)
    done = [parts.once(f"codes-{i}", lambda i=i: compress(sample.get(i) or encode(i))) for i in range(len(spans))]
    arrays = store.join(done)
    arrays["codes"] = residual.pack_codes(np.concatenate(arrays["codes"]), codec.code_bits)
    store.create(folder, KIND, origin, choices, ids, arrays | trained)
    return open(folder)


def open(folder) -> PlaidIndex:
    return PlaidIndex(store.open(folder, KIND))


def sample_passages(n_passages: int) -> int:
    """How many passages the centroids are trained on: 16 · sqrt(120 · passages), as in the released recipe."""
    return min(n_passages, math.ceil(16 * math.sqrt(120 * n_passages)))


def _codec(arrays: dict[str, np.ndarray]) -> residual.Codec:
    return residual.Codec(
        arrays["centroids"].astype(np.float32),
        *(np.array(arrays[name]) for name in ("scales", "cutoffs", "weights")),
    )
