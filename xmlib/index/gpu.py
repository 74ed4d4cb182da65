"""Token vectors coded and searched on a GPU: the files of `plaid` and `exact`, their stages as PyTorch operations.

    plaid.build(folder, chunks, ids, origin, device="cuda")
    index = plaid.open(folder).to("cuda")
    scores_Ak, positions_Ak = index.search(q_ASH, q_mask_AS, k=10)

The codec and the number of candidates are those of the CPU, so that both find the same but for rounding. Three things
differ: products are floating-point numbers in place of bytes and 16-bit integers; the first stage looks at every
passage however many there are, because a GPU reads codes faster than it follows lists; and the second reads every token
of a candidate, as the CPU does at the highest effort.

Looking up the products of a passage's centroids and keeping the highest is what PyTorch calls a bag of embeddings: one
operation, which never holds the products of all tokens. Nothing here asks for a GPU, and the tests run on the CPU.

In a build every vector is compared with every centroid: the CPU saves most of these products by types of tokens or by
groups of centroids, and does not always find the nearest one.

Axes, used as suffixes:  A queries · B passages · N some of them · S query tokens · T document tokens · Q = A x S
                         C centroids · H embedding · R bytes of a residual · W codewords · d = H / R · k results
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch.nn import functional as F

from xmlib.index import plaid, residual
from xmlib.ragged import offsets_of

TABLE = 1 << 24  # products of centroids and query tokens at a time: in float16 about what a GPU's cache holds
HIGHEST = 1 << 26  # passages times query tokens at a time
DECODED = 1 << 20  # token vectors in float32 at a time
PRODUCTS = 1 << 26  # of token vectors and centroids at a time
CODED = 1 << 12  # token vectors that meet all codewords at a time


def nearest(vectors_TH: np.ndarray, centroids_CH: np.ndarray, device: torch.device | str) -> np.ndarray:
    """As `residual.nearest`, found on a device."""
    centroids_CH = torch.tensor(centroids_CH, device=device)
    codes_T = np.empty(len(vectors_TH), np.int32)
    for t in range(0, len(vectors_TH), DECODED):
        part_TH = torch.tensor(vectors_TH[t : t + DECODED], device=device)
        codes_T[t : t + DECODED] = _nearest(part_TH, centroids_CH).cpu()
    return codes_T


def _nearest(vectors_TH: torch.Tensor, centroids_CH: torch.Tensor) -> torch.Tensor:
    """The centroid of largest inner product for each vector: (T,), int64."""
    at_once = max(1, PRODUCTS // len(centroids_CH))
    return torch.cat([(part_TH @ centroids_CH.T).argmax(dim=1) for part_TH in vectors_TH.split(at_once)])


class CodecOnDevice:
    """`residual.Codec` for encoding, on a device: arrays go there and come back."""

    def __init__(self, codec: residual.Codec, device: torch.device | str) -> None:
        self.codec, self.device = codec, torch.device(device)
        arrays = (codec.rotation_HH, codec.centroids_CH, codec.codebook_RWd, codec.gain_levels)
        self.rotation_HH, self.centroids_CH, self.codebook_RWd, self.gain_levels = map(self._on, arrays)
        R, W, _ = codec.codebook_RWd.shape
        self.first_R = torch.arange(0, R * W, W, device=self.device)  # of its codewords among those of all bytes
        self.square_RW = self.codebook_RWd.square().sum(dim=2)

    def rotate(self, vectors_TH: np.ndarray) -> np.ndarray:
        return self.codec.rotate(vectors_TH)

    @torch.inference_mode()
    def encode(
        self, vectors_TH: np.ndarray, types_T: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `residual.Codec.encode`, but that every centroid is looked at, whatever the type of a token."""
        rotated_TH = self._on(self.codec.checked(vectors_TH)) @ self.rotation_HH
        codes_T = _nearest(rotated_TH, self.centroids_CH)
        coded = [self._residuals(*part) for part in zip(rotated_TH.split(CODED), codes_T.split(CODED), strict=True)]
        gains_T, residuals_TR = (torch.cat(of).cpu().numpy() for of in zip(*coded, strict=True))
        return codes_T.int().cpu().numpy(), gains_T, residuals_TR

    def _residuals(self, rotated_TH: torch.Tensor, codes_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """gains_T and residuals_TR, both uint8: the level nearest to unit length, and the nearest codewords."""
        R, _, d = self.codebook_RWd.shape
        sum_TH = self.centroids_CH[codes_T]
        rest_RTd = (rotated_TH - sum_TH).view(-1, R, d).transpose(0, 1)
        # Squares of distances, less the square of the residual, which is the same for all codewords.
        distance_RTW = self.square_RW[:, None] - 2 * rest_RTd @ self.codebook_RWd.transpose(1, 2)
        residuals_TR = distance_RTW.argmin(dim=2).T
        sum_TH += self._values(residuals_TR)
        step = self.gain_levels[1] - self.gain_levels[0]
        level_T = (1 / sum_TH.norm(dim=1) - self.gain_levels[0]) / step
        return level_T.round().clamp(0, len(self.gain_levels) - 1).byte(), residuals_TR.byte()

    def decode(self, codes_T: torch.Tensor, gains_T: torch.Tensor, residuals_TR: torch.Tensor) -> torch.Tensor:
        """Rotated vectors, float32."""
        sum_TH = self._values(residuals_TR).add_(self.centroids_CH[codes_T])
        return sum_TH.mul_(self.gain_levels[gains_T.long()][:, None])

    def _values(self, residuals_TR: torch.Tensor) -> torch.Tensor:
        return F.embedding(residuals_TR + self.first_R, self.codebook_RWd.flatten(0, 1)).flatten(1)

    def _on(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array, device=self.device)


class _OnDevice:
    """Passages whose tokens lie behind one another in a device's memory."""

    def __init__(self, stored, ids: list[str], lengths_B: np.ndarray, device: torch.device | str) -> None:
        self.stored, self.ids, self.device = stored, ids, torch.device(device)
        self.starts_B1 = offsets_of(lengths_B)
        self.offsets_B1, self.lengths_B = self.on(self.starts_B1), self.on(lengths_B.astype(np.int64))
        self.at_once = max(1, DECODED // max(1, int(lengths_B.max(initial=1))))  # passages

    def on(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array, device=self.device)

    def joined(self, parts: Iterable[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
        """A row for every token. Part after part goes to the device, so that no second copy lies there."""
        rows, at = None, 0
        for part in parts:
            if rows is None:
                rows = torch.empty((self.starts_B1[-1], *part.shape[1:]), dtype=dtype, device=self.device)
            rows[at : at + len(part)] = torch.tensor(part)
            at += len(part)
        return rows

    def maxsim(self, q_SH: torch.Tensor, position_N: torch.Tensor, vectors_of: Callable) -> torch.Tensor:
        """Scores of passages with at least one token each; vectors_of(rows_T) are their vectors, (T, H)."""
        scores = []
        for part_N in position_N.split(self.at_once):
            lengths_N = self.lengths_B[part_N]
            shift_N = self.offsets_B1[part_N] - (lengths_N.cumsum(0) - lengths_N)
            rows_T = torch.repeat_interleave(shift_N, lengths_N)
            rows_T += torch.arange(len(rows_T), device=self.device)
            product_TS = vectors_of(rows_T) @ q_SH.T
            scores.append(torch.segment_reduce(product_TS, "max", lengths=lengths_N, axis=0).sum(dim=1))
        return torch.cat(scores)


class ExactOnDevice(_OnDevice):
    """`exact.ExactIndex` in a device's memory: 2 bytes for every number."""

    def __init__(self, index, device: torch.device | str) -> None:
        super().__init__(index.stored, index.ids, index.vectors.lengths_B, device)
        chunks = range(0, len(index.ids), 10_000)
        parts = (index.vectors.slice(start, start + 10_000).vectors_TH for start in chunks)
        self.vectors_TH = self.joined(parts, torch.float16)
        self.position_B = torch.arange(len(self.ids), device=self.device)[self.lengths_B > 0]

    @torch.inference_mode()
    def search(self, q_ASH: np.ndarray, q_mask_AS: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `exact.ExactIndex.search`."""
        found = _Found(len(q_ASH), k)
        for a in np.flatnonzero(q_mask_AS.any(axis=1)):
            q_SH = self.on(q_ASH[a][q_mask_AS[a]].astype(np.float32))
            found.keep(a, self.maxsim(q_SH, self.position_B, self._vectors), self.position_B)
        return found.scores_Ak, found.positions_Ak

    def _vectors(self, rows_T: torch.Tensor) -> torch.Tensor:
        return self.vectors_TH[rows_T].float()


class PlaidOnDevice(_OnDevice):
    """`plaid.PlaidIndex` in a device's memory, without the passages taken out: two or three bytes a token more.

    It stays as it is when passages are added to the index or removed from it.
    """

    def __init__(self, index, device: torch.device | str) -> None:
        arrays, self.codec = index.arrays(), CodecOnDevice(index.codec, device)
        super().__init__(index.stored, index.ids, np.concatenate([*map(np.asarray, arrays["lengths"])]), device)
        self.codes_T = self.joined(arrays["codes"], torch.int32)
        self.gains_T = self.joined(arrays["gains"], torch.uint8)
        self.residuals_TR = self.joined(arrays["residuals"], torch.uint8)
        self.fine_TH = None
        if index.rescores:
            self.fine_TH = self.joined(arrays["fine"], torch.int8)
            self.fine_scales_H = self.on(np.asarray(index.stored.arrays["fine_scales"]))

    @torch.inference_mode()
    def search(self, q_ASH: np.ndarray, q_mask_AS: np.ndarray, k: int, **choices) -> tuple[np.ndarray, np.ndarray]:
        """As `plaid.PlaidIndex.search`; the choices are those of `plaid.limits`."""
        n_candidates, n_rescored, _ = plaid.limits(k, **choices)
        found = _Found(len(q_ASH), k)
        q_ASH = self.on((q_ASH * q_mask_AS[..., None]).astype(np.float32))  # zeros where no token is, which add 0
        q_ASH = q_ASH @ self.codec.rotation_HH
        at_once = max(1, TABLE // (q_ASH.shape[1] * len(self.codec.centroids_CH)))
        for some_A in torch.arange(len(q_ASH)).split(at_once):
            best_AN = self._approximate(q_ASH[some_A]).topk(min(n_candidates, len(self.ids))).indices.sort().values
            for a, best_N in zip(some_A.tolist(), best_AN, strict=True):
                if q_mask_AS[a].any():
                    found.keep(a, *self._final(q_ASH[a], best_N[self.lengths_B[best_N] > 0], n_rescored))
        return found.scores_Ak, found.positions_Ak

    def _approximate(self, q_ASH: torch.Tensor) -> torch.Tensor:
        """The first stage: (A, B), -inf for a passage with no token."""
        A, S, _ = q_ASH.shape
        table_CQ = self.codec.centroids_CH @ q_ASH.flatten(0, 1).T
        table_CQ = table_CQ.half() if table_CQ.is_cuda else table_CQ
        score_AB = torch.empty(A, len(self.ids), device=self.device)
        step = max(1, HIGHEST // max(1, A * S))
        for b in range(0, len(self.ids), step):
            last = min(b + step, len(self.ids))
            codes_T = self.codes_T[self.starts_B1[b] : self.starts_B1[last]]
            starts_N = (self.offsets_B1[b:last] - self.starts_B1[b]).int()
            highest_NQ = F.embedding_bag(codes_T, table_CQ, starts_N, mode="max")
            score_AB[:, b:last] = highest_NQ.float().view(-1, A, S).sum(dim=2).T
        return score_AB.masked_fill_(self.lengths_B == 0, -torch.inf)

    def _final(
        self, q_SH: torch.Tensor, position_N: torch.Tensor, n_rescored: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The second stage, and the third where there is a side file: scores and ascending positions."""
        score_N = self.maxsim(q_SH, position_N, self._decode)
        if self.fine_TH is not None:
            position_N = position_N[_descending(score_N)[:n_rescored]].sort().values
            score_N = self.maxsim(q_SH * self.fine_scales_H, position_N, self._fine)
        return score_N, position_N

    def _decode(self, rows_T: torch.Tensor) -> torch.Tensor:
        return self.codec.decode(self.codes_T[rows_T], self.gains_T[rows_T], self.residuals_TR[rows_T])

    def _fine(self, rows_T: torch.Tensor) -> torch.Tensor:
        """Rotated vectors in units of their scales, float32."""
        return self.fine_TH[rows_T].float()


class _Found:
    """The k best of every query; a row ends in -inf and -1 where fewer were found."""

    def __init__(self, A: int, k: int) -> None:
        self.scores_Ak = np.full((A, k), -np.inf, dtype=np.float32)
        self.positions_Ak = np.full((A, k), -1)

    def keep(self, a: int, score_N: torch.Tensor, position_N: torch.Tensor) -> None:
        """Those of query `a`; ties go to what comes first."""
        best = _descending(score_N)[: self.scores_Ak.shape[1]]
        self.scores_Ak[a, : len(best)] = score_N[best].cpu().numpy()
        self.positions_Ak[a, : len(best)] = position_N[best].cpu().numpy()


def _descending(score_N: torch.Tensor) -> torch.Tensor:
    return torch.sort(score_N, descending=True, stable=True).indices
