"""Training: the optimiser's loop, its schedule and checkpoints, and the fine-tuning step on English triples.

`Loop` is an iterator over steps that any loss can use (fine-tuning here, masked-LM in `pretraining`). It owns AdamW,
the linear warm-up and decay, gradient clipping, and a checkpoint file from which it goes on to the same weights, bit
for bit on a CPU, because everything random in step i is seeded with (seed, i).

In a group of processes, one per GPU, every process encodes its share of a batch, gathers the vectors of all, computes
the loss of the whole batch and lets the gradient through its own vectors alone. The sum over processes is then the
gradient of the whole batch, with the in-batch negatives of other processes, as if one had done it all. `together`
starts such a group, from a notebook's cell as well; `torchrun` does on a command line, over several machines too.
"""

import math
import os
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.utils.checkpoint import checkpoint as recomputed
from tqdm import tqdm

from xmlib import losses
from xmlib.data.triples import Triples, Tuples, batches
from xmlib.models import Retriever, SingleVector, computing
from xmlib.scoring import inner, maxsim
from xmlib.tokens import Tokens, concatenate
from xmlib.xmod import sent


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train. The defaults are the paper's for ColBERT-XM (§4.1)."""

    steps: int = 50_000
    batch_size: int = 128  # triples, or texts in masked-LM training
    peak_rate: float = 3e-6
    warmup: float = 0.1  # share of the steps over which the rate rises
    weight_decay: float = 0.01
    clip: float = 2.0  # largest norm of the gradient, as in the released trainer; the paper is silent
    seed: int = 42
    checkpoint_every: int = 500  # steps; a kill loses at most these

    def __post_init__(self):
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is {self.warmup}; it is a share of the steps, between 0 and 1")

    @property
    def identity(self) -> dict:
        """What of it shapes the weights: all but how often they are saved."""
        return {name: value for name, value in asdict(self).items() if name != "checkpoint_every"}

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, …: linear up to `peak_rate`, then linear down to 0 after the last step."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return self.peak_rate * (step + 1) / rising
        return self.peak_rate * (self.steps - step) / max(self.steps - rising, 1)


class Loop:
    """Steps of training: `for record in Loop(…)` does one step at a time and yields its loss, rate and speed.

    `loss_of(step)` builds the loss of one step. With a `checkpoint` path the state is kept there every
    `recipe.checkpoint_every` steps, atomically, and a new Loop over the same model, recipe and path goes on from it.
    With `accumulate` a step adds up the gradients of so many losses, numbered through, and minimises their mean. With
    `shared` every process of a group holds a part of the gradient, and they are added up.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss_of: Callable[[int], torch.Tensor],
        recipe: Recipe,
        checkpoint: str | Path | None = None,
        title: str = "train",
        progress: bool = True,
        accumulate: int = 1,
        shared: bool = False,
    ):
        self.model, self.loss_of, self.recipe = model, loss_of, recipe
        self.accumulate, self.shared = accumulate, shared
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.title, self.progress = title, progress
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay, eps=1e-6, fused=True
        )
        self.log: list[dict] = []  # one record per step done, also by earlier runs
        if self.checkpoint is not None and self.checkpoint.exists():
            self._resume()
        if shared:
            self._agree()

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.log)

    def __iter__(self) -> Iterator[dict]:
        return self._steps(self.recipe.steps)

    def _steps(self, stop: int) -> Iterator[dict]:
        recipe, device = self.recipe, next(self.model.parameters()).device
        self.model.train()
        bar = tqdm(total=recipe.steps, initial=self.step, desc=self.title, unit="step", disable=not self.progress)
        launched, waiting = self.step, deque()
        with bar:
            while launched < stop:
                began = time.perf_counter()
                waiting.append(self._launch(launched))
                launched += 1
                whole = launched == stop or launched % recipe.checkpoint_every == 0
                # A loss is read one step late on a GPU, which so has the next step to do while the host waits.
                while len(waiting) > (0 if whole or device.type == "cpu" else 1):
                    step, (loss, copied) = self.step, waiting.popleft()
                    if copied is not None:
                        copied.synchronize()
                    value = loss.item()
                    self._check(step, value)
                    seconds, began = time.perf_counter() - began, time.perf_counter()
                    self.log.append({"step": step, "loss": value, "rate": recipe.rate(step), "seconds": seconds})
                    bar.update()
                    bar.set_postfix(loss=f"{value:.3f}", rate=f"{recipe.rate(step):.1e}", refresh=False)
                    if self.checkpoint is not None and self.step % recipe.checkpoint_every == 0:
                        self._save()
                    yield self.log[-1]
        self.model.eval()

    def _launch(self, step: int) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """Do one step, on a GPU without waiting for it. Returns its loss on the host, and the event that it came."""
        recipe, device = self.recipe, next(self.model.parameters()).device
        torch.manual_seed(recipe.seed * 1_000_003 + step + 31 * _rank())  # dropout: the same after a resume
        total = torch.zeros((), device=device)
        for part in range(self.accumulate):
            with computing(self.model):
                loss = self.loss_of(step * self.accumulate + part) / self.accumulate
            loss.backward()
            total += loss.detach()
        if device.type == "cpu":
            self._check(step, total.item())  # before the weights are lost; a GPU would have to wait for it
        if self.shared:
            _add_up([p.grad for p in self.trained.values()])
        torch.nn.utils.clip_grad_norm_(self.trained.values(), recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        self.optimizer.step()
        torch.autograd.graph.increment_version(self.trained.values())  # which a fused step leaves as they were
        self.optimizer.zero_grad(set_to_none=True)
        if device.type == "cpu":
            return total, None
        copied = torch.cuda.Event()
        total = total.to("cpu", non_blocking=True)
        copied.record()
        return total, copied

    def _check(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"{self.title}: the loss of step {step} is {loss}")

    def run(self, stop: int | None = None) -> list[dict]:
        """All remaining steps, or those up to step `stop`, where the state is kept; returns the log."""
        for _ in self._steps(stop or self.recipe.steps):
            pass
        if stop is not None and self.checkpoint is not None:
            self._save()
        return self.log

    def _save(self) -> None:
        if self.shared and not is_first():
            return
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        beside = self.checkpoint.with_name(self.checkpoint.name + ".partial")
        state = {"weights": self.trained, "optimizer": self.optimizer.state_dict(), "log": self.log}
        state["recipe"] = self.recipe.identity
        torch.save(state, beside)
        os.replace(beside, self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        if state["weights"].keys() != self.trained.keys():
            raise ValueError(f"{self.checkpoint} belongs to another model: its trained parameters differ")
        recipe = state.get("recipe", {}).items()  # of older ones it is not known
        other = [f"{name} {value}" for name, value in recipe if value != self.recipe.identity[name]]
        if other:
            raise ValueError(f"{self.checkpoint} belongs to another recipe, of {', '.join(other)}: continue that one")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.log = state["log"]

    def _agree(self) -> None:
        """All processes of the group go on from the weights of the first."""
        steps = [None] * _processes()
        dist.all_gather_object(steps, self.step)
        if len(set(steps)) > 1:
            raise ValueError(f"processes resume at steps {steps}: {self.checkpoint} must be on a disk that all share")
        for parameter in self.model.parameters():
            dist.broadcast(parameter.data, 0)


def finetune(
    model: Retriever,
    triples: Triples | Tuples,
    recipe: Recipe,
    checkpoint: str | Path | None = None,
    own_negatives: bool = True,
    scale: float = 1.0,
    progress: bool = True,
    teacher_EN: np.ndarray | None = None,
    distillation: str = "kl",
    chunk: int | None = None,
    accumulate: int = 1,
) -> Loop:
    """The loop that fine-tunes a retriever on triples with Eq. 6; iterate over it, or call its `run`.

    `scale` multiplies the scores before the softmax: 1 for MaxSim (a sum over n tokens), 20 for a cosine. With
    `teacher_EN`, a teacher's scores of every example's passages, which tuples bring along, the loss is
    `losses.distilled` of that kind instead.
    For batches larger than memory, `chunk` texts are encoded at a time, and once more for their gradient, which is that
    of the whole batch (GradCache, Gao et al., 2021); `accumulate` batches make a step, each with negatives of its own.
    """
    if teacher_EN is None and isinstance(triples, Tuples):
        teacher_EN = triples.scores_EN

    def rows_of(step: int) -> np.ndarray:
        return batch_rows(len(triples), recipe.batch_size, step, recipe.seed)

    batch = batches(triples, rows_of, model.tokenize_queries, model.tokenize_passages)
    model.prepare_for_finetuning()
    join_processes()

    def loss_of(step: int) -> torch.Tensor:
        rows, q, d = batch(step)
        scores_AB = scale * batch_scores(model, q, d, triples.lang, chunk)
        if teacher_EN is None:
            return losses.total(scores_AB, own_negatives)
        teacher_AN = sent(torch.from_numpy(teacher_EN[rows]), scores_AB.device)
        return losses.distilled(scores_AB, teacher_AN, distillation)

    title = f"fine-tune {model.kind}"
    return Loop(model, loss_of, recipe, checkpoint, title, progress and is_first(), accumulate, _processes() > 1)


def batch_scores(
    model: Retriever, queries: Tokens, passages: Tokens, lang: str, chunk: int | None = None
) -> torch.Tensor:
    """Scores of every query against every passage of a batch, encoded together in one stream. Returns (A, B).

    Of several processes each encodes an equal share of the texts; all have all scores, with a gradient for their share.
    """
    own = [tokens.take(_share(len(tokens))) for tokens in (queries, passages)]
    vectors = _vectors(model, concatenate(*own), lang, chunk)
    if isinstance(model, SingleVector):  # of unit length where the model compares by cosine
        return inner(_gathered(vectors[: len(own[0])]), _gathered(vectors[len(own[0]) :]))
    parts = vectors.split([len(tokens.ids_T) for tokens in own])
    padded = []
    for part_TH, tokens, whole in zip(parts, own, (queries, passages), strict=True):
        longest = int(whole.lengths_B.max())
        mask_BL = _real(whole, longest)
        mask_BL[mask_BL.copy()] = whole.scored_T
        mask = sent(torch.from_numpy(mask_BL), vectors.device)
        padded.append((_gathered(_pad(part_TH, tokens, longest)), mask))
    (q_ASH, q_mask_AS), (d_BTH, d_mask_BT) = padded
    return maxsim(q_ASH, d_BTH, q_mask_AS, d_mask_BT)


def _vectors(model: Retriever, tokens: Tokens, lang: str, chunk: int | None) -> torch.Tensor:
    """Vectors of a stream; with `chunk` so many texts at a time, encoded again when their gradient is asked for."""
    if chunk is None or chunk >= len(tokens):
        return model.vectors(tokens, lang)
    order = np.arange(len(tokens))
    parts = [tokens.take(order[first : first + chunk]) for first in range(0, len(order), chunk)]
    return torch.cat([recomputed(model.vectors, part, lang, use_reentrant=False) for part in parts])


def together(processes: int, function: Callable, *arguments) -> None:
    """`function(*arguments)` in each of so many processes of this machine, in a group; with one, right here.

    Each has a GPU, or its share of this process's threads. Function and arguments must be picklable. An error in one of
    them ends all and is raised here; so does an interrupt.
    """
    if processes == 1:
        function(*arguments)
        return
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise ValueError(f"{processes} processes need as many GPUs; there are {torch.cuda.device_count()}")
    with tempfile.TemporaryDirectory() as folder:
        threads, errors = max(1, torch.get_num_threads() // processes), Path(folder) / "error"
        settings = (processes, f"file://{folder}/group", errors, threads, function, arguments)
        group = multiprocessing.spawn(_member, settings, processes, join=False)
        try:
            while not group.join():
                pass
        except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
            # It may be of one that waited for the first to fail.
            raise RuntimeError(errors.read_text() if errors.exists() else str(error)) from None
        finally:
            for process in group.processes:
                process.terminate()  # after an interrupt; those that ended do not mind


def _member(
    rank: int, processes: int, where: str, errors: Path, threads: int, function: Callable, arguments: tuple
) -> None:
    torch.set_num_threads(threads)
    _join(rank, init_method=where, rank=rank, world_size=processes)
    try:
        function(*arguments)
    except Exception:
        with suppress(FileExistsError), errors.open("x") as file:
            file.write(f"process {rank} of {processes}:\n{traceback.format_exc()}")
        raise
    dist.destroy_process_group()


def join_processes() -> None:
    """Join the group of processes that `torchrun` started; without it, or when that was done, do nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        _join(int(os.environ["LOCAL_RANK"]))


def _join(device: int, **group) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", **group)


def is_first() -> bool:
    """Whether this process writes what all of its group have computed."""
    return _rank() == 0


def batch_rows(examples: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Which examples step 0, 1, … takes: a new permutation every epoch, a function of (seed, step) alone."""
    batch_size = min(batch_size, examples)
    epoch, place = divmod(step, examples // batch_size)
    return _order(examples, epoch, seed)[place * batch_size : (place + 1) * batch_size]


@lru_cache(maxsize=1)
def _order(examples: int, epoch: int, seed: int) -> np.ndarray:
    """A permutation, kept from step to step: one of millions takes longer than a step."""
    return np.random.default_rng([seed, epoch]).permutation(examples)


def _real(tokens: Tokens, longest: int) -> np.ndarray:
    """Which slots of (texts, longest) hold a token, when texts are laid out row by row."""
    return np.arange(longest) < tokens.lengths_B[:, None]


def _pad(vectors_TH: torch.Tensor, tokens: Tokens, longest: int) -> torch.Tensor:
    """Packed vectors of texts → (texts, longest, H) with zeros behind."""
    slot_T = sent(torch.from_numpy(_real(tokens, longest).ravel().nonzero()[0]), vectors_TH.device)
    padded = vectors_TH.new_zeros(len(tokens) * longest, vectors_TH.shape[1])
    return padded.index_copy(0, slot_T, vectors_TH).view(len(tokens), longest, -1)


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _share(texts: int) -> np.ndarray:
    """The texts of a batch that this process encodes: an equal, unbroken part."""
    if texts % _processes():
        raise ValueError(f"{texts} texts of a batch cannot be shared equally by {_processes()} processes")
    share = texts // _processes()
    return np.arange(_rank() * share, (_rank() + 1) * share)


def _gathered(own: torch.Tensor) -> torch.Tensor:
    """The rows of all processes in the order of their ranks; the gradient goes through those of this one."""
    if _processes() == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(_processes())]
    dist.all_gather(parts, own.detach().contiguous())
    parts[_rank()] = own
    return torch.cat(parts)


def _add_up(gradients: list[torch.Tensor]) -> None:
    """Every process gets the sum of all, in one message."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
