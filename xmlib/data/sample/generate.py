"""Facts into passages, questions and judgements. Which fact, which variant and which order depend on ids alone.

A passage is the sentences of one topic of one territory ("PT-currency"). A question asks for one fact ("q-PT-since")
or names an object and asks where it belongs ("q-where-currency-PYG"). Relevant is every passage that states the fact.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from string import Formatter

from xmlib.languages import SAMPLE

from .facts import Fact, facts
from .names import name, render
from .wording import LEADS, QUESTIONS, wording

SPLITS = ["train", "dev", "test"]
QUESTIONS_PER_TERRITORY = 10
MOST_HOLDERS = 3  # a reverse question has at most so many answers


def choose(n: int, *key) -> int:
    """A number below n that depends on the key alone, on every machine."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % n


def split_of(territory: str) -> str:
    """60 % of the territories are train, 8 % dev, 32 % test."""
    part = choose(100, "split", territory)
    return "train" if part < 60 else "dev" if part < 68 else "test"


@cache
def _by_territory() -> dict[str, list[Fact]]:
    grouped = {}
    for fact in facts().values():
        grouped.setdefault(fact.territory, []).append(fact)
    return grouped


@cache
def _topics(territory: str) -> dict[str, list[tuple[Fact, int]]]:
    """Topic -> its facts of a territory, each with the variant of its sentence."""
    topics = {}
    for fact in _by_territory()[territory]:
        topics.setdefault(fact.topic, []).append((fact, choose(3, "sentence", fact.id)))
    return topics


def _plan(scale: int) -> Iterator[tuple[str, list[tuple[Fact, int]]]]:
    """pid -> its facts and variants. From scale 2 on, there are passages that mix facts of several topics."""
    for territory, known in _by_territory().items():
        topics = _topics(territory)
        for topic, group in topics.items():
            yield f"{territory}-{topic}", group
        told = set()
        leads = [fact for fact in known if fact.kind in LEADS]
        follows = [fact for fact in known if fact.kind not in LEADS]
        number = attempt = 0
        while number < (scale - 1) * len(topics):
            key = ("mixed", territory, attempt)
            attempt += 1
            if attempt > 100 * scale * len(topics):
                raise ValueError(f"scale {scale} is more than the facts allow; have: 1 to about 500")
            first, second = (follows[choose(len(follows), *key, place)] for place in ("first", "second"))
            lead = leads[choose(len(leads), *key, "lead")]
            if len({lead.topic, first.topic, second.topic}) < 3:
                continue
            plan = tuple((fact, choose(3, *key, fact.kind)) for fact in (lead, first, second))
            if plan not in told:
                told.add(plan)
                yield f"{territory}-mixed-{number:04d}", list(plan)
                number += 1


def passages(lang: str, scale: int = 1) -> Iterator[tuple[str, str]]:
    """(pid, text), ordered by territory and topic. Every language has the same pids."""
    say = wording(lang)
    gap = "" if lang in ("ja", "zh") else " "
    for pid, told in _plan(scale):
        sentences = []
        for fact, variant in told:
            slots = (("territory", ("territory", fact.territory)), *fact.slots)
            sentences.append(fill(say["sentences"][fact.kind][variant], slots, lang))
        yield pid, gap.join(sentences)


@cache
def _parts(template: str) -> list[tuple]:
    """Literal text, slot, form of the slot, as `string.Formatter` parses them."""
    return list(Formatter().parse(template))


def fill(template: str, slots, lang: str) -> str:
    """A template in words. `{territory:dat}` is the form "dat" of a name, as `forms` in the wording file gives it."""
    say, values = wording(lang), dict(slots)
    text = ""
    for literal, slot, form, _ in _parts(template):
        text += literal
        if slot is not None:
            words = render(values[slot], lang, say.get("names", {}))
            if form:
                words = say["forms"][form].get(values[slot][1]) or say["forms"][form]["*"].format(words)
            text += words
    return text[0].upper() + text[1:]


@cache
def _asked() -> dict[str, tuple[str, str, str, tuple, tuple[str, ...]]]:
    """qid -> (split, section of the wording, key, slot, ids of the facts that answer it)."""
    asked = {}
    for territory, known in _by_territory().items():
        found = [(key, fact.id) for key, kinds in QUESTIONS.items() for fact in known if fact.kind in kinds]
        found.sort(key=lambda pair: choose(2**60, "asked", territory, pair[0]))
        for key, fact_id in sorted(found[:QUESTIONS_PER_TERRITORY]):
            slot = ("territory", ("territory", territory))
            asked[f"q-{territory}-{key}"] = (split_of(territory), "questions", key, slot, (fact_id,))
    for key, value, holders in objects():
        territories = sorted({fact.territory for fact in holders})
        splits = {split_of(territory) for territory in territories}
        if len(territories) <= MOST_HOLDERS and len(splits) == 1:
            kind, code = value
            qid = f"q-{key.replace('_', '-')}-{code.rsplit('/')[-1]}"
            asked[qid] = (splits.pop(), "reverse", key, (kind, value), tuple(fact.id for fact in holders))
    return asked


def objects() -> list[tuple[str, tuple, list[Fact]]]:
    """What a reverse question can name: (key, object, the facts that hold it)."""
    slots = {
        "where_currency": ("currency", "currency"),
        "where_old_money": ("old_money", "old"),
        "where_official": ("official", "languages"),
        "where_script": ("script", "scripts"),
        "where_spoken": ("spoken", "language"),
        "where_clock": ("clock", "names"),
        "where_city": ("cities", "cities"),
    }
    holders = {}
    for fact in facts().values():
        for key, (kind, slot) in slots.items():
            if fact.kind == kind:
                value = dict(fact.slots)[slot]
                for item in value[1] if value[0] == "list" else [value]:
                    item = item[1] if item[0] == "period" else item
                    holders.setdefault((key, item), []).append(fact)
    current = {item for key, item in holders if key == "where_currency"}
    named = {key: [item for k, item in holders if k == key and item[0] != "text"] for key in slots}
    shared = {key: _shared_names(items) for key, items in named.items()}
    return [
        (key, item, told)
        for (key, item), told in sorted(holders.items())
        if item in named[key]
        and not (key == "where_old_money" and item in current)
        and item not in shared[key]
        and not _gives_away(item, told)
    ]


def _shared_names(items: list[tuple]) -> set[tuple]:
    """The objects that have the same name as another one in some language: asking for them would be ambiguous."""
    shared = set()
    for lang in SAMPLE:
        count = Counter(name(*item, lang) for item in items)
        shared |= {item for item in items if count[name(*item, lang)] > 1}
    return shared


def _gives_away(item: tuple, told: list[Fact]) -> bool:
    """Whether in some language a city's or zone's name holds the name of its territory, or the other way round."""
    if item[0] not in ("city", "zone_name"):
        return False
    for lang in SAMPLE:
        own = name(*item, lang)
        territories = [name("territory", fact.territory, lang) for fact in told]
        if any(own in territory or territory in own for territory in territories):
            return True
    return False


def queries(lang: str, split: str) -> Iterator[tuple[str, str]]:
    """(qid, text) of one split; questions of a split are about its territories only."""
    say = wording(lang)
    for qid, (part, section, key, slot, _) in _asked().items():
        if part == split:
            variants = say[section][key]
            yield qid, fill(variants[choose(len(variants), "question", qid)], (slot,), lang)


def qrels(split: str, scale: int = 1) -> Iterator[tuple[str, str]]:
    """(qid, pid) of every relevant passage; the same in every language."""
    telling = {}
    for pid, told in _plan(scale):
        for fact, _ in told:
            telling.setdefault(fact.id, []).append(pid)
    for qid, (part, *_, answers) in _asked().items():
        if part == split:
            for pid in dict.fromkeys(pid for fact_id in answers for pid in telling[fact_id]):
                yield qid, pid


def load(lang: str, split: str = "test", scale: int = 1):
    """The collection in `lang`: all passages, the questions of `split`, their judgements."""
    from xmlib.data.collection import Collection, Passages

    if split not in SPLITS:
        raise ValueError(f"the sample collection has no split {split!r}; have: {', '.join(SPLITS)}")
    judged = {}
    for qid, pid in qrels(split, scale):
        judged.setdefault(qid, {})[pid] = 1
    return Collection(
        name="sample",
        lang=lang,
        split=split,
        passages=Passages.from_pairs(passages(lang, scale)),
        queries=dict(queries(lang, split)),
        qrels=judged,
    )
