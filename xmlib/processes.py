"""Work side by side on the cores of a CPU, each part in a process of its own.

A small encoder's matrix products are too small to share between threads, but languages and models are many and
independent: see `xmlib.experiments`. Nothing here schedules over machines; Snakemake, Slurm and Kubernetes do.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing.context import BaseContext

from tqdm import tqdm

MOST = 8  # processes; each holds PyTorch and two models, about 700 MB
SLOW_TO_IMPORT = ("torch", "transformers.models.xmod.modeling_xmod", "pandas", "numba")
sharing = 1  # processes that work side by side with this one, itself included: among them a meter's reading is divided


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(function: Callable, tasks: Sequence[tuple], title: str, unit: str, processes: int | None = None) -> list:
    """`[function(*task) for task in tasks]`, by `processes` side by side with one thread each.

    As many as there are cores, unless told; one where there is a GPU. Function and tasks must be picklable. This
    process is one of them: it begins at once, with the last task, the others with the first as soon as they are there.
    """
    if processes is None:
        processes = min(cores(), MOST) if shared() else 1
    processes = min(processes, len(tasks))
    with tqdm(total=len(tasks), desc=title, unit=unit) as bar:
        if processes <= 1:
            results = []
            for task in tasks:
                results.append(function(*task))
                bar.update()
            return results
        with _pool(processes - 1, sharing=processes) as pool, _like_them(processes):
            futures = [pool.submit(function, *task) for task in tasks]
            for number in reversed(range(len(tasks))):
                if futures[number].cancel():  # none of them has begun with it
                    futures[number] = Future()
                    futures[number].set_result(function(*tasks[number]))
                _count(futures, bar)
            for _ in as_completed(futures):
                _count(futures, bar)
            return [future.result() for future in futures]


def _count(futures: Sequence[Future], bar: tqdm) -> None:
    """Show how many are done. Raises what went wrong with one of them."""
    done = [future for future in futures if future.done()]
    for future in done:
        future.result()
    bar.update(len(done) - bar.n)


def shared() -> bool:
    """Whether work is shared between processes: there are cores, and no GPU that does it all."""
    import torch

    return cores() > 1 and not torch.cuda.is_available()


def prepare() -> None:
    """Import in the background what the first processes will need. Returns at once; nothing breaks without it."""
    if shared():
        _fresh()


@contextmanager
def beside(function: Callable, *arguments) -> Iterator[Future]:
    """Run `function(*arguments)` in another process during the `with` block, whose end waits for it.

    On a machine with one core, or with a GPU, it runs in this process, before the block.
    """
    if not shared():
        future = Future()
        future.set_result(function(*arguments))
        yield future
        return
    import torch

    global sharing
    threads = torch.get_num_threads()
    with _pool(1, sharing=2) as pool:
        future = pool.submit(function, *arguments)
        torch.set_num_threads(max(1, threads - 1))
        sharing = 2
        try:
            yield future
            future.result()
        finally:
            sharing = 1
            torch.set_num_threads(threads)


@contextmanager
def _pool(processes: int, sharing: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh interpreters. An error or an interrupt drops the tasks that have not begun."""
    pool = ProcessPoolExecutor(processes, _fresh(), initializer=_begin, initargs=(sharing, dict(os.environ)))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _fresh() -> BaseContext:
    """How a process begins: without anything of this one's memory.

    Where the system can fork, as the copy of a server that has imported what takes seconds to import and done nothing
    else, so that only the first processes wait for that.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(SLOW_TO_IMPORT))
    from multiprocessing import forkserver, resource_tracker  # which other systems do not have

    # Jupyter ends a kernel by interrupting its whole group, and the server might still be importing.
    resource_tracker.ensure_running()  # first: it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _begin(side_by_side: int, environment: dict[str, str]) -> None:
    """One thread, and silence: what goes wrong comes back as the exception of its task. Die with the parent."""
    global sharing
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(environment)  # as it is now; the server has that of when it was started
    threading.Thread(target=_outlive_nobody, daemon=True).start()
    sharing = side_by_side
    _take_one_thread()
    sys.stdout = sys.stderr = open(os.devnull, "w")


def _take_one_thread():
    """Returns what gives NumPy's matrix products their threads back."""
    import torch
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = "1"  # for search; what follows is loaded already
    torch.set_num_threads(1)
    return threadpool_limits(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """One for PyTorch, for what NumPy and faiss compute with, and for our own kernels; then as many as before."""
    import torch

    threads, told = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    try:
        with _take_one_thread():
            yield
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("OMP_NUM_THREADS", None)
        os.environ |= {"OMP_NUM_THREADS": told} if told is not None else {}


@contextmanager
def _like_them(side_by_side: int) -> Iterator[None]:
    """This process as `_begin` leaves another; then as it was, the state of PyTorch's random numbers included."""
    import torch

    global sharing
    before, sharing = sharing, side_by_side
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            with one_thread(), torch.random.fork_rng(devices=[]):
                yield
    finally:
        sharing = before


def _outlive_nobody() -> None:
    multiprocessing.parent_process().join()  # ends when the parent does, however it does
    os._exit(1)
