"""The numbers printed in the paper's Tables 1 to 5, as data: `table1.csv` … `table5.csv`, one cell per line.

    table, system, setting, lang, metric, value, trained_on_lang

`value` is written digit by digit as printed, with the paper's unit: scores are percentages. `lang` is an ISO code, or
`avg` for the printed average over the languages of that row; it is empty where a number belongs to no language.
`setting` is what is measured: a collection, the number of training examples (Table 4), the hardware (Table 3), the
engine (Table 5). Cells printed as "-" have no line. Nothing here is corrected: `audit.py` lists what does not add up.
Our own numbers never go into these files.

`trained_on_lang` tells the two colours of Table 1 apart (the daggers of Table 2): yes, no, or empty where the paper
does not say. ColBERT-XM saw English only. mT5-base, mMiniLM-L6 and mColBERT saw the 9 languages of the first version of
mMARCO: en es fr it pt id de ru zh; the daggers of Table 2 agree. DPR-X saw 4 languages and mE5-base 16, which the text
does not name, save that mE5-base saw English (section 4.2). BM25 is not trained.
"""

import csv
from decimal import Decimal
from pathlib import Path

TABLES = (1, 2, 3, 4, 5)

# Figure 4 prints no numbers. Section 4.3.2 states by how many points of MRR@10 ColBERT-XM exceeds DPR-XM on mMARCO:
# in English, and on average over the 13 other languages.
FIGURE_4_MARGIN = {"en": Decimal("4.5"), "others": Decimal("4.9")}


def rows(table: int) -> list[dict]:
    """The lines of one table, in the paper's order, values as Decimal, `trained_on_lang` as True, False or None."""
    if table not in TABLES:
        raise ValueError(f"no Table {table!r}; have: {', '.join(map(str, TABLES))}")
    with open(Path(__file__).with_name(f"table{table}.csv"), encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    for row in found:
        row["table"] = int(row["table"])
        row["value"] = Decimal(row["value"])
        row["trained_on_lang"] = {"yes": True, "no": False, "": None}[row["trained_on_lang"]]
    return found


def frame(table: int):
    """The same as a pandas DataFrame, with `value` as a float."""
    import pandas

    return pandas.DataFrame(rows(table)).astype({"value": float})
