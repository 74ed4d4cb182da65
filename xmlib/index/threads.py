"""Work of numba's kernels in parts, on threads that stay: they hold no lock, and wake none of BLAS's.

To start and end threads takes a tenth as long as to find the ten best passages of a question.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

Spread = Callable[[Callable[[slice], None], int], None]  # (work, n): work on the rows 0 to n, in parts


def count() -> int:
    """How many to use: OMP_NUM_THREADS or the number of processors."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count())


@lru_cache(maxsize=4)
def pool(threads: int) -> ThreadPoolExecutor:
    """One is started when there is something for it."""
    return ThreadPoolExecutor(threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.cache_clear)  # its threads are in the parent


def alone(work: Callable[[slice], None], n: int) -> None:
    """On this thread, in one part."""
    work(slice(0, n))


def among(threads: int, parts: int) -> Spread:
    """On so many threads, in so many parts. A thread of the pool must not ask for it: it would wait for itself."""
    return alone if parts < 2 else partial(_on_all, pool(threads), parts)


def _on_all(pool: ThreadPoolExecutor, n_parts: int, work: Callable[[slice], None], n: int) -> None:
    """The first part on this thread, which would only wait, the others on threads of the pool."""
    first, *others = [slice(n * i // n_parts, n * (i + 1) // n_parts) for i in range(n_parts)]
    under_way = [pool.submit(work, part) for part in others]
    work(first)
    for part in under_way:
        part.result()
