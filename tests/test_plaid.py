"""The centroid index: against exact search, bytes against the paper's formula, adding and removing, cut-off builds."""

import itertools
import math
import multiprocessing
import os
import resource
import shutil

import numpy as np
import pytest

from xmlib.index import exact, kernels, plaid, residual, segment, store
from xmlib.index.vectors import TokenVectors
from xmlib.ragged import offsets_of, rows_of
from xmlib.scoring import maxsim_packed

ORIGIN = {"model": "m", "lang": "ko", "collection": "c"}
H = 128


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def realistic(B=400, A=60, S=32, types=300, group=12, topic=0.4, noise=0.35, seed=0, typed=False):
    """Passages and queries as a trained model might embed them; `typed`: with the word that each token is.

    A token's vector is its word's direction, bent by the passage's topic and by noise. Passages come in groups that
    share favourite words and part of their topic, so a query has near misses. A query takes the twelve
    favourite words of a passage; its other tokens are blurred copies of these, as [MASK] tokens are.
    """
    rng = np.random.default_rng(seed)
    strength = (1 + np.arange(H)) ** -0.5
    strength /= np.linalg.norm(strength)

    def draw(*shape):  # length about 1, mostly in few directions, as the vectors of real models
        return rng.standard_normal((*shape, H)) * strength

    words = draw(types)
    lengths_B = rng.integers(20, 71, B)
    group_B = rng.integers(0, B // group, B)
    favourites = rng.integers(0, types, (B // group, 40))
    own_Bw = np.stack([rng.choice(favourites[g], 12, replace=False) for g in group_B])
    topic_BH = topic * np.sqrt(0.5) * (draw(B // group)[group_B] + draw(B))
    document_T = np.repeat(np.arange(B), lengths_B)
    T = len(document_T)
    frequency = 1 / np.arange(5, types + 5)  # Zipf
    common_T = rng.choice(types, T, p=frequency / frequency.sum())
    word_T = np.where(rng.random(T) < 0.5, own_Bw[document_T, rng.integers(0, 12, T)], common_T)
    vectors_TH = unit(words[word_T] + topic_BH[document_T] + noise * draw(T))

    source_A = rng.integers(0, B, A)
    asked_ASH = words[own_Bw[source_A]] + topic_BH[source_A][:, None] + noise * draw(A, 12)
    masks_ASH = asked_ASH[:, rng.integers(0, 12, S - 12)] + noise * draw(A, S - 12)
    q_ASH = unit(np.concatenate([asked_ASH, masks_ASH], axis=1))
    words_T = word_T.astype(np.int32) if typed else None
    return TokenVectors(vectors_TH, offsets_of(lengths_B), words_T), q_ASH, np.ones((A, S), dtype=bool)


def names(n):
    return [f"p{i}" for i in range(n)]


def overlap(found_Ak, wanted_Ak):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found_Ak.tolist(), wanted_Ak.tolist(), strict=True)])


@pytest.fixture(autouse=True)
def lists_are_used(monkeypatch):
    """Though these indexes are so small that it would be quicker to look at every passage."""
    monkeypatch.setattr(segment, "MOST", math.inf)


@pytest.fixture(scope="module")
def case():
    return realistic()


@pytest.fixture(scope="module")
def index(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plaid") / "index"
    return plaid.build(folder, case[0].slice, names(len(case[0])), ORIGIN, rescore=False)


@pytest.fixture(scope="module")
def listed(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plaid") / "index"
    return plaid.build(folder, case[0].slice, names(len(case[0])), ORIGIN, rescore=False, lists=True)


@pytest.fixture(scope="module")
def rescoring(case, tmp_path_factory):
    return plaid.build(tmp_path_factory.mktemp("plaid") / "index", case[0].slice, names(len(case[0])), ORIGIN)


@pytest.fixture
def small(tmp_path):
    """An index to change: its vectors, ids, folder."""
    vectors, q_ASH, q_mask_AS = realistic(B=60, A=5, group=10)
    ids = names(60)
    plaid.build(tmp_path / "index", vectors.slice, ids, ORIGIN)
    return vectors, ids, tmp_path / "index", q_ASH, q_mask_AS


def test_two_bits_find_the_top_ten_of_exact_search(case, index):
    vectors, q_ASH, q_mask_AS = case
    _, wanted = exact.search(vectors, q_ASH, q_mask_AS, 10)
    _, found = index.search(q_ASH, q_mask_AS, 10)
    assert overlap(found, wanted) >= 0.95
    # The task is hard enough to tell: a stingy search falls short.
    _, stingy = index.search(q_ASH, q_mask_AS, 10, n_candidates=10)
    assert overlap(stingy, wanted) < 0.9


def test_the_side_file_makes_up_for_what_two_bits_lose(case, index, rescoring):
    vectors, q_ASH, q_mask_AS = case
    scores, wanted = exact.search(vectors, q_ASH, q_mask_AS, 10)
    rescored, found = rescoring.search(q_ASH, q_mask_AS, 10)
    assert overlap(found, wanted) >= 0.985 > overlap(index.search(q_ASH, q_mask_AS, 10)[1], wanted)
    np.testing.assert_allclose(rescored, scores, atol=0.1)


def test_more_bits_find_more(case, index, tmp_path):
    vectors, q_ASH, q_mask_AS = case
    _, wanted = exact.search(vectors, q_ASH, q_mask_AS, 10)
    found = {2: overlap(index.search(q_ASH, q_mask_AS, 10)[1], wanted)}
    for n_bits in (1, 4):
        other = plaid.build(tmp_path / str(n_bits), vectors.slice, index.ids, ORIGIN, n_bits=n_bits, rescore=False)
        found[n_bits] = overlap(other.search(q_ASH, q_mask_AS, 10)[1], wanted)
    assert found[1] < found[2] < found[4]


def test_more_effort_finds_no_less(case, rescoring):
    vectors, q_ASH, q_mask_AS = case
    _, wanted = exact.search(vectors, q_ASH, q_mask_AS, 10)
    found = [overlap(rescoring.search(q_ASH, q_mask_AS, 10, effort=effort)[1], wanted) for effort in (1, 2, 3, 4)]
    assert found == sorted(found)
    with pytest.raises(ValueError, match="effort must be one of 1, 2, 3, 4, not 5"):
        rescoring.search(q_ASH, q_mask_AS, 10, effort=5)


def test_types_of_tokens_bring_centroids_nearer(case, index, tmp_path):
    vectors = realistic(typed=True)[0]
    typed = plaid.build(tmp_path / "typed", vectors.slice, index.ids, ORIGIN, rescore=False)
    away = {}
    for name, one in (("typed", typed), ("plain", index)):
        codes_T = np.concatenate(list(one.arrays()["codes"]))
        away[name] = 1 - (one.codec.rotate(vectors.vectors_TH) * one.codec.centroids_CH[codes_T]).sum(axis=1).mean()
    assert away["typed"] < 0.95 * away["plain"]
    own_T = typed.codec.types_C[np.concatenate(list(typed.arrays()["codes"]))]
    assert (own_T == vectors.types_T)[np.isin(vectors.types_T, typed.codec.types_C)].all()
    _, wanted = exact.search(*case, 10)
    found = {name: overlap(one.search(*case[1:], 10)[1], wanted) for name, one in (("typed", typed), ("plain", index))}
    assert found["typed"] >= found["plain"] - 0.005


def test_passages_with_and_without_types_are_added_to_an_index_with_types(tmp_path):
    vectors, q_ASH, q_mask_AS = realistic(typed=True)
    ids = names(400)
    index = plaid.build(tmp_path / "index", vectors.slice(0, 300).slice, ids[:300], ORIGIN)
    assert index.codec.types_C is not None
    index.add(ids[300:350], vectors.slice(300, 350))
    untyped = vectors.slice(350, 380)
    index.add(ids[350:380], TokenVectors(untyped.vectors_TH, untyped.offsets_B1))
    strange = vectors.slice(380, 400)
    index.add(ids[380:], TokenVectors(strange.vectors_TH, strange.offsets_B1, strange.types_T + 10_000))
    _, wanted = exact.search(vectors, q_ASH, q_mask_AS, 10)
    assert overlap(plaid.open(tmp_path / "index").search(q_ASH, q_mask_AS, 10)[1], wanted) >= 0.97


@pytest.mark.parametrize("kind", ["index", "rescoring", "listed"])
def test_passages_that_cannot_be_among_the_best_are_not_read(case, kind, request, monkeypatch):
    _, q_ASH, q_mask_AS = case
    index, read = request.getfixturevalue(kind), []
    rerank = segment.Segment.rerank

    def counting(self, tables, found, best_N, *rest):
        read.append(len(best_N))
        rerank(self, tables, found, best_N, *rest)

    monkeypatch.setattr(segment.Segment, "rerank", counting)
    _, found = index.search(q_ASH, q_mask_AS, 10, effort=3)
    n_some = sum(read)
    read.clear()
    index.search(q_ASH, q_mask_AS, 10, effort=4)
    n_all = sum(read)
    assert n_all >= 0.99 * len(case[0]) * len(q_ASH), "the highest effort reads all"
    assert n_some < 0.5 * n_all
    monkeypatch.setattr(plaid, "FIRST", 1)  # the first part is all of them
    assert overlap(found, index.search(q_ASH, q_mask_AS, 10, effort=3)[1]) >= 0.995


def test_scores_are_those_of_the_decoded_vectors(case, index):
    """With every passage a candidate the ranking is that of exact search, up to the last of 16 bits."""
    _, q_ASH, _ = case
    q_mask_AS = np.random.default_rng(0).random((len(q_ASH), 32)) < 0.8
    scores, positions = index.search(q_ASH, q_mask_AS, 20, effort=4, n_candidates=400)
    everything_AB = maxsim_packed(q_ASH, index.decoded.vectors_TH, index.decoded.offsets_B1, q_mask_AS)
    np.testing.assert_allclose(scores, np.take_along_axis(everything_AB, positions, axis=1), atol=0.02)
    assert (np.diff(scores) <= 0).all()
    wanted_scores, _ = exact.search(index.decoded, q_ASH, q_mask_AS, 20)
    np.testing.assert_allclose(scores, wanted_scores, atol=0.02)


def test_tokens_that_are_not_read_hardly_change_a_score(case, index):
    _, q_ASH, q_mask_AS = case
    some, found = index.search(q_ASH, q_mask_AS, 10, effort=3, n_candidates=400)
    every, wanted = index.search(q_ASH, q_mask_AS, 10, effort=4, n_candidates=400)
    assert (some < every).any()  # some tokens were left out
    np.testing.assert_allclose(some, every, rtol=0.01)
    assert overlap(found, wanted) > 0.98


def test_rescored_scores_are_those_of_the_eight_bit_vectors(case, rescoring):
    _, q_ASH, q_mask_AS = case
    scores, positions = rescoring.search(q_ASH[:5], q_mask_AS[:5], 10)
    only, scales = rescoring.segments[0], rescoring.stored.arrays["fine_scales"]
    everything_AB = maxsim_packed(q_ASH[:5], only.fine_TH * scales @ rescoring.codec.rotation_HH.T, only.offsets_B1)
    np.testing.assert_allclose(scores, np.take_along_axis(everything_AB, positions, axis=1), atol=1e-3)


def test_queries_of_any_number_of_tokens_are_searched(case, index):
    _, q_ASH, _ = case
    q_SH = np.concatenate([q_ASH[0], q_ASH[1], q_ASH[2]])
    for S in (1, 31, 33, 70):
        scores, positions = index.search(q_SH[None, :S], np.ones((1, S), bool), 400, effort=4, n_candidates=400)
        everything_B = maxsim_packed(q_SH[:S], index.decoded.vectors_TH, index.decoded.offsets_B1)
        assert sorted(positions[0]) == list(range(400))
        np.testing.assert_allclose(scores[0], everything_B[positions[0]], atol=0.001 + 4e-4 * S)  # 16 bits a token


def test_equal_passages_come_in_order_of_position(tmp_path):
    vectors, q_ASH, q_mask_AS = realistic(B=30, A=3, group=10)
    thrice = TokenVectors.concatenate([vectors, vectors, vectors])
    for rescore in (False, True):
        index = plaid.build(tmp_path / str(rescore), thrice.slice, names(90), ORIGIN, rescore=rescore)
        _, positions = index.search(q_ASH, q_mask_AS, 9)
        best = positions[:, ::3]
        np.testing.assert_array_equal(positions, np.stack([best, best + 30, best + 60], axis=2).reshape(3, 9))


def test_inverted_lists_find_what_looking_at_every_passage_finds(case, index, listed, monkeypatch):
    _, q_ASH, q_mask_AS = case
    C = len(listed.codec.centroids_CH)
    whole = index.search(q_ASH[:10], q_mask_AS[:10], 20)
    for ours, theirs in zip(listed.search(q_ASH[:10], q_mask_AS[:10], 20, n_probe=C), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    wanted = index.search(q_ASH, q_mask_AS, 10)[1]
    monkeypatch.setattr(segment, "LISTED", (1, 0))  # what the lists put first goes on, and no more
    one, many = (
        overlap(listed.search(q_ASH, q_mask_AS, 10, n_probe=n, n_candidates=60)[1], wanted) for n in (1, segment.PROBED)
    )
    assert one < many >= 0.9


@pytest.fixture(scope="module")
def familiar(case, tmp_path_factory):
    """With families of centroids."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residual, "MANY", 100)
        patch.setattr(residual, "FAMILY", 8)
        folder = tmp_path_factory.mktemp("plaid") / "index"
        return plaid.build(folder, case[0].slice, names(len(case[0])), ORIGIN, rescore=False, lists=True)


def test_every_centroid_is_in_one_family_of_its_like(familiar):
    families, centroids_CH = familiar.codec.families, familiar.codec.centroids_CH
    assert sorted(families.members_C) == list(range(len(centroids_CH)))
    family_C = np.repeat(np.arange(len(families.means_GH)), np.diff(families.offsets_G1))
    own = (centroids_CH[families.members_C] * families.means_GH[family_C]).sum(axis=1)
    others = centroids_CH @ families.means_GH.T
    assert own.mean() > others.mean() + 0.3
    np.testing.assert_allclose(
        families.means_GH[3], centroids_CH[families.members_C[family_C == 3]].mean(axis=0), atol=1e-6
    )
    assert residual.families_of(centroids_CH[:99]) is None


@pytest.mark.parametrize("k", [10, 100])
def test_looking_at_near_families_finds_what_looking_at_all_centroids_finds(case, listed, familiar, k, monkeypatch):
    """Exactly where all are near; and of few nearly everything."""
    _, q_ASH, q_mask_AS = case
    wanted = listed.search(q_ASH, q_mask_AS, k, n_probe=8)
    monkeypatch.setattr(segment, "FAMILIES", len(familiar.codec.families.means_GH))
    for ours, theirs in zip(familiar.search(q_ASH, q_mask_AS, k, n_probe=8), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    monkeypatch.setattr(segment, "FAMILIES", 4)
    found = familiar.search(q_ASH, q_mask_AS, k, n_probe=8)
    assert overlap(found[1], wanted[1]) >= 0.95
    same = found[1] == wanted[1]
    np.testing.assert_allclose(found[0][same], wanted[0][same], atol=0.1)


def test_lists_are_kept_where_tokens_are_many_and_asked_for_only_there(case, index, tmp_path, monkeypatch):
    vectors, q_ASH, q_mask_AS = case
    with pytest.raises(ValueError, match=r"n_probe=4: .* has no inverted lists"):
        index.search(q_ASH, q_mask_AS, 10, n_probe=4)
    for module in (plaid, segment):
        monkeypatch.setattr(module, "LISTS", 0)
    monkeypatch.setattr(plaid, "WHOLE", 0)
    large = plaid.build(tmp_path / "index", vectors.slice, index.ids, ORIGIN)
    assert not large.rescores and index.size_report()["list_bytes"] == 0
    assert 1.5 * large.size_report()["tokens"] < large.size_report()["list_bytes"] < 4 * large.size_report()["tokens"]


def test_codes_that_stay_mapped_give_what_unpacked_ones_give(case, listed, monkeypatch):
    _, q_ASH, q_mask_AS = case
    wanted = listed.search(q_ASH, q_mask_AS, 10)
    monkeypatch.setattr(segment, "WHOLE", 0)
    mapped = plaid.open(listed.stored.path)
    for ours, theirs in zip(mapped.search(q_ASH, q_mask_AS, 10), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "_everything" not in mapped.segments[0].__dict__


@pytest.mark.parametrize("whole", [True, False])
def test_every_passage_is_looked_at_where_lists_would_name_most_of_them(case, index, listed, whole, monkeypatch):
    """And codes are in memory: those of an index that is too large for it are not. Nor where lists are asked for."""
    _, q_ASH, q_mask_AS = case
    monkeypatch.setattr(segment, "MOST", 1 / 4)
    monkeypatch.setattr(segment, "PROBED", 1)
    monkeypatch.setattr(segment, "WHOLE", 10**7 * whole)
    again = plaid.open(listed.stored.path)
    found, asked, wanted = (
        again.search(q_ASH, q_mask_AS, 10)[1],
        again.search(q_ASH, q_mask_AS, 10, n_probe=1)[1],
        index.search(q_ASH, q_mask_AS, 10)[1],
    )
    assert np.array_equal(found, wanted) == whole and not np.array_equal(asked, wanted)


def test_a_query_of_more_tokens_than_lists_can_count_is_refused(listed):
    long_ASH = np.ones((1, 2048, listed.codec.rotation_HH.shape[0]), np.float32)
    with pytest.raises(ValueError, match="a query of 2048 tokens; inverted lists take 2047 at most"):
        listed.search(long_ASH, np.ones((1, 2048), bool), 10)
    assert (listed.search(long_ASH[:, :2047], np.ones((1, 2047), bool), 10)[1] >= 0).all()


def test_lists_of_many_blocks_written_in_many_passes_name_every_passage_once(monkeypatch):
    rng = np.random.default_rng(0)
    lengths_B, C = rng.integers(0, 4, 150_000).astype(np.int32), 50
    codes_T = rng.integers(0, C, lengths_B.sum()).astype(np.int32)
    cuts = [0, 40_000, 40_001, 150_000]
    offsets_B1 = offsets_of(lengths_B)
    arrays = {
        "codes": [codes_T[offsets_B1[a] : offsets_B1[b]] for a, b in itertools.pairwise(cuts)],
        "lengths": [lengths_B[a:b] for a, b in itertools.pairwise(cuts)],
    }
    monkeypatch.setattr(segment, "LIST_BYTES", 30_000)
    made = segment.lists_of(arrays, len(lengths_B), C)
    parts = list(made["postings"])
    assert len(parts) > 10
    postings, runs = np.concatenate(parts), made["posting_at"].reshape(-1)
    pairs = set(zip(codes_T.tolist(), np.repeat(np.arange(len(lengths_B)), lengths_B).tolist(), strict=True))
    found = [
        (run // 3, run % 3 * kernels.BLOCK + int(place))
        for run in range(3 * C)
        for place in postings[runs[run] : runs[run + 1]]
    ]
    assert len(found) == len(set(found)) and set(found) == pairs
    assert found == sorted(found)


def test_the_highest_centroids_and_what_they_add_up_to(case):
    """Against sorting and adding, passage by passage."""
    rng = np.random.default_rng(1)
    C, S, L, B = 700, 40, 64, 200
    bytes_CL = rng.integers(0, 256, (C, L)).astype(np.uint8)
    cell_N, above_N, start_S1 = kernels.highest(bytes_CL, np.arange(C), S, 5, np.empty(L, np.uint8))
    lengths_B = rng.integers(0, 30, B).astype(np.int32)
    codes_T = rng.integers(0, C, lengths_B.sum()).astype(np.int32)
    wanted_B = np.zeros(B, np.int32)
    for s in range(S):
        least = np.sort(bytes_CL[:, s])[-5]
        chosen = np.flatnonzero(bytes_CL[:, s] >= least)
        run = slice(start_S1[s], start_S1[s + 1])
        assert sorted(cell_N[run]) == chosen.tolist()
        np.testing.assert_array_equal(above_N[run], bytes_CL[cell_N[run], s].astype(int) - least + 1)
        assert (np.diff(above_N[run]) <= 0).all()
        gain_C = np.where(bytes_CL[:, s] >= least, bytes_CL[:, s].astype(int) - least + 1, 0)
        for b, codes in enumerate(np.split(codes_T, np.cumsum(lengths_B)[:-1])):
            wanted_B[b] += gain_C[codes].max(initial=0)
    made = segment.lists_of({"codes": [codes_T], "lengths": [lengths_B]}, B, C)
    lists = made["posting_at"], np.concatenate(list(made["postings"]))
    gone_N = np.array([3, 50])
    wanted_B[gone_N] = 0
    for n in (B, 20):
        found = kernels.listed(cell_N, above_N, start_S1, start_S1[1:], *lists, 1, (0, 1), gone_N, n)
        best_N = np.sort(np.argsort(-wanted_B, kind="stable")[: min(n, (wanted_B > 0).sum())])
        np.testing.assert_array_equal(found[0], best_N)
        np.testing.assert_array_equal(found[1], wanted_B[best_N])


def test_a_query_token_looks_at_no_more_lists_once_they_hold_enough():
    size_C = np.array([10, 3, 5, 100, 1])
    cell_N, start_S1 = np.int32([0, 1, 2, 3, 0, 4, 4, 1]), np.array([0, 3, 5, 8])
    assert kernels.ends_within(cell_N, start_S1, size_C, 12).tolist() == [2, 4, 8]
    assert kernels.ends_within(cell_N, start_S1, size_C, 1).tolist() == [1, 4, 6]


def test_a_passage_of_no_list_is_taken_to_have_some_of_what_the_last_list_adds():
    start_S1, stop_S, above_N = np.array([0, 3, 5]), np.array([2, 5]), np.int32([40, 13, 7, 9, 1])
    kernels.less_unseen(above_N, start_S1, stop_S, 0.75)
    assert above_N.tolist() == [31, 4, 7, 9, 1]  # 9 of the first token's 13 less; 7 lies behind its end; 0 of 1 less


@pytest.mark.parametrize("n", [1, 700, 5000])
def test_passages_of_many_blocks_are_listed_as_if_there_was_one(n):
    """Few scores, so that most are ties; against sorting."""
    rng = np.random.default_rng(2)
    B, C = 3 * kernels.BLOCK - 1000, 40
    codes_T, lengths_B = rng.integers(0, C, B).astype(np.int32), np.ones(B, np.int32)
    made = segment.lists_of({"codes": [codes_T], "lengths": [lengths_B]}, B, C)
    lists = made["posting_at"], np.concatenate(list(made["postings"]))
    cell_N, above_N = np.arange(10, dtype=np.int32), np.int32([9, 9, 7, 7, 7, 5, 3, 2, 1, 1])
    score_B = np.append(above_N, np.zeros(C - 10, np.int32))[codes_T]
    gone_N = np.flatnonzero(score_B == 9)[::2]
    score_B[gone_N] = 0
    wanted_N = np.sort(np.argsort(-score_B, kind="stable")[:n])
    cells = (cell_N, above_N, np.array([0]), np.array([10]))
    found = [kernels.listed(*cells, *lists, 3, span, gone_N, n) for span in ((0, 3), (1, 3))]
    np.testing.assert_array_equal(found[0][0], wanted_N)
    np.testing.assert_array_equal(found[0][1], score_B[wanted_N])
    assert found[1][0].min() >= kernels.BLOCK and len(found[1][0]) == n


def test_lists_follow_what_is_added_and_removed(case, listed, tmp_path):
    vectors, q_ASH, q_mask_AS = case
    C = len(listed.codec.centroids_CH)
    shutil.copytree(listed.stored.path, tmp_path / "copy")
    changed = plaid.open(tmp_path / "copy")
    changed.remove(names(200))
    changed.add([f"again {name}" for name in names(200)], vectors.slice(0, 200))
    scores, positions = changed.search(q_ASH, q_mask_AS, 10, n_probe=C)
    before, at = listed.search(q_ASH, q_mask_AS, 10, n_probe=C)
    np.testing.assert_allclose(scores, before, atol=0.2)  # a build encodes vectors that it has kept in 16 bits
    assert overlap(positions, (at - 200) % 400) >= 0.98


def test_a_build_of_more_chunks_than_files_may_be_open(tmp_path):
    """Every chunk leaves files behind; they are opened when it is their turn."""
    vectors, _, _ = realistic(B=150, A=2, group=10)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 40, limits[1]))
    try:
        index = plaid.build(tmp_path / "index", vectors.slice, names(150), ORIGIN, chunk_passages=1, n_centroids=64)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(index.ids) == 150


def test_threads_change_nothing(case, rescoring):
    _, q_ASH, q_mask_AS = case
    alone = rescoring.search(q_ASH, q_mask_AS, 10, threads=1)
    for ours, theirs in zip(rescoring.search(q_ASH, q_mask_AS, 10, threads=3), alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own(case, index):
    _, q_ASH, q_mask_AS = case
    ours = index.search(q_ASH[:1], q_mask_AS[:1], 10, threads=2)  # whose threads stay in this process
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=lambda: send.send(index.search(q_ASH[:1], q_mask_AS[:1], 10, threads=2)))
    child.start()
    try:
        assert receive.poll(60), "the search of the forked process waits for threads that it does not have"
        for mine, theirs in zip(ours, receive.recv(), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("kind", ["index", "listed", "rescoring"])
def test_a_query_that_threads_share_finds_the_same(case, kind, request):
    index, (_, q_ASH, q_mask_AS) = request.getfixturevalue(kind), case
    for k, threads in ((1, 2), (10, 3), (300, 20)):
        alone = index.search(q_ASH[:2], q_mask_AS[:2], k, threads=1)
        for ours, theirs in zip(index.search(q_ASH[:2], q_mask_AS[:2], k, threads=threads), alone, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_many_queries_equal_one_query_at_a_time(case, index):
    _, q_ASH, q_mask_AS = case
    q_ASH, q_mask_AS = np.concatenate([q_ASH, q_ASH[:7]]), np.concatenate([q_mask_AS, q_mask_AS[:7]])
    _, positions = index.search(q_ASH, q_mask_AS, 10)
    for a in (0, 63, 64, 66):
        np.testing.assert_array_equal(index.search(q_ASH[a : a + 1], q_mask_AS[a : a + 1], 10)[1][0], positions[a])


def test_rows_end_in_nothing_where_too_little_is_found(small):
    _, _, folder, q_ASH, q_mask_AS = small
    q_mask_AS[1] = False
    scores, positions = plaid.open(folder).search(q_ASH, q_mask_AS, 100)
    assert (positions[:, 60:] == -1).all()
    assert np.isneginf(scores[:, 60:]).all()
    assert (positions[1] == -1).all()  # a query with no token finds nothing
    assert np.isneginf(scores[1]).all()


def test_token_bytes_follow_the_formula_of_the_paper(index):
    report = index.size_report()
    C = len(index.codec.centroids_CH)
    assert C == 2048
    assert report["formula_bytes"] == report["tokens"] * (2 * H + 11) / 8
    assert report["token_bytes"] == pytest.approx(report["formula_bytes"], rel=0.03)
    assert report["codec_bytes"] == pytest.approx(C * H * 2 + 256 * H * 4 + H * H * 4, abs=1500)
    assert report["rescore_bytes"] == 0
    on_disk = sum(path.stat().st_size for path in index.stored.path.iterdir())
    assert report["total_bytes"] == on_disk
    assert on_disk == sum(report[f"{part}_bytes"] for part in ("token", "rescore", "codec", "length", "id", "meta"))


def test_what_the_side_file_adds_is_said(index, rescoring):
    with_it, without = rescoring.size_report(), index.size_report()
    assert with_it["rescore_bytes"] == pytest.approx(with_it["tokens"] * H, abs=1000)
    assert with_it["total_bytes"] == pytest.approx(without["total_bytes"] + with_it["rescore_bytes"], abs=500)
    assert with_it["token_bytes"] == without["token_bytes"]
    assert rescoring.stored.meta["files"]["fine"]["bytes"] < with_it["rescore_bytes"]


def test_the_whole_folder_follows_the_formula_where_tokens_are_many(tmp_path):
    rng = np.random.default_rng(0)
    vectors = TokenVectors.from_lengths(unit(rng.standard_normal((200_000, 128))), np.full(2000, 100))
    index = plaid.build(tmp_path / "index", vectors.slice, names(2000), ORIGIN, n_centroids=1024, rescore=False)
    report = index.size_report()
    assert report["formula_bytes"] == 200_000 * (2 * 128 + 10) / 8
    beside_the_codec = report["total_bytes"] - report["codec_bytes"]  # which no longer grows
    assert report["formula_bytes"] <= beside_the_codec <= 1.03 * report["formula_bytes"]


def test_reopening_gives_the_same_answers(case, index):
    _, q_ASH, q_mask_AS = case
    store.verify(index.stored.path)
    again = plaid.open(index.stored.path)
    assert again.ids == index.ids
    for ours, theirs in zip(again.search(q_ASH, q_mask_AS, 5), index.search(q_ASH, q_mask_AS, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_building_twice_gives_the_same_files(small, tmp_path):
    vectors, ids, folder, _, _ = small
    plaid.build(tmp_path / "again", vectors.slice, ids, ORIGIN)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("fail_at", [1, 5, 8])
def test_a_build_cut_off_anywhere_encodes_each_chunk_once_and_ends_the_same(small, tmp_path, monkeypatch, fail_at):
    vectors, ids, _, _, _ = small
    monkeypatch.setattr(plaid, "sample_passages", lambda n: n // 2)  # so that some chunks come after the training
    whole = plaid.build(tmp_path / "whole", vectors.slice, ids, ORIGIN, chunk_passages=6)
    asked = []

    def chunks(start, stop):
        if len(asked) == fail_at and "cut" not in asked:
            asked.append("cut")
            raise RuntimeError("cut")
        asked.append(start)
        return vectors.slice(start, stop)

    with pytest.raises(RuntimeError, match="cut"):
        plaid.build(tmp_path / "resumed", chunks, ids, ORIGIN, chunk_passages=6)
    resumed = plaid.build(tmp_path / "resumed", chunks, ids, ORIGIN, chunk_passages=6)
    asked.remove("cut")
    assert sorted(asked) == list(range(0, 60, 6))
    np.testing.assert_array_equal(resumed.decoded.vectors_TH, whole.decoded.vectors_TH)


def test_a_build_cut_off_after_training_does_not_train_again(small, tmp_path, monkeypatch):
    vectors, ids, _, _, _ = small

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "create", cut)
        plaid.build(tmp_path / "resumed", vectors.slice, ids, ORIGIN)
    monkeypatch.setattr(plaid.residual, "train", cut)
    assert plaid.build(tmp_path / "resumed", cut, ids, ORIGIN).ids == ids


def test_added_passages_are_found_and_stay(small):
    _, ids, folder, _, q_mask_AS = small
    new, _, _ = realistic(B=20, A=5, group=10, seed=9)
    index = plaid.open(folder)
    before = index.decoded
    index.add([f"new{i}" for i in range(20)], new)
    for opened in (index, plaid.open(folder)):
        assert opened.ids == ids + [f"new{i}" for i in range(20)]
        np.testing.assert_allclose(opened.decoded.slice(0, 60).vectors_TH, before.vectors_TH, atol=1e-6)
        own_words = new.vectors_TH[new.offsets_B1[7] :][None, :15]  # the first words of new7
        assert opened.search(own_words, q_mask_AS[:1, :15], 1)[1].tolist() == [[67]]
    store.verify(folder)


def test_removed_passages_are_gone_and_the_others_unchanged(small):
    vectors, ids, folder, q_ASH, q_mask_AS = small
    index = plaid.open(folder)
    before = index.decoded
    index.remove(["p3", "p59", "p0"])
    kept = np.setdiff1d(np.arange(60), [0, 3, 59])
    for opened in (index, plaid.open(folder)):
        assert opened.ids == [ids[position] for position in kept]
        decoded = opened.decoded
        np.testing.assert_array_equal(decoded.lengths_B, vectors.lengths_B[kept])
        rows = rows_of(before.offsets_B1, kept)[0]
        np.testing.assert_allclose(decoded.vectors_TH, before.vectors_TH[rows], atol=1e-6)
        _, positions = opened.search(q_ASH, q_mask_AS, 57, n_candidates=60)
        assert sorted(positions[0]) == list(range(57))
    store.verify(folder)


def test_adding_what_was_removed_gives_back_the_same_answers(small):
    vectors, _, folder, q_ASH, q_mask_AS = small
    index = plaid.open(folder)
    wanted = index.search(q_ASH, q_mask_AS, 10)
    index.remove(["p58", "p59"])
    rounded = TokenVectors(vectors.vectors_TH.astype(np.float16), vectors.offsets_B1)  # as building keeps them
    index.add(["p58", "p59"], rounded.slice(58, 60))
    for ours, theirs in zip(index.search(q_ASH, q_mask_AS, 10), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index, new: index.add(["p0"], new.slice(0, 1)), "passage id 'p0' is in the index already"),
        (lambda index, new: index.add(["x", "x"], new.slice(0, 2)), "duplicate passage id 'x'"),
        (lambda index, new: index.add(["x"], new.slice(0, 2)), "1 ids for 2 passages"),
        (lambda index, new: index.remove(["p1", "q1"]), "passage id 'q1' is not in the index"),
        (lambda index, new: index.remove(["p1", "p1"]), "given twice"),
        (lambda index, new: index.remove(list(index.ids)), "at least one passage"),
    ],
)
def test_changes_that_will_not_do_are_refused_and_change_nothing(small, change, message):
    vectors, ids, folder, _, _ = small
    index = plaid.open(folder)
    with pytest.raises(ValueError, match=message):
        change(index, vectors)
    assert index.ids == plaid.open(folder).ids == ids
    store.verify(folder)


def test_a_change_cut_off_leaves_the_index_as_it_was(small, monkeypatch):
    _, ids, folder, _, _ = small
    index = plaid.open(folder)
    before = index.decoded.vectors_TH

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "_write_meta", cut)
        index.remove(["p1"])
    opened = plaid.open(folder)
    assert opened.ids == ids
    np.testing.assert_array_equal(opened.decoded.vectors_TH, before)


def test_passages_with_no_token_are_kept_and_never_found(tmp_path):
    rng = np.random.default_rng(0)
    vectors = TokenVectors.from_lengths(unit(rng.standard_normal((5, 8))), np.array([0, 2, 0, 3]))
    index = plaid.build(tmp_path / "index", vectors.slice, names(4), ORIGIN)
    q_ASH, q_mask_AS = unit(rng.standard_normal((1, 2, 8))), np.ones((1, 2), bool)
    assert sorted(index.search(q_ASH, q_mask_AS, 4)[1][0]) == [-1, -1, 1, 3]
    index.remove(["p1", "p3"])
    assert index.search(q_ASH, q_mask_AS, 2)[1].tolist() == [[-1, -1]]
    with pytest.raises(ValueError, match="every passage of the sample is empty"):
        plaid.build(tmp_path / "empty", lambda start, stop: vectors.slice(0, 1), ["a"], ORIGIN)


def test_unknown_bit_widths_are_refused(tmp_path):
    vectors = realistic(B=20, A=1)[0]
    with pytest.raises(ValueError, match="n_bits must be one of 1, 2, 4, not 3"):
        plaid.build(tmp_path / "index", vectors.slice, names(20), ORIGIN, n_bits=3)
