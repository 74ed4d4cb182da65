"""What training minimises: the pairwise loss (Eq. 7), the in-batch loss (Eq. 8) and their sum (Eq. 6); distillation.

All take one matrix of scores, `scores_AB`: queries × every passage of the batch. It is query-major: with N passages per
query, those of query i are columns i·N … i·N + N - 1, its positive first, its hard negatives behind.

Beyond the paper, which trains on labels alone: `kl` (ColBERTv2, Santhanam et al., 2022) and `margin_mse` (Hofstätter
et al., 2020); `distilled` adds in-batch negatives to either. They take a teacher's scores, `teacher_AN`, of each
query's own passages in the same order.
"""

import torch
import torch.nn.functional as F


def pairwise(scores_AB: torch.Tensor) -> torch.Tensor:
    """Eq. 7: softmax cross-entropy of each query's positive against its own hard negatives. Returns a scalar."""
    own_AN = _own(scores_AB)
    return F.cross_entropy(own_AN, torch.zeros(len(own_AN), dtype=torch.int64, device=scores_AB.device))


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


def kl(scores_AB: torch.Tensor, teacher_AN: torch.Tensor) -> torch.Tensor:
    """KL divergence of the student's softmax over a query's own passages from the teacher's, the mean over queries."""
    student_AN = _own(scores_AB, teacher_AN).log_softmax(1)
    return F.kl_div(student_AN, teacher_AN.float().log_softmax(1), reduction="batchmean", log_target=True)


def margin_mse(scores_AB: torch.Tensor, teacher_AN: torch.Tensor) -> torch.Tensor:
    """Squared error of the margins between a query's positive and each of its negatives; the mean over all margins."""
    own_AN = _own(scores_AB, teacher_AN)
    return F.mse_loss(own_AN[:, :1] - own_AN[:, 1:], (teacher_AN[:, :1] - teacher_AN[:, 1:]).float())


DISTILLATION = {"kl": kl, "margin-mse": margin_mse}


def distilled(scores_AB: torch.Tensor, teacher_AN: torch.Tensor, kind: str = "kl") -> torch.Tensor:
    """`kind` plus Eq. 8 against the passages of other queries; a query's own ones are judged by the teacher alone."""
    if kind not in DISTILLATION:
        raise ValueError(f"distillation is {kind!r}; have: {', '.join(DISTILLATION)}")
    return DISTILLATION[kind](scores_AB, teacher_AN) + in_batch(scores_AB, own_negatives=False)


def vocabulary(
    hidden_RH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor, target_R: torch.Tensor
) -> torch.Tensor:
    """Softmax cross-entropy of each row's token against the whole vocabulary, as in masked-LM. Returns a scalar.

    Equal to `cross_entropy(linear(hidden, weight, bias), target)`, with fewer passes over its rows x vocabulary.
    """
    if torch.is_autocast_enabled(hidden_RH.device.type):
        return F.cross_entropy(F.linear(hidden_RH, weight_VH, bias_V), target_R)
    return _Vocabulary.apply(hidden_RH, weight_VH, bias_V, target_R)


def _own(scores_AB: torch.Tensor, teacher_AN: torch.Tensor | None = None) -> torch.Tensor:
    """Scores of every query with its own passages alone. Returns (A, N)."""
    A, B = scores_AB.shape
    if teacher_AN is not None and teacher_AN.shape != (A, B // A):
        raise ValueError(
            f"teacher scores are {tuple(teacher_AN.shape)}; {A} queries with {B // A} passages each are scored"
        )
    return scores_AB.view(A, A, B // A).diagonal().T


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
        gradient_RH = (gradient_RV @ weight_VH) * share
        if not ctx.needs_input_grad[1]:  # a frozen vocabulary: two thirds of this work would be for nothing
            return gradient_RH, None, None, None
        return gradient_RH, gradient_RV.T @ (hidden_RH * share), gradient_RV.sum(0) * share, None
