"""Codes into words: the names of territories, currencies, cities ... in one language, from CLDR through `babel`."""

import datetime
import pickle
import re
import unicodedata
from functools import cache, lru_cache

from babel import Locale
from babel.dates import format_date, get_timezone_location
from babel.lists import format_list
from babel.localedata import resolve_locale_filename
from babel.numbers import format_decimal, format_percent

from xmlib.languages import LANGUAGES, SAMPLE

Value = tuple  # (type, ...): ("currency", "EUR"), ("date", (1999, 1, 1)), ("list", (value, ...)) ...

# The letters a language may be written in; `is_named` takes a name in any other script for a gap in CLDR.
SCRIPTS = {
    "Arab": "ARABIC",
    "Beng": "BENGALI",
    "Cyrl": "CYRILLIC",
    "Deva": "DEVANAGARI",
    "Hans": "CJK|IDEOGRAPHIC",
    "Jpan": "CJK|IDEOGRAPHIC|HIRAGANA|KATAKANA",
    "Kore": "HANGUL",
    "Latn": "LATIN",
    "Telu": "TELUGU",
}
LOANS = {"CFA", "CFP", "GMT", "UTC"}  # written in Latin letters everywhere


@cache
def locale(lang: str) -> Locale:
    return Locale(lang)


@lru_cache(32)  # some megabytes each
def own_data(code: str) -> dict:
    """What CLDR says in this very locale, without what it inherits.

    babel's `Locale` fills gaps from the root locale, and keeps what it resolved there in dictionaries that locales
    share: Czech weekdays are Swahili ones after Swahili's were read (babel 2.18). So read nothing there that has gaps.
    """
    with open(resolve_locale_filename(code), "rb") as file:
        return pickle.load(file)


def full_names(names: dict) -> dict[int, str] | None:
    """The names of all days or months, as they stand alone where that differs from their form within a date."""
    found = [names.get(context, {}).get("wide", {}) for context in ("stand-alone", "format")]
    return next((words for words in found if len(words) in (7, 12)), None)


def foreign_words(text: str, lang: str) -> list[str]:
    """The words of `text` that have a letter outside the script of `lang`, loans such as CFA aside."""
    allowed = re.compile(SCRIPTS[LANGUAGES[lang].script])
    words = re.findall(r"[^\W\d_]+", text)
    wrong = [w for w in words if any(c.isalpha() and not allowed.match(unicodedata.name(c, "")) for c in w)]
    return [word for word in wrong if word not in LOANS]


@cache  # a collection asks for most names more than once, and a city takes babel 0.1 ms
def name(kind: str, code: str, lang: str) -> str | None:
    """CLDR's name in `lang`, nominative; None where it has none. `kind` is the type of the value."""
    data = locale(lang)
    if kind == "zone_name":
        names = data.meta_zones.get(code, {}).get("long", {})
        # A zone without summer time has but a standard name; the generic name reads better where there is one.
        return names.get("generic") or names.get("standard")
    if kind == "city":
        return get_timezone_location(code, locale=data, return_city=True)
    tables = {
        "territory": data.territories,
        "currency": data.currencies,
        "language": data.languages,
        "script": data.scripts,
    }
    return tables[kind].get(code)


@cache
def is_named(kind: str, code: str) -> bool:
    """Whether every language of the sample has a name of its own, in its own script, for this code."""
    names = {lang: name(kind, code, lang) for lang in SAMPLE}
    return all(text and not foreign_words(text, lang) for lang, text in names.items())


def render(value: Value, lang: str, own: dict[str, dict[str, str]]) -> str:
    """A slot's value in words. `own` holds the names that a wording file sets in place of CLDR's."""
    kind, *rest = value
    data = locale(lang)
    match kind:
        case "text":
            return rest[0]
        case "year":
            return str(rest[0])
        case "number":
            return format_decimal(rest[0], locale=data)
        case "percent":
            pattern = data.percent_formats[None].pattern.replace("0", "0.#")
            return format_percent(rest[0] / 100, format=pattern, locale=data)
        case "date":
            text = format_date(datetime.date(*rest[0]), "long", locale=data)
            return re.sub("^1 ", "1er ", text) if lang == "fr" else text
        case "weekday":
            return full_names(own_data(lang)["days"])[rest[0]]
        case "period":
            return f"{render(rest[0], lang, own)} ({rest[1]}–{rest[2]})"
        case "share":
            return f"{render(rest[0], lang, own)} ({render(('percent', rest[1]), lang, own)})"
        case "list":
            text = format_list([render(item, lang, own) for item in rest[0]], locale=data)
            # Spanish "y" is "e" before the sound of i, unless a diphthong follows: "e inglés", but "y hielo".
            return re.sub(r" y (?=h?[ií](?![aeo]))", " e ", text, flags=re.IGNORECASE) if lang == "es" else text
        case _:
            return own.get(kind, {}).get(rest[0]) or name(kind, rest[0], lang)
