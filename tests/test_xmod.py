"""The packed encoder: equal to XmodModel for every switch, any mix of lengths and languages; routing; freezing."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import XmodConfig, XmodModel

from xmlib import xmod

LANGS = ["en_XX", "sw_KE", "ar_AR"]


def small_model(seed: int = 0, **switches) -> XmodModel:
    """Three languages, dimensions of a toy, no dropout, and norms and biases that are not at their neutral start."""
    torch.manual_seed(seed)
    config = XmodConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=60, type_vocab_size=1, languages=LANGS, initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **switches,
    )  # fmt: skip
    model = XmodModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    return model


def texts_of(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, 100, (length,), generator=generator) for length in lengths]


def stock(model: XmodModel, texts: list[torch.Tensor], langs: list[str]) -> torch.Tensor:
    """Real tokens of the padded batch, as transformers encodes them, end to end."""
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=1)
    lang_ids = torch.tensor([LANGS.index(lang) for lang in langs])
    return model(input_ids=ids, attention_mask=(ids != 1).long(), lang_ids=lang_ids).last_hidden_state[ids != 1]


SWITCHES = [
    dict(zip(("pre_norm", "adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter"), values, strict=True))
    for values in itertools.product([False, True], repeat=4)
]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(name for name, on in s.items() if on) or "none")
def test_every_configuration_equals_the_stock_model_forward_and_backward(switches):
    model = small_model(**switches)
    lengths = [7, 1, 19, 7, 30, 12, 2, 25]
    langs = ["sw_KE", "en_XX", "ar_AR", "en_XX", "sw_KE", "sw_KE", "ar_AR", "en_XX"]
    texts = texts_of(lengths)
    weight = torch.randn(sum(lengths), 32)

    expected = stock(model, texts, langs)
    (expected * weight).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    found = xmod.encode(model, torch.cat(texts), lengths, langs)
    (found * weight).sum().backward()

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        if not name.endswith("key.bias"):  # softmax is blind to it: its gradient is rounding noise around zero
            scale = gradients[name].abs().max().item()
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-4 * scale + 1e-6, rtol=0, msg=name)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from(LANGS)), min_size=1, max_size=12))
def test_any_mix_of_lengths_and_languages_equals_the_stock_model(mix):
    lengths, langs = [length for length, _ in mix], [lang for _, lang in mix]
    model, texts = small_model(), texts_of(lengths)
    with torch.no_grad():
        found = xmod.encode(model, torch.cat(texts), lengths, langs)
        torch.testing.assert_close(found, stock(model, texts, langs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True])
def test_runs_under_autocast(dtype, training):
    model, texts = small_model().train(training), texts_of([9, 4, 17])
    with torch.autocast("cpu", dtype):
        found = xmod.encode(model, torch.cat(texts), [9, 4, 17], LANGS)
    found.float().sum().backward()
    torch.testing.assert_close(found.float(), stock(model, texts, LANGS), atol=0.1, rtol=0.05)


def test_dropout_is_applied_in_training_only():
    model = small_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    ids, lengths = torch.cat(texts_of([9, 4])), [9, 4]
    one, two = (xmod.encode(model.train(), ids, lengths, "en_XX") for _ in range(2))
    assert not torch.equal(one, two)
    one, two = (xmod.encode(model.eval(), ids, lengths, "en_XX") for _ in range(2))
    assert torch.equal(one, two)


def test_a_token_that_may_not_be_attended_to_changes_no_other():
    model = small_model()
    attended = torch.tensor([True] * 6 + [False] * 2)
    one, two = texts_of([8, 8], seed=1)
    two = torch.cat([one[:6], two[6:]])
    encoded = [xmod.encode(model, ids, [8], "sw", attended) for ids in (one, two)]
    torch.testing.assert_close(encoded[0][:6], encoded[1][:6])
    assert not torch.allclose(encoded[0][6:], encoded[1][6:])
    assert not torch.allclose(xmod.encode(model, one, [8], "sw")[:6], encoded[0][:6])


def test_languages_are_iso_codes_or_adapter_names_and_give_different_vectors():
    model, ids = small_model(), torch.cat(texts_of([9]))
    by_code, by_name = xmod.encode(model, ids, [9], "sw"), xmod.encode(model, ids, [9], "sw_KE")
    assert torch.equal(by_code, by_name)
    assert not torch.allclose(by_code, xmod.encode(model, ids, [9], "en"))


def test_an_unknown_language_raises_with_those_there_are():
    model = small_model()
    model.config.default_language = "en_XX"  # must not be consulted
    with pytest.raises(ValueError, match=r"no language adapter for 'xx'; this model has: ar, en, sw"):
        xmod.encode(model, torch.cat(texts_of([3])), [3], "xx")


def test_bad_shapes_raise():
    model, ids = small_model(), torch.cat(texts_of([5, 3]))
    with pytest.raises(ValueError, match="1 languages for 2"):
        xmod.encode(model, ids, [5, 3], ["en"])
    with pytest.raises(ValueError, match="add up to 9"):
        xmod.encode(model, ids, [5, 4], "en")
    with pytest.raises(ValueError, match="sequence 1 has no token"):
        xmod.encode(model, ids, [8, 0], "en")
    with pytest.raises(ValueError, match="59 tokens; the model has positions for 58"):
        xmod.encode(model, torch.cat(texts_of([59])), [59], "en")


def test_freezing_leaves_the_shared_weights_alone_trainable():
    model = small_model(adapter_layer_norm=True, adapter_reuse_layer_norm=False)
    xmod.freeze_for_finetuning(model)
    for name, parameter in model.named_parameters():
        frozen = name.startswith("embeddings.") or "adapter" in name
        assert parameter.requires_grad is not frozen, name


def test_encoding_one_language_leaves_every_weight_untouched():
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        xmod.encode(model, torch.cat(texts_of([9])), [9], "sw")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("pre_norm", [False, True])
def test_wanted_rows_alone_are_what_they_are_among_all_with_the_same_gradients(pre_norm):
    model = small_model(pre_norm=pre_norm)
    lengths, langs = [7, 1, 19, 12], ["sw_KE", "en_XX", "sw_KE", "ar_AR"]
    ids = torch.cat(texts_of(lengths))
    wanted = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(1)) < 0.3
    wanted[7] = False  # the only token of English: a language none of whose tokens is asked for
    outcomes = []
    for alone in (True, False):
        model.zero_grad()
        hidden = xmod.encode(model, ids, lengths, langs, wanted_T=wanted if alone else None)
        hidden = hidden if alone else hidden[wanted]
        hidden.square().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if not name.endswith("key.bias")}
        outcomes.append(
            [hidden.detach(), {n: torch.zeros(()) if g is None else g.clone() for n, g in gradients.items()}]
        )
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0])
    for name, gradient in outcomes[0][1].items():
        scale = outcomes[1][1][name].abs().max().item()
        difference = (gradient - outcomes[1][1][name]).abs().max().item()
        assert difference <= 1e-4 * scale + 1e-6, name


def test_products_of_fewer_bits_stay_near_float32_and_leave_the_model_as_it_is():
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lengths, langs = [9, 4, 17], ["en_XX", "sw_KE", "ar_AR"]
    ids = torch.cat(texts_of(lengths))
    with torch.no_grad():
        expected = xmod.encode(model, ids, lengths, langs)
        with torch.autocast("cpu", torch.bfloat16):
            found = {"bfloat16": xmod.encode(model, ids, lengths, langs)}
        found["int8"] = xmod.encode(xmod.in_int8(model), ids, lengths, langs)
        for precision, hidden_TH in found.items():
            cosine = torch.nn.functional.cosine_similarity(hidden_TH.float(), expected, dim=-1)
            assert cosine.min() > 0.99, precision
            assert not torch.equal(hidden_TH, expected)
        assert torch.equal(xmod.encode(model, ids, lengths, langs), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("gradients", [False, True])
def test_who_listens_to_a_module_or_put_another_in_its_place_is_not_passed_by(gradients):
    model, ids = small_model(), torch.cat(texts_of([9]))
    layer, seen = model.encoder.layer[0], []
    layer.attention.self.key.register_forward_hook(lambda *_: seen.append("key"))
    layer.intermediate.register_forward_hook(lambda *_: seen.append("intermediate"))
    layer.output.dense = torch.nn.Sequential(layer.output.dense, torch.nn.Identity())
    layer.output.dense[1].register_forward_hook(lambda *_: seen.append("replaced"))
    layer.output.adapter_modules["sw_KE"].register_forward_hook(lambda *_: seen.append("adapter"))
    with torch.set_grad_enabled(gradients):
        xmod.encode(model, ids, [9], "sw")
    assert seen == ["key", "intermediate", "replaced", "adapter"]


def test_dropout_is_not_forgotten_where_no_gradients_are_wanted():
    model, ids = small_model().train(), torch.cat(texts_of([9, 8]))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.encoder.layer[0].attention.self.dropout.p = 0.5
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first, second = (xmod.encode(model, ids, [9, 8], "sw") for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_laid_out_for_onednn_give_what_plain_ones_give_whatever_is_done_to_them(monkeypatch, dtype):
    model = small_model()
    lengths, langs = [9, 4, 17], ["en_XX", "sw_KE", "ar_AR"]
    ids = torch.cat(texts_of(lengths))
    shared, adapter = model.encoder.layer[0].output.dense, model.encoder.layer[1].output.adapter_modules["sw_KE"].dense1

    @torch.no_grad()
    def hidden() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return xmod.encode(model, ids, lengths, langs).float()

    def change_bits() -> None:
        with torch.no_grad():
            shared.weight.mul_(-1)

    def change_bias() -> None:
        with torch.no_grad():
            adapter.bias.add_(1)

    def change_tensor() -> None:
        adapter.weight.data = -adapter.weight.data

    def train() -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        xmod.encode(model, ids, lengths, langs).square().sum().backward()
        optimizer.step()

    seen = []
    for change in (lambda: None, change_bits, change_bias, change_tensor, train):
        change()
        laid_out = hidden()
        with monkeypatch.context() as patch:
            patch.setattr(xmod, "_lays_out", lambda _: False)
            torch.testing.assert_close(
                laid_out,
                hidden(),
                **({"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}),
            )
        assert not any(torch.equal(laid_out, before) for before in seen)
        seen.append(laid_out)


@pytest.mark.parametrize("gradients", [False, True])
def test_attention_on_the_stream_equals_attention_in_buckets(monkeypatch, gradients):
    """The path for CUDA, with PyTorch's kernel replaced by its definition: one softmax per sequence."""

    def varlen_attn(q, k, v, starts, starts_k, longest, longest_k, *, scale):
        assert starts.dtype == torch.int32 and longest == max(lengths) and starts is starts_k
        mixed = []
        for first, last in itertools.pairwise(starts.tolist()):
            weight = torch.einsum("qhw,khw->hqk", q[first:last], k[first:last]).mul(scale).softmax(-1)
            mixed.append(torch.einsum("hqk,khw->qhw", weight, v[first:last]))
        return torch.cat(mixed)

    import torch.nn.attention.varlen

    model, lengths, langs = small_model(), [9, 4, 17, 5], ["sw", "en", "sw", "ar"]
    ids = torch.cat(texts_of(lengths))
    with torch.set_grad_enabled(gradients):
        expected = xmod.encode(model, ids, lengths, langs)
        monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen_attn)
        monkeypatch.setattr(xmod, "_ragged", lambda *_: True)
        torch.testing.assert_close(xmod.encode(model, ids, lengths, langs), expected, atol=1e-5, rtol=1e-5)
