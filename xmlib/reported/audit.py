"""Does the paper add up? Every average, product and ratio that it prints, computed again with decimal arithmetic.

    mismatches()     # the lines that do not agree, each with its reason
    checks()         # all lines, those that agree as well
    differences()    # what the paper states otherwise than the released code, data and checkpoints

A line agrees when the recomputed number, rounded half up to the digits that are printed, is the printed one.
"""

import csv
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from pathlib import Path

from xmlib import reported

INTENSITY = Decimal("0.432")  # kg CO2eq per kWh, section 4.3.4
COAL_EPA = Decimal("9.05e-4") * 1000 / Decimal("0.45359237")  # kg CO2 per kg of coal; see carbon.EQUIVALENTS
SEEN_BY_MOST = ("en", "es", "fr", "it", "pt", "id", "de", "ru", "zh")


@dataclass
class Check:
    """One printed number beside the same number computed from others that are printed."""

    place: str
    what: str
    printed: Decimal
    recomputed: Decimal
    how: str
    reason: str = ""

    @property
    def agrees(self) -> bool:
        return self.recomputed.quantize(self.printed, ROUND_HALF_UP) == self.printed


def checks() -> list[Check]:
    return [*_averages(), *_table3(), *_table5(), *_text()]


def mismatches() -> list[dict]:
    """What does not agree, in the order of the paper: place, what, printed, recomputed, how, reason."""
    return [asdict(check) for check in checks() if not check.agrees]


def differences() -> list[dict]:
    """place, printed, released, source: read in the release, not computed."""
    with open(Path(__file__).with_name("released.csv"), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _averages() -> Iterator[Check]:
    """The Avg column of Tables 1, 2 and 4: 35 rows."""
    for table in (1, 2, 4):
        cells: dict[tuple, list[Decimal]] = {}
        for row in reported.rows(table):
            group = (row["system"], row["setting"], row["metric"])
            if row["lang"] not in ("", "avg"):
                cells.setdefault(group, []).append(row["value"])
            elif row["lang"] == "avg":
                mean = sum(cells[group]) / len(cells[group])
                cut_off = mean.quantize(row["value"], ROUND_DOWN) == row["value"]
                name = f"{row['system']}, {row['setting']}" if table == 4 else row["system"]
                yield Check(
                    f"Table {table}",
                    f"{name}: average {row['metric']}",
                    row["value"],
                    mean,
                    f"mean of {len(cells[group])} cells",
                    "cut off instead of rounded" if cut_off else "",
                )


def _table3() -> Iterator[Check]:
    rows: dict[str, dict[str, Decimal]] = {}
    for row in reported.rows(3):
        rows.setdefault(row["system"], {})[row["metric"]] = row["value"]
    for system, row in rows.items():
        energy = row["devices"] * row["tdp_w"] * row["hours"] / 1000
        factors = f"{row['devices']} × {row['tdp_w']} W × {row['hours']} h"
        yield Check("Table 3", f"{system}: energy in kWh", row["energy_kwh"], energy, factors)
        yield Check(
            "Table 3",
            f"{system}: emission in kg CO2eq",
            row["emission_kgco2eq"],
            energy * INTENSITY,
            f"{energy.normalize():f} kWh × {INTENSITY}",
            _why_emission(row, energy),
        )
    printed, own = rows["ColBERT-XM"]["emission_kgco2eq"], rows["ColBERT-XM"]
    yield Check(
        "Eq. 10",
        "ColBERT-XM: emission in kg CO2eq",
        printed,
        own["tdp_w"] * own["hours"] / 1000 + INTENSITY,
        f"P × T + C as printed = 2.325 + {INTENSITY}",
        "the plus sign is a slip: kWh and kg/kWh cannot be added, and only the product gives Table 3",
    )
    ratio = rows["mE5-base"]["energy_kwh"] / (own["tdp_w"] * own["hours"] / 1000)
    yield Check("§4.3.4", "mE5-base used 100× more power", Decimal("1e2"), ratio, "230.4 kWh / 2.325 kWh")
    for system, coal in (("ColBERT-XM", "0.5"), ("mE5-base", "49.6")):
        kg = rows[system]["emission_kgco2eq"]
        yield Check(
            "§4.3.4",
            f"{system}: emission as kg of coal",
            Decimal(coal),
            kg / COAL_EPA,
            f"{kg} kg / {COAL_EPA:.3f} kg CO2 per kg of coal (EPA)",
            f"the printed number takes {kg / Decimal(coal):.3f} kg per kg: the EPA revises its factor now and then",
        )


def _why_emission(row: dict[str, Decimal], energy: Decimal) -> str:
    """Which rounding on the way would give the printed emission?"""
    cent = Decimal("0.01")
    each = (energy / row["devices"] * INTENSITY).quantize(cent, ROUND_HALF_UP)
    if each * row["devices"] == row["emission_kgco2eq"]:
        return f"{each} kg per device, rounded before it was multiplied by {row['devices']}"
    rounded = energy.quantize(cent, ROUND_HALF_UP)
    if (rounded * INTENSITY).quantize(cent, ROUND_HALF_UP) == row["emission_kgco2eq"]:
        return f"{rounded} kWh, rounded before it was multiplied by {INTENSITY}"
    return ""


def _table5() -> Iterator[Check]:
    """Index size by size of the plain text. The text's size is not printed; 3.05 GB is what the other ratios share."""
    text_gb, sizes = Decimal("3.05"), {}
    for row in reported.rows(5):
        if row["metric"] == "index_gb":
            sizes[row["setting"]] = row["value"]
        elif row["metric"] == "index_to_text_ratio":
            index_gb, half = sizes[row["setting"]], Decimal("0.05")  # of the ratio's last digit
            lowest, highest = (row["value"] - half) * text_gb, (row["value"] + half) * text_gb
            yield Check(
                "Table 5",
                f"{row['system']} with {row['setting']}: index by text",
                row["value"],
                index_gb / text_gb,
                f"{index_gb} GB / {text_gb} GB",
                f"fits an index of {lowest:.2f} to {highest:.2f} GB, whose size was rounded for the table",
            )
    yield Check("App. C", "PLAID is smaller than v2 by", Decimal("1.3"), sizes["v2"] / sizes["PLAID"], "29 GB / 22 GB")


def _text() -> Iterator[Check]:
    """Numbers in the prose that follow from Table 1."""
    examples = {row["system"]: row["value"] for row in reported.rows(1) if row["metric"] == "examples_millions"}
    table1: dict[str, dict[str, Decimal]] = {}
    for row in reported.rows(1):
        if row["lang"] not in ("", "avg"):
            table1.setdefault(row["system"], {})[row["lang"]] = row["value"]

    def mean(system: str, skip: tuple[str, ...]) -> Decimal:
        values = [value for lang, value in table1[system].items() if lang not in skip]
        return sum(values) / len(values)

    yield Check(
        "§4.2",
        "mE5-base saw times as many examples",
        Decimal(800_000),
        examples["mE5-base"] / examples["ColBERT-XM"],
        "981.6M / 6.4M",
        "no reading of Table 1 gives 800,000",
    )
    for system, printed in (("mT5-base", "1.4"), ("mColBERT", "2.8")):
        share = examples[system] / 9
        how = f"{examples[system]}M / 9 languages"
        yield Check("§4.2", f"{system}: millions of English examples", Decimal(printed), share, how)
    gap = mean("mE5-base", ("en",)) - mean("ColBERT-XM", ("en",))
    yield Check("§4.2", "mE5-base minus ColBERT-XM outside English", Decimal("0.5"), gap, "means of 13 cells")
    own, other = (mean(name, SEEN_BY_MOST) for name in ("ColBERT-XM", "mE5-base"))
    yield Check(
        "§4.2",
        "in ja nl vi hi ar: points by which mE5-base lags behind ColBERT-XM, at least",
        max(Decimal("0.0"), own - other),
        own - other,
        f"{own:.2f} − {other:.2f}",
        "“lag behind our model” holds for mColBERT (22.60), not for mE5-base, which may have seen some of the five",
    )
    steps = Decimal(50_000) * 128 / 1_000_000
    yield Check("§4.1", "millions of training examples", examples["ColBERT-XM"], steps, "50,000 steps × 128")
    for row in reported.rows(4):
        if row["setting"] == "6.4M examples" and row["metric"] == "mrr@10" and row["lang"] != "avg":
            same = table1["ColBERT-XM"][row["lang"]]
            yield Check("Table 4", f"6.4M examples, {row['lang']}: MRR@10", row["value"], same, "the cell of Table 1")
