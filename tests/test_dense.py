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


@pytest.mark.parametrize("engine", ["ivf-flat", "hnsw"])
def test_with_everything_looked_at_an_engine_is_exact_and_less_costs_recall(tmp_path, engine):
    rng = np.random.default_rng(2)
    vectors_BH, q_AH = unit(rng, 900, 16), unit(rng, 20, 16)
    flat = build(tmp_path / "flat", vectors_BH)
    index = build(tmp_path / engine, vectors_BH, engine=engine, chunk_passages=400)
    name = dense.SEARCHED[engine]
    everything = index.faiss.nlist if engine == "ivf-flat" else 900
    expected, found = flat.search(q_AH, 10), index.search(q_AH, 10, **{name: everything})
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    shares = [
        np.mean(
            [
                len(set(a) & set(b)) / 10
                for a, b in zip(index.search(q_AH, 10, **{name: n})[1], expected[1], strict=True)
            ]
        )
        for n in (1, 20, everything)
    ]
    assert shares == sorted(shares) and shares[0] < shares[2] == 1
    default = index.search(q_AH, 10)
    opened = dense.open(tmp_path / engine)
    for one, other in zip(opened.search(q_AH, 10), default, strict=True):
        np.testing.assert_array_equal(one, other)
    assert opened.size_report()["total_bytes"] == sum(path.stat().st_size for path in (tmp_path / engine).iterdir())
    assert opened.size_report()["total_bytes"] > flat.size_report()["total_bytes"]


def test_fewer_than_asked_for_ends_in_nothing_and_wrong_knobs_are_refused(tmp_path):
    vectors_BH = unit(np.random.default_rng(3), 200, 8)
    index = build(tmp_path / "ivf", vectors_BH, engine="ivf-flat")
    scores, positions = index.search(vectors_BH[:3], 250, n_probe=1)
    assert (positions[:, -1] == -1).all() and np.isneginf(scores[:, -1]).all() and (positions[:, 0] >= 0).all()
    with pytest.raises(ValueError, match="ef=9 says nothing to an index of engine 'ivf-flat'"):
        index.search(vectors_BH[:1], 5, ef=9)
    with pytest.raises(ValueError, match="no dense engine 'lsh'; have: flat, ivf-flat, hnsw"):
        build(tmp_path / "lsh", vectors_BH, engine="lsh")
