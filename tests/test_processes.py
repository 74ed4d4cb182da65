"""Work side by side: in order, with errors that come back, and no process left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from xmlib import processes


def test_results_come_in_the_order_of_the_tasks():
    assert processes.each(pow, [(2, n) for n in range(5)], "powers", "power", processes=2) == [1, 2, 4, 8, 16]
    assert processes.each(pow, [(2, n) for n in range(5)], "powers", "power", processes=1) == [1, 2, 4, 8, 16]


def test_an_error_comes_back_from_another_process():
    with pytest.raises(ZeroDivisionError):
        processes.each(divmod, [(1, 1), (1, 0), (2, 1)], "divide", "quotient", processes=2)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_this_process_works_too_and_is_afterwards_as_it_was(three_threads, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    found = processes.each(_tell, [(number,) for number in range(4)], "tell", "number", processes=2)
    assert [number for number, *_ in found] == [0, 1, 2, 3]
    assert {about for _, about, _ in found} == {(1, "1", 2)}
    assert os.getpid() in {pid for *_, pid in found}
    assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], processes.sharing) == (3, "7", 1)
    assert torch.rand(1) == expected and "said" not in capfd.readouterr().out


def _tell(number: int) -> tuple:
    print("said")
    torch.rand(2)
    return number, (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], processes.sharing), os.getpid()


def test_what_runs_beside_is_waited_for():
    with processes.beside(pow, 2, 10) as future:
        pass
    assert future.result() == 1024


def test_no_library_takes_more_than_one_thread_of_a_core_that_is_shared():
    ask = "from threadpoolctl import threadpool_info as info; from xmlib.processes import each\n"
    ask += "print({pool['num_threads'] for pools in each(info, [()] * 2, 'a', 'b', processes=2) for pool in pools})"
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    found = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "{1}\n"  # else NumPy's products take every core in each process


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="looks for processes in /proc")
def test_no_process_outlives_a_parent_that_was_killed():
    sleepers = "import time; from xmlib.processes import each; each(time.sleep, [(60,)] * 3, 'a', 'b', processes=3)"
    parent = subprocess.Popen([sys.executable, "-c", sleepers], stderr=subprocess.DEVNULL)
    deadline = time.time() + 90
    while len(workers := _workers(parent.pid)) < 2 and time.time() < deadline:
        time.sleep(0.2)
    time.sleep(0.5)
    assert len(workers) >= 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.time() < deadline:
        time.sleep(0.2)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


def _workers(parent: int) -> list[int]:
    """Processes below this one with none below themselves; not the tracker of shared resources: it goes by itself."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout
    below = {}
    for pid, above, args in (line.split(maxsplit=2) for line in listed.splitlines()):
        if "resource_tracker" not in args:
            below.setdefault(int(above), []).append(int(pid))
    found, ask = [], [parent]
    while ask:
        children = below.get(ask.pop(), [])
        found += [pid for pid in children if pid not in below]
        ask += children
    return found
