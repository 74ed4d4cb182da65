"""The collections that others published, read from the raw files on the Hugging Face hub: one table says where and how.

    mmarco     MS MARCO passages, translated by Google into 13 languages, and English itself: Table 1
    mrtydi     Mr. TyDi v1.1, Wikipedia: the ten languages of Table 2, and Thai
    miracl     MIRACL v1.0, Wikipedia, 18 languages
    mldr       long documents, 13 languages
    swim-ir    questions generated for Wikipedia passages, 10 languages; for training: it judges nothing else

The loading scripts that came with most of them no longer run anywhere, so the files themselves are read. Ids are those
of the source. Texts are kept to the byte, quotes and tabs included; where a source gives a title, it comes first, then
a blank, as in the paper's code. Passages are packed once per language (`xmlib.data.packed`) and mapped ever after.

Split "test" means the one that results are reported on: for mMARCO and MIRACL that is their dev.
"""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from xmlib import languages
from xmlib.data import folder, hub, packed
from xmlib.data.collection import Collection, Passages
from xmlib.data.hub import HubFile
from xmlib.paths import DATA
from xmlib.stages import is_built, stage

Questions = tuple[dict[str, str], dict[str, dict[str, int]], dict[str, int]]  # queries, qrels, what was left out


@dataclass(frozen=True)
class Repository:
    """Where files lie. A commit as revision never changes; where none could be looked up, the branch is named, and the
    commit that it stood for is written beside what is made of it."""

    name: str
    revision: str = "main"

    def file(self, path: str) -> HubFile:
        return HubFile(self.name, path, self.revision)


@dataclass(frozen=True)
class Split:
    """The files of one split's queries and judgements, as patterns, and what reads them."""

    paths: tuple[str, ...]
    read: Callable[[list[Path], Passages], Questions]
    repository: Repository


@dataclass(frozen=True)
class Published:
    """One collection. `names`: our language codes → what the collection calls that language in its files."""

    licence: str
    names: dict[str, str]
    repository: Repository
    passages: str  # pattern of the path, with {name} and {shard}
    read: packed.Reader
    splits: dict[str, Split]
    test: str = "test"  # the split that "test" means
    shards: dict[str, int] = field(default_factory=dict)  # number of passage files by language, where it is not 1
    makes: float = 1.1  # bytes packed, per byte downloaded; told from the sizes of the sources, and only a guess


def load(name: str, lang: str, split: str = "test") -> Collection:
    """Open the collection `name`; the first time, download and pack it."""
    source = PUBLISHED[name]
    if lang not in source.names:
        raise ValueError(f"{name} has no language {lang!r}; have: {', '.join(source.names)}")
    split = source.test if split == "test" else split
    if split not in source.splits:
        raise ValueError(f"{name} has no split {split!r}; have: {', '.join(source.splits)}")
    passages = packed.open_passages(_packed(name, lang) / "passages")
    asked = json.loads((_questions(name, lang, split, passages) / "questions.json").read_text(encoding="utf-8"))
    return Collection(name, lang, split, passages, asked["queries"], asked["qrels"], asked["skipped"])


def files(name: str, lang: str, split: str = "test") -> list[HubFile]:
    """The files that `load` reads; `hub.plan` says which of them are still to be downloaded, and how large they are."""
    source = PUBLISHED[name]
    chosen = source.splits[source.test if split == "test" else split]
    return _passage_files(source, lang) + _split_files(source, chosen, lang)


def pending(name: str, lang: str, split: str = "test") -> tuple[list[HubFile], list[HubFile]]:
    """What `load` would still read: files of passages, none once they are packed; and of queries and judgements."""
    source = PUBLISHED[name]
    wanted = [] if is_built(lambda: _packed(name, lang)) else _passage_files(source, lang)
    return wanted, _split_files(source, source.splits[source.test if split == "test" else split], lang)


def _passage_files(source: Published, lang: str) -> list[HubFile]:
    patterns = range(source.shards.get(lang, 1))
    return [source.repository.file(source.passages.format(name=source.names[lang], shard=shard)) for shard in patterns]


def _split_files(source: Published, split: Split, lang: str) -> list[HubFile]:
    return [split.repository.file(path.format(name=source.names[lang])) for path in split.paths]


def _packed(name: str, lang: str) -> Path:
    """The stage's folder with the packed passages."""
    source = PUBLISHED[name]
    wanted = _passage_files(source, lang)

    def build(into: Path) -> None:
        got = hub.fetch(wanted, f"{name} ({lang})", source.licence, source.makes)
        packed.pack(into / "passages", [file.path for file in got], source.read, progress=f"pack {name} ({lang})")
        _write(into / "sources.json", [file.record() for file in got])

    return stage(DATA / "published", f"{name}-{lang}", 1, _inputs(wanted), build, _say)


def _questions(name: str, lang: str, split: str, passages: Passages) -> Path:
    """The stage's folder with the queries and judgements of one split."""
    source = PUBLISHED[name]
    chosen = source.splits[split]
    wanted = _split_files(source, chosen, lang)

    def build(into: Path) -> None:
        got = hub.fetch(wanted, f"{name} ({lang}, {split})", source.licence)
        queries, qrels, skipped = chosen.read([file.path for file in got], passages)
        if not qrels:
            raise ValueError(f"{name} ({lang}, {split}): no judgement is of a query and a passage of this collection")
        _write(into / "questions.json", {"queries": queries, "qrels": qrels, "skipped": skipped})
        _write(into / "sources.json", [file.record() for file in got])

    inputs = _inputs(wanted) | {"passages": passages.fingerprint}
    return stage(DATA / "published", f"{name}-{lang}-{split}", 1, inputs, build, _say)


def _inputs(wanted: list[HubFile]) -> dict:
    return {"files": [[file.repo, file.revision, file.path] for file in wanted]}


def _say(line: str) -> None:
    """Work is told; that a collection is found where it was left goes without saying."""
    if not line.startswith("found"):
        print(line)


def _write(path: Path, value) -> None:
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    os.replace(beside, path)


# How the files are read. Passages: one (pid, text) after the other, in UTF-8.


def tsv_passages(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Lines 'pid<TAB>text': no header, no quoting, and only \\n ends a line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            pid, tab, text = line.rstrip(b"\r\n").partition(b"\t")
            if not tab:
                raise ValueError(f"{path} line {number}: expected 'pid<TAB>text', found no tab in {line!r:.80}")
            yield pid, text


def json_passages(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Lines {"docid": …, "text": …}, with or without "title", gzipped."""
    for row in _json_lines(path):
        yield row["docid"].encode(), _with_title(row).encode()


def parquet_passages(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """The texts of a table of questions, each once, under the id of the first question that it answers."""
    for row in _swim_rows(path):
        if row.first:
            yield row.pid.encode(), row.text.encode()


def trec_questions(paths: list[Path], passages: Passages) -> Questions:
    """A file of lines 'qid<TAB>text', and judgements in TREC's four columns."""
    skips = folder.Skips()
    queries = folder.read_queries(paths[0], skips)
    return queries, folder.read_qrels(paths[1], queries, passages, skips), skips.counts


def json_questions(paths: list[Path], passages: Passages) -> Questions:
    """Lines {"query_id": …, "query": …, "positive_passages": [{"docid": …}, …], …}, gzipped."""
    queries, qrels, unknown = {}, {}, 0
    for row in _json_lines(paths[0]):
        queries[row["query_id"]] = row["query"]
        pids = [passage["docid"] for passage in row["positive_passages"]]
        judged = {pid: 1 for pid in pids if pid in passages}
        unknown += len(pids) - len(judged)
        if judged:
            qrels[row["query_id"]] = judged
    return queries, qrels, {"judgement of an unknown passage": unknown} if unknown else {}


def parquet_questions(paths: list[Path], passages: Passages) -> Questions:
    """The questions of the same table."""
    rows = list(_swim_rows(paths[0]))
    return {row.qid: row.query for row in rows}, {row.qid: {row.pid: 1} for row in rows}, {}


def marco_training_questions(paths: list[Path], passages: Passages) -> Questions:
    """Training queries; their relevant passages come with the hard negatives, which training needs anyway."""
    from xmlib.data import msmarco

    skips = folder.Skips()
    queries, qrels = folder.read_queries(paths[0], skips), {}
    for qid, pids in msmarco.open_negatives().positives():
        judged = {str(pid): 1 for pid in pids.tolist() if str(pid) in passages}
        if judged and str(qid) in queries:
            qrels[str(qid)] = judged
    return queries, qrels, skips.counts


@dataclass(frozen=True)
class _SwimRow:
    qid: str
    query: str
    pid: str
    text: str
    first: bool  # the first row with this text


def _swim_rows(path: Path) -> Iterator[_SwimRow]:
    import pandas as pd

    pids: dict[str, str] = {}
    seen: dict[str, int] = {}
    for row in pd.read_parquet(path, columns=["_id", "query", "title", "text"]).to_dict("records"):
        seen[row["_id"]] = seen.get(row["_id"], 0) + 1
        id = row["_id"] if seen[row["_id"]] == 1 else f"{row['_id']}~{seen[row['_id']]}"  # should an id come again
        text = _with_title(row)
        first = text not in pids
        yield _SwimRow(id, row["query"], pids.setdefault(text, id), text, first)


def _json_lines(path: Path) -> Iterator[dict]:
    with gzip.open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path} line {number}: expected a JSON object, found {line!r:.80}") from error


def _with_title(row: dict) -> str:
    return f"{row['title']} {row['text']}" if row.get("title") else row["text"]


def _by_name(attribute: str) -> dict[str, str]:
    return {code: getattr(row, attribute) for code, row in languages.LANGUAGES.items() if getattr(row, attribute)}


def _by_code(codes: str) -> dict[str, str]:
    """In the order of the language table; the collection uses the same codes."""
    return {code: code for code in languages.LANGUAGES if code in codes.split()}


_MMARCO = Repository("unicamp-dl/mmarco")
_MRTYDI = Repository("castorini/mr-tydi", "3506bca8a88cdb49d8d35e954365ca6053e4346a")
_MIRACL = Repository("miracl/miracl")
_MLDR = Repository("Shitao/MLDR", "f3837caa8004c6b49954bb6b511d424222eb9161")
_SWIM = Repository("nthakur/swim-ir-monolingual", "834c20f0ceef6a68e029fb4447d17d20bb0288c3")
TREC = ("topics", "qrels")

PUBLISHED = {
    "mmarco": Published(
        licence="MS MARCO: non-commercial research; translations: Apache-2.0",
        names=_by_name("mmarco"),
        repository=_MMARCO,
        passages="data/google/collections/{name}_collection.tsv",
        read=tsv_passages,
        splits={
            "dev": Split(
                ("data/google/queries/dev/{name}_queries.dev.small.tsv", "data/qrels.dev.small.tsv"),
                trec_questions,
                _MMARCO,
            ),
            "train": Split(
                ("data/google/queries/train/{name}_queries.train.tsv",), marco_training_questions, _MMARCO
            ),
        },
        test="dev",
    ),
    "mrtydi": Published(
        licence="Apache-2.0",
        names=_by_name("mrtydi"),
        repository=Repository("castorini/mr-tydi-corpus", "4dde1a3240a09e3b1c7579d25f7d26d275078214"),
        passages="mrtydi-v1.1-{name}/corpus.jsonl.gz",
        read=json_passages,
        splits={
            split: Split(
                tuple(f"mrtydi-v1.1-{{name}}/ir-format-data/{part}.{split}.txt" for part in TREC),
                trec_questions,
                _MRTYDI,
            )
            for split in ("test", "dev", "train")
        },
        makes=4.0,
    ),
    "miracl": Published(
        licence="Apache-2.0",
        names=_by_code("ar bn de en es fa fi fr hi id ja ko ru sw te th yo zh"),
        repository=Repository("miracl/miracl-corpus", "d921ec7e349ce0d28daf30b2da9da5ee698bef0d"),
        passages="miracl-corpus-v1.0-{name}/docs-{shard}.jsonl.gz",
        read=json_passages,
        splits={
            split: Split(
                tuple(f"miracl-v1.0-{{name}}/{part}/{part}.miracl-v1.0-{{name}}-{split}.tsv" for part in TREC),
                trec_questions,
                _MIRACL,
            )
            for split in ("dev", "train")
        },
        test="dev",
        # 500,000 passages a file
        shards={"ar": 5, "de": 32, "en": 66, "es": 21, "fa": 5, "fi": 4, "fr": 30, "hi": 2, "id": 3, "ja": 14, "ko": 3,
                "ru": 20, "te": 2, "th": 2, "zh": 10},
        makes=4.0,
    ),
    "mldr": Published(
        licence="MIT",
        names=_by_code("ar de en es fr hi it ja ko pt ru th zh"),
        repository=_MLDR,
        passages="mldr-v1.0-{name}/corpus.jsonl.gz",
        read=json_passages,
        splits={
            split: Split((f"mldr-v1.0-{{name}}/{split}.jsonl.gz",), json_questions, _MLDR)
            for split in ("test", "dev", "train")
        },
        makes=4.0,
    ),
    "swim-ir": Published(
        licence="CC-BY-SA-4.0",
        names=_by_code("ar bn de en es fi fr hi id yo"),
        repository=_SWIM,
        passages="{name}/train-00000-of-00001.parquet",
        read=parquet_passages,
        splits={"train": Split(("{name}/train-00000-of-00001.parquet",), parquet_questions, _SWIM)},
        test="train",
        makes=3.0,
    ),
}  # fmt: skip
