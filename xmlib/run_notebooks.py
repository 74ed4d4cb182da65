"""Run the numbered notebooks of one profile, in order: `python -m xmlib.run_notebooks --profile demo`.

Each is executed by papermill with `params/<notebook>.<profile>.yaml` into `runs/<profile>/<notebook>.ipynb`; the
sources in `notebooks/` are never written. A notebook is skipped when nothing that it was made from has changed: its
source, its parameters, the code and data files of `xmlib`, the installed packages, and the run of the notebook before
it. A run that was stopped is simply started again: finished notebooks are skipped, finished stages are found.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from importlib.metadata import distributions
from pathlib import Path

import yaml

from xmlib import notebook
from xmlib.paths import DATA, FIGURES, ROOT, RUNS


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; the exit code is 1 if a notebook failed and 2 if the request makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m xmlib.run_notebooks", description=__doc__.split("\n\n")[0])
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="such as 03_eval; all of the profile if none")
    parser.add_argument(
        "--profile", default="demo", help="smoke, demo, small or paper: which params files (default: demo)"
    )
    parser.add_argument("--again", action="store_true", help="run even what is up to date")
    options = parser.parse_args(arguments)
    try:
        if RUNS.is_relative_to(ROOT / "notebooks"):
            raise ValueError(f"{RUNS} lies among the source notebooks; set XMLIB_RUNS to another folder")
        stems = choose(options.notebooks, options.profile)
        for stem in stems:  # all of them before the first one runs, so that a typo does not cost an hour
            notebook.check_parameters(notebook.parameters(source_of(stem)), read_params(stem, options.profile), stem)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for number, stem in enumerate(stems, 1):
        if not run(stem, options.profile, options.again, label=f"[{number}/{len(stems)}] {stem}"):
            return 1
    show_results(options.profile)
    return 0


def source_of(stem: str) -> Path:
    return ROOT / "notebooks" / f"{stem}.ipynb"


def params_of(stem: str, profile: str) -> Path:
    return ROOT / "params" / f"{stem}.{profile}.yaml"


def read_params(stem: str, profile: str) -> dict:
    return yaml.safe_load(params_of(stem, profile).read_text(encoding="utf-8")) or {}


def choose(wanted: list[str], profile: str) -> list[str]:
    """The notebooks to run, in order: those with a params file for the profile, out of `wanted` if any is named."""
    names = [path.name.rsplit(".", 2) for path in sorted((ROOT / "params").glob("*.*.yaml"))]
    profiles = sorted({parts[1] for parts in names})
    if profile not in profiles:
        raise ValueError(f"unknown profile {profile!r}; have: {', '.join(profiles)}")
    have = [parts[0] for parts in names if parts[1] == profile]
    for stem in wanted:
        if stem not in have:
            raise ValueError(f"no notebook {stem!r} in profile {profile}; have: {', '.join(have)}")
    return [stem for stem in have if not wanted or stem in wanted]


def run(stem: str, profile: str, again: bool, label: str) -> bool:
    """Execute one notebook unless it is up to date. True if it is done, False if it failed (which is printed)."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    executed = RUNS / profile / f"{stem}.ipynb"
    stamp = executed.with_suffix(".stamp.json")
    key = key_of(stem, profile)
    if not again and up_to_date(stamp, key):
        print(f"{label}  up to date")
        return True
    stamp.unlink(missing_ok=True)
    executed.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    status = Status(label, len(json.loads(source_of(stem).read_text(encoding="utf-8"))["cells"]))
    try:
        papermill.execute_notebook(
            source_of(stem),
            executed,
            parameters=read_params(stem, profile),
            kernel_name="python3",
            cwd=ROOT,
            progress_bar=False,
            stdout_file=status,
            stderr_file=status,
            on_cell_execute=status.cell,
            extra_arguments=["--log-level=CRITICAL"],  # a kernel else warns of its transport, and when it is stopped
        )
    except (PapermillExecutionError, DeadKernelError) as error:
        status.close("failed")
        print(error, file=sys.stderr)
        print(f"executed as far as it went: {executed}", file=sys.stderr)
        return False
    except KeyboardInterrupt:
        status.close("stopped; the same command goes on from here")
        raise SystemExit(130) from None
    outputs = [str(path) for path, _ in notebook.written_since(started)]
    _write_json(stamp, {"key": key, "finished": time.time(), "outputs": [str(executed), *outputs]})
    status.close(f"→ {notebook.short(executed)}")
    return True


def key_of(stem: str, profile: str) -> str:
    """SHA-256 over everything that shapes a notebook's run."""
    digest = hashlib.sha256()
    cells = json.loads(source_of(stem).read_text(encoding="utf-8"))["cells"]
    digest.update(json.dumps([cell["source"] for cell in cells if cell["cell_type"] == "code"]).encode())
    digest.update(params_of(stem, profile).read_bytes())
    package = Path(__file__).parent
    for path in sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    digest.update("\n".join(sorted(f"{dist.name}=={dist.version}" for dist in distributions())).encode())
    digest.update(f"{DATA} {FIGURES}".encode())
    before = [other for other in choose([], profile) if other < stem]
    if before:  # it may have written what this one reads
        stamp = RUNS / profile / f"{before[-1]}.stamp.json"
        digest.update(stamp.read_bytes() if stamp.exists() else b"not run")
    return digest.hexdigest()


def up_to_date(stamp: Path, key: str) -> bool:
    """Whether the run that left this stamp had the same key, and all that it wrote is still there."""
    if not stamp.exists():
        return False
    left = json.loads(stamp.read_text(encoding="utf-8"))
    return left["key"] == key and all(Path(path).exists() for path in left["outputs"])


def show_results(profile: str) -> None:
    """Print Table 1 and where the figures are."""
    folder = FIGURES / profile
    tables = sorted(folder.glob("tab1_*.csv"))
    if tables:
        from xmlib.reporting import main_grid

        print(f"\n{main_grid(tables[0]).text()}", end="")
    drawn = sorted(path.name for path in folder.glob("*.png"))
    if drawn:
        print(f"\ntables and figures in {notebook.short(folder)}/: {', '.join(drawn)}")


class Status:
    """The one line that shows how far a notebook is. The kernel's stdout and stderr are written to it.

    On a terminal the line is redrawn in place and ends with the last words of the running cell, such as a progress bar.
    In a log a new line is written every half minute.
    """

    def __init__(self, label: str, cells: int, out=None):
        self.label, self.cells, self.out = label, cells, sys.stdout if out is None else out
        self.terminal = self.out.isatty()
        self.interval = 0.2 if self.terminal else 30.0
        self.started = time.monotonic()
        self.drawn = self.started - (self.interval if self.terminal else 0)
        self.at, self.words = 0, ""
        self.lock, self.closed = threading.Lock(), threading.Event()
        self._print(f"{self.label}  {self.cells} cells", stay=not self.terminal)
        threading.Thread(target=self._tick, daemon=True).start()

    def cell(self, cell, cell_index: int) -> None:
        self.at, self.words = cell_index, ""  # counted from 0, but with the cell of parameters that papermill added
        self._draw()

    def write(self, text: str) -> None:
        lines = [line.strip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text))]
        words = next((line for line in reversed(lines) if line), self.words)
        self.words = re.sub(r"%\|[^|]*\|", "%", words)  # of a progress bar, the numbers
        self._draw()

    def flush(self) -> None:
        pass

    def close(self, words: str) -> None:
        self.closed.set()
        with self.lock:
            self._print(f"{self.label}  {self.cells} cells  {self._elapsed()}  {words}", stay=True)

    def _tick(self) -> None:
        """The clock runs on while a cell says nothing."""
        while not self.closed.wait(1.0):
            self._draw()

    def _draw(self) -> None:
        with self.lock:
            if time.monotonic() - self.drawn >= self.interval and not self.closed.is_set():
                self.drawn = time.monotonic()
                line = f"{self.label}  cell {self.at}/{self.cells}  {self._elapsed()}  {self.words}"
                self._print(line.rstrip(), stay=not self.terminal)

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes}:{seconds:02d}"

    def _print(self, line: str, stay: bool) -> None:
        if self.terminal:
            line = f"\r\x1b[K{line if stay else line[: shutil.get_terminal_size().columns - 1]}"
        self.out.write(line + ("\n" if stay else ""))
        self.out.flush()


def _write_json(path: Path, value: dict) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


if __name__ == "__main__":
    sys.exit(main())
