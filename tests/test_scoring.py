"""MaxSim: worked by hand, then padding, edges, precision, and three loops written straight from Eq. 4."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmlib import scoring
from xmlib.scoring import cosine, inner, maxsim, maxsim_packed


def three_loops(q_SH, d_TH):
    """Eq. 4: for each query token the largest similarity to a document token, summed."""
    total = 0.0
    for q in q_SH:
        best = -np.inf
        for d in d_TH:
            best = max(best, float(sum(x * y for x, y in zip(q, d, strict=True))))
        total += best
    return total


def random_case(seed, A=3, S=4, H=8, lengths=(5, 1, 3)):
    """Queries with random masks, and the same documents padded and packed."""
    rng = np.random.default_rng(seed)
    q_ASH = rng.standard_normal((A, S, H), dtype=np.float32)
    q_mask_AS = rng.random((A, S)) < 0.7
    d_mask_BT = np.arange(max(lengths)) < np.array(lengths)[:, None]
    d_BTH = rng.standard_normal((*d_mask_BT.shape, H), dtype=np.float32)
    offsets_B1 = np.concatenate([[0], np.cumsum(lengths)])
    return q_ASH, q_mask_AS, d_BTH, d_mask_BT, d_BTH[d_mask_BT], offsets_B1


def test_score_worked_by_hand():
    q = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    d = torch.tensor([[[1.0, 0.0], [0.0, 0.5]]])
    real = torch.ones(1, 2, dtype=torch.bool)
    # token 0: max(1, 0) = 1;  token 1: max(0, 0.5) = 0.5
    assert maxsim(q, d, real, real).tolist() == [[1.5]]
    assert maxsim_packed(q.numpy(), d[0].numpy(), np.array([0, 2])).tolist() == [[1.5]]
    # as two documents of one token each: 1 + 0 and 0 + 0.5
    assert maxsim_packed(q[0].numpy(), d[0].numpy(), np.array([0, 1, 2])).tolist() == [1.0, 0.5]


def test_padding_never_wins_over_a_negative_similarity():
    q = torch.tensor([[[1.0, 0.0]]])
    d = torch.tensor([[[-1.0, 0.0], [0.0, 0.0]]])  # the second token is padding
    score = maxsim(q, d, torch.tensor([[True]]), torch.tensor([[True, False]]))
    assert score.tolist() == [[-1.0]]


def test_masked_query_tokens_count_nothing_even_against_an_empty_document():
    q, d = torch.ones(1, 2, 2), torch.ones(2, 1, 2)
    score = maxsim(q, d, torch.tensor([[True, False]]), torch.tensor([[True], [False]]))
    assert score.tolist() == [[2.0, -torch.inf]]


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any))
def test_padded_and_packed_agree_with_three_loops(seed, lengths):
    q_ASH, q_mask_AS, d_BTH, d_mask_BT, d_TH, offsets_B1 = random_case(seed, lengths=lengths)
    expected = [
        [
            three_loops(q[q_mask], d[d_mask]) if d_mask.any() else -np.inf
            for d, d_mask in zip(d_BTH, d_mask_BT, strict=True)
        ]
        for q, q_mask in zip(q_ASH, q_mask_AS, strict=True)
    ]
    padded = maxsim(*map(torch.from_numpy, (q_ASH, d_BTH, q_mask_AS, d_mask_BT))).numpy()
    packed = maxsim_packed(q_ASH, d_TH, offsets_B1, q_mask_AS)
    np.testing.assert_allclose(padded, expected, atol=1e-4)
    np.testing.assert_allclose(packed, expected, atol=1e-4)


def test_documents_and_queries_together_equal_one_at_a_time():
    q_ASH, q_mask_AS, _, _, d_TH, offsets_B1 = random_case(1)
    together = maxsim_packed(q_ASH, d_TH, offsets_B1, q_mask_AS)
    for a, (q_SH, q_mask_S) in enumerate(zip(q_ASH, q_mask_AS, strict=True)):
        for b, (start, stop) in enumerate(pairwise(offsets_B1)):
            alone = maxsim_packed(q_SH[q_mask_S], d_TH[start:stop], np.array([0, stop - start]))
            assert alone == pytest.approx(together[a, b], abs=1e-5)


def test_an_empty_document_scores_minus_infinity_and_leaves_its_neighbours_alone():
    _, _, _, _, d_TH, _ = random_case(2)
    q_SH = d_TH[:2]
    scores = maxsim_packed(q_SH, d_TH, np.array([0, 0, 4, 4, 9, 9]))
    assert np.isneginf(scores[[0, 2, 4]]).all()
    np.testing.assert_array_equal(scores[[1, 3]], maxsim_packed(q_SH, d_TH, np.array([0, 4, 9])))


def test_a_query_with_no_real_token_scores_zero_except_against_nothing():
    q_ASH, q_mask_AS, d_BTH, d_mask_BT, d_TH, offsets_B1 = random_case(3, lengths=(2, 0))
    none = np.zeros_like(q_mask_AS)
    padded = maxsim(*map(torch.from_numpy, (q_ASH, d_BTH, none, d_mask_BT)))
    packed = maxsim_packed(q_ASH, d_TH, offsets_B1, none)
    assert padded.tolist() == packed.tolist() == [[0.0, -np.inf]] * 3


def test_no_query_and_no_document_give_empty_scores():
    no_query = maxsim_packed(np.zeros((0, 4, 8), np.float32), np.zeros((3, 8), np.float32), np.array([0, 3]))
    no_document = maxsim_packed(np.zeros((2, 4, 8), np.float32), np.zeros((0, 8), np.float32), np.array([0]))
    assert (no_query.shape, no_document.shape) == ((0, 1), (2, 0))


def test_the_sum_over_query_tokens_runs_in_float32():
    # 31 + 1/64 needs 11 bits; bfloat16 keeps 8 and would say 31.
    q = torch.ones(1, 32, 1, dtype=torch.bfloat16)
    q[0, 31] = 1 / 64
    real = torch.ones(1, 32, dtype=torch.bool)
    score = maxsim(q, torch.ones(1, 1, 1, dtype=torch.bfloat16), real, real[:, :1])
    assert score.dtype == torch.float32
    assert score.item() == 31 + 1 / 64
    packed = maxsim_packed(q[0].float().numpy().astype(np.float16), np.ones((1, 1), np.float16), np.array([0, 1]))
    assert packed.dtype == np.float32
    assert packed.tolist() == [31 + 1 / 64]


def test_cosine_ignores_length_and_gives_a_zero_vector_zero():
    q = torch.tensor([[3.0, 4.0]])
    d = torch.tensor([[6.0, 8.0], [-3.0, -4.0], [4.0, -3.0], [0.0, 0.0]])
    assert cosine(q, d).tolist() == [pytest.approx([1.0, -1.0, 0.0, 0.0], abs=1e-6)]


def test_pooled_scores_are_float32_under_autocast():
    q, d = torch.rand(2, 8), torch.rand(3, 8)
    for score in (cosine, inner):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(score(q, d), score(q, d).float()) and score(q, d).dtype == torch.float32
            within = score(q, d)
        assert torch.equal(within, score(q, d))


def test_the_gradient_equals_that_of_the_plain_tensor_whatever_the_tile(monkeypatch):
    arrays = random_case(4, lengths=(5, 1, 3, 4, 2))[:4]
    q_ASH, q_mask_AS, d_BTH, d_mask_BT = map(torch.from_numpy, arrays)
    weight_AB = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))

    def plain(q_ASH, d_BTH, q_mask_AS, d_mask_BT):
        sim_ABST = torch.einsum("ash,bth->abst", q_ASH, d_BTH).masked_fill(~d_mask_BT[None, :, None], -torch.inf)
        return sim_ABST.amax(-1).masked_fill(~q_mask_AS[:, None], 0.0).sum(-1)

    def scores_and_gradients(score):
        q, d = q_ASH.clone().requires_grad_(), d_BTH.clone().requires_grad_()
        score_AB = score(q, d, q_mask_AS, d_mask_BT)
        (score_AB * weight_AB).sum().backward()
        return score_AB.detach(), q.grad, d.grad

    expected = scores_and_gradients(plain)
    for tile in (1, 3 * 4 * 5 * 2, scoring.TILE):  # one document at a time, two, all
        monkeypatch.setattr(scoring, "TILE", tile)
        torch.testing.assert_close(scores_and_gradients(maxsim), expected)


def test_an_empty_document_sends_no_gradient():
    q, d = torch.ones(1, 2, 3, requires_grad=True), torch.ones(2, 2, 3, requires_grad=True)
    mask = torch.tensor([[True, True], [False, False]])
    maxsim(q, d, torch.ones(1, 2, dtype=torch.bool), mask)[0, 0].backward()
    assert torch.equal(q.grad, torch.ones(1, 2, 3))
    assert (d.grad[1] == 0).all()


@pytest.mark.gpu
def test_the_fused_kernel_gives_the_scores_and_gradients_of_the_plain_one():
    pytest.importorskip("late_interaction_kernels")
    arrays = random_case(5, A=4, S=32, H=128, lengths=(150, 1, 70, 0))[:4]
    q_ASH, q_mask_AS, d_BTH, d_mask_BT = (torch.from_numpy(array).cuda() for array in arrays)
    found = []
    for score in (maxsim, scoring._TiledMaxsim.apply):
        q, d = q_ASH.clone().requires_grad_(), d_BTH.clone().requires_grad_()
        score_AB = score(q, d, q_mask_AS, d_mask_BT)[:, :3]  # the last document is empty
        score_AB.square().sum().backward()
        found.append((score_AB.detach(), q.grad, d.grad[:3]))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-2, rtol=1e-2)  # of products in TensorFloat-32
