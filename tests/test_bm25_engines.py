"""The BM25 engines: both find exactly what brute force over their own weights finds, and what bm25s finds."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_bm25 import bm25_by_formula, collection
from xmlib.index import document_at_a_time, inverted, score_at_a_time, store
from xmlib.index.bm25 import BM25
from xmlib.index.document_at_a_time import DocumentAtATime
from xmlib.index.score_at_a_time import ScoreAtATime

ENGINES = [DocumentAtATime, ScoreAtATime]
SENTENCES = {  # words of one text each, drawn from again and again
    "en": "The river runs past old towers and bridges; who built the bridge in 1947?",
    "ar": "الجُمهُوريّة العربيـــة تأسست في مدينة القاهرة على نهر النيل ٢٠٢٠",
    "zh": "北京 人口 是 多少 二零二零年 长江 大桥 在 哪里 GDP",
    "hi": "१९४७ में भारत की राजधानी नदी पर पुल किसने बनाया था किताबें",
    "fi": "kaupungin vanha silta ja joki Suomen pääkaupunki milloin rakennettiin",
    "ja": "東京タワー は どこ です か 川 の 橋 ﾄｳｷｮｳ",
    "sw": "mji mkuu wa Kenya ni Nairobi na mto wa Tana simba twiga ziwa mlima",
}


def brute_force(postings, query, k, k1=0.9, b=0.4):
    """Sums of float32 weights in float64, in the order of the postings; the k best above 0, ties by position."""
    term_N, repeats_N = query
    idf_V = inverted.idf(np.diff(postings.offsets_V1), len(postings.length_B))
    norm_B = inverted.norm(postings.length_B, k1, b)
    score_B = np.zeros(len(postings.length_B))
    for v, repeats in zip(term_N, repeats_N, strict=True):
        span = slice(postings.offsets_V1[v], postings.offsets_V1[v + 1])
        count_P = postings.count_P[span].astype(np.float32)
        weight_P = idf_V[v] * count_P / (count_P + norm_B[postings.document_P[span]])
        assert weight_P.dtype == np.float32
        score_B[postings.document_P[span]] += repeats * weight_P.astype(np.float64)
    score_B = score_B.astype(np.float32)
    positions = np.flatnonzero(score_B > 0)
    best = positions[np.argsort(-score_B[positions], kind="stable")][:k]
    return score_B[best], best


def zipf(B, V, mean_length, seed=0):
    """Passages of words w0, w1, … with Zipf's frequencies, in an order that clusters them, as collections are."""
    rng = np.random.default_rng(seed)
    length_B = rng.poisson(mean_length, B) + 1
    word_T = rng.zipf(1.3, length_B.sum()) % V
    word_T[rng.random(len(word_T)) < 0.2] //= 3
    shift_T = np.repeat(np.arange(B) // 200 * 7, length_B)
    word_T = np.where(word_T > 30, (word_T + shift_T) % V, word_T)
    offsets = np.concatenate([[0], np.cumsum(length_B)])
    return [" ".join(f"w{w}" for w in word_T[a:b]) for a, b in pairwise(offsets)]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """3,000 passages, so that terms have many runs; their postings, both engines, queries, collection and folder."""
    texts = zipf(3000, 800, 30)
    c = collection(texts)
    folder = tmp_path_factory.mktemp("engines")
    queries = [f"w{a} w{b} w{a + b} w{b % 9} w{a} w1" for a in range(0, 60, 3) for b in (1, 40, 300)]
    queries += ["w0", "w1 w2", " ".join(f"w{i}" for i in range(40)), "haijulikani", ""]
    return inverted.invert(c), {cls: cls.build(folder / cls.KIND, c) for cls in ENGINES}, queries, c, folder


@pytest.mark.parametrize("k", [1, 10, 300, 5000])
def test_document_at_a_time_is_bit_for_bit_what_brute_force_finds(case, k):
    postings, engines, queries, _, _ = case
    engine = engines[DocumentAtATime]
    scores_Ak, positions_Ak = engine.search(queries, k)
    for text, scores, positions in zip(queries, scores_Ak, positions_Ak, strict=True):
        expected_scores, expected = brute_force(postings, engine.encode(text), k)
        np.testing.assert_array_equal(positions[: len(expected)], expected)
        np.testing.assert_array_equal(scores[: len(expected)], expected_scores)
        assert (positions[len(expected) :] == -1).all() and np.isneginf(scores[len(expected) :]).all()


@pytest.mark.parametrize("k", [1, 10, 5000])
def test_score_at_a_time_is_within_a_step_per_term_and_exact_over_its_impacts(case, k):
    postings, engines, queries, _, _ = case
    engine = engines[ScoreAtATime]
    weight_P = inverted.weights(
        inverted.idf(np.diff(postings.offsets_V1), len(postings.length_B)),
        inverted.norm(postings.length_B, 0.9, 0.4),
        postings.offsets_V1,
        postings.document_P,
        postings.count_P,
    )
    assert engine.step == pytest.approx(weight_P.max() / score_at_a_time.LEVELS)
    impact_P = np.maximum(np.rint(weight_P / engine.step), 1)
    for text in queries:
        terms, repeats = engine.encode(text)
        scores, positions = engine.find((terms, repeats), k)
        sum_B, exact_B = np.zeros(len(postings.length_B)), np.zeros(len(postings.length_B))
        for v, times in zip(terms, repeats, strict=True):
            span = slice(postings.offsets_V1[v], postings.offsets_V1[v + 1])
            sum_B[postings.document_P[span]] += times * impact_P[span]
            exact_B[postings.document_P[span]] += times * weight_P[span]
        found = np.flatnonzero(sum_B)
        best = found[np.argsort(-sum_B[found], kind="stable")][:k]
        np.testing.assert_array_equal(positions, best)
        np.testing.assert_allclose(scores, sum_B[best] * engine.step, rtol=1e-6)
        assert (np.abs(scores - exact_B[best]) <= engine.step * repeats.sum() + 1e-5).all()


def test_a_budget_of_postings_is_kept_and_more_of_it_finds_more(case):
    _, engines, queries, _, _ = case
    engine = engines[ScoreAtATime]
    whole = engine.search(queries[:30], 10)[1]
    shares = []
    for rho in (0, 50, 400, 3000, 10**9):
        found = engine.search(queries[:30], 10, rho=rho)[1]
        shares.append(np.mean([len(set(a) & set(b) - {-1}) / 10 for a, b in zip(found, whole, strict=True)]))
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares) and 0 < shares[1] < shares[3]
    scores, _ = engine.find(engine.encode("w0 w1"), 3000, rho=200)
    assert 0 < len(scores) <= 200
    np.testing.assert_array_equal(engine.search(queries[:30], 10)[1], whole)  # nothing of a cut search stays behind


def test_runs_that_cannot_hold_a_result_are_never_decoded(tmp_path, monkeypatch):
    rare = range(0, 3000, 500)
    texts = [f"{'mto' if i % 3 == 0 or i in rare else 'mlima'} {'ziwa' if i in rare else 'simba'}" for i in range(3000)]
    engine = DocumentAtATime.build(tmp_path / "i", collection(texts))
    query, index = engine.encode("ziwa mto"), engine._index
    decoded, seek = set(), document_at_a_time._seek

    def watched(i, wanted, cursors, index):
        seek(i, wanted, cursors, index)
        decoded.add(int(cursors.read_N[i]))

    monkeypatch.setattr(document_at_a_time, "_add", document_at_a_time._add.py_func)  # which calls `_seek` as well
    monkeypatch.setattr(document_at_a_time, "_seek", watched)
    assert document_at_a_time._search.py_func(*query, 2, index)[1].tolist() == [0, 500]
    few, runs = len(decoded), len(index.size_R[index.runs_V1[query[0][1]] : index.runs_V1[query[0][1] + 1]])
    decoded.clear()
    blind = index._replace(best_R=np.full_like(index.best_R, 99), best_V=np.full_like(index.best_V, 99))
    assert document_at_a_time._search.py_func(*query, 2, blind)[1].tolist() == [0, 500]
    assert few <= 4 < runs <= len(decoded)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), lang=st.sampled_from(sorted(SENTENCES)), k=st.integers(1, 12))
def test_all_engines_agree_with_bm25s_in_every_language(tmp_path_factory, data, lang, k):
    words = st.lists(st.sampled_from(SENTENCES[lang].split()), max_size=8).map(" ".join)
    texts = data.draw(st.lists(words, min_size=1, max_size=12))
    query = data.draw(words)
    c, folder = collection([*texts, SENTENCES[lang]], lang), tmp_path_factory.mktemp("agree")
    k1, b = data.draw(st.sampled_from([(0.9, 0.4), (1.5, 0.75), (0.82, 0.68)]))
    theirs = BM25.build(folder / "bm25s", c, k1, b).search([query], len(texts) + 1)
    known = dict(zip(theirs[1][0].tolist(), theirs[0][0].tolist(), strict=True))
    for cls in ENGINES:
        engine = cls.build(folder / cls.KIND, c, k1, b)
        scores, positions = (row[0] for row in engine.search([query], k))
        real = positions >= 0
        assert real.sum() == min(k, sum(p >= 0 for p in known))
        _, repeats = engine.encode(query)
        error = engine.step * repeats.sum() if cls is ScoreAtATime else 0
        for score, position in zip(scores[real], positions[real], strict=True):
            assert math.isclose(score, known[position], rel_tol=1e-5, abs_tol=error)
        assert (np.diff(scores[real]) <= 0).all()
        best = sorted((s for p, s in known.items() if p >= 0), reverse=True)[: real.sum()]
        np.testing.assert_allclose(scores[real], best, rtol=1e-5, atol=error)


def test_scores_are_those_of_the_formula(tmp_path):
    documents = [["simba", "mto", "mto"], ["mto"], ["ziwa", "simba"]]
    engine = DocumentAtATime.build(tmp_path / "i", collection(map(" ".join, documents)))
    scores, positions = engine.search(["mto simba simba"], 3)
    expected = bm25_by_formula(["mto", "simba", "simba"], documents, 0.9, 0.4)
    np.testing.assert_allclose(scores[0], np.array(expected)[positions[0]], rtol=1e-6)
    assert (scores.dtype, positions.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("cls", ENGINES)
def test_ties_are_settled_by_position_at_the_border_too(tmp_path, cls):
    index = cls.build(tmp_path / "i", collection(["mto"] * 300 + ["ziwa"]))
    for k in (1, 3, 299, 300):
        assert index.search(["mto"], k)[1].tolist() == [list(range(k))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 32), st.integers(0, 2**32 - 1)), max_size=60))
def test_packed_numbers_come_back(numbers):
    numbers = [(width, value & ((1 << width) - 1)) for width, value in numbers]
    words, bit = np.zeros(sum(width for width, _ in numbers) // 32 + 2, np.uint32), 0
    for width, value in numbers:
        inverted.put(words, bit, width, value)
        bit += width
    bit = 0
    for width, value in numbers:
        assert inverted.get(words, bit, width) == value and inverted.width_of(value) <= width
        bit += width


@pytest.mark.parametrize("cls", ENGINES)
def test_an_index_reopens_with_the_same_results_and_builds_to_the_same_bytes(case, tmp_path, cls):
    _, engines, queries, c, folder = case
    opened = cls.open(folder / cls.KIND)
    for one, other in zip(engines[cls].search(queries, 7), opened.search(queries, 7), strict=True):
        np.testing.assert_array_equal(one, other)
    cls.build(tmp_path / "again", c)
    for path in (folder / cls.KIND).iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    report = opened.size_report()
    assert report["total_bytes"] == sum(path.stat().st_size for path in (folder / cls.KIND).iterdir())
    assert report["posting_bytes"] < 8 * int(np.diff(case[0].offsets_V1).sum())  # what bm25s takes for each
    store.verify(folder / cls.KIND)


@pytest.mark.parametrize("cls", ENGINES)
def test_foreign_damaged_and_outdated_folders_are_refused(tmp_path, cls, monkeypatch):
    cls.build(tmp_path / "i", collection(["simba mto", "mto"]))
    with pytest.raises(FileExistsError, match="exists already"):
        cls.build(tmp_path / "i", collection(["simba"]))
    other = ENGINES[cls is DocumentAtATime]
    with pytest.raises(store.IndexFolderError, match=f"expected an index of kind '{other.KIND}'"):
        other.open(tmp_path / "i")
    with monkeypatch.context() as patch:
        patch.setattr(inverted.analysis, "VERSION", 99)
        with pytest.raises(store.IndexFolderError, match="expected analysis 99, found 1; build it again"):
            cls.open(tmp_path / "i")
    path = tmp_path / "i" / "bits.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(store.IndexFolderError, match=r"bits.npy has \d+ bytes; expected \d+"):
        cls.open(tmp_path / "i")
    with pytest.raises(ValueError, match="no term in 2 passages"):
        cls.build(tmp_path / "none", collection(["", "?"]))
    assert not (tmp_path / "none").exists()
