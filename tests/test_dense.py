"""Flat dense search: equal to the sorted cosine matrix, ties by position, and a round trip through its folder."""

import numpy as np
import pytest
import torch

from xmlib.index import dense
from xmlib.scoring import cosine

ORIGIN = {"model": "m", "lang": "fi", "collection": "c"}


def unit(rng, *shape):
    x = rng.standard_normal(shape, dtype=np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def build(folder, vectors_BH, **options):
    ids = [str(i) for i in range(len(vectors_BH))]
    return dense.build(folder, lambda start, stop: vectors_BH[start:stop], ids, ORIGIN, **options)


@pytest.mark.parametrize("k", [1, 10, 200, 300])
def test_search_equals_the_sorted_cosine_matrix(tmp_path, k):
    rng = np.random.default_rng(0)
    vectors_BH, q_AH = unit(rng, 250, 16), unit(rng, 7, 16)
    scores, positions = build(tmp_path / "index", vectors_BH, chunk_passages=64).search(q_AH, k)
    expected = cosine(torch.from_numpy(q_AH), torch.from_numpy(vectors_BH)).numpy()
    kept = min(k, 250)
    np.testing.assert_array_equal(positions[:, :kept], np.argsort(-expected, axis=1, kind="stable")[:, :kept])
    np.testing.assert_allclose(scores[:, :kept], -np.sort(-expected, axis=1)[:, :kept], atol=1e-6)
    assert (positions[:, kept:] == -1).all()
    assert np.isneginf(scores[:, kept:]).all()


def test_ties_go_to_the_lower_position_even_at_the_last_place(tmp_path):
    vectors_BH = np.tile(np.float32([[1, 0]]), (50, 1))
    vectors_BH[[3, 40]] = [0, 1]
    _, positions = build(tmp_path / "index", vectors_BH).search(np.float32([[1, 0], [0, 1]]), 5)
    assert positions.tolist() == [[0, 1, 2, 4, 5], [3, 40, 0, 1, 2]]


def test_reopening_gives_the_same_answers_and_ids(tmp_path):
    rng = np.random.default_rng(1)
    vectors_BH, q_AH = unit(rng, 20, 4), unit(rng, 3, 4)
    built = build(tmp_path / "index", vectors_BH)
    opened = dense.open(tmp_path / "index")
    assert opened.ids == built.ids
    for ours, theirs in zip(opened.search(q_AH, 5), built.search(q_AH, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)
