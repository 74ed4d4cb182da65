"""The notebooks of this repository, and the two modules that run them: `xmlib.notebook` and `xmlib.run_notebooks`."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import papermill
import pytest
import yaml
from IPython.core.interactiveshell import InteractiveShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from xmlib import notebook, run_notebooks

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMS = sorted((ROOT / "params").glob("*.yaml"))
SMOKE = [path.name.split(".")[0] for path in PARAMS if path.name.endswith(".smoke.yaml")]
together = pytest.mark.xdist_group("notebooks")  # one worker runs all of them: they share a folder, in order


def name_of(path):
    return path.name


# --- the notebooks in this repository


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_committed_notebook_is_its_source_and_nothing_else(path):
    text = path.read_text(encoding="utf-8")
    assert text == notebook.to_text(notebook.strip(json.loads(text))), (
        f"{path.name} has outputs, counts or widget state: python -m xmlib.notebook < it > clean.ipynb"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_begins_with_a_text_then_parameters_then_start(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown" and "".join(cells[0]["source"]).startswith("# ")
    assert cells[1]["metadata"].get("tags") == ["parameters"] and notebook.parameters(path)["profile"] == "demo"
    assert f'notebook.start("{path.stem}", globals())' in "".join(cells[2]["source"])
    assert "notebook.cost()" in "".join(cells[-1]["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_papermill_reads_the_same_parameters_as_the_check(path):
    assert list(papermill.inspect_notebook(path)) == list(notebook.parameters(path))


@pytest.mark.parametrize("path", PARAMS, ids=name_of)
def test_params_fit_their_notebook(path):
    stem, profile, _ = path.name.rsplit(".", 2)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert given["profile"] == profile
    notebook.check_parameters(notebook.parameters(ROOT / "notebooks" / f"{stem}.ipynb"), given, path.name)


@pytest.mark.slow
def test_the_notebooks_run_in_the_smoke_profile_one_after_another(tmp_path):
    done = run_cli(ROOT, tmp_path, "--profile", "smoke")  # one test: each reads what the ones before it wrote
    assert done.returncode == 0, done.stdout + done.stderr
    assert SMOKE and all((tmp_path / "runs" / "smoke" / f"{stem}.ipynb").exists() for stem in SMOKE)


def run_here(path, **given):
    """What stopped a notebook with such parameters, and its code cells until then. As papermill, but in no kernel."""
    cells = parameterize_notebook(load_notebook_node(str(path)), given, kernel_name="python3", language="python").cells
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), start=1):
        done = shell.run_cell(cell.source, store_history=True)
        if not done.success:
            return str(done.error_in_exec), count
    return "", count


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_misspelt_parameter_stops_a_notebook_before_its_work(path):
    error, cells = run_here(path, profil="smoke")
    assert "unknown parameter 'profil'" in error and cells == 3


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if "lang" in notebook.parameters(path)], ids=name_of)
def test_an_unknown_language_stops_a_notebook_with_the_valid_ones(path):
    error, cells = run_here(path, lang="xx")
    assert re.search(r"'xx'; have: .*\bsw\b", error) and cells <= 5, error


def test_a_kernel_says_nothing_of_its_own_tasks_when_it_ends(caplog):
    run_here(NOTEBOOKS[0], lang="xx")  # far enough for `start` to be over
    log = logging.getLogger("asyncio")
    log.error("Task was destroyed but it is pending!\ntask: <Task pending coro=<Kernel.dispatch_control() running>>")
    log.error("Task was destroyed but it is pending!\ntask: <Task pending coro=<mine() running>>")
    assert [record.getMessage().split("coro=")[1] for record in caplog.records] == ["<mine() running>>"]


# --- the check of the parameters


DECLARED = {"lang": "en", "k": 10, "rate": 5e-6, "languages": ["en"], "fast": True, "anything": None}


def test_given_parameters_may_be_any_subset_of_the_declared_ones():
    notebook.check_parameters(DECLARED, {"k": 5, "lang": "sw", "rate": 1, "anything": "x"}, "toy")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lagn": "ar"}, r"toy: unknown parameter 'lagn'; have: lang, k, .* \(did you mean 'lang'\?\)"),
        ({"k": "5"}, r"k = '5' is a str, expected int, as in k = 10"),
        ({"k": True}, r"k = True is a bool, expected int"),
        ({"lang": 5}, r"lang = 5 is a int, expected str"),
        ({"lang": False}, r"quote it"),
        ({"rate": "5e-6"}, r"write 5\.0e-6"),
        ({"languages": "en"}, r"is a str, expected list"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named_with_what_would(given, message):
    with pytest.raises(ValueError, match=message):
        notebook.check_parameters(DECLARED, given, "toy")


def test_injected_parameters_are_read_from_the_history_of_the_kernel():
    history = [
        "",
        'lang = "en"',
        '# Parameters\nlang = "ar"\nk = 3\nnothing = None\n',
        "# Parameters of life\nf(3)",
        "x=1",
    ]
    assert notebook.injected(history) == {"lang": "ar", "k": 3, "nothing": None}


@pytest.mark.parametrize("line", ["b = a * 2", "import os", "a, b = 1, 2", "x: int", "print(1)"])
def test_a_parameters_cell_that_derives_values_is_refused(tmp_path, line):
    path = write_notebook(tmp_path / "toy.ipynb", parameters=f"a = 1\n{line}")
    with pytest.raises(ValueError, match="may hold only"):
        notebook.parameters(path)


def test_a_notebook_without_a_parameters_cell_is_refused(tmp_path):
    path = tmp_path / "toy.ipynb"
    path.write_text(json.dumps({"cells": []}))
    with pytest.raises(ValueError, match="0 cells tagged"):
        notebook.parameters(path)


def test_start_says_which_parameters_were_not_set():
    if not NOTEBOOKS:
        pytest.skip("no notebook yet")
    with pytest.raises(ValueError, match="run the cell tagged 'parameters' first"):
        notebook.start(NOTEBOOKS[0].stem, {})


def test_cost_needs_start(monkeypatch):
    monkeypatch.setattr(notebook, "_started", None)
    with pytest.raises(RuntimeError, match="second cell"):
        notebook.cost()


def test_cost_lists_stages_as_one_and_figures_one_by_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebook, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(notebook, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(notebook, "_started", time.time() - 62)
    for name, size in [("runs/a-1/stage.json", 10), ("runs/a-1/deep/x.bin", 2500), ("runs/b.partial/y", 5)]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").write_bytes(b"x")
    os.utime(tmp_path / "figures" / "old.png", (0, 0))
    (tmp_path / "figures" / "new.png").write_bytes(b"x" * 7)
    notebook.cost()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "wall time    1 min 02 s" and lines[2] == "energy       not measured"
    assert [line.split()[1:3] for line in lines[3:]] == [["7", "B"], ["2.5", "kB"]]


# --- storing notebooks without outputs


def test_stripping_leaves_the_source_and_is_stable(tmp_path):
    path = write_notebook(tmp_path / "toy.ipynb")
    source = path.read_text()
    executed = json.loads(source)
    executed["cells"][1] |= {
        "execution_count": 3,
        "outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}],
    }
    executed["cells"].insert(2, executed["cells"][1] | {"metadata": {"tags": ["injected-parameters"]}, "id": "new"})
    executed["metadata"] |= {"widgets": {"state": {}}, "papermill": {"version": "2"}}
    executed["metadata"]["language_info"]["version"] = "3.99"
    done = subprocess.run(
        [sys.executable, "-m", "xmlib.notebook"], input=json.dumps(executed), capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == source and done.returncode == 0


# --- running: a toy checkout in a temporary folder


def write_notebook(path, parameters='profile: str = "demo"\nlang: str = "en"\nseed: int = 1', body="print(lang)"):
    def cell(kind, source, number, **metadata):
        code = {"outputs": [], "execution_count": None} if kind == "code" else {}
        return {"cell_type": kind, "id": str(number), "metadata": metadata, "source": source} | code

    start = f'from xmlib import notebook\nnotebook.start("{path.stem}", globals())'
    cells = [
        cell("markdown", "# Toy", 0),
        cell("code", parameters, 1, tags=["parameters"]),
        cell("code", start, 2),
        cell("code", body, 3),
        cell("code", "notebook.cost()", 4),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    stripped = notebook.strip({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    path.write_text(notebook.to_text(stripped))
    return path


WRITES = """
from xmlib.paths import FIGURES
(FIGURES / profile).mkdir(parents=True, exist_ok=True)
(FIGURES / profile / "note.txt").write_text(lang)
"""


@pytest.fixture
def toy(tmp_path):
    """A checkout with two notebooks and one profile."""
    write_notebook(tmp_path / "notebooks" / "00_first.ipynb", body=WRITES)
    write_notebook(tmp_path / "notebooks" / "01_second.ipynb", body="import sys; print('step 7', file=sys.stderr)")
    (tmp_path / "params").mkdir()
    for stem in ("00_first", "01_second"):
        (tmp_path / "params" / f"{stem}.demo.yaml").write_text("profile: demo\nlang: 'sw'\n")
    return tmp_path


def environment(root, out):
    # runs/ and figures/ lie in `out`; the xmlib of this checkout is used from everywhere
    folders = {f"XMLIB_{name}": str(out / name.lower()) for name in ("RUNS", "FIGURES")}
    return os.environ | folders | {"XMLIB_ROOT": str(root), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run_cli(root, out, *arguments):
    command = [sys.executable, "-m", "xmlib.run_notebooks", *arguments]
    return subprocess.run(command, cwd=out, env=environment(root, out), capture_output=True, text=True, timeout=900)


def run_papermill(root, out, *arguments):
    command = [sys.executable, "-m", "papermill", "-k", "python3", *map(str, arguments)]
    return subprocess.run(command, cwd=out, env=environment(root, out), capture_output=True, text=True, timeout=300)


@together
@pytest.mark.slow
def test_the_runner_runs_in_order_then_does_nothing_then_only_what_changed(toy):
    sources = {path: path.read_bytes() for path in (toy / "notebooks").iterdir()}
    first = run_cli(toy, toy)
    assert first.returncode == 0, first.stderr
    assert re.search(r"\[1/2\] 00_first  5 cells  0:\d\d  → runs/demo/00_first.ipynb", first.stdout)
    assert (toy / "figures" / "demo" / "note.txt").read_text() == "sw"  # the params file was used
    assert first.stdout.index("00_first") < first.stdout.index("01_second") and not first.stderr

    again = run_cli(toy, toy)
    assert again.returncode == 0 and again.stdout.count("up to date") == 2

    (toy / "figures" / "demo" / "note.txt").unlink()  # an output is gone: that notebook, and all after it
    assert run_cli(toy, toy).stdout.count("up to date") == 0
    (toy / "params" / "01_second.demo.yaml").write_text("profile: demo\nlang: 'fi'\n")
    changed = run_cli(toy, toy).stdout
    assert "00_first  up to date" in changed and "01_second  up to date" not in changed
    assert {path: path.read_bytes() for path in (toy / "notebooks").iterdir()} == sources


@together
@pytest.mark.slow
def test_the_runner_stops_at_a_failure_and_shows_it(toy):
    write_notebook(toy / "notebooks" / "00_first.ipynb", body="raise KeyError('the reason')")
    done = run_cli(toy, toy)
    assert done.returncode == 1 and "the reason" in done.stderr and "01_second" not in done.stdout
    assert str(toy / "runs" / "demo" / "00_first.ipynb") in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "big"], "unknown profile 'big'; have: demo"),
        (["02_third"], "no notebook '02_third' in profile demo; have: 00_first, 01_second"),
    ],
)
def test_the_runner_names_the_valid_choices(toy, arguments, message):
    done = run_cli(toy, toy, *arguments)
    assert done.returncode == 2 and message in done.stderr


def test_the_runner_checks_all_params_before_it_starts(toy):
    (toy / "params" / "01_second.demo.yaml").write_text("lagn: 'fi'\n")
    done = run_cli(toy, toy)
    assert done.returncode == 2 and "01_second: unknown parameter 'lagn'" in done.stderr and not done.stdout


def test_the_runner_refuses_to_write_among_the_sources(toy):
    env = environment(toy, toy) | {"XMLIB_RUNS": str(toy / "notebooks" / "runs")}
    command = [sys.executable, "-m", "xmlib.run_notebooks"]
    done = subprocess.run(command, cwd=toy, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "lies among the source notebooks" in done.stderr


@together
@pytest.mark.slow
def test_plain_papermill_stops_at_a_misspelt_parameter(toy):
    done = run_papermill(toy, toy, toy / "notebooks" / "00_first.ipynb", "out.ipynb", "-p", "lagn", "ar")
    assert done.returncode == 1 and "unknown parameter 'lagn'" in done.stderr and "did you mean 'lang'" in done.stderr
    assert not (toy / "figures").exists()


@together
@pytest.mark.slow
def test_papermill_told_to_write_over_the_source_stops_and_the_source_comes_back(toy):
    path = toy / "notebooks" / "00_first.ipynb"
    source = path.read_bytes()
    done = run_papermill(toy, toy, path, path, "-p", "lang", "ar")
    assert done.returncode == 1 and "the output path is the source notebook" in done.stderr
    deadline = time.time() + 20
    while path.read_bytes() != source and time.time() < deadline:
        time.sleep(0.1)
    assert path.read_bytes() == source and not (toy / "figures").exists()


def test_the_runner_ends_with_table_1_and_where_the_figures_are(tmp_path, monkeypatch, capsys):
    from xmlib import reporting

    monkeypatch.setattr(reporting, "FIGURES", tmp_path)
    monkeypatch.setattr(run_notebooks, "FIGURES", tmp_path)
    origin = dict(profile="demo", metric="mrr@10", collection="sample", split="test", n_queries=9, seed=1)
    rows = [dict(system="ColBERT-XM", lang=lang, value=value, **origin) for lang, value in (("en", 0.5), ("sw", 0.25))]
    reporting.main_table(pd.DataFrame(rows), "demo")
    run_notebooks.show_results("demo")
    out = capsys.readouterr().out
    assert re.search(r"^sw +25\.0$", out, re.M) and "DEMO. MRR@10" in out and "tab1_mmarco.png" in out


# --- the status line


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_status_line_shows_the_last_words_of_the_cell_in_place():
    out = Terminal()
    status = run_notebooks.Status("[1/2] toy", 9, out)
    status.interval = 0
    status.cell({}, 3)
    status.write("epoch 1\n\rtrain:  10%|█   | 1/10\x1b[A\rtrain:  20%|██  | 2/10 [0:01, loss=3] ")
    assert (
        out.getvalue().endswith("\r\x1b[K[1/2] toy  cell 3/9  0:00  train:  20% 2/10 [0:01, loss=3]")
        and "\n" not in out.getvalue()
    )
    status.close("done")
    assert out.getvalue().endswith("\r\x1b[K[1/2] toy  9 cells  0:00  done\n")


def test_a_log_gets_few_whole_lines(capsys):
    status = run_notebooks.Status("[1/2] toy", 9)
    for step in range(1000):
        status.write(f"\rstep {step}")
    status.close("done")
    assert capsys.readouterr().out.splitlines() == ["[1/2] toy  9 cells", "[1/2] toy  9 cells  0:00  done"]
