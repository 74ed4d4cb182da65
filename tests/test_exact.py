"""Exact search: equal to scoring all and sorting, whatever the tiles; ties, edges, and the folder it can live in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmlib.index import exact
from xmlib.index.vectors import TokenVectors
from xmlib.ragged import offsets_of, rows_of
from xmlib.scoring import maxsim_packed

ORIGIN = {"model": "m", "lang": "sw", "collection": "c"}


def unit(rng, *shape):
    x = rng.standard_normal(shape, dtype=np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def random_case(seed, lengths, A=5, S=4, H=8):
    rng = np.random.default_rng(seed)
    q_mask_AS = rng.random((A, S)) < 0.8
    q_mask_AS[:, 0] = True
    return TokenVectors.from_lengths(unit(rng, sum(lengths), H), lengths), unit(rng, A, S, H), q_mask_AS


lengths_of_documents = st.lists(st.integers(0, 7), min_size=1, max_size=12)


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 2**32 - 1), lengths_of_documents, st.integers(1, 15), st.integers(1, 20))
def test_search_equals_scoring_everything_and_sorting(seed, lengths, k, tile_tokens):
    vectors, q_ASH, q_mask_AS = random_case(seed, lengths)
    scores_Ak, positions_Ak = exact.search(vectors, q_ASH, q_mask_AS, k, tile_tokens=tile_tokens)
    everything = maxsim_packed(q_ASH, vectors.vectors_TH, vectors.offsets_B1, q_mask_AS)
    for score_B, scores_k, positions_k in zip(everything, scores_Ak, positions_Ak, strict=True):
        found = sorted((b for b, n in enumerate(lengths) if n), key=lambda b: (-score_B[b], b))[:k]
        assert positions_k.tolist() == found + [-1] * (k - len(found))
        np.testing.assert_allclose(scores_k[: len(found)], score_B[found], atol=1e-5)
        assert np.isneginf(scores_k[len(found) :]).all()


def test_ties_go_to_the_lower_position_within_and_across_tiles():
    vectors = TokenVectors.from_lengths(np.tile(np.float32([[1, 0]]), (6, 1)), np.ones(6, int))
    q_ASH, q_mask_AS = np.float32([[[1, 0]]]), np.array([[True]])
    for tile_tokens in (1, 2, 4, 100):
        _, positions = exact.search(vectors, q_ASH, q_mask_AS, 4, tile_tokens=tile_tokens)
        assert positions.tolist() == [[0, 1, 2, 3]]


def test_many_queries_equal_one_query_at_a_time():
    vectors, q_ASH, q_mask_AS = random_case(0, [3, 4, 5, 6], A=150)
    scores, positions = exact.search(vectors, q_ASH, q_mask_AS, 2)
    for a in (0, 63, 64, 149):
        score, position = exact.search(vectors, q_ASH[a : a + 1], q_mask_AS[a : a + 1], 2)
        np.testing.assert_array_equal(position[0], positions[a])
        np.testing.assert_allclose(score[0], scores[a], atol=1e-5)


def test_a_query_with_no_token_finds_nothing():
    vectors, q_ASH, q_mask_AS = random_case(0, [3, 4])
    q_mask_AS[1] = False
    scores, positions = exact.search(vectors, q_ASH, q_mask_AS, 2)
    assert positions[1].tolist() == [-1, -1]
    assert np.isneginf(scores[1]).all()
    assert sorted(positions[0].tolist()) == [0, 1]


def test_a_stored_index_finds_what_the_vectors_find(tmp_path):
    vectors, q_ASH, q_mask_AS = random_case(0, [3, 4, 0, 5])
    index = exact.build(tmp_path / "index", vectors.slice, list("abcd"), ORIGIN, chunk_passages=2)
    rounded = TokenVectors(vectors.vectors_TH.astype(np.float16), vectors.offsets_B1)
    for ours, theirs in zip(index.search(q_ASH, q_mask_AS, 3), exact.search(rounded, q_ASH, q_mask_AS, 3), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert index.ids == list("abcd")
    assert isinstance(index.vectors.vectors_TH, np.memmap)


@given(lengths_of_documents, st.data())
def test_rows_of_documents_are_their_token_rows_in_the_order_asked(lengths, data):
    offsets_B1 = offsets_of(np.array(lengths))
    positions = data.draw(st.lists(st.integers(0, len(lengths) - 1)))
    rows, offsets = rows_of(offsets_B1, np.array(positions, dtype=np.int64))
    expected = [list(range(offsets_B1[b], offsets_B1[b + 1])) for b in positions]
    assert rows.tolist() == [row for document in expected for row in document]
    assert np.diff(offsets).tolist() == [len(document) for document in expected]


def test_slices_concatenate_to_the_whole():
    vectors, _, _ = random_case(0, [3, 0, 5, 2])
    whole = TokenVectors.concatenate([vectors.slice(0, 1), vectors.slice(1, 4)])
    np.testing.assert_array_equal(whole.vectors_TH, vectors.vectors_TH)
    np.testing.assert_array_equal(whole.offsets_B1, vectors.offsets_B1)
    assert whole.types_T is None
    typed = TokenVectors(vectors.vectors_TH, vectors.offsets_B1, np.arange(10))
    assert typed.slice(2, 4).types_T.tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert TokenVectors.concatenate([typed.slice(2, 4), typed]).types_T.tolist() == [*range(3, 10), *range(10)]
    assert TokenVectors.concatenate([vectors, typed]).types_T is None, "types of a part are no types of the whole"


def test_vectors_and_offsets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="offsets must rise from 0 to the number of token vectors, 3"):
        TokenVectors(np.zeros((3, 2), np.float32), np.array([0, 2]))
    with pytest.raises(ValueError, match="2 types of tokens for 3 token vectors"):
        TokenVectors(np.zeros((3, 2), np.float32), np.array([0, 3]), np.array([1, 2]))
    with pytest.raises(ValueError, match="float64"):
        TokenVectors(np.zeros((3, 2)), np.array([0, 3]))
