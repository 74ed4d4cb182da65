"""Work side by side on the cores of a CPU, each part in a process of its own.

A small encoder's matrix products are too small to share between threads, but languages and models are many and
independent. Nothing here schedules over machines: that is the work of Snakemake, Slurm or Kubernetes.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from xmlib import systems
from xmlib.data.sources import open_collection
from xmlib.systems import System

MOST = 8  # processes; each holds PyTorch and two models, about 700 MB


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rank_all(
    rows: Sequence[System], places: Sequence[tuple[str, str]], k: int = 100, title: str = "rank", queries: int = 0
) -> None:
    """Build the rankings of every system on every (source, language) of `places`; `systems.rank` then finds them.

    With `queries` only for so many of each collection's: `systems.some_queries`.
    """
    each(_rank, [(system, *place, k, queries) for place in places for system in rows], title, "ranking")


def index_all(system: System, places: Sequence[tuple[str, str]], title: str = "index") -> list[Path]:
    """The folders of `systems.index` for one system and every (source, language) of `places`."""
    return each(_index, [(system, *place) for place in places], title, "index")


def each(function: Callable, tasks: Sequence[tuple], title: str, unit: str, processes: int | None = None) -> list:
    """`[function(*task) for task in tasks]`, by `processes` side by side with one thread each.

    As many as there are cores, unless told; one where there is a GPU. Function and tasks must be picklable.
    """
    if processes is None:
        processes = 1 if torch.cuda.is_available() else min(cores(), MOST)
    with tqdm(total=len(tasks), desc=title, unit=unit) as bar:
        if min(processes, len(tasks)) <= 1:
            results = []
            for task in tasks:
                results.append(function(*task))
                bar.update()
            return results
        with _pool(processes) as pool:
            futures = [pool.submit(function, *task) for task in tasks]
            for done in as_completed(futures):
                done.result()  # raises what went wrong, as soon as it did
                bar.update()
            return [future.result() for future in futures]


@contextmanager
def beside(function: Callable, *arguments) -> Iterator[Future]:
    """Run `function(*arguments)` in another process during the `with` block, whose end waits for it.

    On a machine with one core, or with a GPU, it runs in this process, before the block.
    """
    if cores() == 1 or torch.cuda.is_available():
        future = Future()
        future.set_result(function(*arguments))
        yield future
        return
    threads = torch.get_num_threads()
    with _pool(1) as pool:
        future = pool.submit(function, *arguments)
        torch.set_num_threads(max(1, threads - 1))
        try:
            yield future
            future.result()
        finally:
            torch.set_num_threads(threads)


def _rank(system: System, source: str, lang: str, k: int, queries: int) -> None:
    systems.rank(system, systems.some_queries(open_collection(source, lang), queries), k, progress=False)


def _index(system: System, source: str, lang: str) -> Path:
    return systems.index(system, open_collection(source, lang), progress=False)


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh interpreters. An error or an interrupt drops the tasks that have not begun."""
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """One thread, and silence: what goes wrong comes back as the exception of its task."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for search; PyTorch is loaded already
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")
