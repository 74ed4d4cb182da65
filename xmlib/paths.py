"""Where things lie. Every file the project reads or writes is reached through these four folders.

Each can be moved by an environment variable, read at import: `XMLIB_ROOT`, `XMLIB_DATA`, `XMLIB_RUNS`, `XMLIB_FIGURES`.
Nothing is created here; whoever writes a file makes its folder.
"""

import os
from pathlib import Path


def _folder(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().resolve()


ROOT = _folder("XMLIB_ROOT", Path(__file__).resolve().parent.parent)  # the checkout
DATA = _folder("XMLIB_DATA", ROOT / "data")  # collections that were downloaded or brought along
RUNS = _folder("XMLIB_RUNS", ROOT / "runs")  # checkpoints, indexes, rankings, executed notebooks; ignored by git
FIGURES = _folder("XMLIB_FIGURES", ROOT / "figures")  # tables and figures, one folder per profile
