"""What BM25 sees of a text: its terms, language by language.

    text -> NFKC, case folded, spelling variants made one -> words -> without stop words -> Snowball stems

A word is letters, digits and the combining marks that belong to them: the vowel signs of Hindi or Telugu are marks,
and `\\w` in Python's `re` cuts words at them. Scripts written without spaces (Chinese, Japanese, Thai ...) and Hangul,
whose particles cling to the word, are cut into overlapping pairs of characters, in whatever language they occur.

Every code of `xmlib.languages` is analysed: a language without a stemmer or stop words keeps its words as they are.
Stop words are those that `bm25s` carries (for English Lucene's 33, for others in the main Snowball's); the short lists
below, the commonest function and question words, were written for this project.
"""

import unicodedata
from collections.abc import Callable
from functools import cache

import regex

from xmlib import languages

VERSION = 1  # raise it when any language's terms change: an index knows the version that it was built with

# Names as Snowball has them. Not here: languages that Snowball lacks, or whose pairs of characters need no stemming.
SNOWBALL = {
    "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english",
    "eo": "esperanto", "es": "spanish", "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish",
    "fr": "french", "ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian",
    "it": "italian", "lt": "lithuanian", "ne": "nepali", "nl": "dutch", "no": "norwegian", "pl": "polish",
    "pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian", "sv": "swedish", "ta": "tamil",
    "tr": "turkish",
}  # fmt: skip

BM25S_STOP_LISTS = {
    "da": "DANISH", "de": "GERMAN", "en": "EN", "es": "SPANISH", "fr": "FRENCH", "it": "ITALIAN", "nl": "DUTCH",
    "no": "NORWEGIAN", "pt": "PORTUGUESE", "ru": "RUSSIAN", "sv": "SWEDISH", "tr": "TURKISH",
}  # fmt: skip

STOP_WORDS = {
    "en": "s t",  # what is left of "country's" and "don't"
    "ar": "في من على إلى عن مع هو هي هم أن إن كان كانت التي الذي الذين هذا هذه ذلك تلك ما ماذا هل متى أين كيف كم "
    "لماذا أو ثم لا لم لن قد كل بعد قبل بين حتى عند منذ و",
    "hi": "का के की को से में पर और है हैं था थी थे हो ने यह वह इस उस ये वे जो कि एक भी तो ही नहीं या कर लिए द्वारा "
    "तक साथ क्या कौन कब कहाँ कैसे क्यों कितने कितनी किस अपने",
    "bn": "এবং ও এর এই সেই একটি এক যে যা তা তার তিনি তাঁর করে করা হয় হয়ে ছিল ছিলেন থেকে জন্য সঙ্গে সাথে না কি কী "
    "কে কোন কোথায় কখন কবে কত কেন কীভাবে বা তবে কিন্তু",
    "te": "ఒక ఈ ఆ మరియు ఉంది ఉన్న ఉన్నాయి యొక్క లో కి కు తో నుండి నుంచి కూడా అని ఇది అది ఏ ఏది ఏమిటి ఎవరు ఎక్కడ ఎప్పుడు ఎలా ఎంత ఎందుకు",
    "fi": "ja on oli ei se ne hän he että joka jotka kun kuin myös mutta tai sekä ovat olivat ole olla oliko onko "
    "mikä mitkä mitä kuka ketkä milloin missä mistä mihin miten miksi kuinka minä sinä me te tämä tuo",
    "id": "yang dan di ke dari untuk dengan pada adalah ini itu dalam oleh sebagai tidak juga atau akan telah sudah "
    "ada karena tersebut dapat bisa apa apakah siapa siapakah kapan kapankah mana dimana manakah bagaimana mengapa "
    "berapa berapakah ialah yaitu",
    "sw": "na ya wa kwa ni katika za la cha vya ba kwamba hii huu hiyo huo hilo hili huyu yake wake lake au pia kama "
    "ili lakini nini nani lini wapi gani vipi ngapi je kuwa alikuwa ilikuwa",
    "vi": "là và của các những được trong cho với có một này đó đã đang sẽ ở khi thì mà như cũng để từ ra vào bị bởi "
    "tại do nào gì ai đâu bao nhiêu sao",
}

_PAIRED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー々"
_WORD = rf"[[\p{{L}}\p{{N}}]--[{_PAIRED}]][[\p{{L}}\p{{N}}\p{{M}}]--[{_PAIRED}]]*"
_RUNS = regex.compile(rf"(?P<pairs>[{_PAIRED}]+)|{_WORD}", regex.V1)
_INVISIBLE = regex.compile(r"\p{Cf}+")  # joiners, soft hyphens, direction marks
_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)

_ARABIC_MARKS = regex.compile(r"[\u064b-\u065f\u0670\u0640]")  # short vowels and tatweel, which most texts leave out
_ARABIC_SCRIPT = {
    "ar": str.maketrans("أإآٱىة", "اااايه"),
    "fa": str.maketrans("يىك", "ییک"),
    "ur": str.maketrans("يىك", "ییک"),
}


def analyser(lang: str) -> Callable[[str], list[str]]:
    """The function text -> terms of one language, for one thread: stemmers hold state. ValueError for unknown codes."""
    languages.language(lang)
    stop = stop_words(lang)
    stem = _stemmer(lang)

    def terms(text: str) -> list[str]:
        found: list[str] = []
        for run in _RUNS.finditer(normalise(text, lang)):
            term = run[0]
            if run["pairs"] is None:
                if term not in stop:
                    found.append(stem(term))
            elif len(term) == 1:
                found.append(term)
            else:
                found.extend(term[i : i + 2] for i in range(len(term) - 1))
        return found

    return terms


def normalise(text: str, lang: str) -> str:
    """One spelling for what readers take as the same: width, case, digits, invisible characters, Arabic letters."""
    if lang == "fa":
        text = text.replace("\u200c", " ")  # it parts prefixes and endings from the stem, as a space would
    if lang in ("tr", "az"):
        text = text.replace("İ", "i").replace("I", "ı")
    text = unicodedata.normalize("NFKC", text).casefold()
    if text.isascii():
        return text
    text = _INVISIBLE.sub("", text)
    if lang in _ARABIC_SCRIPT:
        text = _ARABIC_MARKS.sub("", text).translate(_ARABIC_SCRIPT[lang])
    # Case folding may undo the composition (İ, ΐ); the stemmers want composed letters.
    return unicodedata.normalize("NFKC", _DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text))


@cache
def stop_words(lang: str) -> frozenset[str]:
    """Stop words in the spelling of `normalise`; empty where there is no list."""
    from bm25s import stopwords

    words = list(getattr(stopwords, f"STOPWORDS_{BM25S_STOP_LISTS[lang]}")) if lang in BM25S_STOP_LISTS else []
    words += STOP_WORDS.get(lang, "").split()
    return frozenset(normalise(word, lang) for word in words)


def _stemmer(lang: str) -> Callable[[str], str]:
    if lang not in SNOWBALL:
        return str
    import Stemmer

    return Stemmer.Stemmer(SNOWBALL[lang]).stemWord
