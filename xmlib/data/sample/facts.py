"""What is true, in no language: facts about territories as codes, dates and numbers, from the Unicode CLDR in `babel`.

A fact is a kind ("currency", "week", ...), a territory and slots. A slot holds a typed value, ("currency", "EUR") or
("list", (value, ...)), which `names.render` puts into words of one language. Facts whose names some language of the
sample lacks are left out in all of them, so that every language tells exactly the same.

Two small tables are typed in here, since babel leaves those parts of CLDR out: which region a territory belongs to,
and who uses letter paper and units other than metric ones.
"""

import re
from dataclasses import dataclass
from functools import cache

from babel import Locale
from babel.core import UnknownLocaleError, get_global
from babel.localedata import locale_identifiers

from .names import Value, is_named

# UN M49 regions as in CLDR's territory containment: continent, region, members.
REGIONS = """
002 014 BI DJ ER ET KE KM MG MU MW MZ RE RW SC SO SS TZ UG YT ZM ZW
002 017 AO CD CF CG CM GA GQ ST TD
002 015 DZ EG EH LY MA SD TN
002 018 BW LS NA SZ ZA
002 011 BF BJ CI CV GH GM GN GW LR ML MR NE NG SH SL SN TG
019 013 BZ CR GT HN MX NI PA SV
019 021 BM CA GL PM US
019 029 AG AI AW BB BL BQ BS CU CW DM DO GD GP HT JM KN KY LC MF MQ MS PR SX TC TT VC VG VI
019 005 AR BO BR CL CO EC FK GF GY PE PY SR UY VE
142 143 KG KZ TJ TM UZ
142 030 CN HK JP KP KR MN MO TW
142 034 AF BD BT IN IR LK MV NP PK
142 035 BN ID KH LA MM MY PH SG TH TL VN
142 145 AE AM AZ BH CY GE IL IQ JO KW LB OM PS QA SA SY TR YE
150 151 BG BY CZ HU MD PL RO RU SK UA
150 154 DK EE FI FO GB GG IE IM IS JE LT LV NO SE AX
150 039 AD AL BA ES GI GR HR IT ME MK MT PT RS SI SM VA XK
150 155 AT BE CH DE FR LI LU MC NL
009 053 AU NZ CC CX NF
009 054 FJ NC PG SB VU
009 057 FM GU KI MH MP NR PW
009 061 AS CK NU PF PN TK TO TV WF WS
"""
LETTER_PAPER = "BZ CA CL CO CR GT MX NI PA PH PR SV US VE".split()
CUSTOMARY_UNITS = "GB LR US".split()
TOPICS = "region currency old_money official spoken clock cities week formats paper".split()


@dataclass(frozen=True)
class Fact:
    """One thing that is true of one territory. Facts of one topic share a passage; the first of a topic leads it."""

    topic: str
    kind: str
    territory: str
    slots: tuple[tuple[str, Value], ...]

    @property
    def id(self) -> str:
        return f"{self.territory}-{self.kind}"


@cache
def facts() -> dict[str, Fact]:
    """Every fact by its id, e.g. "PT-currency", ordered by territory and topic."""
    found = {}
    for row in REGIONS.split("\n"):
        continent, *rest = row.split() or [None]
        for territory in rest[1:]:
            for fact in _territory_facts(territory, continent, rest[0]):
                found[fact.id] = fact
    return dict(sorted(found.items(), key=lambda item: (item[1].territory, TOPICS.index(item[1].topic))))


def _territory_facts(territory: str, continent: str, region: str):
    def fact(topic, kind, **slots):
        return Fact(topic, kind, territory, tuple(slots.items()))

    yield fact("region", "region", region=("territory", region), continent=("territory", continent))
    if territory in _three_letter_codes():
        three = _three_letter_codes()[territory]
        yield fact("region", "codes", code=("text", territory), code3=("text", three))
    yield from _money(territory, fact)
    yield from _languages(territory, fact)
    yield from _time(territory, fact)
    yield from _formats(territory, fact)
    yield fact("paper", "paper", paper=("text", "Letter" if territory in LETTER_PAPER else "A4"))
    yield fact("paper", "customary" if territory in CUSTOMARY_UNITS else "metric")


def _money(territory, fact):
    tender = [row for row in get_global("territory_currencies").get(territory, ()) if row[3]]
    current = [(code, since) for code, since, until, _ in tender if until is None and since]
    if len(current) == 1 and is_named("currency", current[0][0]):
        code, since = current[0]
        digits = get_global("currency_fractions").get(code, get_global("currency_fractions")["DEFAULT"])[0]
        yield fact("currency", "currency", currency=("currency", code), since=("date", since))
        yield fact("currency", "currency_code", code=("text", code), digits=("number", digits))
    old = {}
    for code, since, until, _ in tender:
        if until and since and until[0] > since[0]:
            old.setdefault(code, ("period", ("currency", code), since[0], until[0]))
    latest = sorted(old.values(), key=lambda value: (-value[3], value[1]))[:4]
    if latest and current and all(value[1][1] != current[0][0] for value in latest):
        # A currency without a name in some language appears under its ISO code in all of them.
        shown = [
            ("period", name if is_named(*name) else ("text", name[1]), since, until) for _, name, since, until in latest
        ]
        yield fact("old_money", "old_money", old=("list", tuple(shown)))
        yield fact("old_money", "old_money_last", year=("year", latest[0][3]))


def _languages(territory, fact):
    spoken, official_ones = {}, set()
    for code, row in get_global("territory_languages").get(territory, {}).items():
        language = code.split("_")[0]  # "zh_Hant" and "zh" are one language in two scripts
        spoken[language] = max(spoken.get(language, 0), row["population_percent"])
        if row["official_status"] in ("official", "de_facto_official"):
            official_ones.add(language)
    ranked = sorted(spoken, key=lambda code: (-spoken[code], code))
    official = [code for code in ranked if code in official_ones]
    if official and all(is_named("language", code) for code in official) and len(official) <= 6:
        yield fact("official", "official", languages=("list", tuple(("language", code) for code in official)))
        scripts = list(dict.fromkeys(_script(code, territory) for code in official))
        if all(is_named("script", code) for code in scripts):
            yield fact("official", "script", scripts=("list", tuple(("script", code) for code in scripts)))
    # Where two languages have equal shares, none is the most spoken one.
    first = [code for code in ranked[:1] if len(ranked) == 1 or spoken[ranked[1]] < spoken[code]]
    if first and is_named("language", first[0]) and 0 < spoken[first[0]] <= 100:
        percent = spoken[first[0]]
        yield fact("spoken", "spoken", language=("language", first[0]), percent=("percent", percent))
        others = [code for code in ranked[1:] if is_named("language", code) and spoken[code] >= 0.1][:4]
        if others:
            shares = tuple(("share", ("language", code), spoken[code]) for code in others)
            yield fact("spoken", "minor", languages=("list", shares))


def _script(language: str, territory: str) -> str:
    likely = get_global("likely_subtags")
    tag = likely.get(f"{language}_{territory}") or likely.get(language) or f"{language}_Zzzz"
    script = tag.split("_")[1]
    return {"Hans": "Hani", "Hant": "Hani"}.get(script, script)


def _time(territory, fact):
    zones = sorted(get_global("territory_zones").get(territory, ()))
    names = list(dict.fromkeys(name for name in map(_zone_name, zones) if name))
    if names and len(names) <= 5 and all(is_named("zone_name", name) for name in names):
        yield fact("clock", "clock", names=("list", tuple(("zone_name", name) for name in names)))
        yield fact("clock", "zone_count", count=("number", len(zones)))
    cities = [zone for zone in zones if is_named("city", zone) and is_city(zone)]
    if cities:
        yield fact("cities", "cities", cities=("list", tuple(("city", zone) for zone in cities[:6])))
        yield fact("cities", "zone_id", zone=("text", cities[0]))
    week = Locale("en", territory) if territory in _english_territories() else _any_locale(territory)
    if week:
        start, end = week.weekend_start, week.weekend_end
        days = [("weekday", day % 7) for day in range(start, start + (end - start) % 7 + 1)]
        yield fact("week", "week", day=("weekday", week.first_week_day))
        yield fact("week", "weekend_two" if len(days) > 1 else "weekend_one", days=("list", tuple(days)))


# Zones named after an island, a state or a base: no city, and often the territory itself.
_NO_CITY = re.compile(r"Island|Antarctica/|Indian/|Atlantic/(?!Reykjavik|Stanley)|Pacific/|America/(St_|North|Indiana)")
_NO_CITY_TOO = "Europe/Isle_of_Man Europe/Jersey Europe/Guernsey Arctic/Longyearbyen".split()


def is_city(zone: str) -> bool:
    return not _NO_CITY.search(zone) and zone not in _NO_CITY_TOO


@cache
def _old_zone_ids() -> dict[str, list[str]]:
    old = {}
    for alias, zone in sorted(get_global("zone_aliases").items()):
        old.setdefault(zone, []).append(alias)
    return old


def _zone_name(zone: str) -> str | None:
    """The CLDR name ("metazone") of a time zone, which the data may list under an older id of the zone."""
    table = get_global("meta_zones")
    return next((table[name] for name in [zone, *_old_zone_ids().get(zone, ())] if name in table), None)


@cache
def _three_letter_codes() -> dict[str, str]:
    aliases = get_global("territory_aliases").items()
    found = {new[0]: old for old, new in sorted(aliases) if len(old) == 3 and old.isalpha() and len(new) == 1}
    # Codes that ISO 3166 has replaced stand in the same table.
    return {**found, "CD": "COD", "FR": "FRA", "TL": "TLS", "YE": "YEM"}


@cache
def _english_territories() -> frozenset[str]:
    return frozenset(name[3:] for name in locale_identifiers() if re.fullmatch("en_[A-Z]{2}", name))


def _any_locale(territory: str) -> Locale | None:
    """The locale of the territory's most spoken language that CLDR describes there."""
    spoken = get_global("territory_languages").get(territory, {})
    official = [code for code in spoken if spoken[code]["official_status"] in ("official", "de_facto_official")]
    for code in sorted(official or spoken, key=lambda code: (-spoken[code]["population_percent"], code)):
        try:
            return Locale.parse(f"{code}_{territory}")
        except UnknownLocaleError:
            continue
    return None


def _formats(territory, fact):
    locale = _any_locale(territory)
    if locale is None:
        return
    date = re.sub("[^\x20-\x7e]", "", locale.date_formats["short"].pattern)
    symbols = locale.number_symbols.get("latn", {})
    if re.fullmatch(r"[yMd]+([/.\- ]+[yMd]+){2}\.?", date) and {"group", "decimal"} <= set(symbols):
        group = " " if symbols["group"].isspace() else symbols["group"]
        example = {"d": "23", "M": "07", "y": "2024"}
        yield fact("formats", "date_style", date=("text", re.sub("[yMd]+", lambda run: example[run[0][0]], date)))
        by_two = "#,##,##0" in locale.decimal_formats[None].pattern
        number = group.join(["98", "76", "543"] if by_two else ["9", "876", "543"]) + symbols["decimal"] + "21"
        yield fact("formats", "number_style", number=("text", number))
        half_day = "h" in re.sub("'[^']*'", "", locale.time_formats["short"].pattern)
        yield fact("formats", "hours_12" if half_day else "hours_24")
