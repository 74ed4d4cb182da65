"""The benchmarks run in miniature, where torch, transformers and numpy are all there is, and measure equal things."""

import json
import os
import subprocess
import sys

import pytest

from xmlib.paths import ROOT

# What a bare machine lacks: an import of one of these fails, as it would there.
BARE = """
import runpy, sys
for name in "faiss ranx numba bm25s babel pandas matplotlib datasets IPython papermill Stemmer".split():
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""

TINY = "--layers 1 --hidden 64 --vocabulary 60 --languages 3 --rounds 1 --threads 1 --device cpu".split()


def run(name: str, folder, *arguments: str) -> dict:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BARE, f"benchmarks.{name}", *TINY, "--out", str(folder), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "| system |" in done.stdout or "| task | system |" in done.stdout
    return json.loads((folder / f"{name}.json").read_text())


def test_the_encoders_agree_and_are_timed(tmp_path):
    rows = run("encoder", tmp_path, "--passages", "12", "--questions", "3", "--batch-tokens", "300")["rows"]
    ours = [row for row in rows if row["system"] == "xmlib float32"]
    assert [row["task"] for row in ours] == ["12 passages", "1 query"]
    assert [row["n"] for row in ours] == [1, 10]
    for row in ours:
        assert row["largest difference"] < 1e-5
        assert row["top 10 in the same order, %"] == row["of stock's top 10, %"] == 100
        assert row["times stock"] > 0


def test_both_training_steps_have_the_same_losses(tmp_path):
    stock, ours = run("training", tmp_path, "--batch", "3", "--dropout", "0")["rows"]
    assert (stock["system"], ours["system"]) == ("XmodModel", "xmlib")
    assert ours["first loss"] == pytest.approx(stock["first loss"], rel=1e-5)
    assert ours["last loss"] == pytest.approx(stock["last loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["encoder", "training"])
def test_help_says_what_is_measured(name):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0 and "stock `XmodModel`" in done.stdout and "default: 12" in done.stdout
