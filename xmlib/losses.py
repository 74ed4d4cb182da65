"""What training minimises: the pairwise loss (Eq. 7), the in-batch loss (Eq. 8) and their sum (Eq. 6).

All take one matrix of scores, `scores_AB`: queries × every passage of the batch. It is query-major: with N passages per
query, those of query i are columns i·N … i·N + N - 1, its positive first, its hard negatives behind.
"""

import torch
import torch.nn.functional as F


def pairwise(scores_AB: torch.Tensor) -> torch.Tensor:
    """Eq. 7: softmax cross-entropy of each query's positive against its own hard negatives. Returns a scalar."""
    A, B = scores_AB.shape
    own_AN = scores_AB.view(A, A, B // A).diagonal().T
    return F.cross_entropy(own_AN, torch.zeros(A, dtype=torch.int64, device=scores_AB.device))


def in_batch(scores_AB: torch.Tensor, own_negatives: bool = True) -> torch.Tensor:
    """Eq. 8: softmax cross-entropy of each query's positive against every passage of the batch. Returns a scalar.

    As printed, the denominator holds the query's own hard negatives. The released code leaves them out, so that they
    enter through Eq. 7 alone: `own_negatives=False`.
    """
    A, B = scores_AB.shape
    positive_A = torch.arange(A, device=scores_AB.device) * (B // A)
    if not own_negatives:
        column_B = torch.arange(B, device=scores_AB.device)
        own_AB = (column_B // (B // A) == column_B[:A, None]) & (column_B != positive_A[:, None])
        scores_AB = scores_AB.masked_fill(own_AB, -torch.inf)
    return F.cross_entropy(scores_AB, positive_A)


def total(scores_AB: torch.Tensor, own_negatives: bool = True) -> torch.Tensor:
    """Eq. 6: the sum of both."""
    return pairwise(scores_AB) + in_batch(scores_AB, own_negatives)
