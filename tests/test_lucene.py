"""Lucene through Pyserini: what is missing is said; where it is there, it ranks as our own BM25 does."""

import shutil

import numpy as np
import pytest

from tests.test_bm25 import collection
from xmlib.index import lucene
from xmlib.index.bm25 import BM25


@pytest.fixture(autouse=True)
def _ask_again():
    lucene.missing.cache_clear()
    yield
    lucene.missing.cache_clear()


def test_without_pyserini_the_reason_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(lucene.importlib.util, "find_spec", lambda name: None)
    assert lucene.missing() == "pyserini is not installed (pip install pyserini; it needs Java 21 or later)"
    with pytest.raises(RuntimeError, match="no Lucene: pyserini is not installed"):
        lucene.Lucene.build(tmp_path / "i", collection(["simba"]))
    assert list(tmp_path.iterdir()) == []


def test_without_java_the_reason_says_so(monkeypatch):
    monkeypatch.setattr(lucene.importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "there is no Java" in lucene.missing()


def test_a_java_that_does_not_load_anserini_is_reported_in_its_own_words(monkeypatch):
    def too_old(name):
        raise RuntimeError("UnsupportedClassVersionError: class file version 65.0\nand more")

    monkeypatch.setattr(lucene.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("JAVA_HOME", "/old")
    monkeypatch.setattr(lucene, "_java", too_old)
    assert "RuntimeError: UnsupportedClassVersionError: class file version 65.0" in lucene.missing()


def test_a_folder_that_is_not_its_own_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no Lucene index: it has no meta\.json"):
        lucene.Lucene.open(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="expected format 'xmlib-lucene-1'"):
        lucene.Lucene.open(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lang", "texts", "query"),
    [
        ("sw", ["simba mto mto", "simba", "mto ziwa", "ziwa"] * 4, "mto wa simba"),
        ("zh", ["北京人口", "长江大桥", "北京大桥在哪里"], "北京的大桥"),
        ("hi", ["भारत की राजधानी", "नदी पर पुल", "भारत में नदी"], "भारत नदी"),
    ],
)
def test_lucene_ranks_as_our_bm25_and_scores_nearly_the_same(tmp_path, lang, texts, query):
    if lucene.missing():
        pytest.skip(lucene.missing())
    c = collection(texts, lang)
    ours = BM25.build(tmp_path / "ours", c).search([query, "", "haijulikani"], 5)
    index = lucene.Lucene.build(tmp_path / "lucene", c)
    for opened in (index, lucene.Lucene.open(tmp_path / "lucene")):
        scores, positions = opened.search([query, "", "haijulikani"], 5)
        np.testing.assert_array_equal(positions, ours[1])
        # Lengths below 40 are not rounded; Anserini rounds scores to four digits, and takes 1e-6 off for every tie.
        np.testing.assert_allclose(scores, ours[0], atol=1e-4)
    assert (positions[1:] == -1).all()
    assert index.size_report()["total_bytes"] > 500
