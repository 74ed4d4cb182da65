"""The collection for testing out of domain: each language its own, judged completely, neither trivial nor hopeless."""

import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest

from xmlib.data.collection import Collection
from xmlib.data.sample import passages as passages_of_sample
from xmlib.data.sample.names import SCRIPTS
from xmlib.data.sample_ood import load, passages
from xmlib.data.sample_ood.facts import facts
from xmlib.data.sample_ood.wording import fill, problems, wording
from xmlib.data.sources import collection_languages, open_collection
from xmlib.languages import LANGUAGES, MRTYDI


@pytest.fixture(scope="module", params=MRTYDI)
def collection(request) -> Collection:
    return load(request.param)


def _fact(lang, kind):
    return next(dict(fact.slots) for fact in facts()[lang] if fact.kind == kind)


def test_facts_are_those_of_the_language():
    assert _fact("fi", "week") == {"monday": ("text", "maanantai"), "friday": ("text", "perjantai")}
    assert _fact("cs", "weekend") == {"saturday": ("text", "sobota"), "sunday": ("text", "neděle")}
    assert _fact("cs", "months")["january"] == ("text", "leden")  # not "ledna", its form within a date
    assert _fact("ar", "plural")["count"] == ("text", "6")
    assert _fact("de", "number")["number"] == ("text", "9.876.543,21")
    assert _fact("eu", "percent")["percent"] == ("text", "%\N{NO-BREAK SPACE}45")
    assert {fact.kind for fact in facts()["ur"]} > {"rtl", "clock_12"}
    assert {fact.kind for fact in facts()["hi"]}.isdisjoint({"million"})  # it counts in lakh


def test_the_languages_are_not_parallel():
    told = {lang: {tuple(pid.split("-")[:2]) for pid, _ in passages(lang)} for lang in MRTYDI}
    assert all({own for own, _ in pids} == {lang} for lang, pids in told.items())
    subjects = {lang: {subject for _, subject in pids} for lang, pids in told.items()}
    assert all(lang not in subjects[lang] for lang in MRTYDI)
    assert all(len(subjects[a] - subjects[b]) >= 15 for a in MRTYDI for b in MRTYDI if a != b)


def test_there_are_enough_passages_and_questions_and_none_twice(collection):
    texts = [text for _, text in collection.passages.items()]
    assert len(texts) >= 1000
    assert len(set(texts)) == len(texts)
    assert len(collection.queries) >= 300
    assert len(set(collection.queries.values())) == len(collection.queries)


def test_every_question_is_judged_and_some_have_several_answers(collection):
    assert list(collection.qrels) == list(collection.queries)
    answers = Counter(len(judged) for judged in collection.qrels.values())
    assert set(answers) == {1, 2, 3, 4} or set(answers) == {1, 2, 3}
    assert 20 <= sum(n for count, n in answers.items() if count > 1) <= 0.1 * len(collection.qrels)


def test_a_word_is_asked_back_with_all_languages_that_have_it(collection):
    told = {pid.split("-")[1] for pid in collection.passages if pid.endswith("-week")}
    fridays = {subject: _fact(subject, "week")["friday"][1].casefold() for subject in told}
    asked = {qid: judged for qid, judged in collection.qrels.items() if "-q-which-friday-" in qid}
    assert len(asked) >= 10
    for qid, judged in asked.items():
        word = fridays[qid.rsplit("-", 1)[1]]
        assert word in collection.queries[qid].casefold()
        assert {pid.split("-")[1] for pid in judged} == {subject for subject in told if fridays[subject] == word}


def test_texts_are_whole(collection):
    quoted = re.compile("“[^”]*”|«[^»]*»|「[^」]*」|‘[^’]*’|”[^”]*”")
    for text in [*(text for _, text in collection.passages.items()), *collection.queries.values()]:
        assert not re.search(r"[{}\n\t]|None|\s\s|^\s|\s$", text), text
        assert not re.search(r"[.。।،,؟?:：]{2}|\s[.,?؟।]|“”|«»|「」", quoted.sub("“x”", text)), text
    assert all(text[-1] in "?？؟" for text in collection.queries.values())


def test_the_script_of_the_language_dominates(collection):
    allowed = re.compile(SCRIPTS[LANGUAGES[collection.lang].script])

    def share(text):
        letters = [c for c in text if c.isalpha()]
        return sum(c in own for c in letters) / len(letters)

    texts = [*(text for _, text in collection.passages.items()), *collection.queries.values()]
    own = {c for c in set("".join(texts)) if c.isalpha() and allowed.match(unicodedata.name(c))}
    assert share("".join(texts)) > 0.75
    assert sum(share(text) > 0.5 for text in texts) > 0.95 * len(texts)  # the rest quotes long words in few of its own


def test_no_passage_is_one_of_the_sample(collection):
    told = {text for _, text in passages_of_sample(collection.lang)}
    assert told.isdisjoint(text for _, text in collection.passages.items())


@pytest.mark.parametrize("lang", MRTYDI)
def test_wording_is_complete_and_in_its_script(lang):
    assert problems(wording(lang), lang) == []


def test_problems_of_a_wording_are_named():
    text = {section: dict(part) for section, part in wording("en").items()}
    text["questions"]["week"] = ["Понедельник in {language}?", "Monday  in {month}?"]
    del text["sentences"]["era"]
    wrong = "\n".join(problems(text, "en"))
    assert "sentences.era: missing" in wrong
    assert "questions.week: not in the script of 'en': Понедельник" in wrong
    assert "questions.week: slots ['month'], expected each once: ['language']" in wrong
    assert "questions.week: stray space" in wrong


@pytest.mark.parametrize(
    "lang, template, code, text",
    [
        ("fi", "{language:gen} kieli", "en", "Englannin kieli"),
        ("fi", "{language:gen} kieli", "tr", "Turkin kieli"),
        ("fi", "{language:gen} kieli", "vi", "Vietnamin kieli"),
        ("fi", "{language:gen} kieli", "sv", "Ruotsin kieli"),
        ("ru", "{language:prep}", "de", "Немецком языке"),
        ("ru", "{language:in}", "fr", "Во французском языке"),
        ("ru", "{language:in}", "hi", "В языке хинди"),
        ("ar", "{language:bi}", "ru", "باللغة الروسية"),
        ("ar", "{language:bi}", "ha", "بلغة الهوسا"),
    ],
)
def test_names_of_languages_inflect(lang, template, code, text):
    assert fill(template, {"language": ("language", code)}, lang) == text


def test_texts_do_not_depend_on_the_hash_seed_or_on_what_babel_has_read_before():
    code = (
        "import sys; from babel import Locale\n"
        "for lang in sys.argv[1:]: dict(Locale(lang).days['stand-alone']['wide'])\n"
        "from xmlib.data.sample_ood import load\n"
        "print(*(load(lang).fingerprint for lang in ('en', 'te', 'ja')))"
    )
    prints = [
        subprocess.check_output([sys.executable, "-c", code, *before], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed, before in [("1", []), ("2", ["sw", "am"])]
    ]
    assert prints[0] == prints[1]


def test_it_is_a_source_with_one_split():
    assert collection_languages("sample-ood") == MRTYDI
    opened = open_collection("sample-ood", "sw")
    assert (opened.name, opened.lang, opened.split) == ("sample-ood", "sw", "test")
    with pytest.raises(ValueError, match="no split 'train'; have: test"):
        open_collection("sample-ood", "sw", "train")
    with pytest.raises(ValueError, match="no language 'de'; have: ar, bn, en"):
        open_collection("sample-ood", "de")


def test_bm25_finds_some_of_the_answers_in_english(tmp_path):
    from xmlib.index.bm25 import BM25

    collection = load("en")
    index = BM25.build(tmp_path / "bm25", collection)
    _, found_Ak = index.search(list(collection.queries.values()), k=10)
    total = 0.0
    for judged, row in zip(collection.qrels.values(), found_Ak.tolist(), strict=True):
        hits = [at for at, i in enumerate(row) if i >= 0 and collection.passages.ids[i] in judged]
        total += 1 / (1 + hits[0]) if hits else 0
    assert 0.3 < total / len(collection.queries) < 0.75
