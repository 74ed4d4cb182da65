"""Metrics by hand and against ir_measures, run files, significance worked by hand, and the file of result rows."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmlib.data.collection import Collection, Passages
from xmlib.evaluation import (
    RESULT_COLUMNS,
    Run,
    compare,
    evaluate,
    holm,
    read_results,
    result_rows,
    write_results,
)

QRELS = {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}, "q3": {"d": 1}, "q4": {"e": 0}}
RUN = Run("r", {"q1": {"x": 3.0, "b": 2.0, "a": 1.0}, "q2": {"c": 1.0}, "q4": {"e": 1.0}, "unjudged": {"a": 1.0}})


def test_values_worked_by_hand_over_every_judged_query():
    values = evaluate(RUN, QRELS, ["mrr@10", "recall@2", "recall@100", "ndcg@10"])
    assert values.index.tolist() == ["q1", "q2", "q3", "q4"]  # q3 has no results, q4 nothing relevant: both count 0
    assert values["mrr@10"].tolist() == [1 / 2, 1, 0, 0]
    assert values["recall@2"].tolist() == [1 / 2, 1, 0, 0]
    assert values["recall@100"].tolist() == [1, 1, 0, 0]
    ndcg = (1 / math.log2(3) + 1 / math.log2(4)) / (1 / math.log2(2) + 1 / math.log2(3))
    assert values["ndcg@10"].tolist() == pytest.approx([ndcg, 1, 0, 0])
    assert values["mrr@10"].mean() == 0.375


def test_a_rank_below_the_cut_counts_nothing():
    found = {f"p{i:02}": -float(i) for i in range(20)}
    for rank, expected in [(10, 1 / 10), (11, 0)]:
        values = evaluate(Run("r", {"q": found}), {"q": {f"p{rank - 1:02}": 1}}, ["mrr@10", "recall@20"])
        assert values.loc["q"].tolist() == [expected, 1]


def test_grades_are_gains_in_ndcg_and_one_or_more_is_relevant():
    run = Run("r", {"q": {"one": 2.0, "three": 1.0}})
    values = evaluate(run, {"q": {"one": 1, "three": 3, "no": 0}}, ["ndcg@2", "recall@1"])
    assert values.loc["q"].tolist() == pytest.approx([(1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)), 1 / 2])


def test_ties_go_by_pid_as_a_string_whatever_order_they_come_in():
    assert list(Run("r", {"q": {"9": 1.0, "b": 1.0, "10": 1.0, "a": 2.0}}).rankings["q"]) == ["a", "10", "9", "b"]


def test_scores_equal_in_float32_are_ties():
    run = Run("r", {"q": {"b": 1.0 + 1e-9, "a": 1.0}})
    assert run.rankings == {"q": {"a": 1.0, "b": 1.0}}
    assert evaluate(run, {"q": {"a": 1}}, ["mrr@10"]).loc["q", "mrr@10"] == 1


def test_fifty_tied_passages_are_ranked_as_they_stand():
    found = {f"p{i:02}": 1.0 for i in range(50)}
    assert evaluate(Run("r", {"q": found}), {"q": {"p03": 1}}, ["mrr@10"]).loc["q", "mrr@10"] == 1 / 4


def as_the_scripts_do(run, qrels, name, k):
    """The metrics once more, over plain dicts."""
    values = []
    for qid, judged in qrels.items():
        found = sorted(run.get(qid, {}).items(), key=lambda pair: (-pair[1], pair[0]))[:k]
        gains = [max(0, judged.get(pid, 0)) for pid, _ in found]
        relevant = sorted((grade for grade in judged.values() if grade > 0), reverse=True)
        if name == "mrr":
            values.append(next((1 / rank for rank, gain in enumerate(gains, 1) if gain), 0.0))
        elif name == "recall":
            values.append(sum(gain > 0 for gain in gains) / len(relevant) if relevant else 0.0)
        else:
            ideal = sum(gain / math.log2(rank + 1) for rank, gain in enumerate(relevant[:k], 1))
            values.append(sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1)) / (ideal or 1))
    return values


pids = st.sampled_from([str(i) for i in range(12)])
scores = st.sampled_from([-2.0, 0.0, 0.5, 1.0, 7.25])
some_qrels = st.dictionaries(
    st.sampled_from("abcdef"), st.dictionaries(pids, st.integers(-1, 3), min_size=1), min_size=1, max_size=6
)
some_runs = st.dictionaries(st.sampled_from("abcdefgh"), st.dictionaries(pids, scores), max_size=8)


@settings(max_examples=150, deadline=None)
@given(some_qrels, some_runs, st.integers(1, 14))
def test_agrees_with_plain_python_on_ties_missing_queries_and_grades(qrels, run, k):
    run.setdefault(next(iter(qrels)), {})
    values = evaluate(Run("r", run), qrels, [f"{name}@{k}" for name in ("mrr", "recall", "ndcg")])
    for name in ("mrr", "recall", "ndcg"):
        assert values[f"{name}@{k}"].tolist() == pytest.approx(as_the_scripts_do(run, qrels, name, k)), name


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_agrees_with_ir_measures_where_nothing_ties(seed, k):
    import ir_measures
    from ir_measures import RR, R, nDCG

    rng = np.random.default_rng(seed)
    qrels = {str(q): {str(p): int(rng.integers(0, 3)) for p in rng.choice(40, 5, replace=False)} for q in range(8)}
    run = {str(q): {str(p): float(rank) for rank, p in enumerate(rng.permutation(40)[:25])} for q in range(3, 10)}
    values = evaluate(Run("r", run), qrels, [f"mrr@{k}", f"recall@{k}", f"ndcg@{k}"])
    theirs = ir_measures.calc_aggregate([RR @ k, R @ k, nDCG @ k], qrels, run)
    assert values.mean().tolist() == pytest.approx([theirs[RR @ k], theirs[R @ k], theirs[nDCG @ k]])


def test_the_order_of_queries_and_passages_changes_nothing():
    backwards = Run("r", {qid: dict(reversed(found.items())) for qid, found in reversed(RUN.rankings.items())})
    pd.testing.assert_frame_equal(evaluate(backwards, QRELS), evaluate(RUN, QRELS))


@pytest.mark.parametrize("metric", ["rr@10", "mrr", "mrr@", "mrr@0", "recall@ten", "mrr@-1"])
def test_an_unknown_metric_names_the_choices(metric):
    with pytest.raises(ValueError, match="have: mrr@k, recall@k, ndcg@k"):
        evaluate(RUN, QRELS, [metric])


def test_a_run_of_another_collection_and_missing_judgements_are_refused():
    with pytest.raises(ValueError, match="run 'r' has none of the 1 judged queries"):
        evaluate(RUN, {"other": {"a": 1}})
    with pytest.raises(ValueError, match="no judged queries"):
        evaluate(RUN, {})


def test_a_run_that_found_nothing_scores_zero_read_back_as_well(tmp_path):
    nothing = Run("nothing", {"q": {}})
    nothing.save(tmp_path / "nothing.trec")
    for run in (nothing, Run.load(tmp_path / "nothing.trec")):
        assert evaluate(run, {"q": {"a": 1}}, ["mrr@10"])["mrr@10"].tolist() == [0.0]


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="query 'q' has a score that is not a number"):
        Run("r", {"q": {"a": float("nan")}})


def test_a_run_is_made_from_what_an_index_returns():
    scores_Ak = np.array([[2.0, 1.0, -np.inf], [-np.inf] * 3], dtype=np.float32)
    positions_Ak = np.array([[1, 0, -1], [-1] * 3])
    run = Run.from_search("r", ["q1", "q2"], ["a", "b"], scores_Ak, positions_Ak)
    assert run.rankings == {"q1": {"b": 2.0, "a": 1.0}, "q2": {}}


@given(st.dictionaries(st.sampled_from("ab"), st.dictionaries(pids, st.floats(width=32, allow_nan=False), min_size=1)))
def test_a_run_file_reads_back_equal(tmp_path_factory, rankings):
    path = tmp_path_factory.mktemp("run") / "deep" / "run.trec"
    run = Run("BM25", rankings)
    run.save(path)
    loaded = Run.load(path)
    assert loaded.rankings == run.rankings
    assert [list(found) for found in loaded.rankings.values()] == [list(found) for found in run.rankings.values()]
    assert [file.name for file in path.parent.iterdir()] == ["run.trec"]


def test_a_run_file_has_the_trec_columns_and_ir_measures_reads_it(tmp_path):
    import ir_measures

    Run("my system", {"q1": {"a": 0.5, "b": 1.5}}).save(tmp_path / "r")
    assert (tmp_path / "r").read_text() == "q1 Q0 b 1 1.5 my_system\nq1 Q0 a 2 0.5 my_system\n"
    read = list(ir_measures.read_trec_run(str(tmp_path / "r")))
    assert [(row.query_id, row.doc_id, row.score) for row in read] == [("q1", "b", 1.5), ("q1", "a", 0.5)]


def test_a_bad_run_file_stops_with_its_line(tmp_path):
    path = tmp_path / "r"
    path.write_text("q1 Q0 a 1 0.5 t\nq1 Q0 a 0.4 t\n")
    with pytest.raises(ValueError, match="r line 2: expected six columns 'qid Q0 pid rank score tag', found 5"):
        Run.load(path)
    path.write_text("q1 Q0 a 1 0.5 t\nq1 Q0 a 2 0.4 t\n")
    with pytest.raises(ValueError, match="r line 2: passage 'a' is there twice for query 'q1'"):
        Run.load(path)


def test_randomisation_worked_by_hand():
    # All three differences point one way: of the 8 ways to sign them, 2 give a sum as far from 0. p = 2 / 8.
    a = pd.Series([0.0, 0.0, 0.0, 1.0], index=list("wxyz"))
    b = pd.Series([1.0, 0.5, 0.5, 0.25], index=list("zwxy"))
    table = compare({"sw": a, "fi": a}, {"sw": b, "fi": a})
    assert table.columns.tolist() == ["lang", "mean_a", "mean_b", "difference", "p", "p_holm", "n"]
    assert table.iloc[0].tolist() == pytest.approx(["sw", 0.25, 0.5625, 0.3125, 0.25, 0.5, 4])
    assert table.iloc[1].tolist() == ["fi", 0.25, 0.25, 0.0, 1.0, 1.0, 4]


def test_holm_worked_by_hand():
    # 0.01 x 4 = 0.04;  0.02 x 3 = 0.06;  0.03 x 2 = 0.06;  0.5 x 1
    assert holm(np.array([0.03, 0.01, 0.5, 0.02])).tolist() == pytest.approx([0.06, 0.04, 0.5, 0.06])
    # 0.04 x 2 = 0.08, and 0.05 x 1 may not fall below it
    assert holm(np.array([0.05, 0.04])).tolist() == pytest.approx([0.08, 0.08])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("moved", [0, 1])
def test_one_question_that_differs_proves_nothing(moved):
    a = pd.Series(np.zeros(20), index=[f"q{i}" for i in range(20)])
    b = a.copy()
    b.iloc[:moved] = 1.0
    table = compare({"sw": a}, {"sw": b})
    assert table["p"].tolist() == [1.0] and table["difference"].tolist() == [moved / 20]


def test_a_real_difference_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    a, noise = pd.Series(rng.random(300)), rng.normal(0, 0.1, 300)
    noise -= noise.mean()
    systems = {"real": a, "noise": a}, {"real": a + noise + 0.05, "noise": a + noise + 0.001}
    table = compare(*systems)
    assert table["p_holm"][0] < 0.001 < 0.5 < table["p_holm"][1]
    pd.testing.assert_frame_equal(table, compare(*systems))  # resampling is seeded


def test_systems_must_share_languages_and_queries():
    a = pd.Series([1.0], index=["q"])
    with pytest.raises(ValueError, match="languages differ: sw against fi"):
        compare({"sw": a}, {"fi": a})
    with pytest.raises(ValueError, match="sw: the systems were not evaluated on the same queries"):
        compare({"sw": a}, {"sw": a.rename({"q": "r"})})


def rows(value=0.5, lang="no", system="BM25", seed=1, **more):
    collection = Collection("NA", lang, "test", Passages.from_pairs([("p", "")]), {}, {})
    values = pd.DataFrame({"mrr@10": [value, value], "recall@100": [1.0, 0.0]}, index=["a", "b"])
    origin = dict(system=system, model="none", seed=seed, profile="smoke", device="cpu", commit="0123456")
    return result_rows(values, collection, **origin, **more)


def test_result_rows_say_where_a_number_comes_from():
    table = rows(seconds=2.5)
    assert table.columns.tolist() == RESULT_COLUMNS
    assert table.loc[0].tolist()[:-1] == (
        ["BM25", "none", "NA", "test", "no", "mrr@10", 0.5, 2, 1, "smoke", "cpu", "0123456", 2.5]
    )
    assert table["value"].tolist() == [0.5, 0.5]
    assert table["energy_kwh"].isna().all()


def test_rows_are_added_or_replaced_in_place_and_read_back_exactly(tmp_path):
    path = tmp_path / "figures" / "results.csv"
    write_results(path, rows(1 / 3))
    write_results(path, rows(lang="sw"))
    write_results(path, rows(seed=2))
    write_results(path, rows(2 / 3, seconds=0.1))
    table = read_results(path)
    assert table[["lang", "seed", "metric"]].values.tolist() == [
        ["no", 1, "mrr@10"], ["no", 1, "recall@100"], ["sw", 1, "mrr@10"], ["sw", 1, "recall@100"],
        ["no", 2, "mrr@10"], ["no", 2, "recall@100"],
    ]  # fmt: skip
    assert table["value"][0] == 2 / 3
    assert table["seconds"][0] == 0.1
    assert table["seconds"].isna().tolist()[2:] == [True] * 4
    assert table["collection"].unique().tolist() == ["NA"]  # a name, not a missing value
    assert table["commit"].unique().tolist() == ["0123456"]
    before = path.read_bytes()
    write_results(path, rows(2 / 3, seconds=0.1))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["results.csv"]


def test_a_file_of_something_else_is_not_taken_for_results(tmp_path):
    (tmp_path / "other.csv").write_text("lang,value\nsw,1\n")
    for action in (lambda: write_results(tmp_path / "other.csv", rows()), lambda: read_results(tmp_path / "other.csv")):
        with pytest.raises(ValueError, match=r"expected the columns system, model, .*; found lang, value"):
            action()


def test_importing_loads_neither_ranx_nor_numba():
    code = "import sys, xmlib.evaluation; print(*{'ranx', 'numba', 'scipy', 'matplotlib', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
