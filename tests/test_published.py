"""The published collections, as miniatures in their exact formats, fetched from a hub on loopback and packed."""

import gzip
import io
import json

import pandas as pd
import pytest
from hub_server import serving

from xmlib.data import hub, packed, published
from xmlib.data.collection import DuplicateId, Passages
from xmlib.data.sources import collection_languages, open_collection

# What breaks parsers: quotes at either end, doubled, single; tabs; other separators of lines; no text.
GERMAN = {
    "0": '"Zitat" am Anfang, und ein "" doppeltes',
    "1": 'endet mit "',
    "2": "mit\tTab\tund 'so'",
    "3": "Zeilentrenner\u2028hier und\x0bda",
    "4": "",
    "5": "schlicht",
    "7": "Lücke davor",
}
SWAHILI = [
    {"docid": "15607#5", "title": "Nairobi", "text": 'Mji "mkuu".\nMstari\twa pili.'},
    {"docid": "15607#6", "title": "", "text": "Bila kichwa."},
    {"docid": "9#0", "title": "Kenya", "text": "Nchi."},
]


def lines(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.fixture
def server(tmp_path, monkeypatch):
    for module in (published, hub):
        monkeypatch.setattr(module, "DATA", tmp_path / "data")
    with serving(monkeypatch, tmp_path) as hub_server:
        hub_server.revisions |= {source.repository.revision for source in published.PUBLISHED.values()} | {
            split.repository.revision for source in published.PUBLISHED.values() for split in source.splits.values()
        }
        yield hub_server


def serve_mmarco(server, passages=GERMAN, name="german"):
    text = "".join(f"{pid}\t{text}\n" for pid, text in passages.items())
    server.add("unicamp-dl/mmarco", f"data/google/collections/{name}_collection.tsv", text.encode())
    queries = '1048585\tWas ist "das"?\n2\tohne Urteil\n'
    server.add("unicamp-dl/mmarco", f"data/google/queries/dev/{name}_queries.dev.small.tsv", queries.encode())
    qrels = b"1048585\t0\t7\t1\n1048585\t0\t1\t1\n"
    server.add("unicamp-dl/mmarco", "data/qrels.dev.small.tsv", qrels, git=True)


def serve_mrtydi(server):
    server.add("castorini/mr-tydi-corpus", "mrtydi-v1.1-swahili/corpus.jsonl.gz", gzip.compress(lines(SWAHILI)))
    folder = "mrtydi-v1.1-swahili/ir-format-data"
    server.add("castorini/mr-tydi", f"{folder}/topics.test.txt", b"2601\tMji mkuu  ni upi?\n", git=True)
    server.add("castorini/mr-tydi", f"{folder}/qrels.test.txt", b"2601\tQ0\t15607#5\t1\n", git=True)


def test_mmarco_keeps_ids_order_and_every_byte_of_text(server, capsys):
    serve_mmarco(server)
    collection = open_collection("mmarco", "de", "dev")
    assert dict(collection.passages.items()) == GERMAN
    assert list(collection.passages) == list(GERMAN)
    assert collection.queries == {"1048585": 'Was ist "das"?', "2": "ohne Urteil"}
    assert collection.qrels == {"1048585": {"7": 1, "1": 1}}
    assert (collection.name, collection.lang, collection.split) == ("mmarco", "de", "dev")
    out = capsys.readouterr().out
    assert "downloading mmarco (de): 1 file, 134 bytes, from unicamp-dl/mmarco (licence: MS MARCO: non-comm" in out


def test_opening_again_asks_nobody_and_says_nothing(server, capsys):
    serve_mmarco(server)
    first = open_collection("mmarco", "de")
    capsys.readouterr()
    server.requests.clear()
    again = open_collection("mmarco", "de")
    assert (again.fingerprint, again.split) == (first.fingerprint, "dev")  # "test" is what results are reported on
    assert server.requests == []
    assert capsys.readouterr().out == ""


def test_a_packed_collection_equals_one_in_memory(server):
    serve_mmarco(server)
    opened = open_collection("mmarco", "de").passages
    held = Passages.from_pairs(GERMAN.items())
    assert opened == held and opened.fingerprint == held.fingerprint
    for position, pid in enumerate(GERMAN):
        assert (opened.position(pid), opened.text(position)) == (position, GERMAN[pid])
    assert "6" not in opened and "" not in opened


def test_the_record_names_commit_and_checksum_of_every_file(server, tmp_path):
    serve_mmarco(server)
    open_collection("mmarco", "de")
    (record,) = json.loads(next((tmp_path / "data/published").glob("mmarco-de-*/sources.json")).read_text())[:1]
    assert record["repo"] == "unicamp-dl/mmarco" and len(record["commit"]) == 40 and len(record["checksum"]) in (40, 64)


def test_mr_tydi_puts_the_title_first_and_keeps_the_text(server):
    serve_mrtydi(server)
    collection = open_collection("mrtydi", "sw")
    assert dict(collection.passages.items()) == {
        "15607#5": 'Nairobi Mji "mkuu".\nMstari\twa pili.',
        "15607#6": "Bila kichwa.",
        "9#0": "Kenya Nchi.",
    }
    assert collection.queries == {"2601": "Mji mkuu  ni upi?"}
    assert collection.qrels == {"2601": {"15607#5": 1}}


def test_miracl_reads_all_its_files_in_their_order(server):
    for shard in range(2):
        rows = [{"docid": f"{shard}{i}#0", "title": "T", "text": f"{shard} {i}"} for i in range(3)]
        path = f"miracl-corpus-v1.0-th/docs-{shard}.jsonl.gz"
        server.add("miracl/miracl-corpus", path, gzip.compress(lines(rows)))
    server.add("miracl/miracl", "miracl-v1.0-th/topics/topics.miracl-v1.0-th-dev.tsv", b"1#0\tq?\n", git=True)
    judged = b"1#0\tQ0\t12#0\t1\n1#0\tQ0\t00#0\t0\n"
    server.add("miracl/miracl", "miracl-v1.0-th/qrels/qrels.miracl-v1.0-th-dev.tsv", judged, git=True)
    collection = open_collection("miracl", "th")
    assert list(collection.passages) == ["00#0", "01#0", "02#0", "10#0", "11#0", "12#0"]
    assert collection.qrels == {"1#0": {"12#0": 1, "00#0": 0}}
    assert collection.split == "dev"


def test_mldr_takes_judgements_from_its_examples(server):
    corpus = [{"docid": "doc-en-1", "text": "long " * 50}, {"docid": "doc-en-2", "text": "other"}]
    asked = [
        {"query_id": "q-en-1", "query": "which?", "positive_passages": [{"docid": "doc-en-2", "text": "other"}],
         "negative_passages": [{"docid": "doc-en-1", "text": ""}]},
        {"query_id": "q-en-2", "query": "lost?", "positive_passages": [{"docid": "doc-en-9", "text": ""}]},
    ]  # fmt: skip
    server.add("Shitao/MLDR", "mldr-v1.0-en/corpus.jsonl.gz", gzip.compress(lines(corpus)))
    server.add("Shitao/MLDR", "mldr-v1.0-en/test.jsonl.gz", gzip.compress(lines(asked)))
    collection = open_collection("mldr", "en")
    assert collection.passages["doc-en-2"] == "other"
    assert collection.qrels == {"q-en-1": {"doc-en-2": 1}}
    assert collection.skipped == {"judgement of an unknown passage": 1}


def test_swim_ir_merges_equal_passages_and_keeps_repeated_ids_apart(server):
    rows = pd.DataFrame(
        [("a", "q1", "T", "same"), ("b", "q2", "T", "same"), ("c", "q3", "", "other"), ("c", "q4", "U", "third")],
        columns=["_id", "query", "title", "text"],
    )
    table = io.BytesIO()
    rows.assign(lang="yo", code="yo").to_parquet(table)
    server.add("nthakur/swim-ir-monolingual", "yo/train-00000-of-00001.parquet", table.getvalue())
    collection = open_collection("swim-ir", "yo")
    assert dict(collection.passages.items()) == {"a": "T same", "c": "other", "c~2": "U third"}
    assert collection.qrels == {"a": {"a": 1}, "b": {"a": 1}, "c": {"c": 1}, "c~2": {"c~2": 1}}
    assert collection.split == "train"


def test_packing_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    files = []
    for shard in range(3):
        files.append(tmp_path / f"{shard}.tsv")
        files[-1].write_text("".join(f"{shard}-{i}\ttext {i}\n" for i in range(10)))
    monkeypatch.setattr(packed, "BATCH", 4)
    read = []

    def reader(path, stop_at=None):
        for pid, text in published.tsv_passages(path):
            if pid == stop_at:
                raise KeyboardInterrupt
            read.append(pid)
            yield pid, text

    with pytest.raises(KeyboardInterrupt):
        packed.pack(tmp_path / "cut", files, lambda path: reader(path, b"1-6"))
    for part in ("ids.utf8", "texts.offsets"):  # killed while it wrote
        with (tmp_path / "cut" / part).open("ab") as file:
            file.write(b"half")
    packed.pack(tmp_path / "cut", files, reader)
    assert read.count(b"0-3") == 1 and read.count(b"1-3") == 2
    packed.pack(tmp_path / "whole", files, reader)
    cut, whole = packed.open_passages(tmp_path / "cut"), packed.open_passages(tmp_path / "whole")
    assert cut == whole and cut.fingerprint == whole.fingerprint and len(cut) == 30
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [
        "ids.offsets", "ids.utf8", "meta.json", "order", "sums", "texts.offsets", "texts.utf8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"1\ta\nno tab\n", ValueError, r"german_collection.tsv line 2: expected 'pid<TAB>text', found no tab in b'no"),
        (b"1\ta\n2\tcaf\xe9\n", ValueError, r"passage b'2' is not UTF-8 in b'caf\\xe9'"),
        (b"1\ta\n2\tb\n1\tc\n", DuplicateId, r"'1' is used twice, at positions 0 and 2"),
        (b"1 2\ta\n", ValueError, r"expected a pid without blanks, found b'1 2'"),
    ],
)
def test_a_bad_collection_is_refused_and_leaves_no_collection(server, tmp_path, content, error, message):
    serve_mmarco(server)
    server.add("unicamp-dl/mmarco", "data/google/collections/german_collection.tsv", content)
    with pytest.raises(error, match=message):
        open_collection("mmarco", "de")
    assert [path.name[-8:] for path in (tmp_path / "data/published").iterdir() if path.is_dir()] == [".partial"]


def test_a_damaged_folder_says_so(server, tmp_path):
    serve_mmarco(server)
    open_collection("mmarco", "de")
    offsets = next((tmp_path / "data/published").glob("mmarco-de-*/passages/texts.offsets"))
    offsets.write_bytes(offsets.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"texts.offsets is damaged: 63 bytes, expected 64; remove .*passages"):
        open_collection("mmarco", "de")


def test_a_reduced_collection_keeps_what_is_judged_and_says_so(server):
    many = {str(i): f"Text {i}" for i in range(200)}
    serve_mmarco(server, many)
    serve_mmarco(server, {pid: text.replace("Text", "Texte") for pid, text in many.items()}, "french")
    whole = open_collection("mmarco", "de")
    small = open_collection("mmarco", "de", max_passages=20)
    assert small.name == "mmarco-REDUCED-20"
    assert len(small.passages) == 20 and {"1", "7"} <= set(small.passages)
    assert all(whole.passages[pid] == text for pid, text in small.passages.items())
    assert list(small.passages) == sorted(small.passages, key=int)
    assert (small.queries, small.qrels) == (whole.queries, whole.qrels)
    assert small.fingerprint == open_collection("mmarco", "de", max_passages=20).fingerprint != whole.fingerprint
    assert list(open_collection("mmarco", "fr", max_passages=20).passages) == list(small.passages)
    assert list(whole.reduced(20, seed=1).passages) != list(small.passages)
    enough = open_collection("mmarco", "de", max_passages=200)
    assert (enough.name, enough.source, enough.fingerprint) == ("mmarco-REDUCED-200", "mmarco", whole.fingerprint)
    with pytest.raises(ValueError, match="has 2 judged passages, over the 1 asked"):
        open_collection("mmarco", "de", max_passages=1)


def test_unknown_languages_splits_and_names_say_what_there_is(server):
    with pytest.raises(
        ValueError, match="mrtydi has no language 'de'; have: en, id, ru, ja, ar, bn, fi, ko, sw, te, th"
    ):
        open_collection("mrtydi", "de")
    with pytest.raises(ValueError, match="mmarco has no split 'dve'; have: dev, train"):
        open_collection("mmarco", "de", "dve")
    with pytest.raises(
        ValueError, match="unknown collection 'mmarcoo'; have: sample, sample-ood, mmarco, mrtydi, miracl, mldr,"
    ):
        open_collection("mmarcoo", "de")
    with pytest.raises(ValueError, match="mmarco has no option scale"):
        open_collection("mmarco", "de", scale=1)
    assert server.requests == []


def test_every_source_names_its_languages_and_files():
    counts = {name: len(collection_languages(name)) for name in published.PUBLISHED}
    assert counts == {"mmarco": 14, "mrtydi": 11, "miracl": 18, "mldr": 13, "swim-ir": 10}
    paths = {name: [file.path for file in published.files(name, "ar")] for name in counts}
    assert paths["mmarco"] == [
        "data/google/collections/arabic_collection.tsv",
        "data/google/queries/dev/arabic_queries.dev.small.tsv",
        "data/qrels.dev.small.tsv",
    ]
    assert paths["mrtydi"][1:] == [
        "mrtydi-v1.1-arabic/ir-format-data/topics.test.txt",
        "mrtydi-v1.1-arabic/ir-format-data/qrels.test.txt",
    ]
    assert len(paths["miracl"]) == 5 + 2 and len(published.files("miracl", "sw")) == 1 + 2
    assert published.files("mmarco", "nl")[0].path == "data/google/collections/dutch_collection.tsv"
