"""The paper's tables as data: complete, exact, and with exactly the known errors."""

from collections import Counter
from decimal import Decimal

import pytest

from xmlib import reported
from xmlib.languages import MMARCO, MRTYDI
from xmlib.reported import audit


def value(table, **where):
    found = [row for row in reported.rows(table) if all(row[name] == wanted for name, wanted in where.items())]
    assert len(found) == 1, where
    return str(found[0]["value"])


def test_exactly_three_printed_averages_are_wrong_all_in_table_2():
    wrong = {(row["place"], row["what"]): (row["recomputed"], row["printed"]) for row in audit.mismatches()}
    assert {names: numbers for names, numbers in wrong.items() if "average" in names[1]} == {
        ("Table 2", "mColBERT: average mrr@100"): (Decimal("46.17"), Decimal("46.1")),
        ("Table 2", "mT5-base: average recall@100"): (Decimal("83.58"), Decimal("83.5")),
        ("Table 2", "mColBERT: average recall@100"): (Decimal("83.76"), Decimal("83.7")),
    }


def test_the_audit_finds_the_known_errors_and_no_others():
    wrong = [(row["place"], str(row["printed"]), f"{float(row['recomputed']):.4g}") for row in audit.mismatches()]
    assert wrong[3:] == [
        ("Table 3", "99.52", "99.53"),
        ("Table 3", "1.01", "1.004"),
        ("Eq. 10", "1.01", "2.757"),
        ("§4.3.4", "49.6", "49.88"),
        ("Table 5", "7.3", "7.213"),
        ("§4.2", "800000", "153.4"),
        ("§4.2", "0.0", "-0.68"),
    ]
    assert all(row["reason"] for row in audit.mismatches())
    assert sum("average" in check.what for check in audit.checks()) == 35


def test_two_emissions_were_rounded_on_the_way():
    reasons = {row["what"]: row["reason"] for row in audit.mismatches() if row["place"] == "Table 3"}
    assert reasons["mE5-base: emission in kg CO2eq"].startswith("3.11 kg per device")  # 3.11 × 32 = 99.52
    assert reasons["ColBERT-XM: emission in kg CO2eq"].startswith("2.33 kWh")  # 2.33 × 0.432 = 1.01


def test_what_the_release_says_otherwise_has_its_source():
    assert len(audit.differences()) >= 10 and all(all(row.values()) for row in audit.differences())


def test_all_35_averages_are_there():
    averages = Counter(
        row["table"] for table in reported.TABLES for row in reported.rows(table) if row["lang"] == "avg"
    )
    assert averages == {1: 7, 2: 8, 4: 20}


@pytest.mark.parametrize(
    ("table", "languages", "systems", "lines"),
    [(1, MMARCO, 7, 7 * 15), (2, MRTYDI, 4, 8 * 11), (4, MMARCO, 1, 20 * 15)],
)
def test_every_row_covers_every_language_in_order(table, languages, systems, lines):
    rows = [row for row in reported.rows(table) if row["setting"] != "training"]
    assert len(rows) == lines and len({row["system"] for row in rows}) == systems
    for i in range(0, lines, len(languages) + 1):
        row = rows[i : i + len(languages) + 1]
        assert [cell["lang"] for cell in row] == [*languages, "avg"]
        assert len({(cell["system"], cell["setting"], cell["metric"]) for cell in row}) == 1


def test_cells_read_off_the_page():
    assert value(1, system="ColBERT-XM", lang="en") == "37.2" and value(1, system="ColBERT-XM", lang="avg") == "26.2"
    assert value(1, system="DPR-X", lang="zh") == "14.8" and value(1, system="mMiniLM-L6", lang="pt") == "28.9"
    assert value(1, system="mE5-base", metric="examples_millions") == "981.6"
    assert value(2, system="mColBERT", lang="te", metric="recall@100") == "96.9"
    assert value(2, system="BM25", lang="en", metric="mrr@100") == "14.0"
    assert value(3, system="mT5-base", metric="emission_kgco2eq") == "3.30"
    assert value(4, setting="25.6M examples", lang="ar", metric="recall@1000") == "74.0"
    assert value(4, setting="6.4M examples", lang="zh", metric="mrr@10") == "24.6"
    assert value(5, setting="PLAID", metric="index_to_text_ratio") == "7.3"


def test_table_4_at_6_4m_examples_is_the_row_of_table_1():
    row = [(row["lang"], row["value"]) for row in reported.rows(1) if row["system"] == "ColBERT-XM" and row["lang"]]
    again = [
        (r["lang"], r["value"]) for r in reported.rows(4) if r["setting"] == "6.4M examples" and r["metric"] == "mrr@10"
    ]
    assert row == again


def test_the_other_tables_are_complete():
    assert len(reported.rows(3)) == 5 * 5
    assert Counter(row["metric"] for row in reported.rows(5)) == {
        "index_gb": 8,
        "index_to_text_ratio": 8,
        "gpu_latency_ms": 5,
        "cpu_latency_ms": 7,
    }


def test_languages_seen_in_training_agree_with_the_counts_in_table_1():
    for row in reported.rows(1):
        if row["metric"] == "languages" and row["system"] not in ("DPR-X", "mE5-base"):
            seen = [cell for cell in reported.rows(1) if cell["system"] == row["system"] and cell["trained_on_lang"]]
            assert len(seen) == row["value"], row["system"]
    unknown = {
        row["system"] for row in reported.rows(1) if row["trained_on_lang"] is None and row["lang"] not in ("", "avg")
    }
    assert unknown == {"DPR-X", "mE5-base"}


def test_the_frame_holds_the_same_as_floats():
    frame = reported.frame(2)
    assert len(frame) == 88 and frame["value"].dtype == float
    assert frame.query("system == 'ColBERT-XM' and lang == 'sw' and metric == 'mrr@100'")["value"].item() == 56.8


def test_an_unknown_table_is_named():
    with pytest.raises(ValueError, match="no Table 6; have: 1, 2, 3, 4, 5"):
        reported.rows(6)
