"""Three generations of late-interaction engines behind one API: each finds what exact search finds, and can change."""

import numpy as np
import pytest
from test_plaid import ORIGIN, names, overlap, realistic

from xmlib.index import GENERATIONS, exact, generation, lower_bounds, plaid, store
from xmlib.index.vectors import TokenVectors
from xmlib.scoring import maxsim_packed


@pytest.fixture(scope="module")
def case():
    return realistic(B=200, A=20)


@pytest.fixture(scope="module", params=GENERATIONS)
def built(request, case, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "index"
    return generation(request.param).build(folder, case[0].slice, names(200), ORIGIN)


def test_every_generation_finds_the_top_ten_of_exact_search(case, built):
    vectors, q_ASH, q_mask_AS = case
    _, wanted = exact.search(vectors, q_ASH, q_mask_AS, 10)
    scores, found = built.search(q_ASH, q_mask_AS, 10)
    assert overlap(found, wanted) >= 0.95
    assert scores.dtype == np.float32
    assert (np.diff(scores, axis=1) <= 0).all()


def test_the_first_generation_scores_with_uncompressed_vectors(case, tmp_path):
    vectors, q_ASH, q_mask_AS = case
    index = generation("v1").build(tmp_path / "index", vectors.slice, names(200), ORIGIN, chunk_passages=64)
    q_mask_AS = np.random.default_rng(0).random(q_mask_AS.shape) < 0.8
    q_mask_AS[3] = False
    scores, found = index.search(q_ASH, q_mask_AS, 5)
    everything_AB = maxsim_packed(q_ASH, vectors.vectors_TH.astype(np.float16), vectors.offsets_B1, q_mask_AS)
    assert (found[3] == -1).all()
    assert np.isneginf(scores[3]).all()
    real = found[:, 0] >= 0
    np.testing.assert_allclose(scores[real], np.take_along_axis(everything_AB, found, axis=1)[real], atol=1e-4)
    stingy = index.search(q_ASH, q_mask_AS, 150, n_probe=1, n_tokens=1)[1]
    assert (stingy[:, -1] == -1).all()  # too few tokens to find 150 passages from


def test_probing_every_centroid_equals_exact_search_over_the_decoded_vectors(case, tmp_path):
    vectors, q_ASH, q_mask_AS = case
    index = lower_bounds.build(tmp_path / "index", vectors.slice, names(200), ORIGIN)
    C = len(index.codec.centroids_CH)
    scores, positions = index.search(q_ASH[:10], q_mask_AS[:10], 20, n_probe=C)
    wanted_scores, wanted = exact.search(index.decoded, q_ASH[:10], q_mask_AS[:10], 20)
    np.testing.assert_array_equal(positions, wanted)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-4)


def test_the_first_stage_never_overrates_a_passage(case, tmp_path):
    vectors, q_ASH, _ = case
    index = lower_bounds.build(tmp_path / "index", vectors.slice, names(200), ORIGIN)
    found_N, bound_N = index._bounded(q_ASH[0], n_probe=1)
    score_N = maxsim_packed(q_ASH[0], index.decoded.vectors_TH, index.decoded.offsets_B1)[found_N]
    assert len(found_N) > 50
    assert (bound_N <= score_N + 1e-4).all()
    assert (bound_N < score_N - 0.5).any()


def test_the_second_and_third_generation_read_the_same_files(case, tmp_path):
    vectors, q_ASH, q_mask_AS = case
    lower_bounds.build(tmp_path / "index", vectors.slice, names(200), ORIGIN)
    old, new = lower_bounds.open(tmp_path / "index"), plaid.open(tmp_path / "index")
    C = len(old.codec.centroids_CH)
    slow = old.search(q_ASH, q_mask_AS, 10, n_probe=C, n_candidates=200)
    fast = new.search(q_ASH, q_mask_AS, 10, effort=4, n_candidates=200)
    np.testing.assert_allclose(fast[0], slow[0], atol=0.02)
    assert overlap(fast[1], slow[1]) > 0.98


@pytest.mark.parametrize("name", GENERATIONS)
def test_every_generation_adds_and_removes(case, tmp_path, name):
    vectors, q_ASH, q_mask_AS = case
    module = generation(name)
    index = module.build(tmp_path / "index", vectors.slice(0, 150).slice, names(150), ORIGIN)
    index.add([f"new{i}" for i in range(50)], vectors.slice(150, 200))
    index.remove(["p3", "p149"])
    kept = [pid for pid in names(150) if pid not in ("p3", "p149")] + [f"new{i}" for i in range(50)]
    for opened in (index, module.open(tmp_path / "index")):
        assert opened.ids == kept
        rest = TokenVectors.concatenate([vectors.slice(0, 3), vectors.slice(4, 149), vectors.slice(150, 200)])
        _, wanted = exact.search(rest, q_ASH, q_mask_AS, 10)
        assert overlap(opened.search(q_ASH, q_mask_AS, 10)[1], wanted) >= 0.9
        assert opened.size_report()["tokens"] == len(rest.vectors_TH)
    store.verify(tmp_path / "index")
    with pytest.raises(ValueError, match="'p3' is not in the index"):
        index.remove(["p3"])
    with pytest.raises(ValueError, match="'new0' is in the index already"):
        index.add(["new0"], vectors.slice(0, 1))
    assert module.open(tmp_path / "index").ids == kept


def test_each_generation_is_smaller_than_the_one_before(case, tmp_path):
    size = {
        name: generation(name)
        .build(tmp_path / name, case[0].slice, names(200), ORIGIN, **({} if name == "v1" else {"rescore": False}))
        .size_report()
        for name in GENERATIONS
    }
    assert size["v1"]["token_bytes"] > 7 * size["v2"]["token_bytes"] == 7 * size["plaid"]["token_bytes"]
    for name, report in size.items():
        assert report["total_bytes"] == sum(path.stat().st_size for path in (tmp_path / name).iterdir())


def test_unknown_generations_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="no generation 'v3'; have: v1, v2, plaid"):
        generation("v3")
