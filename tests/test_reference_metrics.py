"""MRR and recall against pytrec_eval, TREC's own code: random runs with ties, missing queries and missing passages."""

import numpy as np
import pytest

from xmlib.evaluation import Run, evaluate

PASSAGES, QUERIES = 40, 30


def random_case(seed):
    """Few distinct scores, so ties abound; queries without results; judged passages that no run can find."""
    rng = np.random.default_rng(seed)
    qrels, run = {}, {}
    for query in range(QUERIES):
        judged = rng.choice(PASSAGES + 20, size=rng.integers(1, 6), replace=False)  # the last 20 are in no run
        qrels[f"q{query}"] = {f"p{number:02}": int(rng.integers(0, 2)) for number in judged}
        qrels[f"q{query}"][f"p{judged[0]:02}"] = 1
        if rng.random() < 0.8:
            found = rng.choice(PASSAGES, size=rng.integers(1, PASSAGES), replace=False)
            run[f"q{query}"] = {f"p{number:02}": float(rng.integers(0, 4)) for number in found}
    run["q0"] = run.get("q0", {"p00": 1.0})
    return qrels, run


def backwards(pid):
    """TREC breaks ties by the larger id, we by the smaller one: names in the opposite order make them agree."""
    return f"p{99 - int(pid[1:]):02}"


@pytest.mark.parametrize("seed", range(20))
def test_mrr_and_recall_are_those_of_pytrec_eval(seed):
    import pytrec_eval

    qrels, run = random_case(seed)
    theirs = pytrec_eval.RelevanceEvaluator(
        {qid: {backwards(pid): grade for pid, grade in judged.items()} for qid, judged in qrels.items()},
        {"recip_rank", "recall.1,10,100"},
    ).evaluate({qid: {backwards(pid): score for pid, score in found.items()} for qid, found in run.items()})
    ours = evaluate(Run("r", run), qrels, ("mrr@10", "mrr@100", "recall@1", "recall@10", "recall@100"))
    for qid, row in ours.iterrows():
        their = theirs.get(qid, dict.fromkeys(("recip_rank", "recall_1", "recall_10", "recall_100"), 0.0))
        reciprocal = their["recip_rank"]
        assert row["mrr@100"] == pytest.approx(reciprocal), qid
        assert row["mrr@10"] == pytest.approx(reciprocal if reciprocal >= 0.1 else 0.0), qid
        assert row[["recall@1", "recall@10", "recall@100"]].tolist() == pytest.approx(
            [their["recall_1"], their["recall_10"], their["recall_100"]]
        ), qid
    assert len(ours) == QUERIES and set(qrels) - set(run)  # what has no result is there, as zero
    assert (ours.loc[sorted(set(qrels) - set(run))] == 0).all(axis=None)
