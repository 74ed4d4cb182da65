"""Stages: built once, found again, never stale, never half, shared by two processes."""

import hashlib
import json
import multiprocessing
import re
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from xmlib import stages


class Builder:
    """Writes one file and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "out.txt").write_text(str(self.calls))


def make(parent, build, version=1, say=lambda line: None, **inputs):
    return stages.stage(parent, "toy", version, inputs, build, say=say)


def test_a_second_call_opens_what_exists(tmp_path):
    build, lines = Builder(), []
    first = make(tmp_path / "new" / "parent", build, say=lines.append, lang="en", k=3)
    second = make(tmp_path / "new" / "parent", build, say=lines.append, k=3, lang="en")  # order of names is no input
    assert first == second and build.calls == 1 and (first / "out.txt").read_text() == "1"
    assert lines[0] == f"building {first.name} …" and lines[-1].startswith(f"found {first.name} (")


@pytest.mark.parametrize("change", [{"lang": "sw"}, {"k": 4}, {"version": 2}, {"seed": None}, {"k": 3.0}, {"k": [3]}])
def test_anything_changed_builds_anew(tmp_path, change):
    build = Builder()
    before = make(tmp_path, build, lang="en", k=3)
    after = make(tmp_path, build, **{"lang": "en", "k": 3} | change)
    assert before != after and build.calls == 2 and before.exists()


def test_the_key_worked_by_hand():
    text = '{"inputs":{"a":[1,true,null],"b":"ü"},"name":"toy","version":1}'
    assert stages.stage_key("toy", 1, {"b": "ü", "a": (1, True, None)}) == hashlib.sha256(text.encode()).hexdigest()


def test_the_record_says_what_made_it_and_fingerprints_chain(tmp_path):
    folder = make(tmp_path, Builder(), lang="en", nested={"bits": [1, 2, 4]})
    made = stages.record(folder)
    assert made["name"] == "toy" and made["version"] == 1 and made["resumed"] is False
    assert made["inputs"] == {"lang": "en", "nested": {"bits": [1, 2, 4]}}
    assert set(made) >= {"seconds", "created", "xmlib", "commit"}
    key = stages.fingerprint(folder)
    assert folder.name == f"toy-{key[:12]}" and len(key) == 64
    assert make(tmp_path, Builder(), model=key) != make(tmp_path, Builder(), model=key[::-1])


def test_a_build_that_was_stopped_goes_on_in_its_folder_and_never_looks_finished(tmp_path):
    def stopped(folder):
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, stopped, lang="en")
    assert [path.suffix for path in tmp_path.glob("toy-*")] == [".partial"]

    def goes_on(folder):
        assert (folder / "half.txt").read_text() == "half"

    lines = []
    folder = make(tmp_path, goes_on, say=lines.append, lang="en")
    assert lines[0].startswith("continuing") and stages.record(folder)["resumed"] is True
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"data": Path("x")}, r"inputs\['data'\] is a \w*Path"),
        ({"deep": {"list": [1, np.int64(2)]}}, r"inputs\['deep'\]\['list'\]\[1\] is a int64"),
        ({"codes": {"en"}}, r"inputs\['codes'\] is a set"),
        ({"rate": float("nan")}, r"inputs\['rate'\] is nan"),
        ({"by": {1: "a"}}, r"inputs\['by'\]: the key 1 is a int"),
    ],
)
def test_inputs_that_are_not_plain_json_are_named(tmp_path, inputs, message):
    with pytest.raises(TypeError, match=message):
        make(tmp_path, Builder(), **inputs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "a/b", "a b", ".hidden"])
def test_a_name_that_is_no_folder_name_is_refused(name):
    with pytest.raises(ValueError, match="folder name"):
        stages.stage_key(name, 1, {})


def test_a_damaged_or_foreign_folder_is_named_and_never_served(tmp_path):
    folder = make(tmp_path, Builder(), lang="en")
    text = (folder / "stage.json").read_text()
    (folder / "stage.json").write_text(text[:20])
    with pytest.raises(ValueError, match=r"stage\.json is damaged"):
        make(tmp_path, Builder(), lang="en")
    (folder / "stage.json").write_text(text.replace(json.loads(text)["key"], "0" * 64))
    with pytest.raises(ValueError, match="made from other inputs"):
        make(tmp_path, Builder(), lang="en")
    with pytest.raises(FileNotFoundError, match="not the folder of a finished stage"):
        stages.fingerprint(tmp_path)


def slow_build(folder):
    time.sleep(0.8)


def build_in_a_process(parent, lines):
    stages.stage(parent, "toy", 1, {"lang": "en"}, slow_build, say=lines.append)


def test_two_processes_build_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        lines = manager.list()
        processes = [context.Process(target=build_in_a_process, args=(tmp_path, lines)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        verbs = sorted(line.split()[0] for line in lines)
    assert verbs == ["building", "built", "found"] and all(process.exitcode == 0 for process in processes)


def test_waiting_is_said_on_stderr(tmp_path, capfd):
    release = threading.Event()

    def held(folder):
        release.wait(5)

    thread = threading.Thread(target=make, args=(tmp_path, held), kwargs={"lang": "en"})
    thread.start()
    while not list(tmp_path.glob("*.partial")):
        time.sleep(0.01)
    threading.Timer(0.3, release.set).start()
    build = Builder()
    make(tmp_path, build, lang="en")
    thread.join()
    assert build.calls == 0 and "waiting for another process" in capfd.readouterr().err


def test_the_commit_is_unknown_outside_of_git(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    assert stages.commit() == "unknown"


def test_a_commit_is_dirty_by_changed_code_and_not_by_what_notebooks_and_benchmarks_write(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    (tmp_path / "figures").mkdir()
    files = [tmp_path / "code.py", tmp_path / "figures" / "table.csv", tmp_path / "RECORDS.md"]
    for file in files:
        file.write_text("before")
    for arguments in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    for file in files[1:]:
        file.write_text("after")
    assert re.fullmatch("[0-9a-f]{12}", stages.commit())
    files[0].write_text("after")
    assert stages.commit().endswith("-dirty")


def test_looking_for_a_stage_builds_nothing(tmp_path, capsys):
    def make():
        return stages.stage(tmp_path, "thing", 1, {"a": 1}, lambda folder: (folder / "made").touch())

    assert not stages.is_built(make)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""
    make()
    capsys.readouterr()
    assert stages.is_built(make) and capsys.readouterr().out == ""
    assert not stages.is_built(lambda: [make(), stages.stage(tmp_path, "thing", 1, {"a": 2}, lambda folder: None)])
