"""Tables and figures: every number where it belongs, drawn from the CSV file alone, the same file every time."""

import re
import shutil
import subprocess
import unicodedata
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from xmlib import carbon, looks, reporting, tables
from xmlib.grid import NOT_RUN, Cell, Grid, tex
from xmlib.languages import SAMPLE

DEMO_TABLES = sorted((Path(__file__).resolve().parent.parent / "figures" / "demo").glob("tab*.tex"))
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def figures(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "FIGURES", tmp_path)
    return tmp_path


def results(profile="demo", seeds=(1,), languages=("en", "sw", "ar"), metric="mrr@10", **systems):
    """One row per system, language and seed. `systems` maps a name (_ for -) to one value per language."""
    rows = []
    for name, values in systems.items():
        for lang, value in zip(languages, values, strict=True):
            for seed in seeds:
                origin = dict(model="m", collection="sample", split="test", device="cpu", commit="c")
                origin |= dict(seconds=1.0, energy_kwh=None, n_queries=100, seed=seed, profile=profile)
                system = name.replace("_", "-")
                rows.append(dict(system=system, lang=lang, metric=metric, value=value + seed * 0.001, **origin))
    return pd.DataFrame(rows)


def comparison(differences, p, languages=("en", "sw", "ar")):
    return pd.DataFrame(dict(lang=languages, difference=differences, p=p, p_holm=p))


ROWS = dict(ColBERT_XM=(0.499, 0.399, 0.199), BM25=(0.449, 0.449, 0.149))


def test_the_table_worked_by_hand(figures):
    written = reporting.main_table(results(**ROWS), "demo")
    assert [path.name for path in written] == [f"tab1_mmarco.{suffix}" for suffix in ("csv", "md", "tex", "png")]
    lines = [[field.strip() for field in line.split("|")[1:-1]] for line in written[1].read_text().splitlines()[:-2]]
    assert lines[0] == [
        "",
        *["examples", "lang.", "param."],
        "en",
        "ar",
        "sw",
        "avg",
        "zero-shot",
    ]  # order of the paper's tables, whatever came first
    rows = {line[0] if line[0] != "*paper*" else f"{before[0]}, paper": line[1:] for before, line in pairwise(lines)}
    examples = lines[0][1:4]
    assert examples == ["examples", "lang.", "param."]
    assert rows["BM25"][3:] == ["45.0", "15.0", "**45.0**", "35.0", "**30.0**"]
    assert rows["BM25, paper"] == [
        "–",
        "–",
        "–",
        "*18.4*",
        "*11.1*",
        "–",
        "*14.2*",
        "–",
    ]  # its own average; none for sw
    assert rows["ColBERT-XM"][3:] == ["**50.0**", "**20.0**", "40.0", "**36.7**", "**30.0**"]
    assert rows["ColBERT-XM, paper"][:4] == ["*6.4M*", "*1*", "*86M*", "***37.2***"]
    assert rows["mT5-base"][:2] == ["*not run*", ""] and rows["**Cross-encoders**"] == [""] * 8
    caption = written[1].read_text().splitlines()[-1]
    assert caption.startswith("DEMO. MRR@10 × 100 on sample, test; 100 queries per language.")
    assert "its avg is over its own 14 languages" in caption and "all 3 languages, English included" in caption


def test_our_numbers_and_the_papers_never_share_a_row(figures):
    cells = reporting.read_csv(reporting.main_table(results(**ROWS), "demo")[0])
    assert set(cells["source"]) == {"ours", "paper"}
    assert len(cells[cells["source"] == "ours"]) == 6 and len(cells[cells["source"] == "paper"]) == 7 * 15 + 6 * 3
    grid = reporting.main_grid(figures / "demo" / "tab1_mmarco.csv")
    for row in grid.rows:
        if len(row) > 1 and row[1].text != NOT_RUN:
            assert len({cell.grey for cell in row}) == 1 and row[0].grey == ("paper" in row[0].text)


def test_ties_at_the_printed_precision_are_both_best():
    written = reporting.main_table(results(A=(0.1, 0.2, 0.30001), B=(0.1, 0.2, 0.29999)), "demo", table=None)
    lines = written[1].read_text().splitlines()[2:4]
    assert all(line.count("**") == 2 * 5 for line in lines)


def test_seeds_are_averaged_and_counted():
    written = reporting.main_table(results(seeds=(1, 2, 3), **ROWS), "demo")
    assert "mean of 3 seeds" in written[1].read_text() and "**50.1**" in written[1].read_text()


def test_superscripts_name_the_systems_that_were_beaten():
    compared = {("BM25", "ColBERT-XM"): comparison([0.05, -0.05, 0.05], [0.01, 0.01, 0.2])}
    text = reporting.main_table(results(**ROWS), "demo", compared)[1].read_text()
    assert re.search(r"\| BM25 ᵃ +\| +– \| +– \| +– \| +45.0 \| +15.0 \| +\*\*45.0\*\*ᵇ? \|", text)
    assert "**50.0**ᵃ" in text  # en: b better than a
    assert "40.0ᵃ" not in text and "p < 0.05" in text


def test_a_demo_says_so_and_a_paper_run_does_not():
    assert reporting.main_table(results(**ROWS), "demo")[1].read_text().count("DEMO") == 1
    assert "DEMO" not in reporting.main_table(results("paper", **ROWS), "paper")[1].read_text()


def test_one_language_and_one_system_need_no_average_and_no_best():
    written = reporting.main_table(results(languages=("sw",), ColBERT_XM=(0.4,)), "demo")
    text = written[1].read_text()
    line = next(line for line in text.splitlines() if line.startswith("| ColBERT-XM"))
    assert "avg" not in text.splitlines()[0] and "**" not in line and "40.1" in line


def test_results_of_another_profile_or_two_collections_are_refused():
    with pytest.raises(ValueError, match=r"no result of profile 'paper' with metric 'mrr@10'; have: demo mrr@10"):
        reporting.main_table(results(**ROWS), "paper", table=None)
    mixed = pd.concat([results(**ROWS), results(**ROWS).assign(collection="other")])
    with pytest.raises(ValueError, match="mix several values of 'collection': sample, other"):
        reporting.main_table(mixed, "demo")


def test_table_2_takes_the_other_metric():
    rows = results(metric="recall@100", **ROWS)
    text = reporting.main_table(rows, "demo", metric="recall@100", table=2, stem="tab2_recall")[1].read_text()
    assert "R@100" in text and "*87.1*" in text and "Mr. TyDi test" in text


def test_any_other_table_keeps_whole_numbers_whole():
    frame = pd.DataFrame({"stage": ["a & b", "c"], "minutes": [1.25, np.nan], "texts": [10, 200]})
    written = reporting.write_table(frame, "demo", "tab9_cost", "What it took.")
    lines = written[1].read_text().splitlines()
    assert lines[2].split("|")[2:4] == ["     1.2 ", "    10 "] and lines[3].split("|")[2].strip() == "–"
    assert lines[-1] == "DEMO. What it took." and r"a \& b &" in written[2].read_text()


def test_latex_is_escaped_and_balanced():
    assert tex("50% of a_b ᵃ – × <") == r"50\% of a\_b a -- $\times$ $<$"
    text = reporting.main_table(results(**ROWS), "demo")[2].read_text()
    assert text.count("{") == text.count("}") and text.count(r"\begin") == text.count(r"\end") == 2
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len({line.count("&") for line in rows}) == 1 and r"\toprule" in text and r"\textcolor{gray}{18.4}" in text


def test_a_terminal_gets_one_line_per_language():
    ours, paper = [Cell("A ᵃ"), Cell("1.0"), Cell("22.0")], [Cell("paper", grey=True), Cell("9"), Cell("9")]
    grid = Grid(["", "en", "sw"], [ours, paper], caption="What it is. Bold: best.")
    assert grid.text() == "       A\nen   1.0\nsw  22.0\n\nWhat it is.\n"


def test_a_table_without_results_shows_what_the_paper_prints_and_says_so():
    nothing = results(**ROWS)[:0]
    written = reporting.main_table(nothing, "demo", None, ("mrr@100", "recall@100"), 2, "tab2_mrtydi")
    text = written[1].read_text()
    assert "Ours: not run." in text and text.count("*not run*") == 2 * 4 and "***87.5***" in text
    assert text.index("**MRR@100**") < text.index("**R@100**")


def test_table_4_has_a_row_per_number_of_examples():
    rows = pd.concat(
        [results(ColBERT_XM=(value, 0.2, 0.1)).assign(examples=n) for n, value in ((1600, 0.3), (6400, 0.4))]
    )
    text = reporting.examples_table(rows, "demo")[1].read_text()
    assert re.search(r"^\| 1.6k +\| +30.1 ", text, re.M) and re.search(r"^\| 6.4k +\| +\*\*40.1\*\*", text, re.M)
    assert re.search(r"^\| \*3.2M, paper\* +\| +\*35.7\*", text, re.M)


def test_figure_3_keeps_ours_and_the_papers_apart_and_draws_without_ours(figures):
    rows = pd.concat([results(ColBERT_XM=(0.4, 0.3, 0.2)).assign(examples=n) for n in (1600, 3200)])
    scaling = pd.concat([rows, results(mE5_base=(0.5, 0.3, 0.1))])
    frame = reporting.read_csv(reporting.examples_curve(scaling, "demo")[0])
    ours, paper = (frame[frame["source"] == source] for source in ("ours", "paper"))
    assert len(paper) == 4 * 5 + 1 and list(ours["system"]) == ["ColBERT-XM", "ColBERT-XM", "mE5-base"]
    assert ours["value"].round(4).tolist() == [0.301, 0.301, 0.301] and ours["examples_millions"].tolist()[1] == 0.0032
    nothing = reporting.examples_curve(rows[:0], "demo", "fig3_paper")
    assert set(reporting.read_csv(nothing[0])["source"]) == {"paper"} and len(nothing) == 3


def engine_rows(**changes):
    rows = dict(system="BM25", engine="PISA", setting="MaxScore", profile="demo", device="CPU", collection="sample")
    return rows | dict(split="test", lang="en", n=9, k=100, model="bm25", commit="c") | changes


def test_table_5_has_our_columns_and_then_the_papers(figures):
    ours = [engine_rows(metric="index_gb", value=0.0123), engine_rows(metric="cpu_latency_ms", value=0.25)]
    ours += [engine_rows(metric="recall_of_exact", value=1.0), engine_rows(metric="cpu_p95_ms", value=0.5)]
    ours += [engine_rows(engine="my own", setting=name, metric="cpu_latency_ms", value=7.5) for name in ("", "slow")]
    written = reporting.efficiency_table(pd.DataFrame(ours), "demo")
    lines = written[1].read_text().splitlines()
    columns = [name.strip() for name in lines[0].split("|")[2:-1]]
    mine, theirs = (
        ["disk", "CPU ms", "95 %", "of exact"],
        ["paper disk", "paper × text", "paper GPU ms", "paper CPU ms"],
    )
    assert columns == mine + theirs
    row = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in lines[2:]
        if "|" in line
    }
    assert row["as PISA: document at a time, MaxScore"] == [
        "12 MB",
        "0.25",
        "0.5",
        "100.0",
        "*0.7 GB*",
        "*0.2*",
        "–",
        "*8*",
    ]
    assert row["as JASS: score at a time"] == ["*not run*", "", "", "", "*1.2 GB*", "*0.4*", "–", "*16*"]
    assert row["my own"][1] == row["slow"][1] == "7.5" and row["my own"][4:] == row["slow"][4:] == [""] * 4
    assert (
        sum("*not run*" in line for line in lines) == 7
        and "9 queries" in lines[-1]
        and "best 100 passages" in lines[-1]
    )
    for cell_row in reporting.efficiency_grid(written[0]).rows:
        for cell, name in zip(cell_row[1:], columns, strict=False):
            assert cell.grey == name.startswith("paper") or cell.text in ("", "not run")
    with pytest.raises(ValueError, match="unknown metric 'index_bytes'"):
        reporting.efficiency_table(pd.DataFrame([engine_rows(metric="index_bytes", value=1)]), "demo")


def test_table_5_averages_languages_and_puts_a_system_beside_the_papers_of_its_kind():
    model = dict(system="DPR-XM", engine="HNSW", setting="ef 100", metric="cpu_latency_ms", model="0123456789ab")
    ours = [engine_rows(**model, lang=lang, value=value) for lang, value in (("en", 1.0), ("sw", 3.0))]
    ours += [
        engine_rows(**model | dict(engine="flat", metric=metric), value=5.0) for metric in ("gpu_latency_ms", "mrr@10")
    ]
    text = reporting.efficiency_table(pd.DataFrame(ours), "demo")[1].read_text()
    assert "**DPR-XM †, beside the paper's mE5-base**" in text and "mean of 2 languages" in text
    hnsw = next(line for line in text.splitlines() if line.startswith("| HNSW, ef 100"))
    assert [cell.strip() for cell in hnsw.split("|")[2:-1]] == ["2", "–", "–", "*28 GB*", "*9.2*", "*1*", "*66*"]


def test_the_pictures_of_table_5_keep_every_setting(figures):
    points = [("PISA", "MaxScore", 0.2, 1.0), ("JASS", "every posting", 0.1, 0.98), ("JASS", "less", 0.05, 0.7)]
    rows = []
    for engine, setting, ms, recall in points:
        found = {"cpu_latency_ms": ms, "recall_of_exact": recall, "index_to_text_ratio": 0.3, "mrr@10": 0.5}
        rows += [engine_rows(engine=engine, setting=setting, metric=m, value=value) for m, value in found.items()]
    written = reporting.engine_figures(pd.DataFrame(rows), "demo")
    frame = reporting.read_csv(figures / "demo" / "fig6_latency.csv")
    columns = ["engine", "setting", "cpu_latency_ms", "recall_of_exact"]
    assert list(frame[columns].itertuples(index=False, name=None)) == points
    assert {path.name for path in written} == {
        f"{stem}.{x}" for stem in ("fig6_latency", "fig7_bytes") for x in ("csv", "svg", "png")
    }
    first = {path: path.read_bytes() for path in written}
    assert {path: path.read_bytes() for path in reporting.redraw("demo")}.items() <= first.items()


def test_the_languages_that_a_published_checkpoint_saw_are_the_papers():
    cells = tables.by_language(
        results(mT5_base=(0.3, 0.2, 0.1)).assign(model="unicamp-dl/mt5"), "demo", {}, ["mrr@10"], None
    )
    assert cells.set_index("lang")["trained_on_lang"].to_dict() == {"en": "yes", "sw": "no", "ar": "no"}
    here = tables.by_language(
        results(languages=("en", "es"), mT5_base=(0.3, 0.2)).assign(model="0123456789ab"), "demo", {}, ["mrr@10"], None
    )
    assert here.set_index("lang")["trained_on_lang"].to_dict() == {"en": "yes", "es": "no"}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_compiles(figures):
    reporting.main_table(results(**ROWS), "demo")
    reporting.main_table(results(**ROWS), "demo", metric="mrr@10", table=4, stem="tab4_examples")
    reporting.energy_table(pd.DataFrame(columns=carbon.LEDGER_COLUMNS), "demo", 0.5)
    reporting.efficiency_table(pd.DataFrame(columns=tables.EFFICIENCY_COLUMNS), "demo")
    written = sorted((figures / "demo").glob("tab*.tex"))
    assert len(written) == 4
    compile_latex(written, figures)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_the_demos_latex_compiles(tmp_path):
    compile_latex(DEMO_TABLES, tmp_path)


def compile_latex(tables, folder):
    packages = tables[0].read_text().splitlines()[0].removeprefix("% ")
    inputs = "\n".join(rf"\input{{{path}}}" for path in tables)
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{inputs}\end{{document}}"
    (folder / "all.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_demos_latex_has_no_character_that_latex_lacks():
    assert len(DEMO_TABLES) > 10
    for path in DEMO_TABLES:
        foreign = {char for char in path.read_text(encoding="utf-8") if not char.isascii()}
        assert all(unicodedata.name(char).startswith("LATIN ") for char in foreign), (path.name, foreign)


ALL_SCRIPTS = ["▁भारत", "中国", "日本の", "తెలుగు", "বাংলা", "한국", "▁Việt", "что", "فيها", "ประเทศ", "🙂", "19"]


def draw_everything(profile="demo"):
    rng = np.random.default_rng(0)
    values = {name: rng.random(len(SAMPLE)) for name in ("BM25", "DPR_XM", "ColBERT_XM")}
    rows = results(profile, languages=SAMPLE, **values)
    compared = comparison(values["ColBERT_XM"] - values["DPR_XM"], rng.random(len(SAMPLE)) / 10, SAMPLE)
    written = reporting.main_table(rows, profile, {("DPR-XM", "ColBERT-XM"): compared})
    written += reporting.single_vs_multi(rows, compared, profile)
    written += reporting.per_language_dots(rows, profile, "fig_systems")
    log = [dict(step=step, loss=1 / (step + 1), rate=0.1, seconds=1.0) for step in range(40)]
    written += reporting.loss_curve({"ColBERT-XM": log, "my own system": log}, profile)
    sim = rng.random((3, len(ALL_SCRIPTS)))
    return written + reporting.token_similarity(["a", "42", "▁"], ALL_SCRIPTS, sim, profile, "fig2_tokens", "क्या?")


@pytest.mark.slow
def test_everything_is_drawn_again_from_the_csv_files_to_the_same_bytes(figures):
    written = draw_everything()
    first = {path: path.read_bytes() for path in written}
    assert all(len(content) > 100 for content in first.values())
    for path in first:
        if path.suffix != ".csv":
            path.unlink()
    again = reporting.redraw("demo")
    assert {path: path.read_bytes() for path in again} == {p: c for p, c in first.items() if p.suffix != ".csv"}
    assert not list(figures.rglob(".*"))  # nothing half-written stays


def test_figure_4_keeps_the_difference_of_every_language(figures):
    rows = results(DPR_XM=(0.30, 0.25, 0.20), ColBERT_XM=(0.35, 0.30, 0.19))
    path = reporting.single_vs_multi(rows, comparison([0.05, 0.05, -0.01], [0.01, 0.01, 0.9]), "demo")[0]
    frame = reporting.read_csv(path).set_index("lang")
    assert list(frame.index) == ["en", "ar", "sw"]
    assert (frame["multi"] - frame["single"]).round(6).to_dict() == {"en": 0.05, "ar": -0.01, "sw": 0.05}
    assert frame.loc["ar", "p_holm"] == 0.9


def test_figure_4_of_one_language_or_without_a_system():
    rows = results(languages=("sw",), DPR_XM=(0.3,), ColBERT_XM=(0.4,))
    assert len(reporting.single_vs_multi(rows, comparison([0.1], [0.01], ["sw"]), "demo")) == 3
    with pytest.raises(ValueError, match="no row of 'DPR-XM'; systems there: ColBERT-XM, BM25"):
        reporting.single_vs_multi(results(**ROWS), comparison([0] * 3, [1] * 3), "demo")


def test_similarities_must_fit_their_tokens():
    with pytest.raises(ValueError, match=r"shape \(2, 2\) for 2 query, 3 passage tokens"):
        reporting.token_similarity(["a", "b"], ["c", "d", "e"], np.zeros((2, 2)), "demo", "fig2_x")


def test_a_long_passage_shows_the_tokens_that_matter(figures):
    sim = np.zeros((2, 200))
    sim[0, 150], sim[1, 7] = 0.9, 0.8
    written = reporting.token_similarity(["a", "b"], [f"t{i}" for i in range(200)], sim, "demo", "fig2_long")
    assert len(reporting.read_csv(written[0])) == 400 and written[2].stat().st_size > 1000


def test_text_without_a_font_is_spelt(monkeypatch):
    monkeypatch.setattr(looks, "_drawable", lambda: set(map(chr, range(32, 0x500))))
    assert looks.readable("where что") == "where что"
    assert looks.readable("भारत मुद्रा") == "bhaarata mudraa"
    assert looks.readable("한국 の 中 ٣ 。") == "hangug no ⟨4E2D⟩ 3 ."


def test_every_character_of_the_sample_languages_can_be_shown():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for token in ALL_SCRIPTS:
            assert looks.readable(token)


def test_systems_keep_their_order_and_colours_are_all_different():
    assert looks.in_order(["ColBERT-XM", "mine", "BM25"], looks.SYSTEMS) == ["BM25", "ColBERT-XM", "mine"]
    colours, markers = zip(*looks.SYSTEMS.values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(looks.SYSTEMS)


def test_labels_are_moved_apart_and_keep_their_order():
    assert reporting._apart([1.0, 1.01, 5.0], 0.5) == [1.0, 1.5, 5.0]
    assert reporting._apart([2.0, 1.9], 0.5) == [2.4, 1.9]
