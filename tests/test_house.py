"""The house itself: it installs, imports fast, is tidy, and its files agree with each other."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "xmlib").rglob("*.py")
)


def run(*command, **more):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **more)


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and line[0] != "#")


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_importing_the_package_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); import xmlib; took = time.perf_counter() - start;"
        "heavy = {'torch', 'numpy', 'transformers', 'matplotlib', 'pandas', 'faiss', 'ranx'} & set(sys.modules);"
        "assert not heavy, heavy; assert took < 1, took"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_module_imports_without_a_word():
    code = f"import importlib\nfor name in {MODULES!r}: importlib.import_module(name)\n"
    done = run(sys.executable, "-W", "error::SyntaxWarning", "-c", code)
    assert done.returncode == 0 and done.stdout == "", done.stderr


def test_every_module_says_what_it_is_in_its_first_line():
    for path in (ROOT / "xmlib").rglob("*.py"):
        assert path.read_text(encoding="utf-8").startswith('"""'), path


def test_the_sources_are_tidy():
    for command in (["check"], ["format", "--check"]):
        done = run(sys.executable, "-m", "ruff", *command, ".")
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_dependency_has_a_tested_pin_within_its_bounds():
    from packaging.requirements import Requirement

    pinned = {normal(name): version for name, version in pins().items()}
    extras = PROJECT["project"]["optional-dependencies"]
    for line in PROJECT["project"]["dependencies"] + extras["cpu"] + extras["test"]:
        requirement = Requirement(line)
        assert normal(requirement.name) in pinned, f"{requirement.name} has no pin in constraints.txt"
        assert pinned[normal(requirement.name)] in requirement.specifier, line
    assert pinned["torch"] == "2.13.0"


def test_the_conda_environment_agrees_with_the_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip = environment["dependencies"][-1]["pip"]
    assert f"torch=={pins()['torch']}" in pip and f"numpy={pins()['numpy']}" in environment["dependencies"]
    assert any("faiss-gpu" in line for line in environment["dependencies"][:-1]) and "-e .[test]" in pip


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split()
    listed = re.findall(r"^  make ([\w-]+) +\S", run("make", "help").stdout, re.M)
    assert sorted(listed) == sorted(targets) and {"demo", "test", "lab", "figures", "eval", "check"} <= set(listed)


def test_an_old_python_is_told_what_is_needed(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = run("make", "test", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0 and "Python 3.11 or later is needed" in done.stderr


def test_no_committed_text_names_somebodys_home():
    tracked = run("git", "ls-files").stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    home = re.compile(r"/(?:home|Users|root)/\w+")
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".ipynb", ".yaml", ".yml", ".toml", ".csv"} and path.exists():
            found = home.search(path.read_text(encoding="utf-8"))
            assert not found, f"{name}: {found[0]}"
