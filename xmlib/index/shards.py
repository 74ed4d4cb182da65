"""A centroid index in shards: ordinary index folders, each over a run of the collection, built by jobs of their own.

    shards.build(folder, 0, 4, chunks, ids, origin)        # one job, on any machine that sees the folder
    …
    shards.build(folder, 3, 4, chunks, ids, origin)
    index = shards.open(folder)                            # searched as one

Every shard has a codec of its own; its scores approximate MaxSim itself, so the results of all are merged by score.
With a side file (`rescore`) they do so to about 1 %, and shards find what one index finds.

Axes, used as suffixes:  A queries · S query tokens · H embedding · k results
"""

from itertools import chain
from pathlib import Path

import numpy as np

from xmlib.index import exact, plaid, store
from xmlib.ragged import offsets_of


class ShardedIndex:
    def __init__(self, shards: list[plaid.PlaidIndex]) -> None:
        self.shards = shards
        self._starts = offsets_of(np.array([len(shard.stored) for shard in shards]))

    @property
    def ids(self) -> list[str]:
        return list(chain.from_iterable(shard.ids for shard in self.shards))

    def search(self, q_ASH: np.ndarray, q_mask_AS: np.ndarray, k: int, **settings) -> tuple[np.ndarray, np.ndarray]:
        """As `PlaidIndex.search`, whose settings hold for every shard; positions count on from shard to shard."""
        scores_Ak = np.full((len(q_ASH), k), -np.inf, np.float32)
        positions_Ak = np.full((len(q_ASH), k), -1)
        for start, shard in zip(self._starts[:-1], self.shards, strict=True):
            scores, positions = shard.search(q_ASH, q_mask_AS, k, **settings)
            scores_Ak, positions_Ak = exact.merge(scores_Ak, positions_Ak, scores, positions + start)
        return scores_Ak, positions_Ak

    def size_report(self) -> dict[str, int]:
        reports = [shard.size_report() for shard in self.shards]
        return {name: sum(report[name] for report in reports) for name in reports[0]}


def build(folder, number: int, of: int, chunks, ids: list[str], origin: dict, **choices) -> plaid.PlaidIndex:
    """Build shard `number` of `of`, counted from 0; `chunks`, `ids` and `origin` are the whole collection's.

    The rest is as in `plaid.build`, going on after a cut included.
    """
    if not 0 <= number < of <= len(ids):
        raise ValueError(f"shard {number} of {of}: shards of {len(ids)} passages are 0 to {min(of, len(ids)) - 1}")
    first, last = len(ids) * number // of, len(ids) * (number + 1) // of

    def own(start: int, stop: int):
        return chunks(first + start, first + stop)

    return plaid.build(Path(folder) / _name(number, of), own, list(ids[first:last]), origin, **choices)


def open(folder) -> ShardedIndex:
    folder = Path(folder)
    found = sorted(folder.glob("shard-*-of-*/"))
    found = [path for path in found if not path.name.endswith(".partial")]
    if not found:
        raise store.IndexFolderError(f"{folder} holds no shard-*-of-*: expected folders as `build` writes them")
    of = int(found[0].name.rpartition("-")[2])
    wanted = [folder / _name(number, of) for number in range(of)]
    for path in wanted:
        if path not in found:
            raise store.IndexFolderError(f"{path} is missing: build this shard, or wait for the job that does")
    for path in found:
        if path not in wanted:
            raise store.IndexFolderError(f"{path} is of another division than {found[0]}: remove one of them")
    shards = [plaid.open(path) for path in wanted]
    for shard in shards[1:]:
        store.check_same(shard.stored, shards[0].stored.meta["origin"])
    return ShardedIndex(shards)


def _name(number: int, of: int) -> str:
    return f"shard-{number:04d}-of-{of:04d}"
