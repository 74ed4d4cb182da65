"""Analysis of 19 languages, then BM25: worked by hand, against its formula in 15 lines, ties, and files on disk."""

import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmlib.data.collection import Collection, Passages
from xmlib.index import analysis
from xmlib.index.analysis import analyser
from xmlib.index.bm25 import BM25
from xmlib.languages import LANGUAGES, SAMPLE


def collection(texts, lang="sw"):
    return Collection("c", lang, "test", Passages.from_pairs((str(i), text) for i, text in enumerate(texts)), {}, {})


def bm25_by_formula(query, documents, k1, b):
    """Lucene's formula over lists of terms, written as it stands."""
    n = len(documents)
    mean_length = sum(map(len, documents)) / n
    scores = []
    for document in documents:
        score = 0.0
        for term in query:
            df = sum(term in other for other in documents)
            idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
            tf = document.count(term)
            score += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean_length))
        scores.append(score)
    return scores


@pytest.mark.parametrize(
    ("lang", "one", "other"),
    [
        ("en", "the countries' capitals", "Country capital"),
        ("es", "los mapas largos", "mapa largo"),
        ("fr", "l'hôtel des hommes", "hôtel homme"),
        ("it", "dell'università", "università"),
        ("pt", "dos mapas longos", "mapa longo"),
        ("id", "yang berjalan", "jalan"),
        ("de", "Straßen und Häuser", "STRASSE haus"),
        ("ru", "в России", "россия"),
        ("zh", "ＧＤＰ北京", "gdp 北京"),
        ("ja", "ﾄｳｷｮｳ", "トウキョウ"),
        ("nl", "de steden", "steden"),
        ("vi", "Hà Nội", unicodedata.normalize("NFD", "hà nội")),
        ("hi", "१९४७ में भारत", "1947 भारत"),
        ("ar", "الجُمهُوريّة العربيـــة ٢٠٢٠", "الجمهورية العربية 2020"),
        ("bn", "২০২০ সালে", "2020 সালে"),
        ("fi", "suomen kaupungit", "Suomen kaupungin"),
        ("ko", "서울의", "서울 울의"),
        ("sw", "mji wa Nairobi", "MJI Nairobi"),
        ("te", "ఒక తెలుగు", "తెలుగు"),
        ("th", "ไทย", "ไท ทย"),
        ("fa", "می‌خواهم", "می خواهم"),
        ("tr", "IŞIK İstanbul", "ışık istanbul"),
    ],
)
def test_forms_of_a_word_and_of_its_letters_and_digits_meet(lang, one, other):
    assert analyser(lang)(one) == analyser(lang)(other) != []


@pytest.mark.parametrize(("lang", "word"), [("hi", "किताबें"), ("te", "తెలంగాణ"), ("bn", "বাংলাদেশের"), ("ta", "தமிழ்")])
def test_vowel_signs_stay_in_their_words(lang, word):
    assert len(analyser(lang)(word)) == 1


def test_chinese_japanese_and_korean_are_cut_into_pairs_in_every_language():
    assert analyser("zh")("北京人口, 2020年") == ["北京", "京人", "人口", "2020", "年"]
    assert analyser("ja")("東京タワー") == ["東京", "京タ", "タワ", "ワー"]
    assert analyser("ko")("서울의 인구") == ["서울", "울의", "인구"]
    assert analyser("en")("city 北京市") == ["citi", "北京", "京市"]


def test_stop_words_exist_where_there_are_words_and_are_dropped():
    assert [lang for lang in SAMPLE if not analysis.stop_words(lang)] == ["zh", "ja", "ko"]
    assert analyser("sw")("mji wa na Kenya") == ["mji", "kenya"]
    for lang in SAMPLE:
        assert analyser(lang)(" ".join(analysis.stop_words(lang))) == [], lang


@given(st.sampled_from(sorted(LANGUAGES)), st.text())
def test_no_text_in_any_language_is_an_error_or_gives_a_term_with_blanks(lang, text):
    for term in analyser(lang)(text):
        assert len(term.split()) == 1


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="unknown language 'xx'; have: af"):
        analyser("xx")


def test_score_worked_by_hand(tmp_path):
    index = BM25.build(tmp_path / "i", collection(["simba", "simba mto", "mto"]), k1=1.0, b=0.0)
    scores_Ak, positions_Ak = index.search(["simba"], k=3)
    # idf = ln(1 + 1.5 / 2.5) = ln 1.6; the part of tf is 1 / (1 + 1), in both passages the same when b is 0
    assert positions_Ak.tolist() == [[0, 1, -1]]
    assert scores_Ak[0, :2] == pytest.approx(math.log(1.6) / 2)
    assert scores_Ak[0, 2] == -np.inf
    assert (scores_Ak.dtype, positions_Ak.dtype) == (np.float32, np.int64)


words = st.lists(st.sampled_from(["simba", "mto", "mlima", "ziwa", "twiga"]), max_size=8)


@settings(max_examples=30, deadline=None)
@given(st.lists(words, min_size=1, max_size=12).filter(any), words, st.sampled_from([(0.9, 0.4), (1.5, 0.75)]))
def test_agrees_with_the_formula(tmp_path_factory, documents, query, parameters):
    index = BM25.build(tmp_path_factory.mktemp("bm25") / "i", collection(map(" ".join, documents)), *parameters)
    scores_Ak, positions_Ak = index.search([" ".join(query)], k=len(documents))
    expected = bm25_by_formula(query, documents, *parameters)
    found = dict(zip(positions_Ak[0].tolist(), scores_Ak[0].tolist(), strict=True))
    found.pop(-1, None)
    assert found == pytest.approx({i: score for i, score in enumerate(expected) if score > 0}, rel=1e-5)
    assert (np.diff(scores_Ak[0][: len(found)]) <= 0).all()


def test_ties_are_settled_by_position_at_the_border_too(tmp_path):
    index = BM25.build(tmp_path / "i", collection(["mto"] * 50 + ["ziwa"]))
    for k in (1, 3, 50):
        assert index.search(["mto"], k)[1].tolist() == [list(range(k))]


def test_a_query_without_known_terms_finds_nothing(tmp_path):
    index = BM25.build(tmp_path / "i", collection(["mto", "", "!?"]))
    for text in ["", "?!", "haijulikani"]:
        scores_Ak, positions_Ak = index.search([text], k=2)
        assert positions_Ak.tolist() == [[-1, -1]]
        assert np.isneginf(scores_Ak).all()


def test_an_index_reopens_with_the_same_results_and_builds_to_the_same_bytes(tmp_path):
    texts = ["simba na mto", "mlima", "mto wa ziwa mto"]
    built = BM25.build(tmp_path / "a", collection(texts))
    opened = BM25.open(tmp_path / "a")
    for one, other in zip(built.search(["mto", "mlima"], 5), opened.search(["mto", "mlima"], 5), strict=True):
        assert (one == other).all()
    assert opened.meta["passages_fingerprint"] == collection(texts).passages.fingerprint
    BM25.build(tmp_path / "b", collection(texts))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_building_again_replaces_quietly_and_leaves_nothing_beside(tmp_path, capfd):
    BM25.build(tmp_path / "i", collection(["simba"]))
    BM25.build(tmp_path / "i", collection(["mto"]))
    assert BM25.open(tmp_path / "i").search(["mto"], 1)[1].tolist() == [[0]]
    assert [path.name for path in tmp_path.iterdir()] == ["i"]
    assert capfd.readouterr() == ("", "")  # bm25s draws progress bars unless told not to


def test_foreign_folders_and_collections_without_words_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no BM25 index: it has no meta.json"):
        BM25.open(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="expected format 'xmlib-bm25-1'"):
        BM25.open(tmp_path)
    with pytest.raises(ValueError, match="no term in 2 passages"):
        BM25.build(tmp_path / "i", collection(["", "?"]))


def test_a_damaged_index_names_the_file(tmp_path):
    BM25.build(tmp_path / "i", collection(["simba mto", "mto"]))
    path = tmp_path / "i" / "data.csc.index.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data.csc.index.npy: expected \d+ bytes, found \d+; build the index again"):
        BM25.open(tmp_path / "i")
    path.unlink()
    with pytest.raises(ValueError, match=r"data.csc.index.npy: expected \d+ bytes, found no file"):
        BM25.open(tmp_path / "i")
