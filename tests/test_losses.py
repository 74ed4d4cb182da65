"""Losses: worked by hand, then against the equations written as loops, with both readings of Eq. 8."""

import math

import pytest
import torch

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
