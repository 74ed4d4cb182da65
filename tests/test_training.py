"""Training: the schedule, learning something, freezing, and going on after a kill to the same weights, bit for bit."""

import numpy as np
import pytest
import torch

from tests import toys
from xmlib import training
from xmlib.models import ColbertXM, DprXM
from xmlib.tokens import Layout
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


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    loop_of(toys.model(ColbertXM, layout=LAYOUT), tmp_path / "c.pt").run()
    with pytest.raises(ValueError, match=r"c\.pt belongs to another model"):
        loop_of(toys.model(DprXM, layout=LAYOUT), tmp_path / "c.pt")


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


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step():
    model = toys.model(ColbertXM, layout=LAYOUT)
    model.prepare_for_finetuning()
    nan = lambda step: next(p for p in model.parameters() if p.requires_grad).sum() * float("nan")  # noqa: E731
    with pytest.raises(FloatingPointError, match="the loss of step 0 is nan"):
        Loop(model, nan, RECIPE, progress=False).run()


def test_bad_recipes_raise():
    with pytest.raises(ValueError, match="steps is 0"):
        Recipe(steps=0)
    with pytest.raises(ValueError, match=r"warmup is 10\.0; it is a share"):
        Recipe(warmup=10.0)
