"""The rows of the tables: every system of the paper is there and ranks; re-ranking; names; what identifies a model."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests import toys
from tests.test_pipeline import toy_collection
from xmlib import baselines, carbon, notebook, pipeline, reported, systems
from xmlib.data.sources import open_collection
from xmlib.evaluation import Run, evaluate
from xmlib.experiments import score_all
from xmlib.models import ColbertXM
from xmlib.systems import BM25, PAPER, System, checkpoints_of, identity, pick, rank, some_queries, version


class Stub:
    """A cross-encoder that likes what comes late in a collection, and ties in pairs: p24 and p23, p22 and p21, …"""

    def scores(self, queries, passages, lang):
        texts = [toy_collection(lang).passages.text(i) for i in range(25)]
        return np.array([(texts.index(passage) + 1) // 2 for passage in passages], dtype=np.float32)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    for module in (systems, pipeline, baselines):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def reranker(runs, tmp_path, monkeypatch):
    folder = tmp_path / "stub"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(systems, "open_model", lambda kind, checkpoint, **settings: Stub())
    return System("stub", "classifier", folder, depth=4)


def test_a_cross_encoder_reranks_the_first_results_and_leaves_the_others_behind_them(reranker):
    c = toy_collection("en")
    first, run = rank(BM25, c, 25, progress=False), rank(reranker, c, 9, progress=False)
    for qid, found in run.rankings.items():
        before, after = list(first.rankings[qid])[:9], list(found)
        expected = sorted(before[:4], key=lambda pid: (-((int(pid[1:]) + 1) // 2), pid))  # ties by pid
        assert after == expected + before[4:]
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_depth_and_checkpoint_are_part_of_a_rankings_identity_and_what_is_there_is_found(reranker, capsys):
    c = toy_collection("en")
    shallow = rank(reranker, c, 9)
    assert rank(reranker, c, 9).rankings == shallow.rankings and "found run-en" in capsys.readouterr().out
    assert rank(replace(reranker, depth=9), c, 9, progress=False).rankings != shallow.rankings
    assert len(list((systems.RUNS / "rankings").glob("run-en-*"))) == 3  # BM25's is the same


def test_a_killed_reranking_goes_on_where_it_was(reranker, monkeypatch):
    c = toy_collection("en")
    calls, real = [], Stub.scores

    def dies(self, queries, passages, lang):
        calls.append(len(queries))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, queries, passages, lang)

    monkeypatch.setattr(Stub, "scores", dies)
    from xmlib import crossencoders

    monkeypatch.setattr(crossencoders.rerank, "__defaults__", (None, 20))  # pairs of a group
    with pytest.raises(KeyboardInterrupt):
        rank(reranker, c, 9, progress=False)
    rank(reranker, c, 9, progress=False)
    assert calls == [20] * 6  # 25 queries of 4 pairs; the second group was begun twice
    assert not list((systems.RUNS / "rankings").glob("*.partial"))


def test_systems_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ValueError, match="kind 'bert'; have: bm25, mono-t5, classifier, mono-xm, bi-encoder, dpr-xm"):
        System("x", "bert")
    with pytest.raises(ValueError, match="a dpr-xm system needs a model"):
        System("x", "dpr-xm")
    with pytest.raises(ValueError, match="engine 'fast'; have: plaid, exact"):
        System("x", "colbert-xm", tmp_path, engine="fast")
    with pytest.raises(ValueError, match="depth 0; at least one"):
        System("x", "mono-t5", tmp_path, depth=0)


def test_names_are_picked_in_the_order_of_the_table_and_unknown_ones_name_the_valid():
    assert pick("mT5, BM25", PAPER) == ["BM25", "mT5-base"]
    assert pick("ColBERT-XM", PAPER) == ["ColBERT-XM"] and pick(["mE5-base"], PAPER) == ["mE5-base"]
    assert pick("all", PAPER) == list(PAPER)
    for wrong in ("bm25", "DPR", "ColBERT", ""):
        with pytest.raises(ValueError, match=r"unknown system .*; have: BM25, mT5-base, mMiniLM-L6, mono-XM"):
            pick(wrong, PAPER)


def test_the_systems_of_a_table_are_those_that_the_paper_prints_for_the_collection():
    printed = {row["system"] for row in reported.rows(2)}
    assert set(pick("table", PAPER, "mrtydi")) == set(pick("table", PAPER, "sample-ood")) == printed
    assert pick("table", PAPER, "sample") == pick("table", PAPER, "a/folder") == pick("all", PAPER) == list(PAPER)


@pytest.mark.parametrize("keep", [True, False])
def test_a_result_row_says_what_its_ranking_cost(runs, monkeypatch, keep):
    joules = itertools.count(0, 3_600_000_000)  # 1 kWh from one reading to the next
    monkeypatch.setattr(carbon, "_nvml_counters", lambda: [("a GPU", lambda: next(joules))])
    rows = score_all([BM25], [("sample", "sw")], 5, profile="smoke", seed=1, queries=3, keep=keep).rows
    assert rows["energy_kwh"].tolist() == [1.0, 1.0] and (rows["seconds"] > 0).all()


def test_checkpoints_are_given_by_name():
    given = checkpoints_of("mE5=intfloat/multilingual-e5-base, mT5-base=some folder")
    assert given == {"mE5-base": "intfloat/multilingual-e5-base", "mT5-base": "some folder"}
    assert checkpoints_of("") == {}
    with pytest.raises(ValueError, match="checkpoint 'mE5' has no place"):
        checkpoints_of("mE5")
    with pytest.raises(ValueError, match="unknown system 'mE6'"):
        checkpoints_of("mE6=x")


def test_a_sample_of_the_queries_is_even_judged_and_the_same_every_time():
    c = toy_collection("en")
    assert list(some_queries(c, 5).queries) == ["q0", "q5", "q10", "q15", "q20"] == list(some_queries(c, 5).qrels)
    assert some_queries(c, 0) is c and some_queries(c, 25) is c


def test_a_folder_is_known_by_what_is_in_it(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"1")
    copy = tmp_path / "b"
    copy.mkdir()
    (copy / "model.safetensors").write_bytes(b"1")
    assert identity(folder) == identity(copy) and identity(None) is None
    (copy / "config.json").write_text("{}")
    assert identity(folder) != identity(copy)
    before = identity(folder)
    (folder / "model.safetensors").write_bytes(b"22")  # trained on
    assert identity(folder) != before
    assert version(BM25) == "bm25" and version(System("x", "mono-t5", folder)) == identity(folder)[:12]


def test_a_model_that_is_saved_again_ranks_anew_and_so_does_another_precision(runs, tmp_path, monkeypatch):
    folder, collection = tmp_path / "model", toy_collection("en")
    row = System("ColBERT-XM", "colbert-xm", folder, engine="exact")
    folders = []
    for seed in (1, 2):
        model = toys.model(ColbertXM)
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.linear.weight)
        model.save(folder)
        folders.append(systems.ranking(row, collection, k=5, progress=False))
    monkeypatch.setenv("XMLIB_PRECISION", "bfloat16")
    folders.append(systems.ranking(row, collection, k=5, progress=False))
    assert len(set(folders)) == 3


def test_every_system_of_the_papers_result_tables_has_a_row():
    printed = {row["system"] for table in (1, 2) for row in reported.rows(table)}
    assert printed <= set(PAPER) and {"DPR-XM", "mono-XM"} <= set(PAPER)  # Figure 4, and the authors' repository
    groups = [row.group for row in PAPER.values()]
    assert groups == sorted(groups, key=["lexical", "cross-encoder", "single-vector", "multi-vector"].index)
    assert all(row.model is None or "/" in row.model for row in PAPER.values())  # hub ids, none made here


@pytest.mark.slow
def test_every_row_runs_in_the_smoke_profile(runs):
    train = pipeline.Training(**notebook.settings("01_train", "smoke"), progress=False)
    c = some_queries(open_collection("sample", "sw"), 3)
    made = {}
    for name, row in train.systems.items():
        run = rank(replace(row, depth=4, engine="exact"), c, 20, progress=False)
        assert isinstance(run, Run) and len(run.rankings) == 3 and all(len(r) == 20 for r in run.rankings.values()), (
            name
        )
        assert 0 <= evaluate(run, c.qrels)["mrr@10"].mean() <= 1
        made[name] = row
    assert list(made) == list(PAPER)
    assert pd.Series({name: bool(row.made) for name, row in made.items() if row.model}).all()
