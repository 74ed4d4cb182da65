"""MaxSim, the late-interaction score (paper, Eq. 4), and the cosine of pooled vectors (Eq. 9).

    score(q, d) = sum over query tokens s of  max over document tokens t of  <q_s, d_t>

Axes, used as suffixes:  A queries · B documents · S query tokens · T document tokens · H embedding · Q = A x S
A packed collection has one axis T for the tokens of all its documents, and offsets_B1: the tokens of document b are
rows offsets_B1[b] : offsets_B1[b + 1].

Everything that scores (losses, index, evaluation) calls this module; nothing else re-implements it. Vectors are
expected to be of unit length, as the models return them, so that the inner product is the cosine.
"""

import numpy as np
import torch


def maxsim(q_ASH: torch.Tensor, d_BTH: torch.Tensor, q_mask_AS: torch.Tensor, d_mask_BT: torch.Tensor) -> torch.Tensor:
    """Score every query against every document. Returns (A, B), float32.

    Masked document tokens are removed from the max, not zeroed: a zero would beat a genuinely negative similarity.
    Masked query tokens are filled after the max, because 0 times -inf is NaN. The sum over S runs in float32: at
    scores of 16-32 a bfloat16 step is 0.125. A document with no real token scores -inf.
    """
    A, S, H = q_ASH.shape
    B, T, _ = d_BTH.shape
    # One plain matrix product: the einsum over four axes takes a slower, batched path on the CPU.
    sim_ASBT = (q_ASH.reshape(A * S, H) @ d_BTH.reshape(B * T, H).T).view(A, S, B, T)
    sim_ASBT = sim_ASBT.masked_fill(~d_mask_BT[None, None], -torch.inf)
    best_ASB = sim_ASBT.amax(dim=-1).float()
    score_AB = best_ASB.masked_fill(~q_mask_AS[:, :, None], 0.0).sum(dim=1)
    return score_AB.masked_fill(~d_mask_BT.any(dim=-1), -torch.inf)  # even for a query with no real token


def maxsim_packed(
    q_ASH: np.ndarray, d_TH: np.ndarray, offsets_B1: np.ndarray, q_mask_AS: np.ndarray | None = None
) -> np.ndarray:
    """Score queries against every packed document. Returns (A, B), float32; for one query (S, H) in, (B,) out.

    float32 or float16 in; float16 is widened, because NumPy has no fast half-precision product. Without a mask every
    query token is real. A document with no token scores -inf.
    """
    *A, S, H = q_ASH.shape
    lengths_B = np.diff(offsets_B1)
    real_B = lengths_B > 0  # reduceat gives an empty segment its right-hand neighbour's row
    score_AB = np.full((*A, len(lengths_B)), -np.inf, dtype=np.float32)
    if real_B.any() and q_ASH.size:
        # Query-major, so that the max runs along contiguous memory: 5-8x the speed of document-major in NumPy.
        sim_QT = q_ASH.reshape(-1, H).astype(np.float32, copy=False) @ d_TH.astype(np.float32, copy=False).T
        best_QB = np.maximum.reduceat(sim_QT, offsets_B1[:-1][real_B], axis=1)
        best_ASB = best_QB.reshape(*A, S, -1)
        if q_mask_AS is not None:
            best_ASB = np.where(q_mask_AS[..., None], best_ASB, np.float32(0))
        score_AB[..., real_B] = best_ASB.sum(axis=-2, dtype=np.float32)
    return score_AB


def cosine(q_AH: torch.Tensor, d_BH: torch.Tensor) -> torch.Tensor:
    """Cosine of every pooled query with every pooled document. Returns (A, B), float32. A zero vector scores 0."""
    return torch.nn.functional.normalize(q_AH.float(), dim=-1) @ torch.nn.functional.normalize(d_BH.float(), dim=-1).T


def inner(q_AH: torch.Tensor, d_BH: torch.Tensor) -> torch.Tensor:
    """Inner product of every pooled query with every pooled document: the cosine where both are of unit length."""
    return q_AH.float() @ d_BH.float().T
