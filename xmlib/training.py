"""Training: the optimiser's loop, its schedule and checkpoints, and the fine-tuning step on English triples.

`Loop` is an iterator over steps that any loss can use (fine-tuning here, masked-LM in `pretraining`). It owns AdamW,
the linear warm-up and decay, gradient clipping, and a checkpoint file from which it goes on to the same weights, bit
for bit on a CPU, because everything random in step i is seeded with (seed, i).
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from xmlib import losses
from xmlib.data.triples import Triples
from xmlib.models import Retriever, SingleVector, compute_dtype
from xmlib.scoring import inner, maxsim
from xmlib.tokens import Tokens, concatenate


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
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss_of: Callable[[int], torch.Tensor],
        recipe: Recipe,
        checkpoint: str | Path | None = None,
        title: str = "train",
        progress: bool = True,
    ):
        self.model, self.loss_of, self.recipe = model, loss_of, recipe
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.title, self.progress = title, progress
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay, eps=1e-6, fused=True
        )
        self.log: list[dict] = []  # one record per step done, also by earlier runs
        if self.checkpoint is not None and self.checkpoint.exists():
            self._resume()

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.log)

    def __iter__(self) -> Iterator[dict]:
        recipe, device = self.recipe, next(self.model.parameters()).device
        dtype = compute_dtype(device)
        self.model.train()
        bar = tqdm(total=recipe.steps, initial=self.step, desc=self.title, unit="step", disable=not self.progress)
        with bar:
            while self.step < recipe.steps:
                began, step = time.perf_counter(), self.step
                torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropout: the same after a resume
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    loss = self.loss_of(step)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.trained.values(), recipe.clip)
                for group in self.optimizer.param_groups:
                    group["lr"] = recipe.rate(step)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                if not math.isfinite(value := loss.item()):
                    raise FloatingPointError(f"{self.title}: the loss of step {step} is {value}")
                seconds = time.perf_counter() - began
                self.log.append({"step": step, "loss": value, "rate": recipe.rate(step), "seconds": seconds})
                bar.update()
                bar.set_postfix(loss=f"{value:.3f}", rate=f"{recipe.rate(step):.1e}", refresh=False)
                if self.checkpoint is not None and self.step % recipe.checkpoint_every == 0:
                    self._save()
                yield self.log[-1]
        self.model.eval()

    def run(self, stop: int | None = None) -> list[dict]:
        """All remaining steps, or those up to step `stop`, where the state is kept; returns the log."""
        if stop is None or self.step < stop:
            for _ in self:
                if self.step == stop:
                    break
        self.model.eval()
        if stop is not None and self.checkpoint is not None:
            self._save()
        return self.log

    def _save(self) -> None:
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        beside = self.checkpoint.with_name(self.checkpoint.name + ".partial")
        state = {"weights": self.trained, "optimizer": self.optimizer.state_dict(), "log": self.log}
        torch.save(state, beside)
        os.replace(beside, self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        if state["weights"].keys() != self.trained.keys():
            raise ValueError(f"{self.checkpoint} belongs to another model: its trained parameters differ")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.log = state["log"]


def finetune(
    model: Retriever,
    triples: Triples,
    recipe: Recipe,
    checkpoint: str | Path | None = None,
    own_negatives: bool = True,
    scale: float = 1.0,
    progress: bool = True,
) -> Loop:
    """The loop that fine-tunes a retriever on triples with Eq. 6; iterate over it, or call its `run`.

    `scale` multiplies the scores before the softmax: 1 for MaxSim (a sum over n tokens), 20 for a cosine.
    """
    queries, passages = model.tokenize_queries(triples.queries), model.tokenize_passages(triples.passages)
    model.prepare_for_finetuning()

    def loss_of(step: int) -> torch.Tensor:
        rows_A3 = triples.rows_E3[batch_rows(len(triples), recipe.batch_size, step, recipe.seed)]
        q, d = queries.take(rows_A3[:, 0]), passages.take(rows_A3[:, 1:].ravel())
        return losses.total(scale * batch_scores(model, q, d, triples.lang), own_negatives)

    return Loop(model, loss_of, recipe, checkpoint, title=f"fine-tune {model.kind}", progress=progress)


def batch_scores(model: Retriever, queries: Tokens, passages: Tokens, lang: str) -> torch.Tensor:
    """Scores of every query against every passage of a batch, encoded together in one stream. Returns (A, B)."""
    vectors = model.vectors(concatenate(queries, passages), lang)
    if isinstance(model, SingleVector):  # of unit length where the model compares by cosine
        return inner(vectors[: len(queries)], vectors[len(queries) :])
    q_ASH, q_mask_AS = _pad(vectors[: len(queries.ids_T)], queries)
    d_BTH, d_mask_BT = _pad(vectors[len(queries.ids_T) :], passages)
    return maxsim(q_ASH, d_BTH, q_mask_AS, d_mask_BT)


def batch_rows(examples: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Which examples step 0, 1, … takes: a new permutation every epoch, a function of (seed, step) alone."""
    batch_size = min(batch_size, examples)
    epoch, place = divmod(step, examples // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(examples)
    return order[place * batch_size : (place + 1) * batch_size]


def _pad(vectors_TH: torch.Tensor, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed vectors of texts → (texts, longest, H) with zeros behind, and the mask of tokens that are scored."""
    lengths = tokens.lengths_B.tolist()
    padded = torch.nn.utils.rnn.pad_sequence(list(vectors_TH.split(lengths)), batch_first=True)
    scored = torch.from_numpy(tokens.scored_T).to(vectors_TH.device).split(lengths)
    return padded, torch.nn.utils.rnn.pad_sequence(list(scored), batch_first=True)
