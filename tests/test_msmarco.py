"""Hard negatives of MS MARCO, as miniatures in the exact formats: pickle, JSON lines, and what is drawn from them."""

import gzip
import json
import pickle
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from hub_server import serving

from xmlib.data import hub, msmarco, pickled_scores, published
from xmlib.data.collection import Collection, Passages
from xmlib.data.sources import open_collection

PASSAGES = {str(pid): f"passage {pid}" for pid in range(400)}


def write_pickle(path, scores, protocol=4):
    path.write_bytes(gzip.compress(pickle.dumps(scores, protocol)))
    return path


def read_pickle(path):
    scores = defaultdict(dict)
    for qids, pids, values in pickled_scores.read(path):
        for qid, pid, value in zip(qids.tolist(), pids.tolist(), values.tolist(), strict=True):
            scores[qid][pid] = value
    return scores


def some_scores(queries, each, kind=float, seed=0):
    rng = random.Random(seed)
    return {
        rng.randrange(1 << 21): {rng.randrange(8_841_823): kind(rng.gauss(0, 5)) for _ in range(each)}
        for _ in range(queries)
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(("queries", "each"), [(1, 1), (3, 1), (1, 5), (2100, 2), (2, 2100)])
def test_scores_are_read_as_python_reads_them(tmp_path, protocol, queries, each):
    scores = some_scores(queries, each)
    single = {qid: {pid: float(np.float32(score)) for pid, score in of.items()} for qid, of in scores.items()}
    assert read_pickle(write_pickle(tmp_path / "s.pkl.gz", scores, protocol)) == single


@pytest.mark.parametrize("kind", [np.float32, np.float64, int])
def test_scores_may_be_numpys_or_whole_numbers_in_any_dict(tmp_path, kind):
    scores = defaultdict(dict, some_scores(30, 40, kind))
    single = {qid: {pid: float(np.float32(score)) for pid, score in of.items()} for qid, of in scores.items()}
    assert read_pickle(write_pickle(tmp_path / "s.pkl.gz", scores)) == single


def test_scores_do_not_depend_on_where_the_file_is_cut_into_chunks(tmp_path, monkeypatch):
    scores = some_scores(50, 60, np.float32)
    path = write_pickle(tmp_path / "s.pkl.gz", scores)
    whole = read_pickle(path)
    monkeypatch.setattr(pickled_scores, "CHUNK", 997)
    assert read_pickle(path) == whole and len(whole) == 50


class Harmful:
    def __reduce__(self):
        return print, ("this pickle was run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({1: {2: Harmful()}}, "it names builtins.print, which no dict of numbers needs; nothing of it was run"),
        ({1: {2: "text"}}, "does not fit a dict of dicts of numbers"),
        ({"1": {2: 0.5}}, "does not fit a dict of dicts of numbers"),
        ({1: 0.5}, "does not fit a dict of dicts of numbers"),
        ([1, 2], "opcode EMPTY_LIST builds no dict of numbers"),
        ({1: {2: 1 + 2j}}, "it names builtins.complex"),
    ],
)
def test_any_other_pickle_is_refused_and_not_run(tmp_path, capsys, content, message):
    with pytest.raises(ValueError, match=rf"s.pkl.gz, byte \d+ of the pickle: {message}"):
        read_pickle(write_pickle(tmp_path / "s.pkl.gz", content))
    assert capsys.readouterr().out == ""


def test_a_cut_off_pickle_says_so(tmp_path):
    path = tmp_path / "s.pkl"
    path.write_bytes(pickle.dumps(some_scores(20, 20))[:-40])
    with pytest.raises(ValueError, match=r"s.pkl ends after \d+ bytes, before the pickle does"):
        read_pickle(path)


def test_garbage_never_does_more_than_raise(tmp_path):
    whole = bytearray(pickle.dumps(some_scores(5, 8, np.float32)))
    rng = random.Random(0)
    path = tmp_path / "s.pkl"
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(broken)
        try:
            read_pickle(path)
        except ValueError:
            pass


def mined(queries=40, seed=0):
    """Rows of the JSON file, and the teacher's scores: relevant ones high, some of the mined ones as high."""
    rng = random.Random(seed)
    rows, scores = [], {}
    for qid in range(100, 100 + queries):
        positives = rng.sample(range(400), rng.choice([0, 1, 1, 1, 3]))
        found = {name: rng.sample(range(400), rng.randrange(3, 12)) for name in msmarco.SYSTEMS}
        rows.append({"qid": qid, "pos": positives, "neg": found})
        scores[qid] = {pid: rng.gauss(-2, 4) for pids in found.values() for pid in pids}
        scores[qid] |= {pid: rng.gauss(6, 2) for pid in positives}
    del scores[103][next(pid for pid in rows[3]["neg"]["bm25"] if pid not in rows[3]["pos"])]  # one that was not scored
    return rows, scores


@pytest.fixture
def server(tmp_path, monkeypatch):
    for module in (published, hub, msmarco):
        monkeypatch.setattr(module, "DATA", tmp_path / "data")
    rows, scores = mined()
    with serving(monkeypatch, tmp_path) as hub_server:
        hub_server.revisions.add(msmarco.REVISION)
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        hub_server.add(msmarco.REPO, msmarco.MINED.path, gzip.compress(lines))
        hub_server.add(msmarco.REPO, msmarco.SCORES.path, gzip.compress(pickle.dumps(scores)))
        text = "".join(f"{pid}\t{text}\n" for pid, text in PASSAGES.items()).encode()
        hub_server.add("unicamp-dl/mmarco", "data/google/collections/english_collection.tsv", text)
        asked = "".join(f"{qid}\tquestion {qid}\n" for qid in range(98, 138)).encode()
        hub_server.add("unicamp-dl/mmarco", "data/google/queries/train/english_queries.train.tsv", asked)
        yield hub_server


def eligible(row, scores, systems, margin):
    """The released code's filter, read off its loop."""
    of = scores[row["qid"]]
    threshold = min(of[pid] for pid in row["pos"]) - margin
    pool = {pid for name in systems for pid in row["neg"][name]}
    return {pid for pid in pool if pid in of and of[pid] <= threshold}


@pytest.mark.parametrize("systems", [msmarco.SYSTEMS, msmarco.DENSE, ("bm25",)])
def test_triples_hold_what_the_authors_loop_would_draw_from(server, systems):
    rows, scores = mined()
    collection = open_collection("mmarco", "en", "train")
    drawn = msmarco.triples(collection, 20_000, systems, say=lambda line: None)
    assert drawn.rows_E3.shape == (20_000, 3) and drawn.rows_E3.dtype == np.int64
    seen = defaultdict(lambda: (set(), set()))
    for query, positive, negative in np.unique(drawn.rows_E3, axis=0).tolist():
        qid = int(drawn.queries[query].split()[1])
        seen[qid][0].add(int(drawn.passages[positive].split()[1]))
        seen[qid][1].add(int(drawn.passages[negative].split()[1]))
    expected = {
        row["qid"]: (set(row["pos"]), negatives)
        for row in rows
        if row["qid"] < 138 and row["pos"] and (negatives := eligible(row, scores, systems, 3.0))
    }
    assert dict(seen).keys() == expected.keys()
    for qid, (positives, negatives) in expected.items():
        assert seen[qid][0] <= positives and seen[qid][1] <= negatives
    # some 600 rounds over some 60 negatives a query: all of them are drawn at some time
    assert sum(len(of[1]) for of in seen.values()) > 0.99 * sum(len(of[1]) for of in expected.values())


def test_every_round_visits_every_query_once_in_a_new_order(server):
    collection = open_collection("mmarco", "en", "train")
    drawn = msmarco.triples(collection, 70, say=lambda line: None)
    used = len(set(drawn.rows_E3[:, 0].tolist()))
    first, second = drawn.rows_E3[:used], drawn.rows_E3[used : 2 * used]
    assert len(set(first[:, 0].tolist())) == len(set(second[:, 0].tolist())) == used
    assert first[:, 0].tolist() != second[:, 0].tolist()


def test_more_examples_begin_with_the_same_and_another_seed_does_not(server):
    collection = open_collection("mmarco", "en", "train")
    short, long, other = (
        msmarco.triples(collection, count, seed=seed, say=lambda line: None).rows_E3
        for count, seed in [(100, 42), (150, 42), (100, 43)]
    )
    used = len(set(long[:, 0].tolist()))
    whole_rounds = 100 // used * used
    assert short[:whole_rounds].tolist() == long[:whole_rounds].tolist()
    assert short[:20].tolist() != other[:20].tolist()


def test_what_is_left_out_is_counted(server):
    rows, scores = mined()
    said = []
    drawn = msmarco.triples(open_collection("mmarco", "en", "train"), 50, msmarco.DENSE, say=said.append)
    asked = [row for row in rows if row["pos"] and row["qid"] < 138]
    found = [(row, pid, {n for n in row["neg"] if pid in row["neg"][n]}) for row in asked
             for pid in {p for pids in row["neg"].values() for p in pids} - set(row["pos"])]  # fmt: skip
    assert drawn.skipped["query without a positive"] == sum(not row["pos"] for row in rows)
    assert drawn.skipped["query that is not in the collection"] == sum(bool(row["pos"]) for row in rows[38:])
    assert drawn.skipped["candidate of a retriever that was not asked for"] == sum(n == {"bm25"} for _, _, n in found)
    assert drawn.skipped["candidate that may be an answer"] == sum(
        scores[row["qid"]].get(pid, -99) > min(scores[row["qid"]][p] for p in row["pos"]) - 3.0
        for row, pid, names in found if names != {"bm25"}
    )  # fmt: skip
    assert said[-1].startswith("msmarco-2way-en") and "x candidate that may be an answer" in said[-1]


def test_tuples_carry_the_teachers_scores_and_different_negatives(server):
    rows, scores = mined()
    drawn = msmarco.tuples(open_collection("mmarco", "en", "train"), 100, nway=8, say=lambda line: None)
    assert drawn.rows_EM.shape == (100, 9) and drawn.scores_EN.shape == (100, 8)
    relevant = {row["qid"]: set(row["pos"]) for row in rows}
    for (query, *passages), given in zip(drawn.rows_EM.tolist(), drawn.scores_EN.tolist(), strict=True):
        qid = int(drawn.queries[query].split()[1])
        pids = [int(drawn.passages[position].split()[1]) for position in passages]
        assert pids[0] in relevant[qid] and not relevant[qid] & set(pids[1:])
        assert len(set(pids)) == 8
        assert given == [float(np.float32(scores[qid][pid])) for pid in pids]


def test_a_reduced_collection_gives_triples_of_its_own_passages(server):
    collection = open_collection("mmarco", "en", "train", max_passages=150)
    drawn = msmarco.triples(collection, 100, say=lambda line: None)
    assert drawn.rows_E3[:, 1:].max() < 150 and drawn.skipped["candidate that is not in the collection"] > 0
    assert all(drawn.passages[position].startswith("passage ") for position in drawn.rows_E3[:, 2].tolist())


def test_training_queries_are_judged_by_the_same_file(server):
    rows, _ = mined()
    collection = open_collection("mmarco", "en", "train")
    assert collection.qrels == {
        str(row["qid"]): {str(pid): 1 for pid in row["pos"]} for row in rows if row["pos"] and row["qid"] < 138
    }


def test_the_second_time_nothing_is_converted_or_asked(server):
    collection = open_collection("mmarco", "en", "train")
    first = msmarco.triples(collection, 50, say=lambda line: None)
    server.requests.clear()
    said = []
    assert msmarco.triples(collection, 50, say=said.append).rows_E3.tolist() == first.rows_E3.tolist()
    assert server.requests == [] and [line.split()[0] for line in said[:2]] == ["found", "found"]


def test_a_bad_line_or_retriever_is_named(tmp_path):
    scores = write_pickle(tmp_path / "s.pkl.gz", {1: {2: 0.5}})
    for line, message in [
        (b'{"qid": 1}\n', r"m.gz line 1: expected .*'pos'"),
        (b'{"qid": 1, "pos": [], "neg": {"bm26": [1]}}\n', r"m.gz line 1: .*unknown retriever 'bm26'; have: bm25, msm"),
    ]:
        (tmp_path / "m.gz").write_bytes(gzip.compress(line))
        with pytest.raises(ValueError, match=message):
            msmarco.convert(tmp_path / "m.gz", scores, tmp_path, progress=False)
    collection = Collection("mine", "en", "train", Passages.from_pairs([("p1", "a")]), {}, {})
    with pytest.raises(ValueError, match="unknown retriever 'splade'; have: bm25, msmarco-distilbert"):
        msmarco.triples(collection, 1, ("splade",))
    with pytest.raises(ValueError, match=r"mine is not of MS MARCO, whose passage ids are numbers: .*'p1'"):
        msmarco._positions(collection)


def test_distinct_draws_are_distinct_and_every_set_is_as_likely():
    drawn = msmarco._distinct(np.random.default_rng(0), np.full(20_000, 5), 3)
    assert all(len(set(row)) == 3 for row in drawn.tolist()) and drawn.min() == 0 and drawn.max() == 4
    counts = Counter(frozenset(row) for row in drawn.tolist())
    assert len(counts) == 10 and max(counts.values()) < 1.1 * 2000 and min(counts.values()) > 0.9 * 2000
    assert sorted(msmarco._distinct(np.random.default_rng(0), np.array([4]), 4)[0].tolist()) == [0, 1, 2, 3]
