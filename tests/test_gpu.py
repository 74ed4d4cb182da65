"""Search as PyTorch operations: the results of the CPU's engine, wherever the tensors lie."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.test_plaid import ORIGIN, names, overlap, realistic
from xmlib.index import exact, gpu, plaid, residual
from xmlib.index.vectors import TokenVectors

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def case():
    vectors, q_ASH, _ = realistic()
    return vectors, q_ASH, np.random.default_rng(0).random(q_ASH.shape[:2]) < 0.8


@pytest.fixture(scope="module", params=[False, True], ids=["2 bits", "rescored"])
def index(request, case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "index"
    return plaid.build(folder, case[0].slice, names(len(case[0])), ORIGIN, rescore=request.param)


def same_but_for_rounding(found, wanted, atol):
    """The same scores place by place, and the same passages but where two score alike."""
    np.testing.assert_allclose(found[0], wanted[0], atol=atol)
    gap_Ak = np.abs(np.diff(wanted[0], axis=1))
    apart_Ak = (np.pad(gap_Ak, ((0, 0), (1, 0)), constant_values=1) > 2 * atol) & (
        np.pad(gap_Ak, ((0, 0), (0, 1)), constant_values=0) > 2 * atol
    )
    assert apart_Ak.mean() > 0.3  # so that there is something to compare
    np.testing.assert_array_equal(found[1][apart_Ak], wanted[1][apart_Ak])


@pytest.mark.parametrize("device", DEVICES)
def test_the_rankings_are_those_of_the_cpu(case, index, device, monkeypatch):
    _, q_ASH, q_mask_AS = case
    wanted = index.search(q_ASH, q_mask_AS, 10, effort=4)
    same_but_for_rounding(index.to(device).search(q_ASH, q_mask_AS, 10, effort=4), wanted, atol=0.02)
    for name in ("TABLE", "HIGHEST", "DECODED"):  # one query, few passages, one passage at a time
        monkeypatch.setattr(gpu, name, 3000)
    same_but_for_rounding(index.to(device).search(q_ASH, q_mask_AS, 10, effort=4), wanted, atol=0.02)


@pytest.mark.parametrize("device", DEVICES)
def test_scores_are_those_of_the_decoded_vectors(case, tmp_path, device):
    vectors, q_ASH, q_mask_AS = case
    index = plaid.build(tmp_path / "index", vectors.slice, names(len(vectors)), ORIGIN, rescore=False)
    found = index.to(device).search(q_ASH, q_mask_AS, 20, n_candidates=len(vectors))
    same_but_for_rounding(found, exact.search(index.decoded, q_ASH, q_mask_AS, 20), atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_fewer_candidates_find_less(case, index, device):
    vectors, q_ASH, q_mask_AS = case
    on_device = index.to(device)
    _, wanted = exact.search(vectors, q_ASH, q_mask_AS, 10)
    few, many = (overlap(on_device.search(q_ASH, q_mask_AS, 10, n_candidates=n)[1], wanted) for n in (10, 300))
    assert few < many - 0.02
    with pytest.raises(ValueError, match="effort must be one of 1, 2, 3, 4, not 0"):
        on_device.search(q_ASH, q_mask_AS, 10, effort=0)


@pytest.mark.parametrize("device", DEVICES)
def test_what_was_added_is_found_and_what_was_removed_is_not(case, tmp_path, device):
    vectors, q_ASH, q_mask_AS = case
    ids = names(len(vectors))
    index = plaid.build(tmp_path / "index", vectors.slice(0, 300).slice, ids[:300], ORIGIN)
    index.add(ids[300:], vectors.slice(300, 400))
    index.remove(ids[10:60] + ids[310:320])
    found = index.to(device).search(q_ASH, q_mask_AS, 10, effort=4)
    same_but_for_rounding(found, index.search(q_ASH, q_mask_AS, 10, effort=4), atol=0.02)
    assert index.to(device).ids == index.ids == ids[:10] + ids[60:310] + ids[320:]


@pytest.mark.parametrize("device", DEVICES)
def test_passages_and_queries_without_a_token_find_nothing(tmp_path, device):
    vectors, q_ASH, q_mask_AS = realistic(B=60, A=4, group=10)
    lengths_B = vectors.lengths_B.copy()
    lengths_B[[3, 4]] = 0, lengths_B[3] + lengths_B[4]
    lengths_B[[58, 59]] = lengths_B[58] + lengths_B[59], 0
    vectors = TokenVectors.from_lengths(vectors.vectors_TH, lengths_B)
    q_mask_AS[1] = False
    for build in (exact.build, plaid.build):
        index = build(tmp_path / build.__module__, vectors.slice, names(60), ORIGIN)
        scores, positions = index.to(device).search(q_ASH, q_mask_AS, 60)
        assert (positions[1] == -1).all() and np.isneginf(scores[1]).all()
        for a in (0, 2, 3):
            assert sorted(positions[a]) == [-1, -1, *(b for b in range(60) if b not in (3, 59))]
            assert np.isneginf(scores[a, 58:]).all() and np.isfinite(scores[a, :58]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_exact_search_is_the_same_and_ties_go_to_the_lower_position(case, tmp_path, device):
    vectors, q_ASH, q_mask_AS = case
    twice = TokenVectors.concatenate([vectors, vectors])
    index = exact.build(tmp_path / "exact", twice.slice, names(800), ORIGIN)
    wanted = index.search(q_ASH, q_mask_AS, 20)
    scores, positions = index.to(device).search(q_ASH, q_mask_AS, 20)
    np.testing.assert_allclose(scores, wanted[0], atol=1e-3)
    np.testing.assert_array_equal(positions[:, ::2] + 400, positions[:, 1::2])
    assert overlap(positions, wanted[1]) > 0.99


def test_codes_beyond_sixteen_bits_fit(case, tmp_path):
    """uint32 on the way: more than 65,536 centroids, of which these passages use what they may."""
    parts = [np.array([1, 70_000], np.uint32), np.array([2**31 - 1], np.uint32)]
    some = gpu._OnDevice(None, ["a"], np.array([3]), "cpu")
    assert some.joined(parts, torch.int32).tolist() == [1, 70_000, 2**31 - 1]


@pytest.mark.parametrize("device", DEVICES)
def test_vectors_are_coded_as_on_the_cpu(case, index, device, monkeypatch):
    monkeypatch.setattr(gpu, "CODED", 1000)
    monkeypatch.setattr(residual, "GROUPED", 10**9)  # every centroid is looked at
    vectors_TH, codec = case[0].vectors_TH[:3500], replace(index.codec)
    wanted, found = codec.encode(vectors_TH), gpu.CodecOnDevice(codec, device).encode(vectors_TH)
    for one, other in zip(wanted, found, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert (one == other).mean() > 0.99  # a tie, or nearly one, may go either way
    with pytest.raises(ValueError, match="the index holds 128 dimensions, the vectors 64"):
        gpu.CodecOnDevice(index.codec, device).encode(vectors_TH[:, :64])


@pytest.mark.parametrize("device", DEVICES)
def test_the_nearest_centroid_is_that_of_the_cpu(case, device, monkeypatch):
    monkeypatch.setattr(gpu, "PRODUCTS", 5000)
    monkeypatch.setattr(gpu, "DECODED", 1000)
    vectors_TH = case[0].vectors_TH
    codes_T = gpu.nearest(vectors_TH, vectors_TH[:300], device)
    assert codes_T.dtype == np.int32
    np.testing.assert_array_equal(codes_T, residual.nearest(vectors_TH, vectors_TH[:300]))


@pytest.mark.parametrize("device", DEVICES)
def test_an_index_built_on_a_device_finds_as_much(case, tmp_path, device):
    vectors, q_ASH, q_mask_AS = case
    _, wanted = exact.search(vectors, q_ASH, q_mask_AS, 10)
    found = {}
    for where in (None, device):
        index = plaid.build(tmp_path / str(where), vectors.slice, names(400), ORIGIN, rescore=False, device=where)
        found[where] = overlap(index.search(q_ASH, q_mask_AS, 10)[1], wanted)
    assert found[device] > found[None] - 0.02 > 0.9
