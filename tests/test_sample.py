"""The generated collection: parallel, deterministic, free of leaks, judged completely, neither trivial nor hopeless."""

import os
import subprocess
import sys
from collections import defaultdict
from statistics import mean

import pytest

from xmlib.data.sample import SPLITS, passages, qrels, queries
from xmlib.data.sample.facts import facts
from xmlib.data.sample.generate import split_of
from xmlib.data.sample.names import foreign_words, is_named, render
from xmlib.data.sample.wording import FOLDER, problems, wording
from xmlib.languages import SAMPLE

WRITTEN = [lang for lang in SAMPLE if (FOLDER / f"{lang}.yaml").exists()]


def _judged(split, scale=1):
    found = defaultdict(set)
    for qid, pid in qrels(split, scale):
        found[qid].add(pid)
    return found


def test_every_language_of_the_sample_has_a_wording():
    assert WRITTEN == SAMPLE


@pytest.mark.parametrize("lang", WRITTEN)
def test_wording_is_complete_and_in_its_script(lang):
    wording(lang)  # raises with the list of problems


def test_problems_are_named():
    text = {section: dict(part) for section, part in wording("en").items()}
    text["questions"]["currency"] = ["Money in {territory}?", "валюта {territory}?", "{city}?"]
    del text["sentences"]["week"]
    wrong = problems(text, "en")
    assert "sentences.week: missing" in wrong
    assert "questions.currency[1]: not in the script of 'en': валюта" in wrong
    assert any(line.startswith("questions.currency[2]: slots ['city']") for line in wrong)
    assert len(wrong) == 3


def test_a_language_without_wording_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"no language 'xx'; have: en"):
        wording("xx")


@pytest.mark.parametrize("lang", WRITTEN)
def test_ids_are_the_same_in_every_language_and_texts_are_whole(lang):
    told = dict(passages(lang))
    assert list(told) == [pid for pid, _ in passages("en")]
    assert len(told) >= 1500
    assert len(set(told.values())) > 0.99 * len(told)
    for split in SPLITS:
        asked = dict(queries(lang, split))
        assert list(asked) == [qid for qid, _ in queries("en", split)]
        assert not [text for text in (*told.values(), *asked.values()) if "None" in text or set(text) & set("{}\n\t")]


def test_questions_are_enough_and_divided_by_territory():
    counts = {split: len(list(queries("en", split))) for split in SPLITS}
    assert sum(counts.values()) >= 2000
    assert counts["test"] >= 500
    for split in SPLITS:
        assert {split_of(pid.split("-")[0]) for _, pid in qrels(split)} == {split}


def test_every_question_is_judged_and_every_judgement_points_to_a_passage():
    pids = {pid for pid, _ in passages("en", scale=3)}
    for split in SPLITS:
        judged = _judged(split, scale=3)
        assert set(judged) == {qid for qid, _ in queries("en", split)}
        assert set().union(*judged.values()) <= pids


def test_a_reverse_question_is_answered_by_every_territory_that_holds_its_object():
    judged = {qid: pids for split in SPLITS for qid, pids in _judged(split).items()}
    asked = [qid for qid in judged if qid.startswith("q-where-currency-")]
    assert len(asked) > 50
    for qid in asked:
        code = qid.rsplit("-", 1)[1]
        holders = {f.territory for f in facts().values() if dict(f.slots).get("currency") == ("currency", code)}
        assert judged[qid] == {f"{territory}-currency" for territory in holders}


def test_scale_adds_passages_and_keeps_those_that_were_there():
    small, large = dict(passages("en")), dict(passages("en", scale=3))
    assert len(large) == 3 * len(small)
    assert {pid: large[pid] for pid in small} == small
    assert len(set(large.values())) > 0.99 * len(large)


@pytest.mark.slow
def test_texts_do_not_depend_on_the_hash_seed_or_on_what_babel_has_read_before():
    code = (
        "import hashlib, sys; from babel import Locale;"
        "[dict(Locale(lang).days['stand-alone']['wide']) for lang in sys.argv[1:]];"
        "from xmlib.data.sample import *;"
        "told = [*passages('en', 2), *passages('nl'), *queries('en', 'test'), *qrels('test', 2)];"
        "print(hashlib.sha256(repr(told).encode()).hexdigest())"
    )
    digests = [
        subprocess.check_output([sys.executable, "-c", code, *before], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed, before in [("1", []), ("2", ["sw"])]
    ]
    assert digests[0] == digests[1]


def test_names_missing_in_one_language_are_left_out_everywhere():
    assert is_named("currency", "EUR")
    assert not is_named("currency", "DEM")  # Telugu, among others, has no name for it
    shown = {value[1] for fact in facts().values() for slot, value in fact.slots if slot == "currency"}
    assert all(is_named("currency", code) for code in shown)


def test_foreign_words_are_found_and_loans_allowed():
    assert foreign_words("పశ్చిమ Europe", "te") == ["Europe"]
    assert foreign_words("Западная CFA", "ru") == []


def test_values_are_rendered_by_the_rules_of_the_language():
    assert render(("percent", 12.5), "de", {}) == "12,5\N{NO-BREAK SPACE}%"
    assert render(("date", (1999, 1, 1)), "es", {}) == "1 de enero de 1999"
    assert render(("date", (1999, 1, 1)), "fr", {}) == "1er janvier 1999"
    assert render(("date", (1999, 1, 11)), "fr", {}) == "11 janvier 1999"
    assert render(("list", (("language", "es"), ("language", "en"))), "es", {}) == "español e inglés"
    assert render(("list", (("language", "en"), ("language", "es"))), "es", {}) == "inglés y español"
    assert render(("list", (("weekday", 5), ("weekday", 6))), "nl", {}) == "zaterdag en zondag"
    assert render(("territory", "NL"), "en", {"territory": {"NL": "the Netherlands"}}) == "the Netherlands"


def test_passages_are_short_and_questions_shorter():
    words = [len(text.split()) for _, text in passages("en")]
    assert 20 <= mean(words) <= 40
    assert max(words) <= 70
    assert 5 <= mean(len(text.split()) for _, text in queries("en", "test")) <= 14


def test_bm25_finds_about_half_of_the_answers_in_english():
    import bm25s

    pids, texts = zip(*passages("en"), strict=True)
    qids, asked = zip(*queries("en", "test"), strict=True)
    judged = _judged("test")
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(asked), stopwords="en", show_progress=False)
    ranked = index.retrieve(tokens, k=10, show_progress=False).documents
    ranks = [[pids[i] in judged[qid] for i in row] for qid, row in zip(qids, ranked, strict=True)]
    assert 0.3 < mean(1 / (1 + row.index(True)) if any(row) else 0 for row in ranks) < 0.75
