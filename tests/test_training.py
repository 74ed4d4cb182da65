"""Training: the schedule, learning something, freezing, and going on after a kill to the same weights, bit for bit."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import toys
from xmlib import training
from xmlib.models import ColbertXM, DprXM
from xmlib.paths import ROOT
from xmlib.tokens import Layout, open_pieces, write_pieces
from xmlib.training import Loop, Recipe, batch_rows

LAYOUT = Layout(query_length=12, passage_length=16)
RECIPE = Recipe(steps=12, batch_size=6, peak_rate=1e-3, checkpoint_every=4, seed=7)


def loop_of(model, checkpoint=None, recipe=RECIPE, **arguments) -> Loop:
    return training.finetune(model, toys.triples(), recipe, checkpoint, progress=False, **arguments)


def weights(model) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict, two: dict) -> bool:
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_the_rate_rises_over_the_first_tenth_and_falls_to_zero():
    recipe = Recipe(steps=100, peak_rate=1.0)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[99] == pytest.approx(1 / 90)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_every_epoch_sees_every_example_once_in_another_order():
    epochs = [np.concatenate([batch_rows(24, 6, step, seed=1) for step in range(first, first + 4)]) for first in (0, 4)]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert not np.array_equal(*epochs)
    assert np.array_equal(batch_rows(24, 6, 5, seed=1), batch_rows(24, 6, 5, seed=1))


@pytest.mark.parametrize("kind, scale", [(ColbertXM, 1.0), (DprXM, 20.0)])
def test_training_learns_and_leaves_embeddings_and_adapters_alone(kind, scale):
    model = toys.model(kind, layout=LAYOUT)
    before = weights(model)
    log = loop_of(model, recipe=Recipe(steps=40, batch_size=8, peak_rate=2e-3, seed=1), scale=scale).run()
    assert np.mean([r["loss"] for r in log[-5:]]) < 0.6 * np.mean([r["loss"] for r in log[:5]])
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any(".embeddings." in name or "adapter" in name for name in changed)
    shared = {name for name in before if ".embeddings." not in name and "adapter" not in name}
    assert changed == {name for name in shared if not name.endswith("key.bias")} or changed == shared


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(tmp_path, dropout):
    changes = dict(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    whole = toys.model(ColbertXM, layout=LAYOUT, changes=changes)
    loop_of(whole).run()

    cut = toys.model(ColbertXM, layout=LAYOUT, changes=changes)
    for record in loop_of(cut, tmp_path / "checkpoint.pt"):
        if record["step"] == 6:  # after the checkpoint at 4 steps, before the one at 8
            break
    fresh = toys.model(ColbertXM, layout=LAYOUT, changes=changes)
    loop = loop_of(fresh, tmp_path / "checkpoint.pt")
    assert loop.step == 4
    log = loop.run()
    assert [record["step"] for record in log] == list(range(12))
    assert same(weights(whole), weights(fresh))


@pytest.mark.parametrize("kind, scale", [(ColbertXM, 1.0), (DprXM, 20.0)])
def test_texts_that_were_cut_before_train_the_same_model_bit_for_bit(tmp_path, kind, scale):
    examples, models = toys.triples(), []
    for texts in ("queries", "passages"):
        (tmp_path / texts).mkdir()
        write_pieces(tmp_path / texts, toys.tokenizer(), getattr(examples, texts))
    cut = replace(examples, **{texts: open_pieces(tmp_path / texts) for texts in ("queries", "passages")})
    for given in (examples, cut):
        models.append(toys.model(kind, layout=LAYOUT))
        training.finetune(models[-1], given, RECIPE, progress=False, scale=scale).run()
    assert same(*map(weights, models))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    loop_of(toys.model(ColbertXM, layout=LAYOUT), tmp_path / "c.pt").run()
    with pytest.raises(ValueError, match=r"c\.pt belongs to another model"):
        loop_of(toys.model(DprXM, layout=LAYOUT), tmp_path / "c.pt")


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    loop_of(toys.model(ColbertXM, layout=LAYOUT), tmp_path / "c.pt").run()
    loop_of(toys.model(ColbertXM, layout=LAYOUT), tmp_path / "c.pt", replace(RECIPE, checkpoint_every=5))
    with pytest.raises(ValueError, match=r"c\.pt belongs to another recipe, of peak_rate 0\.001, seed 7"):
        loop_of(toys.model(ColbertXM, layout=LAYOUT), tmp_path / "c.pt", replace(RECIPE, peak_rate=5e-2, seed=8))


def test_a_half_written_checkpoint_is_never_seen(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    loop = loop_of(toys.model(ColbertXM, layout=LAYOUT), path)
    steps = iter(loop)
    for _ in range(4):
        next(steps)
    good = path.read_bytes()

    def die(state, beside):
        beside.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(4):
            next(steps)
    assert path.read_bytes() == good


def test_a_loss_that_is_no_number_stops_the_run_names_the_step_and_spares_the_weights():
    model = toys.model(ColbertXM, layout=LAYOUT)
    model.prepare_for_finetuning()
    before = weights(model)
    nan = lambda step: next(p for p in model.parameters() if p.requires_grad).sum() * float("nan")  # noqa: E731
    with pytest.raises(FloatingPointError, match="the loss of step 0 is nan"):
        Loop(model, nan, RECIPE, progress=False).run()
    assert same(before, weights(model))


def test_bad_recipes_raise():
    with pytest.raises(ValueError, match="steps is 0"):
        Recipe(steps=0)
    with pytest.raises(ValueError, match=r"warmup is 10\.0; it is a share"):
        Recipe(warmup=10.0)


@pytest.mark.parametrize("kind, scale", [(ColbertXM, 1.0), (DprXM, 20.0)])
def test_a_batch_in_chunks_trains_like_the_whole_batch_dropout_included(kind, scale):
    # One chunk more than the batch has texts is no chunk at all; with dropout only that keeps the same random numbers.
    logs = [loop_of(toys.model(kind, layout=LAYOUT), scale=scale, chunk=chunk).run() for chunk in (None, 4, 1)]
    for log in logs[1:]:
        assert [r["loss"] for r in log] == pytest.approx([r["loss"] for r in logs[0]], rel=1e-4)
    noisy = toys.model(kind, layout=LAYOUT, changes=dict(hidden_dropout_prob=0.2))
    before = [r["loss"] for r in loop_of(noisy, scale=scale, chunk=4).run()]
    noisy = toys.model(kind, layout=LAYOUT, changes=dict(hidden_dropout_prob=0.2))
    assert [r["loss"] for r in loop_of(noisy, scale=scale, chunk=4).run()] == before


def test_accumulated_batches_are_one_step_with_the_mean_of_their_losses():
    losses_of = {}
    for accumulate, steps in ((1, 4), (2, 2)):
        recipe = Recipe(steps=steps, batch_size=6, peak_rate=0.0, seed=7)  # the weights stay: losses can be compared
        log = loop_of(toys.model(ColbertXM, layout=LAYOUT), recipe=recipe, accumulate=accumulate).run()
        losses_of[accumulate] = [r["loss"] for r in log]
    assert losses_of[2] == pytest.approx(np.reshape(losses_of[1], (2, 2)).mean(1).tolist(), rel=1e-5)


@pytest.mark.parametrize("distillation", ["kl", "margin-mse"])
def test_distillation_learns_what_its_teacher_says(distillation):
    triples = toys.triples()
    teacher = np.tile(np.array([[3.0, 0.0]], dtype=np.float32), (len(triples), 1))
    recipe = Recipe(steps=40, batch_size=8, peak_rate=2e-3, seed=1)
    model = toys.model(ColbertXM, layout=LAYOUT)
    log = loop_of(model, recipe=recipe, teacher_EN=teacher, distillation=distillation).run()
    assert np.mean([r["loss"] for r in log[-5:]]) < 0.6 * np.mean([r["loss"] for r in log[:5]])


SHARED = """
import json
import torch
from tests import toys
from xmlib import models, training
from xmlib.tokens import Layout, open_pieces, write_pieces
from xmlib.training import Recipe

outcomes = []
for kind, scale in ((models.ColbertXM, 1.0), (models.DprXM, 20.0)):
    model = toys.model(kind, layout=Layout(query_length=12, passage_length=16))
    with torch.no_grad():
        for p in model.parameters() if training.os.environ.get("RANK", "0") != "0" else ():
            p += 0.1  # as where each process draws its own
    recipe = Recipe(steps=4, batch_size=6, peak_rate=1e-3, seed=7)
    log = training.finetune(model, toys.triples(), recipe, progress=False, scale=scale).run()
    outcomes += [record["loss"] for record in log]
    outcomes.append(sum(p.double().abs().sum().item() for p in model.parameters()))
if training._rank() == 0:
    print(json.dumps(outcomes))
if training._processes() > 1:
    torch.distributed.destroy_process_group()
"""


def test_two_processes_train_like_one_with_the_same_batch(tmp_path):
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    outcomes = []
    for launcher in ([], launch):
        command = [sys.executable, *launcher, str(script)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        outcomes.append(json.loads(done.stdout))
    assert outcomes[1] == pytest.approx(outcomes[0], rel=1e-5)


def test_a_process_that_fails_ends_its_group_and_its_error_is_the_one_that_is_raised():
    assert training.together(1, all_agree, 1) is None
    with pytest.raises(RuntimeError, match=r"(?s)process 1 of 2:.*ValueError: rank 1 has had enough"):
        training.together(2, all_agree, 2, 1)


def all_agree(processes: int, failing: int | None = None) -> None:
    rank = training._rank()
    assert processes == training._processes()
    if rank == failing:
        raise ValueError(f"rank {rank} has had enough")
    if processes > 1:
        torch.distributed.all_reduce(torch.ones(1))  # waits for all, in vain


def test_a_batch_that_processes_cannot_share_equally_raises(monkeypatch):
    monkeypatch.setattr(training, "_processes", lambda: 4)
    with pytest.raises(ValueError, match="6 texts of a batch cannot be shared equally by 4 processes"):
        training._share(6)
