"""How one language says it: the sentences and questions of `text/<lang>.yaml`, and the check that they fit.

`SENTENCES`, `QUESTIONS` and `REVERSE` are the whole contract of such a file. Names are filled in as CLDR has them, in
the nominative, or in a case that the file's own `forms` make of them: {language:gen} is "gen", a list of rules
[regular expression, replacement] of which the first that fits the whole name is used.
"""

import re
from functools import cache
from pathlib import Path
from string import Formatter

import yaml

from xmlib.languages import MRTYDI

from ..sample.names import foreign_words, name

FOLDER = Path(__file__).parent / "text"
VARIANTS = 2

# kind of fact -> slots; a sentence uses all of them. One with the slot language leads a passage, the others follow.
SENTENCES = {
    "autonym": "language name",
    "code": "code",
    "script": "language script",
    "ltr": "",
    "rtl": "",
    "plural": "language count",
    "ordinal": "count",
    "number": "language number",
    "decimal_comma": "",
    "decimal_point": "",
    "percent": "percent",
    "week": "language monday friday",
    "weekend": "saturday sunday",
    "months": "language january march",
    "months_end": "december",
    "date": "language date",
    "era": "mark",
    "clock_12": "language",
    "clock_24": "language",
    "morning": "morning",
    "and": "language both",
    "or": "either",
    "hour": "language hour",
    "kilometre": "kilometre",
    "other": "language other name",
    "soon": "language soon",
    "ago": "ago",
    "thousand": "language thousand",
    "million": "million",
}

# question -> kinds of fact that answer it; every question names the language.
QUESTIONS = {kind: [kind] for kind in SENTENCES} | {"decimal": ["decimal_comma", "decimal_point"]}
QUESTIONS |= {"direction": ["ltr", "rtl"], "clock": ["clock_12", "clock_24"]}
for two in ("direction", "decimal", "clock"):
    for kind in QUESTIONS[two]:
        del QUESTIONS[kind]

# reverse question -> the kind of fact and its slot that the question names; the language is what it asks for.
REVERSE = {
    "which_autonym": ("autonym", "name"),
    "which_script": ("script", "script"),
    "which_plural": ("plural", "count"),
    "which_friday": ("week", "friday"),
    "which_march": ("months", "march"),
    "which_and": ("and", "both"),
}


@cache
def wording(lang: str) -> dict:
    """The wording file of `lang`; raises ValueError with everything that is wrong with it."""
    if lang not in MRTYDI:
        raise ValueError(f"the collection sample-ood has no language {lang!r}; have: {', '.join(MRTYDI)}")
    path = FOLDER / f"{lang}.yaml"
    text = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if wrong := problems(text, lang):
        raise ValueError(f"{path}:\n  " + "\n  ".join(wrong))
    return text


def problems(text: dict, lang: str) -> list[str]:
    """What a wording file lacks, has too much of, or has in the wrong script; [] if it is right."""
    expected = {
        "sentences": {kind: slots.split() for kind, slots in SENTENCES.items()},
        "questions": {key: ["language", "other"] if key == "other" else ["language"] for key in QUESTIONS},
        "reverse": {key: [slot] for key, (_, slot) in REVERSE.items()},
    }
    wrong = [
        f"unknown section {part!r}" for part in text if part not in (*expected, "names", "forms", "language_names")
    ]
    for section, slots_of in expected.items():
        given = text.get(section) or {}
        wrong += [f"{section}.{key}: missing" for key in slots_of if key not in given]
        wrong += [f"{section}.{key}: unknown key" for key in given if key not in slots_of]
        for key in slots_of.keys() & given.keys():
            if len(set(given[key])) != VARIANTS:
                wrong.append(f"{section}.{key}: {len(set(given[key]))} different variants, expected {VARIANTS}")
            for template in given[key]:
                flaws = _flaws(template, slots_of[key], text.get("forms", {}), lang)
                wrong += [f"{section}.{key}: {flaw}: {template}" for flaw in flaws]
    for kind, own in text.get("names", {}).items():
        wrong += [
            f"names.{kind}.{code}: in another script: {words}"
            for code, words in own.items()
            if foreign_words(words, lang)
        ]
    return wrong


def _flaws(template: str, slots: list[str], forms: dict, lang: str):
    parts = list(Formatter().parse(template))
    used = [slot for _, slot, _, _ in parts if slot is not None]
    if sorted(used) != sorted(slots):
        yield f"slots {sorted(used)}, expected each once: {sorted(slots)}"
    yield from (f"no form {form!r}" for *_, form, _ in parts if form and form not in forms)
    if foreign := [word for literal, *_ in parts for word in foreign_words(literal, lang)]:
        yield f"not in the script of {lang!r}: {' '.join(foreign)}"
    if re.search(r"\s\s|^\s|\s$|[.,!?]{2}", template):
        yield "stray space or punctuation"


@cache
def spoken_name(kind: str, code: str, lang: str) -> str | None:
    """The name of a language or script in `lang`; None where it has none that its templates can take."""
    say = wording(lang)
    words = say.get("names", {}).get(kind, {}).get(code) or name(kind, code, lang)
    fits = words and not foreign_words(words, lang)
    if kind == "language":
        fits = fits and re.fullmatch(say.get("language_names", ".+"), words)
    return words if fits else None


def fill(template: str, slots, lang: str) -> str:
    """A template in words, beginning with a capital letter."""
    values, text = dict(slots), ""
    for literal, slot, form, _ in Formatter().parse(template):
        text += literal
        if slot is not None:
            kind, content = values[slot]
            words = content if kind == "text" else spoken_name(kind, content, lang)
            text += _inflect(words, wording(lang)["forms"][form]) if form else words
    return text[0].upper() + text[1:]


def _inflect(words: str, rules: list[tuple[str, str]]) -> str:
    return next(match.expand(put) for rule, put in rules if (match := re.fullmatch(rule, words)))
