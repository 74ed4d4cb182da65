"""How one language says it: the sentences and questions of `text/<lang>.yaml`, and the check that they fit.

`SENTENCES` and `QUESTIONS` are the whole contract of such a file: its keys, the slots each may use, and the number of
variants. It is the same in every language, so that id, fact and variant agree everywhere and only the words differ.
"""

import re
from functools import cache
from pathlib import Path
from string import Formatter

import yaml

from xmlib.languages import SAMPLE

from .names import foreign_words

FOLDER = Path(__file__).parent / "text"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML has it: a tenth of the time
SENTENCE_VARIANTS, QUESTION_VARIANTS, REVERSE_VARIANTS = 3, 3, 2

# kind of fact -> slots; a sentence uses all of them. Sentences that name the territory lead a passage, others follow.
SENTENCES = {
    "region": "territory region continent",
    "codes": "code code3",
    "currency": "territory currency since",
    "currency_code": "code digits",
    "old_money": "territory old",
    "old_money_last": "year",
    "official": "territory languages",
    "script": "scripts",
    "spoken": "territory language percent",
    "minor": "languages",
    "clock": "territory names",
    "zone_count": "count",
    "cities": "territory cities",
    "zone_id": "zone",
    "week": "territory day",
    "weekend_two": "days",
    "weekend_one": "days",
    "date_style": "territory date",
    "number_style": "number",
    "hours_12": "",
    "hours_24": "",
    "paper": "territory paper",
    "metric": "",
    "customary": "",
}
LEADS = [kind for kind, slots in SENTENCES.items() if "territory" in slots.split()]

# question -> kinds of fact that answer it; every question names the territory.
QUESTIONS = {
    "region": ["region"],
    "codes": ["codes"],
    "currency": ["currency"],
    "since": ["currency"],
    "currency_code": ["currency_code"],
    "digits": ["currency_code"],
    "old_money": ["old_money"],
    "old_money_last": ["old_money_last"],
    "official": ["official"],
    "script": ["script"],
    "spoken": ["spoken"],
    "minor": ["minor"],
    "clock": ["clock"],
    "zone_count": ["zone_count"],
    "cities": ["cities"],
    "week": ["week"],
    "weekend": ["weekend_two", "weekend_one"],
    "date_style": ["date_style"],
    "number_style": ["number_style"],
    "hours": ["hours_12", "hours_24"],
    "paper": ["paper"],
    "units": ["metric", "customary"],
}

# reverse question -> the one slot it names; the territory is what it asks for.
REVERSE = {
    "where_currency": "currency",
    "where_old_money": "currency",
    "where_official": "language",
    "where_script": "script",
    "where_spoken": "language",
    "where_clock": "zone_name",
    "where_city": "city",
}


@cache
def wording(lang: str) -> dict:
    """The wording file of `lang`; raises ValueError with everything that is wrong with it."""
    path = FOLDER / f"{lang}.yaml"
    if not path.exists():
        have = [code for code in SAMPLE if (FOLDER / f"{code}.yaml").exists()]
        raise ValueError(f"the sample collection has no language {lang!r}; have: {', '.join(have)}")
    text = yaml.load(path.read_text(encoding="utf-8"), LOADER)
    if wrong := problems(text, lang):
        raise ValueError(f"{path}:\n  " + "\n  ".join(wrong))
    return text


def problems(text: dict, lang: str) -> list[str]:
    """What a wording file lacks, has too much of, or has in the wrong script; [] if it is right."""
    expected = {
        "sentences": ({key: set(slots.split()) for key, slots in SENTENCES.items()}, SENTENCE_VARIANTS),
        "questions": ({key: {"territory"} for key in QUESTIONS}, QUESTION_VARIANTS),
        "reverse": ({key: {slot} for key, slot in REVERSE.items()}, REVERSE_VARIANTS),
    }
    wrong = [f"unknown section {name!r}" for name in text if name not in (*expected, "names", "forms", "latin")]
    forms = text.get("forms", {})
    wrong += [f"forms.{form}: no pattern '*' with {{}}" for form in forms if "{}" not in forms[form].get("*", "")]
    allowed_latin = set(text.get("latin", []))
    for section, (slots_of, count) in expected.items():
        given = text.get(section) or {}
        wrong += [f"{section}.{key}: missing" for key in slots_of if key not in given]
        wrong += [f"{section}.{key}: unknown key" for key in given if key not in slots_of]
        for key in slots_of.keys() & given.keys():
            variants = given[key]
            if len(variants) != count or len(set(variants)) != count:
                wrong.append(f"{section}.{key}: {len(set(variants))} different variants, expected {count}")
            for number, template in enumerate(variants):
                wrong += [
                    f"{section}.{key}[{number}]: {p}"
                    for p in _flaws(template, slots_of[key], forms, lang, allowed_latin)
                ]
    tables = {f"names.{kind}": own for kind, own in text.get("names", {}).items()}
    tables |= {f"forms.{form}": own for form, own in forms.items()}
    for table, own in tables.items():
        for code, words in own.items():
            if not isinstance(code, str) or foreign_words(words, lang):
                wrong.append(f"{table}.{code}: quote the code, or not in the script of {lang!r}: {words}")
    return wrong


def _flaws(template: str, slots: set[str], forms: dict, lang: str, allowed_latin: set[str]):
    parts = list(Formatter().parse(template))
    used = [slot for _, slot, _, _ in parts if slot is not None]
    if sorted(used) != sorted(slots):
        yield f"slots {sorted(used)}, expected each once: {sorted(slots)}"
    for _, slot, form, _ in parts:
        if form and form not in forms:
            yield f"{{{slot}:{form}}} asks for a form that is not under forms; have: {', '.join(forms) or 'none'}"
    words = [w for part in parts for w in foreign_words(part[0], lang) if w not in allowed_latin]
    if words:
        yield f"not in the script of {lang!r}: {' '.join(words)}"
    if re.search(r"\s\s|^\s|\s$", template):
        yield "stray space"
