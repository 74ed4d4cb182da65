"""The benchmarks of the index in miniature: what they generate, what they count, and one run from end to end."""

import json
import subprocess
import sys

import numpy as np
import pytest
from test_plaid import overlap, realistic

from benchmarks import engines, records, scale
from xmlib.index import exact
from xmlib.paths import ROOT


@pytest.fixture(scope="module")
def data():
    """As benchmarks.vectors writes it."""
    vectors, q_ASH, q_mask_AS = realistic(B=300, A=10)
    found = exact.search(vectors, q_ASH, q_mask_AS, 1)[1][:, 0]
    lengths = np.full(10, q_ASH.shape[1])
    return {
        "vectors": vectors.vectors_TH.astype(np.float16),
        "offsets": vectors.offsets_B1,
        "queries": q_ASH,
        "query_lengths": lengths,
        "relevant": found,
    }


@pytest.fixture(scope="module")
def generator(data):
    return scale.Generator(data)


def test_generated_passages_do_not_depend_on_how_they_are_asked_for(generator):
    whole = generator.chunks(990, 2010)
    assert len(whole) == 1020
    parts = [generator.chunks(start, stop) for start, stop in ((990, 1000), (1000, 1999), (1999, 2010))]
    np.testing.assert_array_equal(whole.vectors_TH, np.concatenate([part.vectors_TH for part in parts]))
    np.testing.assert_allclose(np.linalg.norm(whole.vectors_TH.astype(np.float32), axis=1), 1, atol=2e-3)
    assert not np.array_equal(whole.slice(0, 1).vectors_TH, whole.slice(1000, 1001).vectors_TH)


def test_generated_vectors_lie_about_words_as_real_ones_do(generator, data):
    def closeness(vectors_TH):
        unit_WH = generator.words_WH / np.linalg.norm(generator.words_WH, axis=1)[:, None]
        return (vectors_TH.astype(np.float32) @ unit_WH.T).max(axis=1)

    made = generator.chunks(0, 200)
    assert closeness(made.vectors_TH).mean() == pytest.approx(closeness(data["vectors"]).mean(), abs=0.05)
    assert made.lengths_B.mean() == pytest.approx(np.diff(data["offsets"]).mean(), rel=0.1)


def test_generated_passages_may_be_shorter_than_real_ones_but_not_longer(data):
    real = np.diff(data["offsets"]).mean()
    shorter = scale.Generator(data, tokens=real / 2).chunks(0, 1000)
    assert shorter.lengths_B.mean() == pytest.approx(real / 2, abs=1) and shorter.lengths_B.min() >= 2
    with pytest.raises(ValueError, match="tokens is 1000; a generated passage has 2 to"):
        scale.Generator(data, tokens=1000)


def test_a_generated_question_is_as_near_to_its_passage_as_a_real_one_and_finds_it(generator):
    q_ASH, q_mask_AS, relevant_A = generator.queries(12, 500)
    scores, positions = exact.search(generator.chunks(0, 500), q_ASH, q_mask_AS, 1)
    assert np.mean(positions[:, 0] == relevant_A) >= 0.9
    assert np.mean(scores[:, 0] / q_mask_AS.sum(axis=1)) == pytest.approx(generator.closeness, abs=0.06)


def test_counted_chunks_know_what_exact_search_finds_in_any_order(generator):
    q_ASH, q_mask_AS, _ = generator.queries(4, 2500)
    counted = scale.Counted(generator.chunks, q_ASH, q_mask_AS, 20, 2500)
    counted(2000, 2500)
    counted(0, 1000)
    wanted = exact.search(generator.chunks(0, 2500), q_ASH, q_mask_AS, 20)[1]  # the middle is asked for at the end
    assert overlap(counted.truth(), wanted) == 1
    assert counted.wall > 0


def test_growth_is_carried_on_by_its_power():
    rows = [{"passages": f"{n:,}", "build, s": 3.0 * n, "GB": 5.0, "recall": 0.9} for n in (100, 1000)]
    assert scale.extrapolated(*rows, 10_000) == {
        "passages": "10,000 on paper",
        "build, s": pytest.approx(30_000),
        "GB": pytest.approx(5),
    }


def test_fewer_passages_keep_the_relevant_ones(data):
    fewer = engines.reduced(data, 40)
    assert len(fewer["offsets"]) == 41 and fewer["offsets"][-1] == len(fewer["vectors"])
    for old, new in zip(data["relevant"], fewer["relevant"], strict=True):
        before = data["vectors"][data["offsets"][old] : data["offsets"][old + 1]]
        np.testing.assert_array_equal(before, fewer["vectors"][fewer["offsets"][new] : fewer["offsets"][new + 1]])


def test_engines_are_built_and_asked_in_turns(tmp_path, data):
    np.savez(tmp_path / "vectors.npz", **data)
    command = [sys.executable, ROOT / "benchmarks" / "engines.py", tmp_path / "vectors.npz", "--out", tmp_path / "out"]
    command += ["--threads", "1", "--engines", "ours, 2 bits + 8 to rescore; brute force; xtr-warp-rs"]
    command += ["--record", page := tmp_path / "page.md"]
    page.write_text("# Records\n\n## What did not work\n\nMuch.\n")
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "xtr-warp-rs: not installed" in done.stdout
    about, rows = json.loads((tmp_path / "out").read_text()).values()
    text = records.described(about, rows)
    assert text in page.read_text() and page.read_text().endswith("<!-- end -->\n\n## What did not work\n\nMuch.\n")
    assert len(rows) == 3 * (4 + 1)  # depths, settings
    for row in rows:
        assert row["CPU ms"] > 0 and row["batch/CPU s"] > 0
        if row["engine"] == "brute force":
            assert row["R@k"] == row["MRR@10"] == 1
        else:
            assert row["build, CPU s"] > 0 and row["R@k"] >= 0.9 and row["R@k of codes"] >= 0.9


def row(engine, setting, threads, k, ms, recall, size=36.0, build=10.0):
    return {
        "engine": engine, "setting": setting, "threads": threads, "k": k, "CPU ms": ms, "ms": ms / threads,
        "R@k": recall, "MRR@10": 0.5, "bytes/token": size, "build, CPU s": build, "GiB at peak": 0.3,
    }  # fmt: skip


def test_a_peer_is_compared_with_our_cheapest_setting_that_finds_as_much():
    rows = [
        made
        for threads in (1, 2)
        for made in (
            row("ours, 2 bits", "effort 1", threads, 10, 2, 0.95),
            row("ours, 2 bits", "effort 2", threads, 10, 4, 0.98),
            row("ours, rescored", "effort 1", threads, 10, 3, 0.98, 164, 20),
            row("peer", "cheap", threads, 10, 10, 0.95, 81, 1000),
            row("peer", "dear", threads, 10, 600, 0.97, 81, 1000),
            row("brute force", "float32", threads, 10, 300, 1.0, 0, 0.001),
        )
    ]
    cheap, dear, brute = records.ratios(rows)
    assert cheap == {
        "peer, setting": "peer, cheap",
        "one thread: k = 10": "5x",
        "2 threads: k = 10": "5x",
        "build, CPU": "50x",
    }
    assert dear["one thread: k = 10"] == "200x"
    assert brute == {"peer, setting": "brute force, float32", "one thread: k = 10": "–", "2 threads: k = 10": "–"}
    line = records.table(rows)[4]
    assert line["engine, setting"] == "peer, dear" and line["2 threads: k = 10"] == "300 / 0.970"
    assert (line["bytes/token"], line["build, CPU s"]) == ("81", "1,000")


def test_a_run_on_the_same_data_and_processor_replaces_its_block_and_nothing_else(tmp_path):
    page = tmp_path / "RECORDS.md"
    page.write_text("# Records\n\nBefore.\n\n## What did not work\n\nAfter.\n")
    one, two = ({"data": data, "processor": "(a) processor"} for data in ("10 passages", "20 passages"))
    records.keep(page, one, "first \\1")
    records.keep(page, two, "second")
    records.keep(page, one, "third")
    assert page.read_text() == (
        "# Records\n\nBefore.\n\n## Engines, as last measured\n\n"
        "<!-- engines: 10 passages; (a) processor -->\nthird\n<!-- end -->\n\n"
        "<!-- engines: 20 passages; (a) processor -->\nsecond\n<!-- end -->\n\n## What did not work\n\nAfter.\n"
    )
