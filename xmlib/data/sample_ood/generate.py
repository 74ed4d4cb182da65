"""Facts into passages, questions and judgements of one language. What is chosen depends on ids alone.

The languages of the collection are not parallel: each tells of its own choice of subjects, in its own variants and
order, and asks its own questions. Ids begin with the language: "sw-de-week" tells of the German week in Swahili.
"""

from collections.abc import Iterator
from functools import cache

from ..sample.generate import choose
from .facts import Fact, facts
from .wording import QUESTIONS, REVERSE, fill, spoken_name, wording

SUBJECTS_OF_TEN = 7  # so many tenths of the subjects are told in a language, drawn for each on its own
QUESTIONS_PER_SUBJECT = 4
REVERSE_ONE_IN = 4  # of the words that a reverse question could name
MOST_HOLDERS = 4  # a reverse question has at most so many answers


@cache
def _told(lang: str) -> dict[str, list[Fact]]:
    """pid -> the facts of one passage, in the order of the collection."""
    told = {}
    for subject, known in facts().items():
        if (
            subject != lang
            and spoken_name("language", subject, lang)
            and choose(10, "subject", lang, subject) < SUBJECTS_OF_TEN
        ):
            for fact in known:
                told.setdefault(f"{lang}-{subject}-{fact.topic}", []).append(fact)
    return dict(sorted(told.items(), key=lambda item: choose(2**60, item[0])))


def passages(lang: str) -> Iterator[tuple[str, str]]:
    """(pid, text)."""
    gap = "" if lang == "ja" else " "
    for pid, known in _told(lang).items():
        variants = [wording(lang)["sentences"][fact.kind][choose(2, "sentence", pid, fact.kind)] for fact in known]
        yield pid, gap.join(fill(text, _slots(fact), lang) for text, fact in zip(variants, known, strict=True))


def _slots(fact: Fact) -> dict[str, tuple[str, str]]:
    return {"language": ("language", fact.subject), **dict(fact.slots)}


@cache
def _asked(lang: str) -> dict[str, tuple[str, dict, tuple[str, ...]]]:
    """qid -> (template, slots, relevant pids)."""
    say, asked = wording(lang), {}
    stated = {}  # (subject, kind) -> where it is told
    for pid, known in _told(lang).items():
        for fact in known:
            stated[fact.subject, fact.kind] = (pid, fact)

    def ask(qid, section, key, slots, pids):
        variants = say[section][key]
        asked[qid] = (variants[choose(len(variants), "question", qid)], slots, pids)

    for subject in dict.fromkeys(subject for subject, _ in stated):
        answers = [
            (key, *stated[subject, kind]) for key in QUESTIONS for kind in QUESTIONS[key] if (subject, kind) in stated
        ]
        answers.sort(key=lambda answer: choose(2**60, "asked", lang, subject, answer[0]))
        for key, pid, fact in answers[:QUESTIONS_PER_SUBJECT]:
            ask(f"{lang}-q-{subject}-{key}", "questions", key, _slots(fact), (pid,))
    own = {value for fact in facts()[lang] for _, value in fact.slots}  # "Which language says Friday for Friday?"
    for key, (kind, slot) in REVERSE.items():
        holders = {}
        for pid, fact in stated.values():
            if fact.kind == kind:
                holders.setdefault(dict(fact.slots)[slot], []).append((pid, fact))
        for value, held in holders.items():
            qid = f"{lang}-q-{key.replace('_', '-')}-{held[0][1].subject}"
            few = len(held) <= MOST_HOLDERS and (len(held) > 1 or choose(REVERSE_ONE_IN, "reverse", qid) == 0)
            if few and value not in own and not any(_gives_away(value, fact.subject, lang) for _, fact in held):
                ask(qid, "reverse", key, {slot: value}, tuple(pid for pid, _ in held))
    return asked


def _gives_away(value: tuple[str, str], subject: str, lang: str) -> bool:
    """Whether the word that a reverse question names holds the name of the language it asks for: "Afrikaans"."""
    return value[0] == "text" and spoken_name("language", subject, lang).casefold() in value[1].casefold()


def queries(lang: str) -> Iterator[tuple[str, str]]:
    """(qid, text)."""
    for qid, (template, slots, _) in _asked(lang).items():
        yield qid, fill(template, slots, lang)


def qrels(lang: str) -> Iterator[tuple[str, str]]:
    """(qid, pid) of every relevant passage."""
    for qid, (*_, pids) in _asked(lang).items():
        yield from ((qid, pid) for pid in pids)


def load(lang: str, split: str = "test"):
    """The collection in `lang`. It is never trained on: its one split is "test"."""
    from xmlib.data.collection import Collection, Passages

    if split != "test":
        raise ValueError(f"the collection sample-ood has no split {split!r}; have: test")
    judged = {}
    for qid, pid in qrels(lang):
        judged.setdefault(qid, {})[pid] = 1
    return Collection("sample-ood", lang, split, Passages.from_pairs(passages(lang)), dict(queries(lang)), judged)
