"""Do the results of the paper profile agree with the paper? One line per claim of `tests/expected.yaml`.

    frame = check(results, scaling)     # a verdict per claim: OK, close, FAIL or not run
    settle(frame, profile)              # raises in the paper profile if any line is FAIL

OK: within the claim's tolerance of the printed value. close: within twice the tolerance. Scores are × 100.
"""

from pathlib import Path

import pandas as pd

from xmlib.paths import ROOT

FILE = ROOT / "tests" / "expected.yaml"
COLLECTIONS = {1: "mmarco", 2: "mrtydi", 4: "mmarco"}
FIELDS = ("table", "system", "lang", "metric", "paper", "tolerance", "command")


def read(path: Path = FILE) -> list[dict]:
    """The claims. Each has `FIELDS`; those of Table 4 `examples_millions` as well."""
    import yaml

    claims = yaml.safe_load(path.read_text(encoding="utf-8"))
    for number, claim in enumerate(claims, 1):
        missing = [field for field in FIELDS if field not in claim]
        if missing:
            raise ValueError(f"{path}: claim {number} ({claim}) lacks {', '.join(missing)}")
    return claims


def check(results: pd.DataFrame, scaling: pd.DataFrame, claims: list[dict] | None = None) -> pd.DataFrame:
    """Every claim with our value, the difference and the verdict. Rows of other profiles than paper count for nothing.

    `avg` is the mean over the languages that the paper averages; with any of them missing the claim is not run.
    """
    lines = []
    for claim in read() if claims is None else claims:
        ours = _ours(scaling if claim["table"] == 4 else results, claim)
        apart = None if ours is None else round(ours - claim["paper"], 6)
        tolerance = claim["tolerance"]
        verdict = "not run" if apart is None else "OK" if abs(apart) <= tolerance else "close"
        if apart is not None and abs(apart) > 2 * tolerance:
            verdict = "FAIL"
        lines.append({**claim, "ours": ours, "difference": apart, "verdict": verdict})
    columns = ["verdict", "table", "system", "examples_millions", "lang", "metric", "paper", "ours", "difference"]
    return pd.DataFrame(lines).reindex(columns=[*columns, "tolerance", "command"])


def settle(checked: pd.DataFrame, profile: str) -> None:
    """AssertionError that lists every FAIL, in the paper profile; elsewhere the paper's numbers are not the aim."""
    failed = checked[checked["verdict"] == "FAIL"]
    if profile == "paper" and len(failed):
        lines = failed.drop(columns=["verdict", "examples_millions"]).to_string(index=False)
        raise AssertionError(f"{len(failed)} of {len(checked)} claims of the paper are not met:\n{lines}")


def _ours(rows: pd.DataFrame, claim: dict) -> float | None:
    from xmlib import reported

    where = {"profile": "paper", "collection": COLLECTIONS[claim["table"]]}
    where |= {name: claim[name] for name in ("system", "metric")}
    if claim["table"] == 4:
        where["examples"] = claim["examples_millions"] * 1e6
    for name, value in where.items():
        rows = rows[rows[name] == value]
    langs = {claim["lang"]}
    if claim["lang"] == "avg":
        langs = {row["lang"] for row in reported.rows(claim["table"])} - {"", "avg"}
    rows = rows[rows["lang"].isin(langs)]
    if set(rows["lang"]) != langs:
        return None
    return 100 * float(rows.groupby("lang")["value"].mean().mean())
