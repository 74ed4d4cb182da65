"""Losses: worked by hand, then against the equations written as loops, with both readings of Eq. 8."""

import math

import pytest
import torch
import torch.nn.functional as F

from xmlib import losses

# Two queries, two passages each, query-major: columns are p0+, p0-, p1+, p1-.
SCORES = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.5, 0.0, 3.0, 2.5]])


def test_pairwise_worked_by_hand():
    # query 0: -log(e^2 / (e^2 + e^1));  query 1: -log(e^3 / (e^3 + e^2.5))
    expected = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(-0.5))) / 2
    assert losses.pairwise(SCORES).item() == pytest.approx(expected, rel=1e-6)


def test_in_batch_as_printed_has_the_own_negative_in_the_denominator():
    first = math.log(sum(math.exp(s - 2.0) for s in (2.0, 1.0, 0.0, -1.0)))
    second = math.log(sum(math.exp(s - 3.0) for s in (0.5, 0.0, 3.0, 2.5)))
    assert losses.in_batch(SCORES).item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_in_batch_as_released_leaves_the_own_negative_out():
    first = math.log(sum(math.exp(s - 2.0) for s in (2.0, 0.0, -1.0)))
    second = math.log(sum(math.exp(s - 3.0) for s in (0.5, 0.0, 3.0)))
    assert losses.in_batch(SCORES, own_negatives=False).item() == pytest.approx((first + second) / 2, rel=1e-6)


@pytest.mark.parametrize("own_negatives", [True, False])
@pytest.mark.parametrize("per_query", [2, 4])
def test_losses_equal_the_equations_as_loops(own_negatives, per_query):
    torch.manual_seed(0)
    A = 5
    scores = torch.randn(A, A * per_query, dtype=torch.float64) * 3
    pair = batch = 0.0
    for i in range(A):
        own = list(range(i * per_query, (i + 1) * per_query))
        allowed = [p for p in range(A * per_query) if own_negatives or p not in own[1:]]
        pair -= math.log(math.exp(scores[i, own[0]]) / sum(math.exp(scores[i, p]) for p in own)) / A
        batch -= math.log(math.exp(scores[i, own[0]]) / sum(math.exp(scores[i, p]) for p in allowed)) / A
    assert losses.pairwise(scores).item() == pytest.approx(pair)
    assert losses.in_batch(scores, own_negatives).item() == pytest.approx(batch)
    assert losses.total(scores, own_negatives).item() == pytest.approx(pair + batch)


def test_a_perfect_ranking_has_no_loss_and_a_better_positive_a_smaller_one():
    perfect = torch.full((3, 6), -50.0)
    perfect[torch.arange(3), torch.arange(3) * 2] = 50.0
    assert losses.total(perfect).item() == pytest.approx(0.0, abs=1e-6)
    better = SCORES.clone()
    better[0, 0] += 1
    assert losses.total(better) < losses.total(SCORES)


# A teacher's scores of each query's own two passages.
TEACHER = torch.tensor([[3.0, 0.0], [1.0, 1.0]])


def test_kl_worked_by_hand():
    # query 0: teacher p = 1 / (1 + e^-3), student q = 1 / (1 + e^-1);  query 1: teacher 1/2, student 1 / (1 + e^-0.5)
    expected = 0.0
    for teacher_margin, student_margin in ((3.0, 1.0), (0.0, 0.5)):
        p, q = 1 / (1 + math.exp(-teacher_margin)), 1 / (1 + math.exp(-student_margin))
        expected += (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) / 2
    assert losses.kl(SCORES, TEACHER).item() == pytest.approx(expected, rel=1e-5)


def test_margin_mse_worked_by_hand():
    # margins of the teacher 3 and 0, of the student 1 and 0.5: (2² + 0.5²) / 2
    assert losses.margin_mse(SCORES, TEACHER).item() == pytest.approx(2.125)


def test_distillation_adds_the_passages_of_other_queries_and_not_a_querys_own():
    batch = losses.in_batch(SCORES, own_negatives=False)
    assert losses.distilled(SCORES, TEACHER, "kl").item() == pytest.approx((losses.kl(SCORES, TEACHER) + batch).item())
    expected = 2.125 + batch.item()
    assert losses.distilled(SCORES, TEACHER, "margin-mse").item() == pytest.approx(expected)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it():
    own = torch.stack([SCORES[0, :2], SCORES[1, 2:]])
    assert losses.kl(SCORES, own).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.kl(SCORES, own + 5).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.margin_mse(SCORES, own + 5).item() == 0.0


def test_a_wrong_teacher_or_distillation_raises():
    with pytest.raises(ValueError, match=r"teacher scores are \(2, 3\); 2 queries with 2 passages each"):
        losses.kl(SCORES, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="distillation is 'mse'; have: kl, margin-mse"):
        losses.distilled(SCORES, TEACHER, "mse")


def test_the_loss_against_a_vocabulary_equals_cross_entropy_with_its_gradients():
    torch.manual_seed(0)
    arguments = [torch.randn(7, 5), torch.randn(11, 5) * 3, torch.randn(11)]
    target = torch.randint(11, (7,))
    gradients = []
    for loss_of in (losses.vocabulary, lambda h, w, b, t: F.cross_entropy(F.linear(h, w, b), t)):
        leaves = [a.clone().requires_grad_() for a in arguments]
        loss = loss_of(*leaves, target)
        (2 * loss).backward()
        gradients.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*gradients)


def test_the_loss_against_a_vocabulary_is_finite_where_a_probability_vanishes():
    hidden = torch.tensor([[1.0]])
    weight, bias = torch.tensor([[200.0], [-200.0]]), torch.zeros(2)
    assert losses.vocabulary(hidden, weight, bias, torch.tensor([1])).item() == 400.0
