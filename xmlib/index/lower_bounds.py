"""ColBERT's second generation as Appendix A tells it: inverted lists, lower bounds, then all tokens. Plain NumPy.

The files are those of `plaid`, and so are the vectors; only the search differs, and shows what the fast one saves:

    1. the tokens at the n_probe centroids nearest to each query token, decompressed. A passage's score over some of its
       tokens is a lower bound on its score over all of them; the n_candidates passages with the highest bounds go on
    2. all tokens of those passages, decompressed. These scores are final

With n_probe = C the first stage sees every token, and the search is exact over the decoded vectors.

Axes, used as suffixes:  A queries · N candidates · S query tokens · T document tokens · H embedding · k results
"""

from functools import cached_property

import numpy as np

from xmlib.index import plaid, store
from xmlib.ragged import offsets_of, rows_of
from xmlib.scoring import maxsim_packed


class LowerBoundIndex(plaid.PlaidIndex):
    def search(
        self, q_ASH: np.ndarray, q_mask_AS: np.ndarray, k: int, n_probe: int = 8, n_candidates: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each query: scores_Ak (float32), positions_Ak (int64), best first, ties by position.

        Without `n_candidates` four times k passages, and at least 256, are scored in full. Where fewer than k are found
        the row ends in -inf and -1.
        """
        n_candidates = max(k, n_candidates or max(256, 4 * k))
        scores_Ak = np.full((len(q_ASH), k), -np.inf, dtype=np.float32)
        positions_Ak = np.full((len(q_ASH), k), -1)
        for a, (q_SH, q_mask_S) in enumerate(zip(q_ASH, q_mask_AS, strict=True)):
            if not q_mask_S.any():
                continue
            found_N = self._bounded(q_SH[q_mask_S], n_probe)
            positions_N = np.sort(found_N[0][np.argsort(-found_N[1], kind="stable")[:n_candidates]])
            rows_T, offsets_N1 = rows_of(self._offsets_B1, positions_N)
            score_N = maxsim_packed(q_SH[q_mask_S], self._decode(rows_T), offsets_N1)
            best = np.argsort(-score_N, kind="stable")[:k]
            scores_Ak[a, : len(best)], positions_Ak[a, : len(best)] = score_N[best], positions_N[best]
        return scores_Ak, positions_Ak

    def _bounded(self, q_SH: np.ndarray, n_probe: int) -> tuple[np.ndarray, np.ndarray]:
        """The passages with a token at a probed centroid, in order of position, and their lower bounds."""
        C = len(self.codec.centroids_CH)
        n_probe = min(n_probe, C)
        sim_SC = self.codec.rotate(q_SH) @ self.codec.centroids_CH.T
        cells = np.unique(np.argpartition(sim_SC, C - n_probe, axis=1)[:, C - n_probe :])
        token_of_list, offsets_C1 = self._token_lists
        rows, _ = rows_of(offsets_C1, cells)
        token_T = np.sort(token_of_list[rows])  # in order of position, so each passage's tokens lie together
        documents_N, starts_N = np.unique(self._document_T[token_T], return_index=True)
        return documents_N, maxsim_packed(q_SH, self._decode(token_T), np.append(starts_N, len(token_T)))

    def _decode(self, rows_T: np.ndarray) -> np.ndarray:
        return self.codec.decode(*(self._whole[name].take(rows_T, axis=0) for name in ("codes", "gains", "residuals")))

    @cached_property
    def _whole(self) -> dict[str, np.ndarray]:
        """The arrays of all passages in memory, each in one piece."""
        return {name: np.concatenate(list(parts)) for name, parts in self.arrays().items()}

    @cached_property
    def _offsets_B1(self) -> np.ndarray:
        return offsets_of(self._whole["lengths"])

    @cached_property
    def _token_lists(self) -> tuple[np.ndarray, np.ndarray]:
        codes_T = self._whole["codes"]
        counts_C = np.bincount(codes_T, minlength=len(self.codec.centroids_CH))
        return np.argsort(codes_T, kind="stable"), offsets_of(counts_C)

    @cached_property
    def _document_T(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.ids)), np.diff(self._offsets_B1))


def build(folder, chunks, ids: list[str], origin: dict, **choices) -> LowerBoundIndex:
    plaid.build(folder, chunks, ids, origin, **({"rescore": False} | choices))
    return open(folder)


def open(folder) -> LowerBoundIndex:
    return LowerBoundIndex(store.open(folder, plaid.KIND))
