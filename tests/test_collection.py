"""Collections: passages packed in bytes, folders of tab-separated files read and written, and what bad files say."""

import gzip
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmlib.data import folder, sources
from xmlib.data.collection import Collection, DuplicateId, Passages, Strings

PASSAGES = "p1\tNairobi is a city.\np2\tEin \"Zitat\", 'so'.\np3\ta\tb\n"
QUERIES = "q1\twhere is Nairobi?\nq2\tunjudged\n"
QRELS = "q1\t0\tp1\t1\nq1\t0\tp2\t0\n"


def write(path, collection=PASSAGES, queries=QUERIES, qrels=QRELS):
    path.mkdir(parents=True, exist_ok=True)
    for name, text in [("collection.tsv", collection), ("queries.tsv", queries), ("qrels.tsv", qrels)]:
        (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


ids = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=8)


@given(st.dictionaries(ids, st.text(st.characters(exclude_categories=["Cs"])), max_size=30))
def test_passages_are_a_mapping_in_file_order(texts):
    passages = Passages.from_pairs(texts.items())
    assert len(passages) == len(texts)
    assert passages.ids == list(texts) == list(passages)
    assert dict(passages.items()) == texts
    for position, (pid, text) in enumerate(texts.items()):
        assert pid in passages
        assert passages[pid] == passages.text(position) == text
        assert passages.position(pid) == position
    assert "an id that is too long" not in passages
    assert 7 not in passages
    assert pickle.loads(pickle.dumps(passages)) == passages


def test_an_unknown_passage_is_a_key_error():
    with pytest.raises(KeyError, match="no passage 'p9' among 1"):
        Passages.from_pairs([("p1", "")])["p9"]


def test_ids_with_equal_checksums_are_told_apart():
    passages = Passages.from_pairs([("plumless", "first"), ("buckeroo", "second")])  # CRC-32 of both is 4DDB0C25
    assert passages["plumless"] == "first"
    assert passages["buckeroo"] == "second"


def test_a_duplicate_id_is_refused_with_both_positions():
    with pytest.raises(DuplicateId, match="'b' is used twice, at positions 1 and 3"):
        Passages.from_pairs([("a", ""), ("b", ""), ("c", ""), ("b", "again"), ("a", "")])


def test_strings_take_negative_positions_and_slices():
    strings = Strings(["a", "", "é"])
    assert strings[-1] == "é"
    assert strings[1:] == ["", "é"]
    with pytest.raises(IndexError, match="no position 3; there are 3"):
        strings[3]


def test_ids_that_are_no_strings_are_refused():
    with pytest.raises(TypeError, match="pair of strings"):
        Passages.from_pairs([(1, "text")])


def test_the_fingerprint_covers_all_content_and_neither_name_nor_split():
    def collection(texts=("ab", "c"), lang="en", query="q", grade=1, name="x", split="test"):
        passages = Passages.from_pairs(zip(["p1", "p2"], texts, strict=True))
        return Collection(name, lang, split, passages, {"q1": query}, {"q1": {"p1": grade}})

    base = collection()
    assert base.fingerprint == collection(name="y", split="dev").fingerprint
    others = [collection(("a", "bc")), collection(lang="de"), collection(query="r"), collection(grade=2)]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert base.passages.fingerprint == others[2].passages.fingerprint


def test_a_collection_checks_its_language_and_its_judgements():
    passages = Passages.from_pairs([("p1", "a")])
    with pytest.raises(ValueError, match="unknown language 'xx'; have: af, am"):
        Collection("c", "xx", "test", passages, {}, {})
    with pytest.raises(ValueError, match="unknown query 'q1'"):
        Collection("c", "en", "test", passages, {}, {"q1": {}})
    with pytest.raises(ValueError, match="unknown passage 'p2'"):
        Collection("c", "en", "test", passages, {"q1": ""}, {"q1": {"p2": 1}})


def test_a_folder_is_read(tmp_path):
    collection = folder.load(write(tmp_path / "mine"), "en")
    assert (collection.name, collection.lang, collection.split) == ("mine", "en", "test")
    assert dict(collection.passages) == {"p1": "Nairobi is a city.", "p2": "Ein \"Zitat\", 'so'.", "p3": "a\tb"}
    assert collection.queries == {"q1": "where is Nairobi?", "q2": "unjudged"}
    assert collection.qrels == {"q1": {"p1": 1, "p2": 0}}
    assert collection.skipped == {}


def test_windows_line_ends_a_byte_order_mark_gzip_and_blanks_in_qrels_change_nothing(tmp_path):
    plain = folder.load(write(tmp_path / "plain"), "en")
    other = tmp_path / "other"
    other.mkdir()
    windows = b"\xef\xbb\xbf" + PASSAGES.replace("\n", "\r\n").encode()
    (other / "passages.tsv.gz").write_bytes(gzip.compress(windows))
    (other / "queries.test.tsv.gz").write_bytes(gzip.compress(QUERIES.rstrip("\n").encode()))
    (other / "qrels.test.tsv").write_bytes(b"\xef\xbb\xbfq1 0 p1 1\r\nq1  0 p2\t0\r\n")
    assert folder.load(other, "en").fingerprint == plain.fingerprint


def test_only_newlines_end_lines(tmp_path):
    collection = folder.load(write(tmp_path, collection="p1\ta\u2028b\x0bc\rd\np2\te\n"), "en")
    assert collection.passages["p1"] == "a\u2028b\x0bc\rd"


def test_splits_are_chosen_by_file_name(tmp_path):
    write(tmp_path)
    (tmp_path / "queries.dev.tsv").write_text("q9\tother\n")
    (tmp_path / "qrels.dev.tsv").write_text("q9 0 p3 1\n")
    (tmp_path / "queries.train.tsv").write_text("q8\twithout judgements\n")
    assert folder.load(tmp_path, "en", "dev").qrels == {"q9": {"p3": 1}}
    with pytest.raises(ValueError, match="no split 'train'; have: dev, test"):
        folder.load(tmp_path, "en", "train")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"collection": "p1\tok\nno tab\n"},
            "collection.tsv line 2: expected 'pid<TAB>text', found no tab in 'no tab'",
        ),
        (
            {"collection": "p1\ta\np2\tb\np1\tc\n"},
            "collection.tsv line 3: expected every id once, found 'p1' already in",
        ),
        ({"collection": "p 1\tok\n"}, "collection.tsv line 1: expected a pid without blanks, found 'p 1'"),
        ({"collection": "\tok\n"}, "collection.tsv line 1: expected a pid without blanks, found ''"),
        (
            {"collection": b"p1\tok\np2\tcaf\xe9\n"},
            "collection.tsv line 2: expected UTF-8, found byte 0xe9 at position 6",
        ),
        ({"collection": "p1\tok\n".encode("utf-16")}, "collection.tsv line 1: expected UTF-8, found byte 0xff"),
        ({"collection": gzip.compress(PASSAGES.encode())[:-9]}, "the gzip file is damaged or cut off"),
        ({"queries": "q1\ta\nq1\tb\n"}, "queries.tsv line 2: expected every id once, found 'q1' already in line 1"),
        ({"qrels": "q1 0 p1 1\nq1 p1 1\n"}, "qrels.tsv line 2: expected four columns 'qid 0 pid grade', found 3"),
        ({"qrels": "q1 0 p1 yes\n"}, "qrels.tsv line 1: expected a whole number as grade, found 'yes'"),
        ({"qrels": "q1 0 p1 1\nq1 0 p1 0\n"}, "qrels.tsv line 2: query 'q1', passage 'p1' is judged 0, but 1 above"),
        ({"qrels": "q7 0 p1 1\n"}, "no judgement is of a query and a passage of this collection. 1 x judgement of an"),
    ],
)
def test_a_bad_file_stops_with_file_line_and_what_was_expected(tmp_path, files, message):
    with pytest.raises(ValueError) as error:
        folder.load(write(tmp_path, **files), "en")
    assert message in str(error.value)


def test_what_collections_commonly_carry_is_left_out_counted_and_told(tmp_path):
    write(
        tmp_path,
        collection=PASSAGES + "p4\t \np5\t\n\n",
        queries=QUERIES + "q3\t\n",
        qrels=QRELS + "q1 0 p4 1\nq3 0 p1 1\nq9 0 p1 1\nq1 0 p1 1\n",
    )
    with pytest.warns(UserWarning, match=r"2 x passage without text \(first: collection.tsv line 4\)"):
        collection = folder.load(tmp_path, "en")
    assert collection.qrels == {"q1": {"p1": 1, "p2": 0}}
    assert list(collection.passages) == ["p1", "p2", "p3"]
    assert collection.skipped == {
        "passage without text": 2,
        "blank line": 1,
        "query without text": 1,
        "judgement of an unknown passage": 1,
        "judgement of an unknown query": 2,
        "repeated judgement": 1,
    }


def test_a_query_with_judgements_of_unknown_passages_only_counts_as_unjudged(tmp_path):
    with pytest.warns(UserWarning, match="judgement of an unknown passage"):
        collection = folder.load(write(tmp_path, qrels=QRELS + "q2 0 p9 1\n"), "en")
    assert list(collection.qrels) == ["q1"]


def test_missing_files_are_named(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(FileNotFoundError, match=r"none of collection.tsv, collection.tsv.gz, passages.tsv, .*have: x"):
        folder.load(tmp_path, "en")
    (tmp_path / "collection.tsv").write_text(PASSAGES)
    with pytest.raises(ValueError, match="no split 'test'; have: no pair of queries and qrels"):
        folder.load(tmp_path, "en")


def test_what_is_saved_is_read_back_equal_and_saves_to_the_same_bytes(tmp_path):
    collection = folder.load(write(tmp_path / "a"), "en", name="c")
    folder.save(collection, tmp_path / "b")
    assert folder.load(tmp_path / "b", "en", name="c") == collection
    before = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    folder.save(collection, tmp_path / "b")
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before
    assert sorted(before) == ["collection.tsv.gz", "qrels.tsv.gz", "queries.tsv.gz"]


def test_a_text_with_a_line_break_is_not_saved_and_leaves_nothing_behind(tmp_path):
    collection = Collection("c", "en", "dev", Passages.from_pairs([("p1", "a\nb")]), {}, {})
    with pytest.raises(ValueError, match="'p1' holds a line break"):
        folder.save(collection, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pair", [("p 1", "a"), ("p1", "")])
def test_what_could_not_be_read_back_is_not_saved(tmp_path, pair):
    with pytest.raises(ValueError, match=f"an id with a blank, or nothing beside an id, in .'{pair[0]}', '{pair[1]}'"):
        folder.save(Collection("c", "en", "dev", Passages.from_pairs([pair]), {}, {}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_source_is_a_folder_or_a_folder_of_languages(tmp_path, monkeypatch):
    write(tmp_path / "set" / "sw")
    write(tmp_path / "set" / "ar")
    assert sources.open_collection(tmp_path / "set" / "sw", "sw").name == "sw"
    parallel = sources.open_collection(tmp_path / "set", "ar")
    assert (parallel.name, parallel.lang) == ("set", "ar")
    assert sources.collection_languages(tmp_path / "set") == ["ar", "sw"]
    monkeypatch.chdir(tmp_path)
    assert sources.open_collection("set", "sw").passages == parallel.passages


def test_an_unknown_source_language_or_option_names_what_is_there(tmp_path):
    write(tmp_path / "set" / "sw")
    with pytest.raises(
        ValueError, match=r"unknown collection 'nowhere'; have: sample, sample-ood, mmarco, .*, or a folder"
    ):
        sources.open_collection("nowhere", "sw")
    with pytest.raises(ValueError, match="has no language 'ar'; have: sw"):
        sources.open_collection(tmp_path / "set", "ar")
    with pytest.raises(ValueError, match="holds no collection"):
        sources.open_collection(tmp_path, "ar")
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        sources.open_collection(tmp_path / "set", "xx")
    with pytest.raises(ValueError, match="no option scale"):
        sources.open_collection(tmp_path / "set", "sw", scale=2)
