"""A collection as a folder of three tab-separated files, each plain or gzipped, UTF-8, without header.

    collection.tsv[.gz]   pid <TAB> text                     or  passages.tsv[.gz]
    queries.tsv[.gz]      qid <TAB> text                     or  queries.<split>.tsv[.gz]
    qrels.tsv[.gz]        qid  0  pid  grade                 or  qrels.<split>.tsv[.gz];  blanks or tabs, TREC order

The names without a split hold the split "test". Text is everything after the first tab, quotes and further tabs
included: nothing is unquoted. A byte order mark and Windows line ends are dropped.

What is broken stops with file and line: too few columns, an id twice, bytes that are not UTF-8, a cut-off gzip file.
What retrieval collections commonly carry is left out, counted in `Collection.skipped` and told in one warning: blank
lines, passages and queries without text, judgements of queries or passages that are not there, repeated judgements.
"""

import gzip
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from xmlib.data.collection import Collection, DuplicateId, Passages

PLAIN_SPLIT = "test"  # the split of files that name none


def load(folder: str | Path, lang: str, split: str = PLAIN_SPLIT, name: str | None = None) -> Collection:
    """Read the collection in `folder`. `name` defaults to the folder's name."""
    folder = Path(folder).expanduser().resolve()
    passages_file = _existing(folder, ["collection", "passages"])
    have = splits(folder)
    if split not in have:
        raise ValueError(f"{folder} has no split {split!r}; have: {', '.join(have) or 'no pair of queries and qrels'}")
    queries_file = _existing(folder, _stems("queries", split))
    qrels_file = _existing(folder, _stems("qrels", split))

    skips = Skips()
    try:
        passages = Passages.from_pairs(_texts(passages_file, "pid", skips, "passage"))
    except DuplicateId as error:
        _raise_with_lines(passages_file, error.id)
    queries = read_queries(queries_file, skips)
    qrels = read_qrels(qrels_file, queries, passages, skips)

    name = name or folder.name
    if skips.counts:
        warnings.warn(f"collection {name} ({lang}, {split}) left out {skips}", stacklevel=2)
    return Collection(name, lang, split, passages, queries, qrels, skips.counts)


def read_queries(path: Path, skips: "Skips") -> dict[str, str]:
    """qid → text, out of lines 'qid<TAB>text'."""
    queries: dict[str, str] = {}
    for qid, text in _texts(path, "qid", skips, "query"):
        if qid in queries:
            _raise_with_lines(path, qid)
        queries[qid] = text
    return queries


def read_qrels(path: Path, queries: dict, passages: Passages, skips: "Skips") -> dict[str, dict[str, int]]:
    """qid → pid → grade, out of lines 'qid 0 pid grade', for the queries and passages that there are."""
    qrels = _judgements(path, queries, passages, skips)
    if not qrels:
        raise ValueError(f"{path}: no judgement is of a query and a passage of this collection. {skips}".rstrip())
    return qrels


def save(collection: Collection, folder: str | Path) -> None:
    """Write the three gzipped files, each beside and then renamed. `load` reads them back equal.

    Several splits of the same passages may be saved into one folder. ValueError for an id with a blank and for a text
    that is empty or has a line break, which the files cannot hold.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    split = "" if collection.split == PLAIN_SPLIT else f".{collection.split}"
    qrels = ((qid, "0", pid, str(grade)) for qid, judged in collection.qrels.items() for pid, grade in judged.items())
    _write(folder / "collection.tsv.gz", collection.passages.items())
    _write(folder / f"queries{split}.tsv.gz", collection.queries.items())
    _write(folder / f"qrels{split}.tsv.gz", qrels)


class Skips:
    """Counts per reason, and where the first of each was seen."""

    def __init__(self):
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, reason: str, path: Path, line: int) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, f"{path.name} line {line}")

    def __str__(self) -> str:
        return "; ".join(f"{count} x {reason} (first: {self.first[reason]})" for reason, count in self.counts.items())


def holds_passages(folder: Path) -> bool:
    """Whether `folder` itself is a collection, and not, say, a folder of one collection per language."""
    return any(path.is_file() for stem in ["collection", "passages"] for path in _paths(folder, stem))


def splits(folder: Path) -> list[str]:
    """The splits for which `folder` has queries and judgements."""
    found = {"queries": set(), "qrels": set()}
    for path in folder.iterdir():
        stem = path.name.removesuffix(".gz")
        role, _, split = stem.removesuffix(".tsv").partition(".")
        if stem.endswith(".tsv") and role in found:
            found[role].add(split or PLAIN_SPLIT)
    return sorted(found["queries"] & found["qrels"])


def _stems(role: str, split: str) -> list[str]:
    return [f"{role}.{split}"] + ([role] if split == PLAIN_SPLIT else [])


def _paths(folder: Path, stem: str) -> list[Path]:
    return [folder / f"{stem}.tsv", folder / f"{stem}.tsv.gz"]


def _existing(folder: Path, stems: list[str]) -> Path:
    paths = [path for stem in stems for path in _paths(folder, stem)]
    for path in paths:
        if path.is_file():
            return path
    looked_for = ", ".join(path.name for path in paths)
    have = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no such folder"
    raise FileNotFoundError(f"{folder}: none of {looked_for} is there; have: {have or 'an empty folder'}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Stream (line number, line). Only \\n ends a line: texts may hold every other separator that Unicode knows."""
    with path.open("rb") as start:
        zipped = start.read(2) == b"\x1f\x8b"
    number = 0
    with gzip.open(path) if zipped else path.open("rb") as file:
        try:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                yield number, raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
            raise ValueError(f"{path} line {number}: expected UTF-8, found {byte}; convert the file first") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} after line {number}: the gzip file is damaged or cut off ({error})") from error


def _texts(path: Path, id_name: str, skips: Skips, what: str) -> Iterator[tuple[str, str]]:
    """Stream (id, text) of the lines that hold both."""
    for number, line in _lines(path):
        if not line.strip():
            skips.add("blank line", path, number)
            continue
        id, tab, text = line.partition("\t")
        if not tab:
            raise ValueError(f"{path} line {number}: expected '{id_name}<TAB>text', found no tab in {line!r:.80}")
        _check_id(id, id_name, path, number)
        if text.strip():
            yield id, text
        else:
            skips.add(f"{what} without text", path, number)


def _check_id(id: str, id_name: str, path: Path, number: int) -> None:
    if len(id.split()) != 1 or id != id.strip():
        raise ValueError(f"{path} line {number}: expected a {id_name} without blanks, found {id!r:.80}")


def _judgements(path: Path, queries: dict, passages: Passages, skips: Skips) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        columns = line.split()
        if not columns:
            skips.add("blank line", path, number)
            continue
        if len(columns) != 4:
            expected = "expected four columns 'qid 0 pid grade'"
            raise ValueError(f"{path} line {number}: {expected}, found {len(columns)} in {line!r:.80}")
        qid, _, pid, grade = columns
        try:
            grade = int(grade)
        except ValueError:
            raise ValueError(f"{path} line {number}: expected a whole number as grade, found {grade!r}") from None
        if qid not in queries:
            skips.add("judgement of an unknown query", path, number)
        elif pid not in passages:
            skips.add("judgement of an unknown passage", path, number)
        elif pid not in qrels.setdefault(qid, {}):
            qrels[qid][pid] = grade
        elif qrels[qid][pid] == grade:
            skips.add("repeated judgement", path, number)
        else:
            was = qrels[qid][pid]
            raise ValueError(f"{path} line {number}: query {qid!r}, passage {pid!r} is judged {grade}, but {was} above")
    return qrels


def _raise_with_lines(path: Path, id: str):
    """A second pass over the file, for the line numbers that the packed passages do not keep."""
    lines = [number for number, line in _lines(path) if line.partition("\t")[::2][0] == id]
    raise ValueError(
        f"{path} line {lines[1]}: expected every id once, found {id!r} already in line {lines[0]}"
    ) from None


def _write(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # No time stamp and no name in the gzip header: equal collections give equal files.
        with beside.open("wb") as raw, gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as file:
            for row in rows:
                if not all(row) or any(blank in name for name in row[:-1] for blank in " \t"):
                    raise ValueError(f"{path.name}: an id with a blank, or nothing beside an id, in {row!r:.80}")
                line = "\t".join(row)
                if "\n" in line or line.endswith("\r"):
                    raise ValueError(f"{path.name}: {row[0]!r} holds a line break, which a line cannot: {line!r:.80}")
                file.write(line.encode() + b"\n")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
