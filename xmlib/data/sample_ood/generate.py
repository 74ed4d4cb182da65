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
    asked = {}
    for section, questions in (("questions", _questions(lang)), ("reverse", _reverse_questions(lang))):
        for qid, key, slots, pids in questions:
            variants = wording(lang)[section][key]
            asked[qid] = (variants[choose(len(variants), "question", qid)], slots, pids)
    return asked


def _questions(lang: str) -> Iterator[tuple[str, str, dict, tuple[str, ...]]]:
    """What is asked about a language: (qid, key, slots, relevant pids)."""
    key_of = {kind: key for key, kinds in QUESTIONS.items() for kind in kinds}
    known = {}
    for pid, told in _told(lang).items():
        for fact in told:
            known.setdefault(fact.subject, []).append((key_of[fact.kind], fact, pid))
    for subject, answers in known.items():
        answers.sort(key=lambda answer: choose(2**60, "asked", lang, subject, answer[0]))
        for key, fact, pid in answers[:QUESTIONS_PER_SUBJECT]:
            yield f"{lang}-q-{subject}-{key}", key, _slots(fact), (pid,)


def _reverse_questions(lang: str) -> Iterator[tuple[str, str, dict, tuple[str, ...]]]:
    """Words, scripts and counts that ask for their languages: all that share one, whatever the case of its letters."""
    for key, (kind, slot) in REVERSE.items():
        own = {_folded(fact, slot) for fact in facts()[lang] if fact.kind == kind}  # no "Who says Friday for Friday?"
        holders = {}
        for pid, told in _told(lang).items():
            for fact in told:
                if fact.kind == kind and _folded(fact, slot) not in own:
                    holders.setdefault(_folded(fact, slot), []).append((fact, pid))
        for held in holders.values():
            first, _ = held[0]
            qid = f"{lang}-q-{key.replace('_', '-')}-{first.subject}"
            few = len(held) <= MOST_HOLDERS and (len(held) > 1 or choose(REVERSE_ONE_IN, "reverse", qid) == 0)
            if few and not any(_gives_away(fact, slot, lang) for fact, _ in held):
                yield qid, key, {slot: dict(first.slots)[slot]}, tuple(pid for _, pid in held)


def _folded(fact: Fact, slot: str) -> str:
    return dict(fact.slots)[slot][1].casefold()


def _gives_away(fact: Fact, slot: str, lang: str) -> bool:
    """Whether the word holds the name of the language it asks for: "Which language calls itself Afrikaans?"."""
    return spoken_name("language", fact.subject, lang).casefold() in _folded(fact, slot)


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
