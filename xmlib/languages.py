"""One table of languages: ISO code · English name · script · X-MOD adapter · names in mMARCO and Mr. TyDi.

Everywhere else a language is its ISO 639-1 code (`"sw"`), given explicitly; nothing in this project guesses it.
The adapter names are those of `facebook/xmod-base`. Which adapters a checkpoint has, and in which order, is read from
that checkpoint: `adapter_of` only translates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

TRAINING_LANGUAGE = "en"  # the only language with labelled data in the paper; every other one is zero-shot


@dataclass(frozen=True)
class Language:
    """One language. `mmarco` and `mrtydi` are the names those collections use in their files, None where absent."""

    code: str
    name: str
    script: str
    adapter: str | None = None
    mmarco: str | None = None
    mrtydi: str | None = None


def _table() -> dict[str, Language]:
    # Order of Tables 1 and 2 first: it is the order of every table and figure here.
    collections = [
        ("en", "English", "Latn", "en_XX", "english", "english"),
        ("es", "Spanish", "Latn", "es_XX", "spanish", None),
        ("fr", "French", "Latn", "fr_XX", "french", None),
        ("it", "Italian", "Latn", "it_IT", "italian", None),
        ("pt", "Portuguese", "Latn", "pt_XX", "portuguese", None),
        ("id", "Indonesian", "Latn", "id_ID", "indonesian", "indonesian"),
        ("de", "German", "Latn", "de_DE", "german", None),
        ("ru", "Russian", "Cyrl", "ru_RU", "russian", "russian"),
        ("zh", "Chinese", "Hans", "zh_CN", "chinese", None),
        ("ja", "Japanese", "Jpan", "ja_XX", "japanese", "japanese"),
        ("nl", "Dutch", "Latn", "nl_XX", "dutch", None),
        ("vi", "Vietnamese", "Latn", "vi_VN", "vietnamese", None),
        ("hi", "Hindi", "Deva", "hi_IN", "hindi", None),
        ("ar", "Arabic", "Arab", "ar_AR", "arabic", "arabic"),
        ("bn", "Bengali", "Beng", "bn_IN", None, "bengali"),
        ("fi", "Finnish", "Latn", "fi_FI", None, "finnish"),
        ("ko", "Korean", "Kore", "ko_KR", None, "korean"),
        ("sw", "Swahili", "Latn", "sw_KE", None, "swahili"),
        ("te", "Telugu", "Telu", "te_IN", None, "telugu"),
        ("th", "Thai", "Thai", "th_TH", None, "thai"),
    ]
    rest = """
        af Afrikaans Latn af_ZA; am Amharic Ethi am_ET; az Azerbaijani Latn az_AZ; be Belarusian Cyrl be_BY;
        bg Bulgarian Cyrl bg_BG; ca Catalan Latn ca_ES; cs Czech Latn cs_CZ; cy Welsh Latn cy_GB; da Danish Latn da_DK;
        el Greek Grek el_GR; eo Esperanto Latn eo_EO; et Estonian Latn et_EE; eu Basque Latn eu_ES;
        fa Persian Arab fa_IR; ga Irish Latn ga_IE; gl Galician Latn gl_ES; gu Gujarati Gujr gu_IN; ha Hausa Latn ha_NG;
        he Hebrew Hebr he_IL; hr Croatian Latn hr_HR; hu Hungarian Latn hu_HU; hy Armenian Armn hy_AM;
        is Icelandic Latn is_IS; ka Georgian Geor ka_GE; kk Kazakh Cyrl kk_KZ; km Khmer Khmr km_KH;
        kn Kannada Knda kn_IN; ku Kurdish Latn ku_TR; ky Kyrgyz Cyrl ky_KG; la Latin Latn la_VA; lo Lao Laoo lo_LA;
        lt Lithuanian Latn lt_LT; lv Latvian Latn lv_LV; mk Macedonian Cyrl mk_MK; ml Malayalam Mlym ml_IN;
        mn Mongolian Cyrl mn_MN; mr Marathi Deva mr_IN; ms Malay Latn ms_MY; my Burmese Mymr my_MM;
        ne Nepali Deva ne_NP; no Norwegian Latn no_XX; or Odia Orya or_IN; pa Punjabi Guru pa_IN; pl Polish Latn pl_PL;
        ps Pashto Arab ps_AF; ro Romanian Latn ro_RO; sa Sanskrit Deva sa_IN; si Sinhala Sinh si_LK;
        sk Slovak Latn sk_SK; sl Slovenian Latn sl_SI; so Somali Latn so_SO; sq Albanian Latn sq_AL;
        sr Serbian Cyrl sr_RS; sv Swedish Latn sv_SE; ta Tamil Taml ta_IN; tl Tagalog Latn tl_XX; tr Turkish Latn tr_TR;
        uk Ukrainian Cyrl uk_UA; ur Urdu Arab ur_PK; uz Uzbek Latn uz_UZ; zh-tw Chinese_(Taiwan) Hant zh_TW;
        yo Yoruba Latn -
    """
    rows = [Language(*row) for row in collections]
    for row in rest.split(";"):
        code, name, script, adapter = row.split()
        rows.append(Language(code, name.replace("_", " "), script, None if adapter == "-" else adapter))
    return {row.code: row for row in rows}


LANGUAGES = _table()
MMARCO = [row.code for row in LANGUAGES.values() if row.mmarco]  # 14, in the order of Table 1
MRTYDI = ["ar", "bn", "en", "fi", "id", "ja", "ko", "ru", "sw", "te"]  # Table 2; Thai is left out there
SAMPLE = [*MMARCO, *(code for code in MRTYDI if code not in MMARCO)]  # 19 languages of the `sample` collection


def language(code: str) -> Language:
    """The row of `code`. Raises ValueError with the valid codes for any other value."""
    if code not in LANGUAGES:
        raise ValueError(f"unknown language {code!r}; have: {', '.join(sorted(LANGUAGES))}")
    return LANGUAGES[code]


def adapter_name(code: str) -> str:
    """The adapter name for an ISO code: X-MOD's own, or `<code>_XX` for a language that X-MOD does not have."""
    return language(code).adapter or f"{code}_XX"


def adapter_of(lang: str, adapters: Sequence[str]) -> str:
    """The adapter that texts in `lang` are routed through, out of a model's `adapters`.

    `lang` is an ISO code or the exact name of an adapter. Raises ValueError with the languages the model has.
    """
    if lang in adapters:
        return lang
    if lang in LANGUAGES and adapter_name(lang) in adapters:
        return adapter_name(lang)
    have = sorted(code for code in LANGUAGES if adapter_name(code) in adapters) or sorted(adapters)
    raise ValueError(f"no language adapter for {lang!r}; this model has: {', '.join(have)}")


def resolve(codes: str | Sequence[str], among: Sequence[str]) -> list[str]:
    """`"ar"`, `"ar,sw"`, `"all"` or a list of codes → the codes, in the order of `among`; ValueError for any other."""
    wanted = [code.strip() for code in codes.split(",")] if isinstance(codes, str) else list(codes)
    if wanted == ["all"]:
        return list(among)
    for code in wanted:
        if code not in among:
            raise ValueError(f"unknown language {code!r}; have: {', '.join(among)} (or 'all')")
    return [code for code in among if code in wanted]
