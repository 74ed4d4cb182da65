"""What every numbered notebook does in its second cell and in its last one.

    notebook.start("03_eval", globals())    # checks the parameters, sets the seeds, prints what runs on what
    notebook.cost()                         # wall time, peak memory, energy, files written

papermill merely warns about a misspelt parameter and runs with the defaults. So `start` compares what was injected with
the notebook's own cell tagged `parameters`, and stops with the valid names. As a program this module is the filter that
git uses to store notebooks without outputs: `python -m xmlib.notebook < executed.ipynb > clean.ipynb`.
"""

import ast
import difflib
import json
import logging
import os
import platform
import random
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from xmlib import processes, stages
from xmlib.paths import FIGURES, ROOT, RUNS

CONTROLS = ("profile", "plan")  # parameters that say how a notebook is run, not what it computes
KERNELS = "256"  # that oneDNN keeps, of those it compiles for every shape: of its usual 1,024 most never come again
SHOWN_VERSIONS = ("torch", "transformers", "tokenizers", "numpy")

_started: float | None = None  # when `start` ran in this kernel; `cost` counts from here


def start(stem: str, names: dict) -> None:
    """Begin notebook `stem`. `names` is its `globals()`. Raises ValueError for a parameter that is unknown or mistyped.

    Seeds `random`, NumPy and PyTorch with the parameter `seed`. Prints profile, commit, versions, device and the
    parameters that differ from the notebook's defaults.
    """
    global _started
    _started = time.time()
    path = source(stem)
    _protect(path)
    declared = parameters(path)
    missing = [name for name in declared if name not in names]
    if missing:
        raise ValueError(f"{path.name}: {', '.join(missing)} not set; run the cell tagged 'parameters' first")
    check_parameters(declared, injected(names.get("In", [])) | {name: names[name] for name in declared}, path.name)
    if "seed" in declared:
        _seed(names["seed"])
    _quieten_transformers()
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)
    logging.getLogger("asyncio").addFilter(_is_not_of_an_ending_kernel)
    processes.prepare()
    versions = " · ".join(f"{name} {version(name)}" for name in SHOWN_VERSIONS)
    print(
        f"{stem} · profile {names.get('profile', '-')} · commit {stages.commit()} · {time.strftime('%Y-%m-%d %H:%M')}"
    )
    print(f"{device_name()} · python {platform.python_version()} · {versions}")
    changed = [f"{name}={names[name]!r}" for name in declared if names[name] != declared[name] and name != "profile"]
    print("parameters: " + (", ".join(changed) or "as in the cell above"))


def cost(energy_kwh: float | None = None) -> None:
    """Print what the notebook took since `start`: wall time, peak memory, energy, and the files written."""
    if _started is None:
        raise RuntimeError("notebook.cost() needs notebook.start(...) in the notebook's second cell")
    minutes, seconds = divmod(round(time.time() - _started), 60)
    print(f"wall time    {minutes} min {seconds:02d} s")
    print(f"peak memory  {_size(_peak_memory())}  of this process")
    print(f"energy       {'not measured' if energy_kwh is None else f'{energy_kwh:.4g} kWh'}")
    files = written_since(_started)
    for path, size in files:
        print(f"wrote        {_size(size):>9}  {short(path)}")
    if not files:
        print("wrote        nothing: all that was asked for existed")


def source(stem: str) -> Path:
    """The notebook as it lies in the checkout."""
    return ROOT / "notebooks" / f"{stem}.ipynb"


def settings(stem: str, profile: str) -> dict[str, object]:
    """The parameters of another notebook in a profile, without `CONTROLS`: its defaults, then its params file.

    So `03_eval` finds, or builds, exactly the models that `01_train` makes.
    """
    import yaml

    declared, path = parameters(source(stem)), ROOT / "params" / f"{stem}.{profile}.yaml"
    if not path.is_file():
        have = sorted(file.name.split(".")[1] for file in path.parent.glob(f"{stem}.*.yaml"))
        raise ValueError(f"unknown profile {profile!r}; have: {', '.join(have)}")
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    check_parameters(declared, given, path.name)
    return {name: value for name, value in (declared | given).items() if name not in CONTROLS}


def parameters(path: Path) -> dict[str, object]:
    """Name → default of every parameter that a notebook declares in its cell tagged `parameters`."""
    notebook = json.loads(Path(path).read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{path} has {len(cells)} cells tagged 'parameters', expected one")
    declared = _literals("".join(cells[0]["source"]))
    if declared is None:
        raise ValueError(f"{path}: the cell tagged 'parameters' may hold only `name: type = literal` lines")
    return declared


def injected(history: list[str]) -> dict[str, object]:
    """Name → value of what papermill injected, from the kernel's history of executed cells (`In`)."""
    found = {}
    for cell in history:
        if cell.startswith("# Parameters"):  # the line papermill puts on top of the cell it adds
            found |= _literals(cell) or {}
    return found


def check_parameters(declared: dict, given: dict, where: str) -> None:
    """ValueError if `given` has a name that is not declared, or a value of another type than the default's."""
    for name, value in given.items():
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{where}: unknown parameter {name!r}; have: {', '.join(declared)}{hint}")
        default = declared[name]
        fits = type(value) is type(default) or default is None or (type(default) is float and type(value) is int)
        if not fits:
            raise ValueError(
                f"{where}: parameter {name} = {value!r} is a {type(value).__name__}, expected "
                f"{type(default).__name__}, as in {name} = {default!r}{_yaml_hint(value, default)}"
            )


def device_name() -> str:
    """The accelerator's name, or the processor's with the number of threads PyTorch uses."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return processor_name()


def processor_name() -> str:
    """The processor's name and the number of threads PyTorch uses on it."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    threads = torch.get_num_threads()
    return f"CPU {name}, {threads} thread{'s' * (threads != 1)}"


def written_since(since: float) -> list[tuple[Path, int]]:
    """What was written below RUNS and FIGURES after the time `since`, with sizes in bytes.

    The folder of a stage counts as one. Executed notebooks and hidden or partial files are left out.
    """
    found: dict[Path, int] = {}
    for top in (FIGURES, RUNS):
        for folder, subfolders, names in os.walk(top):
            whole = stages.RECORD in names
            subfolders[:] = sorted(name for name in subfolders if not whole and not name.endswith(".partial"))
            if whole:
                if (Path(folder) / stages.RECORD).stat().st_mtime >= since:
                    found[Path(folder)] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
                continue
            for path in sorted(Path(folder) / name for name in names):
                ours = path.name[0] != "." and not path.name.endswith((".ipynb", ".stamp.json"))
                if ours and path.stat().st_mtime >= since:
                    found[path] = path.stat().st_size
    return list(found.items())


def short(path: Path) -> str:
    """The path as seen from the checkout, or in full if it lies elsewhere."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def strip(notebook: dict) -> dict:
    """The source of a notebook: no outputs, no counts, no widget state, nothing that an execution added."""
    kept = []
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags or "papermill-error-cell-tag" in tags:
            continue
        source = "".join(cell["source"]).splitlines(keepends=True)
        cell = dict(cell, source=source, metadata={"tags": tags} if tags else {})
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
        kept.append(cell)
    # The minor version of the language changes with each machine; only the kernel's name matters to papermill.
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return dict(notebook, cells=kept, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def to_text(notebook: dict) -> str:
    """The one way a notebook is written to git."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _literals(source: str) -> dict[str, object] | None:
    """Name → value, if the source is nothing but assignments of literals to names; None otherwise."""
    found = {}
    for line in ast.parse(source).body:
        targets = [line.target] if isinstance(line, ast.AnnAssign) else getattr(line, "targets", [])
        if len(targets) != 1 or not isinstance(targets[0], ast.Name) or line.value is None:
            return None
        try:
            found[targets[0].id] = ast.literal_eval(line.value)
        except ValueError:
            return None
    return found


def _yaml_hint(value: object, default: object) -> str:
    if type(value) is bool and type(default) is str:
        return " (YAML reads a bare no as False: quote it)"
    if type(value) is str and type(default) is float:
        return " (YAML reads 5e-6 as text: write 5.0e-6)"
    return ""


def _seed(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  libraries that we call still draw from NumPy's global state
    torch.manual_seed(seed)


def _quieten_transformers() -> None:
    """Its bars for reading and writing a file would be most of what a notebook shows."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _is_not_of_an_ending_kernel(record: logging.LogRecord) -> bool:
    """A kernel that ends while a message to it is under way warns of its own task, to whoever runs the notebook."""
    message = record.getMessage()
    return not (message.startswith("Task was destroyed") and "coro=<Kernel." in message)


def _protect(source: Path) -> None:
    """Stop if papermill was told to write over the notebook's source, and restore the source when papermill has ended.

    papermill writes its output file before every cell, so by now the source holds an injected cell and outputs. It
    will write once more after the error raised here: only a process that outlives it can put things right.
    """
    text = source.read_text(encoding="utf-8")
    if "papermill" not in json.loads(text)["metadata"]:
        return
    command = [sys.executable, "-m", "xmlib.notebook", str(source), str(os.getppid())]
    subprocess.Popen(command, start_new_session=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    raise RuntimeError(
        f"the output path is the source notebook {source}; it is being restored. "
        f"Give another: papermill notebooks/{source.name} runs/{source.name}"
    )


def _restore(source: Path, papermill_process: int) -> None:
    for _ in range(600):  # a minute; papermill ends right after the error that started this
        try:
            os.kill(papermill_process, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    beside = source.with_suffix(".restored")
    beside.write_text(to_text(strip(json.loads(source.read_text(encoding="utf-8")))), encoding="utf-8")
    os.replace(beside, source)


def _peak_memory() -> int:
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _restore(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        sys.stdout.write(to_text(strip(json.load(sys.stdin))))
