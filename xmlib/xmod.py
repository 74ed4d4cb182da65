"""The packed X-MOD encoder: one stream of real tokens, each sequence routed through its own language's adapters.

`transformers.XmodModel` pads a batch, then walks every adapter of every layer with a boolean mask. Here the tokens of
all texts lie behind one another in one stream without padding. Everything that works token by token (embeddings,
projections, feed-forward, layer norms, adapters) runs on that stream; sequences of one language lie side by side, so
that an adapter is applied to one slice. Only attention sees sequences: it gathers those of similar length.

The functions work on the parameters of a stock `XmodModel`, which stays the thing that is trained, saved and loaded.
The language of every text is an argument. Nothing here guesses it, and `config.default_language` is never consulted.

Without gradients on a CPU, matrix products take the weights as oneDNN wants them laid out: made when a weight is first
used, kept as long as it stays as it is, of each as many bits as autocast asks for.

Axes:  T tokens of the stream · B sequences · N sequences of one attention bucket · L their padded length · H hidden
"""

import copy
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import XmodModel
from transformers.activations import GELUActivation
from transformers.models.xmod.modeling_xmod import XmodAdapter, XmodIntermediate

from xmlib.languages import adapter_name, adapter_of

SHOWN = 8  # numbers of a weight by which a change is seen
PADDED = 0.75  # sequences attend together if the shortest has at least this share of the longest's tokens


@dataclass(frozen=True)
class Bucket:
    """Sequences that attend together; the slots of a bucket follow those of the one before, row by row."""

    shape: tuple[int, int]  # N, L
    keys_NL: torch.Tensor | None  # bool: the slot may be attended to; None where all may


@dataclass(frozen=True)
class Packing:
    """Where sequences lie in the stream: all that the layers need to know, computed once per batch."""

    order_T: torch.Tensor | None  # stream row -> row of the caller's tokens; None where they are the same
    positions_T: torch.Tensor  # position embedding of each stream row
    spans: list[tuple[str, int, int]]  # (adapter, first row, last row + 1)
    buckets: list[Bucket]
    rows_P: torch.Tensor | None  # slot -> stream row, any row for padding; None where slots and rows are the same
    slot_T: torch.Tensor  # stream row -> slot
    starts_B1: torch.Tensor | None  # int32, first row of each sequence and the end; None where keys are masked
    longest: int  # tokens of the longest sequence
    kept_K: torch.Tensor | None  # stream rows that leave the last layer; None: all
    kept_spans: list[tuple[str, int, int]]  # spans of those rows
    restore_K: torch.Tensor | None  # row of the result -> row that left the last layer; None where they are the same


def pack(
    lengths_B: Sequence[int],
    adapters_B: Sequence[str],
    padding_idx: int,
    attended_T: torch.Tensor | None = None,
    wanted_T: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Packing:
    """Plan the stream for sequences of the given lengths (all at least 1) and adapters.

    Both masks are bool, on the CPU and in the caller's order; None means all. `attended_T` marks tokens that others may
    attend to, `wanted_T` those whose last hidden state is asked for.
    """
    lengths = torch.as_tensor(lengths_B, dtype=torch.int64)
    if lengths.numel() and lengths.min() < 1:
        raise ValueError(f"sequence {int(lengths.argmin())} has no token")
    starts = lengths.cumsum(0) - lengths
    place = {name: index for index, name in enumerate(dict.fromkeys(adapters_B))}
    by_adapter = sorted(range(len(adapters_B)), key=lambda b: place[adapters_B[b]])  # stable
    spans, order, first = [], None, 0
    for name, group in itertools.groupby(by_adapter, key=lambda b: adapters_B[b]):
        last = first + int(lengths[list(group)].sum())
        spans.append((name, first, last))
        first = last
    if by_adapter != list(range(len(adapters_B))):
        order = torch.cat([torch.arange(starts[b], starts[b] + lengths[b]) for b in by_adapter])
        attended_T = None if attended_T is None else attended_T[order]
        wanted_T = None if wanted_T is None else wanted_T[order]
        lengths = lengths[by_adapter]
        starts = lengths.cumsum(0) - lengths
    total = int(lengths.sum())
    positions = torch.arange(total) - starts.repeat_interleave(lengths) + padding_idx + 1

    buckets, rows_P, slot_T, slots = [], [], torch.empty(total, dtype=torch.int64), 0
    left = lengths.unique()
    while len(left):
        longest = int(left[-1])
        shortest = int(left[left >= PADDED * longest][0])
        left = left[left < shortest]
        members = ((lengths >= shortest) & (lengths <= longest)).nonzero().squeeze(1)
        columns = torch.arange(longest)
        real = columns < lengths[members, None]
        rows = torch.where(real, starts[members, None] + columns, 0)
        keys = real if attended_T is None else real & attended_T[rows]
        buckets.append(Bucket(tuple(rows.shape), None if keys.all() else sent(keys, device)))
        slot_T[rows[real]] = slots + real.flatten().nonzero().squeeze(1)
        rows_P.append(rows.flatten())
        slots += rows.numel()
    rows_P = torch.cat(rows_P)
    same = slots == total and torch.equal(rows_P, torch.arange(total))

    kept, kept_spans, kept_order = None, spans, order
    if wanted_T is not None:
        kept = wanted_T.nonzero().squeeze(1)
        before = torch.cat([torch.zeros(1, dtype=torch.int64), wanted_T.cumsum(0)])
        kept_spans = [(name, int(before[first]), int(before[last])) for name, first, last in spans]
        kept_order = None if order is None else order[kept]

    def on_device(rows: torch.Tensor | None) -> torch.Tensor | None:
        return None if rows is None else sent(rows, device)

    return Packing(
        on_device(order),
        on_device(positions),
        spans,
        buckets,
        None if same else on_device(rows_P),
        on_device(slot_T),
        None if attended_T is not None else on_device(F.pad(lengths.cumsum(0), (1, 0)).int()),
        int(lengths.max()),
        on_device(kept),
        kept_spans,
        None if kept_order is None else on_device(kept_order.argsort()),
    )


def encode(
    model: XmodModel,
    ids_T: torch.Tensor,
    lengths_B: Sequence[int],
    langs: str | Sequence[str],
    attended_T: torch.Tensor | None = None,
    wanted_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden states of packed token ids. Returns (T, H), in the order of `ids_T`, on the model's device.

    `langs` is one language for all sequences or one for each: an ISO code or the name of an adapter. A language that
    the model has no adapter for raises ValueError with those it has. `wanted_T` (bool) leaves all but some rows out of
    the result, and out of the work of the last layer behind its attention. Equal to `XmodModel` on the padded batch to
    float rounding, in training and evaluation, under autocast as well.
    """
    langs_B = [langs] * len(lengths_B) if isinstance(langs, str) else list(langs)
    if len(langs_B) != len(lengths_B):
        raise ValueError(f"{len(langs_B)} languages for {len(lengths_B)} sequences")
    if sum(lengths_B) != len(ids_T):
        raise ValueError(f"lengths add up to {sum(lengths_B)} tokens, got {len(ids_T)}")
    names = {lang: adapter_of(lang, model.config.languages) for lang in dict.fromkeys(langs_B)}
    embeddings = model.embeddings
    longest = model.config.max_position_embeddings - embeddings.padding_idx - 1
    if max(lengths_B) > longest:
        raise ValueError(f"a sequence of {max(lengths_B)} tokens; the model has positions for {longest}")

    device = embeddings.word_embeddings.weight.device
    masks = (None if mask is None else mask.cpu() for mask in (attended_T, wanted_T))
    packing = pack(lengths_B, [names[lang] for lang in langs_B], embeddings.padding_idx, *masks, device=device)
    ids_T = sent(ids_T, device)
    if packing.order_T is not None:
        ids_T = ids_T[packing.order_T]
    x_TH = embeddings.word_embeddings(ids_T) + embeddings.token_type_embeddings.weight[0]
    x_TH = x_TH + embeddings.position_embeddings(packing.positions_T)
    x_TH = embeddings.dropout(embeddings.LayerNorm(x_TH))
    *layers, last = model.encoder.layer
    for layer in layers:
        x_TH = _layer(layer, x_TH, packing)
    x_KH = _layer(last, x_TH, packing, is_last=True)
    if model.encoder.is_pre_norm:
        x_KH = model.encoder.LayerNorm(x_KH)
    return x_KH if packing.restore_K is None else x_KH[packing.restore_K]


def sent(rows: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`rows` on `device`. A GPU takes them from pinned memory; from any other the host might have to wait for it."""
    if torch.device(device).type == "cuda" and not rows.is_cuda:
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=True)


def in_int8(model: XmodModel) -> XmodModel:
    """A copy for inference on a CPU whose matrix products run in bytes. Goes into `encode`.

    All but the weights of linear maps is shared with `model`, which stays as it is. The weights are rounded once, with
    a scale per output channel, the inputs of every call with one scale: to 7 bits on a CPU whose products of full bytes
    can overflow (without VNNI).
    """

    def convert(module: torch.nn.Module) -> torch.nn.Module:
        if isinstance(module, torch.nn.Linear):
            return _Int8Linear(module)
        twin = copy.copy(module)
        twin._modules = {name: convert(child) for name, child in module._modules.items() if child is not None}
        return twin

    with torch.no_grad():
        return convert(model).eval()


def freeze_for_finetuning(model: XmodModel) -> None:
    """Freeze embeddings and every language adapter; the shared weights stay trainable (paper, Figure 1b).

    The stock helper does this for models with a head only; on a bare `XmodModel` it fails.
    """
    model.requires_grad_(True)
    model.embeddings.requires_grad_(False)
    for layer in model.encoder.layer:
        layer.output.adapter_modules.requires_grad_(False)
        if layer.output.adapter_layer_norm is not None:
            layer.output.adapter_layer_norm.requires_grad_(False)


def adapters_of(model: XmodModel, lang: str) -> list[XmodAdapter]:
    """The adapters that texts in `lang` are routed through, one per layer."""
    name = adapter_of(lang, model.config.languages)
    return [layer.output.adapter_modules[name] for layer in model.encoder.layer]


def add_language(model: XmodModel, lang: str, adapters: Sequence[XmodAdapter]) -> None:
    """Give `model` copies of `adapters`, one per layer, as those of the new language `lang`; nothing else changes.

    They go last in `config.languages`, so that the numbers that transformers gives to the other languages stay. The
    adapters may be another model's: of a new language trained beside this one, say. ValueError if `lang` has some.
    """
    name, layers = adapter_name(lang), model.encoder.layer
    if name in model.config.languages:
        raise ValueError(f"the model has adapters for {lang!r} already; it has: {', '.join(model.config.languages)}")
    if len(adapters) != len(layers) or adapters[0].dense1.in_features != model.config.hidden_size:
        raise ValueError(
            f"{len(adapters)} adapters of width {adapters[0].dense1.in_features} do not fit "
            f"a model of {len(layers)} layers of width {model.config.hidden_size}"
        )
    for layer, adapter in zip(layers, adapters, strict=True):
        layer.output.adapter_modules[name] = copy.deepcopy(adapter).to(model.device)
    model.config.languages = [*model.config.languages, name]


def remove_language(model: XmodModel, lang: str) -> None:
    """Take the adapters of `lang` out of `model`."""
    name = adapter_of(lang, model.config.languages)
    for layer in model.encoder.layer:
        del layer.output.adapter_modules[name]
    model.config.languages = [other for other in model.config.languages if other != name]


def freeze_for_adding(model: XmodModel, lang: str) -> None:
    """Freeze all but the adapters of `lang` (paper, Figure 1d)."""
    model.requires_grad_(False)
    for adapter in adapters_of(model, lang):
        adapter.requires_grad_(True)


def _layer(layer, x_TH: torch.Tensor, packing: Packing, is_last: bool = False) -> torch.Tensor:
    """One transformer layer with its adapters: the order of norms and residuals is that of `XmodLayer`."""
    attention, output = layer.attention.output, layer.output
    inner_TH = attention.LayerNorm(x_TH) if layer.pre_norm else x_TH
    mixed_TH = _attend(layer.attention.self, inner_TH, packing)
    spans = packing.kept_spans if is_last else packing.spans
    if is_last and packing.kept_K is not None:
        x_TH, mixed_TH = x_TH[packing.kept_K], mixed_TH[packing.kept_K]
    x_TH = _add(attention.dropout(_map(attention.dense, mixed_TH)), x_TH)
    if not layer.pre_norm:
        x_TH = attention.LayerNorm(x_TH)

    inner_TH = output.LayerNorm(x_TH) if layer.pre_norm else x_TH
    wider = layer.intermediate
    if _is_plain(wider, XmodIntermediate):
        inner_TH = _map(wider.dense, inner_TH, wider.intermediate_act_fn)
    else:
        inner_TH = wider(inner_TH)
    x_TH = _add(output.dropout(_map(output.dense, inner_TH)), x_TH)

    residual_TH = x_TH
    if output.adapter_layer_norm is not None:
        x_TH = output.adapter_layer_norm(x_TH)
    elif output.adapter_reuse_layer_norm:
        x_TH = output.LayerNorm(x_TH)
    if output.ln_before_adapter:
        residual_TH = x_TH
    x_TH = _add(output.dropout(_adapt(output.adapter_modules, x_TH, spans)), residual_TH)
    return x_TH if layer.pre_norm else output.LayerNorm(x_TH)


def _add(y_TH: torch.Tensor, residual_TH: torch.Tensor) -> torch.Tensor:
    """Their sum, in place of the first where that has the type of the result: under autocast it may have fewer bits."""
    return y_TH.add_(residual_TH) if y_TH.dtype == residual_TH.dtype else y_TH + residual_TH


def _adapt(adapters, x_TH: torch.Tensor, spans: list[tuple[str, int, int]]) -> torch.Tensor:
    """Each span of the stream through the adapter of its language. Returns (T, H)."""

    def one(adapter: XmodAdapter, x_SH: torch.Tensor) -> torch.Tensor:
        if not _is_plain(adapter, XmodAdapter):
            return adapter(x_SH)
        return _map(adapter.dense2, _map(adapter.dense1, x_SH, adapter.adapter_act_fn))

    if len(spans) == 1:
        return one(adapters[spans[0][0]], x_TH)
    # Without gradients there is no graph to keep small; autocast casts what `_GroupedLinear` would not.
    if not torch.is_grad_enabled() or torch.is_autocast_enabled(x_TH.device.type):
        return torch.cat([one(adapters[name], x_TH[first:last]) for name, first, last in spans])
    used = [adapters[name] for name, _, _ in spans]
    rows = [slice(first, last) for _, first, last in spans]
    inner_TD = _GroupedLinear.apply(x_TH, rows, *(p for a in used for p in (a.dense1.weight, a.dense1.bias)))
    inner_TD = used[0].adapter_act_fn(inner_TD)
    return _GroupedLinear.apply(inner_TD, rows, *(p for a in used for p in (a.dense2.weight, a.dense2.bias)))


def _attend(attention, x_TH: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Self-attention within each sequence of the stream. Returns (T, H)."""
    heads, width = attention.num_attention_heads, attention.attention_head_size
    dropout = attention.dropout.p if attention.training else 0.0
    three = (attention.query, attention.key, attention.value)
    # One product each way; joining the weights costs less than it saves.
    if torch.is_grad_enabled() and all(_is_plain(p, torch.nn.Linear) for p in three):
        qkv_TH = F.linear(x_TH, torch.cat([p.weight for p in three]), torch.cat([p.bias for p in three]))
        if _ragged(qkv_TH, dropout, packing):
            q, k, v = qkv_TH.view(-1, 3, heads, width).unbind(1)
            return _attend_ragged(q, k, v, packing, attention.scaling)
        qkv_PH = qkv_TH if packing.rows_P is None else _Spread.apply(qkv_TH, packing)
        parts = qkv_PH.unflatten(1, (3, -1)).unbind(1)
    else:
        parts = _maps(three, x_TH)
        if _ragged(parts[0], dropout, packing):
            return _attend_ragged(*(part_TH.view(-1, heads, width) for part_TH in parts), packing, attention.scaling)
        if packing.rows_P is not None:
            parts = [part_TH.index_select(0, packing.rows_P) for part_TH in parts]
    slots = [N * L for N, L in (bucket.shape for bucket in packing.buckets)]
    mixed = []
    for bucket, *qkv in zip(packing.buckets, *(part_PH.split(slots) for part_PH in parts), strict=True):
        N, L = bucket.shape
        q, k, v = (y_PH.view(N, L, heads, width).transpose(1, 2) for y_PH in qkv)
        mask = None if bucket.keys_NL is None else bucket.keys_NL[:, None, None, :]
        y = _mixed(q, k, v, mask, dropout, attention.scaling)
        mixed.append(y.transpose(1, 2).reshape(N * L, heads * width))
    y_PH = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
    return y_PH if packing.rows_P is None else _Collect.apply(y_PH, packing)


def _ragged(x_TH: torch.Tensor, dropout: float, packing: Packing) -> bool:
    """Whether PyTorch's attention over sequences without padding can be used: on CUDA, in 16 bits, without dropout."""
    return x_TH.is_cuda and x_TH.dtype != torch.float32 and dropout == 0 and packing.starts_B1 is not None


def _attend_ragged(q, k, v, packing: Packing, scale: float) -> torch.Tensor:
    """Attention of (T, heads, width) within each sequence, on the stream as it is. Returns (T, H)."""
    from torch.nn.attention.varlen import varlen_attn  # not at import: it looks for a GPU's libraries

    starts, longest = packing.starts_B1, packing.longest
    return varlen_attn(q, k, v, starts, starts, longest, longest, scale=scale).flatten(1)


def _mixed(q, k, v, mask: torch.Tensor | None, dropout: float, scale: float) -> torch.Tensor:
    """Attention of (N, heads, L, width), with `mask` for (N, 1, 1, L). Returns the same shape."""
    shape = q.shape
    if q.is_cuda or q.dtype != torch.bfloat16 or torch.is_grad_enabled() or dropout or shape[0] == 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    # On a CPU PyTorch's own takes twice as long in 16 bits as its products of batches do.
    q, k, v = (part.reshape(-1, *shape[2:]) for part in (q, k, v))
    bias = q.new_zeros(1)
    if mask is not None:
        bias = q.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        bias = bias.expand(-1, shape[1], -1, -1).flatten(0, 1)
    weights = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale).softmax(-1)
    return torch.bmm(weights, v).view(shape)


_LAID_OUT = WeakTensorKeyDictionary()  # weight -> what it was when it was laid out, {dtype: the weight for oneDNN}


def _map(linear: torch.nn.Module, x_TI: torch.Tensor, activation: torch.nn.Module | None = None) -> torch.Tensor:
    """`activation(linear(x_TI))`. Without gradients on a CPU by oneDNN, with the weight in the order it wants."""
    laid_out = _laid_out((linear,), x_TI)
    fused = laid_out is not None and isinstance(activation, GELUActivation) and activation.act is F.gelu
    y_TO = linear(x_TI) if laid_out is None else _product(x_TI, *laid_out, "gelu" if fused else "none")
    return y_TO if activation is None or fused else activation(y_TO)


def _maps(linears: tuple[torch.nn.Module, ...], x_TI: torch.Tensor) -> Sequence[torch.Tensor]:
    """What each makes of the same input, all of the same width; in one product where weights are laid out."""
    laid_out = _laid_out(linears, x_TI)
    if laid_out is None:
        return [linear(x_TI) for linear in linears]
    return _product(x_TI, *laid_out).chunk(len(linears), 1)


def _product(x_TI: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, behind: str = "none") -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x_TI.to(bias.dtype), weight, bias, behind, [], "none")


def _laid_out(linears: tuple[torch.nn.Module, ...], x_TI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weights and biases, joined, as oneDNN takes them; None where it cannot or need not."""
    if (
        torch.is_grad_enabled()
        or x_TI.is_cuda
        or not len(x_TI)
        or not all(_is_plain(linear, torch.nn.Linear) for linear in linears)
    ):
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_TI.dtype
    key = linears[0].weight
    if not _lays_out(dtype) or key.is_inference():
        return None
    weights = [linear.weight.detach() for linear in linears]
    # Versions count changes, but those of fused optimisers and through `.data`: a few of the numbers show these.
    state = [(w._version, w.data_ptr(), w.view(-1)[:: max(1, w.numel() // SHOWN)].tolist()) for w in weights]
    before, made = _LAID_OUT.get(key, (None, {}))
    if before != state:
        made = {}
        _LAID_OUT[key] = (state, made)
    if dtype not in made:
        made[dtype] = torch.ops.mkldnn._reorder_linear_weight(torch.cat(weights).to(dtype))
    biases = [linear.bias.detach() for linear in linears]
    return made[dtype], (biases[0] if len(biases) == 1 else torch.cat(biases)).to(dtype)


def _is_plain(module: torch.nn.Module, kind: type) -> bool:
    """Whether calling it does what this kind does and nothing else: nothing in its place, nobody who listens."""
    return type(module) is kind and not module._forward_hooks and not module._forward_pre_hooks


@lru_cache
def _lays_out(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's linear map, which it keeps to itself, and this CPU the units for `dtype`."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _GroupedLinear(torch.autograd.Function):
    """Slices of the stream, each through its own weight and bias: `apply(x_TI, slices, weight, bias, weight, bias, …)`.

    One step of the graph instead of a dozen for every language, and results written in place instead of joined.
    """

    @staticmethod
    def forward(ctx, x_TI, slices, *parameters):
        ctx.slices = slices
        ctx.save_for_backward(x_TI, *parameters[::2])
        y_TO = x_TI.new_empty(len(x_TI), len(parameters[0]))
        for rows, weight, bias in zip(slices, parameters[::2], parameters[1::2], strict=True):
            torch.addmm(bias, x_TI[rows], weight.T, out=y_TO[rows])
        return y_TO

    @staticmethod
    def backward(ctx, gradient_TO):
        x_TI, *weights = ctx.saved_tensors
        gradient_TI = torch.empty_like(x_TI) if ctx.needs_input_grad[0] else None
        gradients = []
        for index, (rows, weight) in enumerate(zip(ctx.slices, weights, strict=True)):
            part = gradient_TO[rows]
            if gradient_TI is not None:
                torch.mm(part, weight, out=gradient_TI[rows])
            wanted_weight, wanted_bias = ctx.needs_input_grad[2 + 2 * index : 4 + 2 * index]
            gradients += [part.T @ x_TI[rows] if wanted_weight else None, part.sum(0) if wanted_bias else None]
        return gradient_TI, None, *gradients


class _Spread(torch.autograd.Function):
    """Stream rows → slots. Padding slots hold any row; masks keep them out of every result, so they get no gradient.

    Indexing's own gradient would add row by row, because it cannot know that every row is used once; this one copies.
    """

    @staticmethod
    def forward(ctx, x_TH, packing):
        ctx.packing = packing
        return x_TH.index_select(0, packing.rows_P)

    @staticmethod
    def backward(ctx, gradient_PH):
        return gradient_PH.index_select(0, ctx.packing.slot_T), None


class _Collect(torch.autograd.Function):
    """Slots → stream rows, the inverse of `_Spread`; padding slots are dropped."""

    @staticmethod
    def forward(ctx, y_PH, packing):
        ctx.packing, ctx.slots = packing, len(y_PH)
        return y_PH.index_select(0, packing.slot_T)

    @staticmethod
    def backward(ctx, gradient_TH):
        gradient_PH = gradient_TH.new_zeros(ctx.slots, gradient_TH.shape[1])
        return gradient_PH.index_copy_(0, ctx.packing.slot_T, gradient_TH), None


class _Int8Linear(torch.nn.Module):
    """A linear map in bytes: weights with one scale per output channel, inputs with one scale per call."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias.detach()
        scale_O = weight.abs().amax(1).clamp(min=1e-12) / 127
        zero_O = torch.zeros(len(scale_O), dtype=torch.int64)
        with (
            warnings.catch_warnings()
        ):  # from 2.13 on PyTorch means to drop quantised tensors, but has no other int8 map
            warnings.filterwarnings("ignore", message=".*quantize_per_channel")
            rounded = torch.quantize_per_channel(weight, scale_O, zero_O, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(rounded, bias)

    def forward(self, x_TI: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic(x_TI.float(), self.packed, not torch.cpu._is_vnni_supported())
