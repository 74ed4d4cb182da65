"""The centroid index: against exact search, bytes against the paper's formula, adding and removing, cut-off builds."""

import numpy as np
import pytest

from xmlib.index import exact, plaid, store
from xmlib.index.vectors import TokenVectors, rows_of
from xmlib.scoring import maxsim_packed

ORIGIN = {"model": "m", "lang": "ko", "collection": "c"}
H = 128


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def realistic(B=400, A=60, S=32, types=300, group=12, topic=0.4, noise=0.35, seed=0):
    """Passages and queries as a trained model might embed them.

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
    return TokenVectors.from_lengths(vectors_TH, lengths_B), q_ASH, np.ones((A, S), dtype=bool)


def names(n):
    return [f"p{i}" for i in range(n)]


def overlap(found_Ak, wanted_Ak):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found_Ak.tolist(), wanted_Ak.tolist(), strict=True)])


@pytest.fixture(scope="module")
def case():
    return realistic()


@pytest.fixture(scope="module")
def index(case, tmp_path_factory):
    return plaid.build(tmp_path_factory.mktemp("plaid") / "index", case[0].slice, names(len(case[0])), ORIGIN)


@pytest.fixture
def small(tmp_path):
    """An index to change: its vectors, ids, folder."""
    vectors, q_ASH, q_mask_AS = realistic(B=60, A=5, group=10)
    ids = names(60)
    plaid.build(tmp_path / "index", vectors.slice, ids, ORIGIN)
    return vectors, ids, tmp_path / "index", q_ASH, q_mask_AS


def test_a_search_of_eight_centroids_finds_the_top_ten_of_exact_search(case, index):
    vectors, q_ASH, q_mask_AS = case
    _, wanted = exact.search(vectors, q_ASH, q_mask_AS, 10)
    _, found = index.search(q_ASH, q_mask_AS, 10, n_probe=8)
    assert overlap(found, wanted) >= 0.95
    # What is missed is what two bits blur: against exact search over the same decoded vectors next to nothing is.
    assert overlap(found, exact.search(index.decoded, q_ASH, q_mask_AS, 10)[1]) >= 0.98
    # The task is hard enough to tell: a stingy search falls short.
    _, stingy = index.search(q_ASH, q_mask_AS, 10, n_probe=1, n_candidates=10)
    assert overlap(stingy, wanted) < 0.9


def test_more_bits_find_more(case, index, tmp_path):
    vectors, q_ASH, q_mask_AS = case
    _, wanted = exact.search(vectors, q_ASH, q_mask_AS, 10)
    found = {2: overlap(index.search(q_ASH, q_mask_AS, 10, n_probe=8)[1], wanted)}
    for n_bits in (1, 4):
        other = plaid.build(tmp_path / str(n_bits), vectors.slice, index.ids, ORIGIN, n_bits=n_bits)
        found[n_bits] = overlap(other.search(q_ASH, q_mask_AS, 10, n_probe=8)[1], wanted)
    assert found[1] < found[2] < found[4]


def test_probing_every_centroid_equals_exact_search_over_the_decoded_vectors(case, index):
    _, q_ASH, q_mask_AS = case
    q_mask_AS = np.random.default_rng(0).random(q_mask_AS.shape) < 0.8
    C = len(index.codec.centroids_CH)
    scores, positions = index.search(q_ASH[:10], q_mask_AS[:10], 20, n_probe=C)
    wanted_scores, wanted = exact.search(index.decoded, q_ASH[:10], q_mask_AS[:10], 20)
    np.testing.assert_array_equal(positions, wanted)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-4)


def test_scores_are_exact_over_the_decoded_vectors_at_any_number_of_probes(case, index):
    _, q_ASH, _ = case
    scores, positions = index.search(q_ASH[:5], np.ones((5, 32), bool), 10, n_probe=1)
    decoded = index.decoded
    for q_SH, scores_k, positions_k in zip(q_ASH, scores, positions, strict=False):
        everything = maxsim_packed(q_SH, decoded.vectors_TH, decoded.offsets_B1)
        np.testing.assert_allclose(scores_k, everything[positions_k], atol=1e-4)


def test_the_first_stage_never_overrates_a_passage(case, index, monkeypatch):
    """Its scores, over the tokens at the probed centroids, are lower bounds of the final ones."""
    _, q_ASH, q_mask_AS = case
    seen = []
    monkeypatch.setattr(plaid, "maxsim_packed", lambda *a: seen.append(maxsim_packed(*a)) or seen[-1])
    index.search(q_ASH[:1], q_mask_AS[:1], 400, n_probe=1)
    bound_N, score_N = seen
    assert len(bound_N) == len(score_N) > 50  # k = all: every passage bounded is scored, in the same order
    assert (bound_N <= score_N + 1e-4).all()
    assert (bound_N < score_N - 0.5).any()


def test_many_queries_equal_one_query_at_a_time(case, index):
    _, q_ASH, q_mask_AS = case
    q_ASH, q_mask_AS = np.concatenate([q_ASH, q_ASH[:7]]), np.concatenate([q_mask_AS, q_mask_AS[:7]])
    _, positions = index.search(q_ASH, q_mask_AS, 10, n_probe=8)
    for a in (0, 63, 64, 66):
        np.testing.assert_array_equal(
            index.search(q_ASH[a : a + 1], q_mask_AS[a : a + 1], 10, n_probe=8)[1][0], positions[a]
        )


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
    assert report["codec_bytes"] == pytest.approx(C * H * 2, abs=1500)
    on_disk = sum(path.stat().st_size for path in index.stored.path.iterdir())
    assert report["total_bytes"] == on_disk
    assert on_disk == sum(report[f"{part}_bytes"] for part in ("token", "codec", "length", "id", "meta"))


def test_the_whole_folder_follows_the_formula_where_tokens_are_many(tmp_path):
    rng = np.random.default_rng(0)
    vectors = TokenVectors.from_lengths(unit(rng.standard_normal((60_000, 128))), np.full(1000, 60))
    index = plaid.build(tmp_path / "index", vectors.slice, names(1000), ORIGIN, n_centroids=16)
    report = index.size_report()
    assert report["formula_bytes"] == 60_000 * (2 * 128 + 4) / 8
    assert report["formula_bytes"] <= report["total_bytes"] <= 1.03 * report["formula_bytes"]


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
        np.testing.assert_array_equal(opened.decoded.slice(0, 60).vectors_TH, before.vectors_TH)
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
        np.testing.assert_array_equal(decoded.vectors_TH, before.vectors_TH[rows_of(before.offsets_B1, kept)[0]])
        _, positions = opened.search(q_ASH, q_mask_AS, 57, n_probe=10_000)
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


def test_a_small_index_is_scored_whole_unless_it_is_told_to_probe(case, index):
    _, q_ASH, q_mask_AS = case
    scores, positions = index.search(q_ASH, q_mask_AS, 10)
    wanted_scores, wanted = exact.search(index.decoded, q_ASH, q_mask_AS, 10)
    np.testing.assert_array_equal(positions, wanted)
    np.testing.assert_array_equal(scores, wanted_scores)
