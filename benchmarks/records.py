"""What the last run of `benchmarks/engines.py` measured, as Markdown, and its place in RECORDS.md.

    python -m benchmarks.records runs/engines.json    # print it again

RECORDS.md has a block for every collection and processor, which a run on the same replaces. What a person thinks of it
stands outside of these blocks.
"""

import argparse
import json
import os
import re
from pathlib import Path

OURS = "ours"  # how the names of our own engines begin
SECTION = "## Engines, as last measured"
BEFORE = "## What did not work"  # the section that stays behind it


def described(about: dict, rows: list[dict]) -> str:
    """All of a run: what was measured where, both tables."""
    from benchmarks.common import markdown  # after the work: it brings PyTorch along

    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    return f"""### {about["data"]}; {about["processor"]}

{about["date"]}, {about["commit"]}: `{about["command"]}`. {versions or "No peers"}. Medians of questions asked one
at a time, in turns: ms / share of exact search's top k / share of what its codes find when all are scored (the first
{about["spared"]} questions); CPU time on one thread, wall time on more. MRR@10 at k = 10, builds on one thread.

{markdown(table(rows))}

How many times as long a peer takes as the cheapest setting of ours that finds at least as much of exact search's top k,
and its build as the longest of ours:

{markdown(ratios(rows))}"""


def table(rows: list[dict]) -> list[dict]:
    """A line for every engine and setting."""
    lines = []
    for (engine, setting), own in _by(rows, "engine", "setting").items():
        line = {"engine, setting": f"{engine}, {setting}"}
        for row in own:
            shares = [f"{row[name]:.3f}" for name in ("R@k", "R@k of codes") if name in row]
            line[_column(row)] = " / ".join([_number(_milliseconds(row)), *shares])
        first = min(own, key=lambda row: (row["threads"], row["k"]))
        line["MRR@10"] = f"{first['MRR@10']:.3f}" if "MRR@10" in first else ""
        for name in ("bytes/token", "build, CPU s", "GiB at peak") if first.get("bytes/token") else ():
            line[name] = _number(first[name])
        lines.append(line)
    return lines


def ratios(rows: list[dict]) -> list[dict]:
    """A line for every setting of a peer: its time by that of our cheapest setting of at least its recall."""
    ours = [row for row in rows if row["engine"].startswith(OURS)]
    lines = []
    for (engine, setting), own in _by(rows, "engine", "setting").items():
        if engine.startswith(OURS):
            continue
        line = {"peer, setting": f"{engine}, {setting}"}
        for row in own:
            equal = [
                _milliseconds(other)
                for other in ours
                if (other["threads"], other["k"]) == (row["threads"], row["k"]) and other["R@k"] >= row["R@k"]
            ]
            line[_column(row)] = f"{_number(_milliseconds(row) / min(equal))}x" if equal else "–"
        if ours and own[0].get("bytes/token"):
            longest = max(other["build, CPU s"] for other in ours)
            line["build, CPU"] = f"{_number(own[0]['build, CPU s'] / longest)}x"
        lines.append(line)
    return lines


def keep(path: Path, about: dict, text: str) -> None:
    """Put the block into the file in place of the one of the same data and processor, or behind the last one."""
    page = path.read_text(encoding="utf-8")
    if SECTION not in page:
        at = page.find(BEFORE)
        at = len(page) if at < 0 else at
        page = f"{page[:at].rstrip()}\n\n{SECTION}\n\n{page[at:]}"
    begin, end = f"<!-- engines: {about['data']}; {about['processor']} -->", "<!-- end -->"
    block = f"{begin}\n{text}\n{end}\n"
    old = re.compile(re.escape(begin) + r"\n.*?" + re.escape(end) + r"\n", re.DOTALL)
    if old.search(page):
        page = old.sub(lambda _: block, page)
    else:
        start = page.index(SECTION)
        at = page.find("\n## ", start + 1)
        at = len(page) if at < 0 else at + 1
        page = f"{page[:at].rstrip()}\n\n{block}\n{page[at:]}".rstrip() + "\n"
    beside = path.with_name(path.name + ".partial")
    beside.write_text(page, encoding="utf-8")
    os.replace(beside, path)


def _by(rows: list[dict], *names: str) -> dict[tuple, list[dict]]:
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _milliseconds(row: dict) -> float:
    """CPU time on one thread, which other work disturbs least; on more, the time one waits."""
    return row["CPU ms" if row["threads"] == 1 else "ms"]


def _column(row: dict) -> str:
    threads = "one thread" if row["threads"] == 1 else f"{row['threads']} threads"
    return f"{threads}: k = {row['k']}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="what benchmarks/engines.py wrote")
    measured = json.loads(parser.parse_args().file.read_text())
    print(described(measured["about"], measured["rows"]))


if __name__ == "__main__":
    main()
