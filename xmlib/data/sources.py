"""Where collections come from: one name, one language and one split in, a `Collection` out."""

from pathlib import Path

from xmlib import languages
from xmlib.data import folder, published
from xmlib.data.collection import Collection
from xmlib.paths import DATA, ROOT


def open_collection(
    source: str | Path, lang: str, split: str = "test", max_passages: int | None = None, **options
) -> Collection:
    """Open the collection `source` in one language; `max_passages` makes a reduced one of it (`Collection.reduced`).

    `source` is "sample" or "sample-ood" (generated, no download; options of "sample": `scale`), or one of
    `xmlib.data.published` (mmarco, mrtydi, …: downloaded the first time), or the path of a folder as
    `xmlib.data.folder` describes it, or of a folder that holds one such folder per language: `xquad` with `xquad/ar`.
    A relative path is looked for from where you are, then from the checkout, then from the data folder.
    """
    collection = _open(source, lang, split, options)
    return collection.reduced(max_passages) if max_passages else collection


def collection_languages(source: str | Path) -> list[str]:
    """The languages that `source` has, in the order of the tables. A folder with a single collection names none: []."""
    if str(source) == "sample":
        return list(languages.SAMPLE)
    if str(source) == "sample-ood":
        return list(languages.MRTYDI)
    if str(source) in published.PUBLISHED:
        return list(published.PUBLISHED[str(source)].names)
    path = find_folder(source)
    return [code for code in languages.LANGUAGES if folder.holds_passages(path / code)]


def find_folder(source: str | Path) -> Path:
    """The folder that a name means: from where you are, then from the checkout, then from the data folder."""
    places = [base / Path(source).expanduser() for base in (Path.cwd(), ROOT, DATA)]
    for path in places:
        if path.is_dir():
            return path.resolve()
    looked = ", ".join(dict.fromkeys(str(path) for path in places))
    have = ", ".join(["sample", "sample-ood", *published.PUBLISHED])
    raise ValueError(f"unknown collection {str(source)!r}; have: {have}, or a folder (looked for {looked})")


def _open(source: str | Path, lang: str, split: str, options: dict) -> Collection:
    languages.language(lang)
    if str(source) == "sample":
        from xmlib.data import sample

        return sample.load(lang, split, **options)
    if options:
        raise ValueError(f"{source} has no option {', '.join(options)}; only the source 'sample' has: scale")
    if str(source) == "sample-ood":
        from xmlib.data import sample_ood

        return sample_ood.load(lang, split)
    if str(source) in published.PUBLISHED:
        return published.load(str(source), lang, split)
    path = find_folder(source)
    if folder.holds_passages(path):
        return folder.load(path, lang, split)
    if folder.holds_passages(path / lang):
        return folder.load(path / lang, lang, split, name=path.name)
    have = collection_languages(path)
    if not have:
        raise ValueError(f"{path} holds no collection.tsv[.gz] and no folder named after a language that holds one")
    raise ValueError(f"{path} has no language {lang!r}; have: {', '.join(have)}")
