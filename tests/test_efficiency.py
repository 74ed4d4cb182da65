"""Table 5's measurements: every engine is timed, exact search is the yardstick, and indexes are built once."""

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests import toys
from tests.test_pipeline import toy_collection
from xmlib import efficiency, processes, reporting, systems, tables
from xmlib.index import lucene, threads
from xmlib.models import ColbertXM, DprXM
from xmlib.systems import BM25, System

METRICS = {"index_gb", "index_to_text_ratio", "cpu_latency_ms", "cpu_p95_ms", "cpu_with_encoding_ms"}
METRICS |= {"recall_of_exact", "mrr@10"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """All engines of three systems on 25 passages, and what was said on the way, the first and the second time."""
    folder = tmp_path_factory.mktemp("efficiency")
    for kind, cls in (("colbert-xm", ColbertXM), ("dpr-xm", DprXM)):
        toys.model(cls).save(folder / kind)
    rows = [
        BM25,
        System("DPR-XM", "dpr-xm", folder / "dpr-xm"),
        System("ColBERT-XM", "colbert-xm", folder / "colbert-xm"),
    ]
    said = [], []
    with pytest.MonkeyPatch.context() as patch:
        for module in (systems, efficiency):
            patch.setattr(module, "RUNS", folder / "runs")
        options = dict(k=5, n_queries=8, profile="smoke")
        first = efficiency.measure(rows, toy_collection("en"), **options, say=said[0].append)
        efficiency.measure(rows, toy_collection("en"), **options, say=said[1].append)
    return first, said


def test_every_engine_has_a_size_a_latency_and_two_qualities(measured):
    rows, _ = measured
    lucenes = [] if lucene.missing() else ["Anserini"]
    assert rows.groupby("system", sort=False)["engine"].unique().map(list).to_dict() == {
        "BM25": ["bm25s", "JASS", *lucenes, "PISA"],
        "DPR-XM": ["flat", "HNSW", "IVF-Flat"],
        "ColBERT-XM": ["exact", "v1", "v2", "PLAID", "PLAID, pooled", "PLAID, rescored"],
    }
    assert (rows.groupby(["system", "engine", "setting"])["metric"].agg(set) == METRICS).all()
    assert (rows["n"] == 8).all() and (rows["k"] == 5).all() and (rows["lang"] == "en").all()
    values = rows.pivot_table(index=["system", "engine", "setting"], columns="metric", values="value", sort=False)
    assert (values.drop(columns=["recall_of_exact", "mrr@10"]) > 0).all().all()  # a budget may find nothing
    assert (values.groupby(level="system")[["recall_of_exact", "mrr@10"]].max() > 0).all().all()
    assert (values["cpu_latency_ms"] <= values["cpu_p95_ms"]).all()
    assert (values["cpu_latency_ms"] < values["cpu_with_encoding_ms"]).all()
    assert (values["recall_of_exact"] <= 1).all()


def test_exact_engines_find_all_and_more_effort_finds_no_less(measured):
    rows = measured[0].query("metric == 'recall_of_exact'")
    values = {name: of["value"] for name, of in rows.groupby(["system", "engine"])}
    for name in (("BM25", "bm25s"), ("BM25", "PISA"), ("DPR-XM", "flat"), ("ColBERT-XM", "exact")):
        assert values[name].iloc[0] == 1
    for name in (("DPR-XM", "HNSW"), ("DPR-XM", "IVF-Flat")):
        assert values[name].is_monotonic_increasing, name
    assert values["ColBERT-XM", "PLAID, rescored"].iloc[-1] > 0.8


def test_the_generations_shrink_and_an_index_is_built_once(measured):
    rows, (first, second) = measured
    sizes = rows.query("metric == 'index_gb'").drop_duplicates(["system", "engine"]).set_index("engine")["value"]
    assert sizes["v1"] > sizes["v2"] == sizes["PLAID"] < sizes["PLAID, rescored"]
    assert sizes["PLAID, pooled"] < sizes["PLAID"]
    assert sum(line.startswith("built") for line in first) >= 6
    assert not any(line.startswith("built") for line in second) and any(line.startswith("found") for line in second)


def test_what_was_measured_fits_the_table_and_the_pictures(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "FIGURES", tmp_path)
    reporting.write_csv(measured[0], "smoke", "efficiency")
    rows = pd.read_csv(tmp_path / "smoke" / "efficiency.csv")
    assert set(rows.columns) == set(tables.EFFICIENCY_COLUMNS)
    text = reporting.efficiency_table(rows, "smoke")[1].read_text()
    assert "PLAID, effort 1" in text and "370" in text and "8 queries" in text and "SMOKE" in text
    written = reporting.engine_figures(rows, "smoke")
    assert [path.name for path in written if path.suffix == ".png"] == ["fig6_latency.png", "fig7_bytes.png"]
    assert all(path.stat().st_size > 500 for path in written)
    assert len(reporting.read_csv(written[0])) == len(rows.query("metric == 'cpu_latency_ms'"))


def test_the_clock_runs_on_one_thread(monkeypatch):
    for asked in (None, "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", asked) if asked else monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        with processes.one_thread():
            assert threads.count() == 1
        assert os.environ.get("OMP_NUM_THREADS") == asked


def test_shared_counts_what_exact_search_found():
    exact = [np.array([3, 1, -1]), np.array([-1, -1]), np.array([7, 8])]
    assert efficiency.shared([np.array([1, 9]), np.array([5]), np.array([8, 7])], exact) == (1 / 2 + 1) / 2


def test_a_cross_encoder_has_no_engine():
    with pytest.raises(ValueError, match="mono is a cross-encoder and searches no index; have: lexical, single-vector"):
        efficiency.engines(replace(BM25, name="mono", kind="mono-t5", model="x"), toy_collection("en"))


def test_on_a_gpu_the_same_engines_find_the_same(measured, tmp_path, monkeypatch):
    """On the CPU in its place: the indexes as they lie in a device's memory."""
    toys.model(ColbertXM).save(tmp_path / "colbert-xm")
    row, collection = System("ColBERT-XM", "colbert-xm", tmp_path / "colbert-xm"), toy_collection("en")
    for module in (systems, efficiency):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(efficiency, "GPU", "cpu")
    engines = list(efficiency.engines(row, collection, gpu=True, say=str))
    assert [engine.name for engine in engines] == ["exact", "PLAID", "PLAID, pooled", "PLAID, rescored"]
    found = {
        (engine.name, setting): values for engine, setting, values in efficiency._timed(engines, collection, 5, True)
    }
    assert found["exact", "every passage"]["recall_of_exact"] == 1
    assert found["PLAID, rescored", "effort 4"]["recall_of_exact"] > 0.8
    sizes = {engine.name: engine.index_bytes for engine in engines}
    rows = measured[0].query("metric == 'index_gb' and system == 'ColBERT-XM'").drop_duplicates("engine")
    assert {name: 1e9 * of for name, of in rows.set_index("engine")["value"].items() if name in sizes} == sizes
