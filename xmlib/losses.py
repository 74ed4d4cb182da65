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


def vocabulary(
    hidden_RH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor, target_R: torch.Tensor
) -> torch.Tensor:
    """Softmax cross-entropy of each row's token against the whole vocabulary, as in masked-LM. Returns a scalar.

    Equal to `cross_entropy(linear(hidden, weight, bias), target)`, with fewer passes over its rows x vocabulary.
    """
    if torch.is_autocast_enabled(hidden_RH.device.type):
        return F.cross_entropy(F.linear(hidden_RH, weight_VH, bias_V), target_R)
    return _Vocabulary.apply(hidden_RH, weight_VH, bias_V, target_R)


class _Vocabulary(torch.autograd.Function):
    """The probabilities become the gradient of the logits in place: minus 1 at the target."""

    @staticmethod
    def forward(ctx, hidden_RH, weight_VH, bias_V, target_R):
        place = torch.arange(len(target_R), device=target_R.device), target_R
        logits_RV = torch.addmm(bias_V, hidden_RH, weight_VH.T)
        gradient_RV = logits_RV.softmax(1)
        # log Σ exp from the largest entry of each row, whose probability is at least 1 / V: no second pass of exp
        log_sum_R = logits_RV.amax(1) - gradient_RV.amax(1).log()
        loss = (log_sum_R - logits_RV[place]).mean()
        gradient_RV[place] -= 1
        ctx.save_for_backward(hidden_RH, weight_VH, gradient_RV)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        hidden_RH, weight_VH, gradient_RV = ctx.saved_tensors
        share = gradient / len(hidden_RH)
        gradient_VH = gradient_RV.T @ (hidden_RH * share)
        return (gradient_RV @ weight_VH) * share, gradient_VH, gradient_RV.sum(0) * share, None
