"""Token pooling: means of tokens that are alike, and indexes of them."""

import numpy as np
import pytest
from test_plaid import ORIGIN, names, realistic, unit

from xmlib.index import plaid
from xmlib.index.pooling import pooled
from xmlib.index.vectors import TokenVectors


def test_tokens_that_are_alike_share_their_mean():
    rng = np.random.default_rng(0)
    words = unit(rng.standard_normal((4, 16)))
    near = unit(words[[0, 1, 2, 3, 0, 1, 2, 3]] + 0.01 * rng.standard_normal((8, 16)))
    found = pooled(TokenVectors.from_lengths(near, [8]), 2)
    assert found.lengths_B.tolist() == [4]
    wanted = unit(near[:4] + near[4:])
    nearest = (found.vectors_TH @ wanted.T).argmax(axis=1)
    assert sorted(nearest) == [0, 1, 2, 3]
    np.testing.assert_allclose(found.vectors_TH, wanted[nearest], atol=1e-6)


@pytest.mark.parametrize("factor", [1, 2, 3, 50])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_passage_keeps_its_share_of_vectors(factor, dtype):
    rng = np.random.default_rng(0)
    lengths_B = np.array([0, 1, 2, 7, 0, 30])
    vectors = TokenVectors.from_lengths(unit(rng.standard_normal((40, 8))).astype(dtype), lengths_B)
    found = pooled(vectors, factor)
    assert found.lengths_B.tolist() == [-(-n // factor) for n in lengths_B] and found.vectors_TH.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(found.vectors_TH.astype(float), axis=1), 1, atol=1e-3)


def test_tokens_that_are_the_same_need_one_vector():
    vectors = TokenVectors.from_lengths(np.tile(unit(np.ones((1, 8))), (6, 1)), [6])
    np.testing.assert_allclose(pooled(vectors, 2).vectors_TH, vectors.vectors_TH[:1], atol=1e-6)


@pytest.mark.parametrize("factor", [0, -1, 1.5])
def test_what_is_no_factor_is_refused(factor):
    with pytest.raises(ValueError, match="pool must be a whole number"):
        pooled(realistic(B=20, A=1)[0], factor)


def test_an_index_pools_what_it_is_built_of_and_what_is_added(tmp_path):
    vectors, q_ASH, q_mask_AS = realistic(B=200, A=20)
    choices = dict(n_centroids=256, rescore=False)
    whole = plaid.build(tmp_path / "whole", vectors.slice, names(200), ORIGIN, **choices)
    half = plaid.build(tmp_path / "half", vectors.slice(0, 150).slice, names(150), ORIGIN, pool=2, **choices)
    half.add(names(200)[150:], vectors.slice(150, 200))
    np.testing.assert_array_equal(half.decoded.lengths_B, -(-vectors.lengths_B // 2))
    wanted, found = (index.search(q_ASH, q_mask_AS, 1)[1] for index in (whole, half))
    assert (wanted == found).mean() > 0.8
