"""What is true, in no language's words: how each of the world's languages is written, from the CLDR data in `babel`.

The subject of a fact is a language: its own name, its script, its words for days and months, the marks in its numbers.
Facts of one topic share a passage; the first of a topic leads it and names the language, the others follow.
Words are quoted only from scripts that the sample's own languages are written in: the demo's tokenizer knows no others.
"""

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from babel import Locale
from babel.core import get_global
from babel.dates import format_date
from babel.localedata import locale_identifiers
from babel.numbers import format_decimal, format_percent

from xmlib.languages import LANGUAGES, SAMPLE

from ..sample.generate import choose
from ..sample.names import full_names, own_data

Value = tuple[str, str]  # (type, content): ("text", "tiistai"), ("language", "fi"), ("script", "Cyrl")

OTHERS = "ar de en es fr hi it ja ru zh".split()  # languages that every language has a name for
FEWEST_TOPICS = 9  # a language about which CLDR says less is left out
QUOTABLE = {LANGUAGES[code].script for code in SAMPLE} | {"Hani"}


@dataclass(frozen=True)
class Fact:
    """One thing that is true of the language `subject`, e.g. of kind "week" with the slots monday and friday."""

    topic: str
    kind: str
    subject: str
    slots: tuple[tuple[str, Value], ...]


@cache
def facts() -> dict[str, list[Fact]]:
    """subject -> its facts, ordered by topic."""
    found = {code: list(_facts(code)) for code in sorted(locale_identifiers()) if re.fullmatch("[a-z]+", code)}
    return {code: told for code, told in found.items() if len({fact.topic for fact in told}) >= FEWEST_TOPICS}


def _facts(code: str) -> Iterator[Fact]:
    """The facts about one language. A topic is left out where CLDR says nothing of its own."""
    script = get_global("likely_subtags").get(code, "__").split("_")[1]
    script = {"Hans": "Hani", "Hant": "Hani"}.get(script, script)
    own = own_data(code) if script in QUOTABLE else {}
    names, days, months = own.get("languages", {}), full_names(own.get("days", {})), full_names(own.get("months", {}))
    if code not in names or not days or not months:
        return
    locale = Locale(code)

    def fact(topic, kind, **slots):
        typed = {slot: value if isinstance(value, tuple) else ("text", value) for slot, value in slots.items()}
        return Fact(topic, kind, code, tuple(typed.items()))

    yield fact("name", "autonym", name=names[code])
    yield fact("name", "code", code=code)
    yield fact("writing", "script", script=("script", script))
    yield fact("writing", "rtl" if own.get("character_order") == "right-to-left" else "ltr")
    if "plural_form" in own:
        yield fact("plural", "plural", count=str(len(own["plural_form"].tags | {"other"})))
        if "ordinal_form" in own:
            yield fact("plural", "ordinal", count=str(len(own["ordinal_form"].tags | {"other"})))
    latin_digits = own.get("default_numbering_system", "latn") == "latn"  # babel writes others as Latin ones, too
    if latin_digits and "unit_display_names" in own:  # well described: what it does not override is true of it
        number = format_decimal(9876543.21, locale=locale)
        yield fact("number", "number", number=number)
        yield fact("number", "decimal_comma" if number[-3] == "," else "decimal_point")
        yield fact("number", "percent", percent=format_percent(0.45, locale=locale))

    yield fact("week", "week", monday=days[0], friday=days[4])
    yield fact("week", "weekend", saturday=days[5], sunday=days[6])
    yield fact("months", "months", january=months[1], march=months[3])
    yield fact("months", "months_end", december=months[12])
    pattern = own.get("date_formats", {}).get("long")
    if pattern and "L" not in pattern.pattern and latin_digits:
        yield fact("date", "date", date=format_date(datetime.date(2024, 7, 23), "long", locale=locale))
        if mark := own.get("eras", {}).get("abbreviated", {}).get(0):
            yield fact("date", "era", mark=mark)
    if "short" in own.get("time_formats", {}):
        half_days = "h" in re.sub("'[^']*'", "", own["time_formats"]["short"].pattern)
        yield fact("clock", "clock_12" if half_days else "clock_24")
        if morning := own.get("day_periods", {}).get("stand-alone", {}).get("wide", {}).get("morning1"):
            yield fact("clock", "morning", morning=morning)

    joined = {kind: own.get("list_patterns", {}).get(kind, {}).get("2", "") for kind in ("standard", "or")}
    both, either = (re.sub(r"\{[01]\}", "", joined[kind]).strip() for kind in ("standard", "or"))
    if both and either and not re.search("[(),،、/-]", both + either):
        yield fact("list", "and", both=both)
        yield fact("list", "or", either=either)
    hour, kilometre = (_unit(own.get("unit_display_names", {}), unit) for unit in ("duration-hour", "length-kilometer"))
    if hour and kilometre:
        yield fact("units", "hour", hour=hour)
        yield fact("units", "kilometre", kilometre=kilometre)
    others = [other for other in OTHERS if other != code and other in names]
    if others:
        other = others[choose(len(others), "other", code)]
        yield fact("other", "other", other=("language", other), name=names[other])
    day = own.get("date_fields", {}).get("day", {})
    soon, ago = (_in_days(day.get(when, {}), locale, 5) for when in ("future", "past"))
    if soon and ago and soon != ago and "+" not in soon:
        yield fact("soon", "soon", soon=soon)
        yield fact("soon", "ago", ago=ago)
    thousand, million = (_power(own.get("compact_decimal_formats", {}).get("long", {}), power) for power in (3, 6))
    if thousand and million:
        yield fact("large", "thousand", thousand=thousand)
        yield fact("large", "million", million=million)


def _unit(names: dict, unit: str) -> str | None:
    known = names.get(unit, {})
    return known.get("long") or known.get("short")


def _in_days(patterns: dict, locale: Locale, days: int) -> str | None:
    pattern = patterns.get(locale.plural_form(days)) or patterns.get("other")
    return pattern and pattern.replace("{0}", str(days))


def _power(patterns: dict, exponent: int) -> str | None:
    """The word for a power of ten, if the language counts in that power: Hindi counts a million as ten lakh."""
    pattern = (patterns.get("one") or patterns.get("other") or {}).get(str(10**exponent))
    match = pattern and re.fullmatch(r"0\s*([^\s\d']{3,})|([^\s\d']{3,})\s*0", pattern.pattern.split(";")[0])
    return match and (match[1] or match[2])
