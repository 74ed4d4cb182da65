"""MaxSim, the late-interaction score (paper, Eq. 4), and the cosine of pooled vectors (Eq. 9).

    score(q, d) = sum over query tokens s of  max over document tokens t of  <q_s, d_t>

Axes, used as suffixes:  A queries · B documents · S query tokens · T document tokens · H embedding · Q = A x S
A packed collection has one axis T for the tokens of all its documents, and offsets_B1: the tokens of document b are
rows offsets_B1[b] : offsets_B1[b + 1].

Everything that scores (losses, index, evaluation) calls this module; nothing else re-implements it. Vectors are
expected to be of unit length, as the models return them, so that the inner product is the cosine.
"""

import importlib.util
from functools import cache

import numpy as np
import torch

TILE = 2**24  # similarities held at once, 64 MiB in float32


def maxsim(q_ASH: torch.Tensor, d_BTH: torch.Tensor, q_mask_AS: torch.Tensor, d_mask_BT: torch.Tensor) -> torch.Tensor:
    """Score every query against every document. Returns (A, B), float32.

    Masked document tokens are removed from the max, not zeroed: a zero would beat a genuinely negative similarity.
    Masked query tokens are filled after the max, because 0 times -inf is NaN. The sum over S runs in float32: at
    scores of 16-32 a bfloat16 step is 0.125. A document with no real token scores -inf.
    """
    if q_ASH.is_cuda and _fused_kernels():
        from late_interaction_kernels import maxsim as fused

        # What it would choose by itself may round the gradients of float32 to 16 bits.
        backward = "unified" if q_ASH.dtype == torch.float32 else None
        score_AB = fused(q_ASH, d_BTH, q_mask_AS, d_mask_BT, backward=backward)
    else:
        score_AB = _TiledMaxsim.apply(q_ASH, d_BTH, q_mask_AS, d_mask_BT)
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
    normalize = torch.nn.functional.normalize
    return inner(normalize(q_AH.float(), dim=-1), normalize(d_BH.float(), dim=-1))


def inner(q_AH: torch.Tensor, d_BH: torch.Tensor) -> torch.Tensor:
    """Inner product of every pooled query with every pooled document: the cosine where both are of unit length.

    Returns (A, B), float32, also under autocast.
    """
    with torch.autocast(q_AH.device.type, enabled=False):
        return q_AH.float() @ d_BH.float().T


@cache
def _fused_kernels() -> bool:
    """Whether the Triton kernels of late-interaction-kernels are installed."""
    return importlib.util.find_spec("late_interaction_kernels") is not None


class _TiledMaxsim(torch.autograd.Function):
    """MaxSim over a few documents at a time: the similarities of all, A x B x S x T, are never held together.

    Under autocast they are products in its type; their sums are float32.

    For the gradient it keeps which document token won, (A x S, B). A tile's gradient is then a matrix of A x S rows
    with one entry per document, and both gradients are products with it: deterministic, and as fast as going forward.
    """

    @staticmethod
    def forward(ctx, q_ASH, d_BTH, q_mask_AS, d_mask_BT):
        (A, S, H), (B, T, _) = q_ASH.shape, d_BTH.shape
        q_QH = q_ASH.reshape(A * S, H)
        score_AB = torch.empty(A, B, device=q_ASH.device)
        won_QB = torch.empty(A * S, B, dtype=torch.int32, device=q_ASH.device)
        for tile in _tiles(A * S * T, B):
            # One plain matrix product: an einsum over four axes takes a slower, batched path on the CPU.
            sim_QNT = (q_QH @ d_BTH[tile].flatten(0, 1).T).view(A * S, -1, T)
            sim_QNT.masked_fill_(~d_mask_BT[tile], -torch.inf)
            best_QN, won_QB[:, tile] = sim_QNT.max(dim=-1)
            best_ASN = best_QN.float().view(A, S, -1).masked_fill(~q_mask_AS[:, :, None], 0.0)
            score_AB[:, tile] = best_ASN.sum(dim=1)
        ctx.save_for_backward(q_ASH, d_BTH, q_mask_AS, won_QB)
        return score_AB

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient_AB):
        q_ASH, d_BTH, q_mask_AS, won_QB = ctx.saved_tensors
        (A, S, H), (B, T, _) = q_ASH.shape, d_BTH.shape
        q_QH = q_ASH.reshape(A * S, H)
        gradient_QB = (gradient_AB[:, None] * q_mask_AS[:, :, None]).view(A * S, B).to(q_QH.dtype)
        q_gradient_QH, d_gradient_BTH = torch.zeros_like(q_QH), torch.empty_like(d_BTH)
        for tile in _tiles(A * S * T, B):
            part_QN = gradient_QB[:, tile]
            one_QNT = part_QN.new_zeros(*part_QN.shape, T)
            one_QNT.scatter_(2, won_QB[:, tile, None].long(), part_QN[:, :, None])
            one_QP = one_QNT.flatten(1)
            q_gradient_QH += one_QP @ d_BTH[tile].flatten(0, 1)
            d_gradient_BTH[tile] = (one_QP.T @ q_QH).view(-1, T, H)
        return q_gradient_QH.view(A, S, H), d_gradient_BTH, None, None


def _tiles(per_document: int, documents: int) -> list[slice]:
    """Cuts of the documents, each of at most TILE similarities or of one document."""
    step = max(1, TILE // max(per_document, 1))
    return [slice(first, first + step) for first in range(0, documents, step)]
