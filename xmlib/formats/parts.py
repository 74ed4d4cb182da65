"""What a retriever is built of, whichever folder it lay in: what every reader returns."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from xmlib.tokens import Layout


@dataclass
class Parts:
    """Either of a multi-vector model (layout, projection) or of a single-vector one (pooling and what follows)."""

    encoder: Path | torch.nn.Module  # the folder that transformers opens, or the encoder itself
    tokenizer: object
    query_prefix: str = ""  # text in front of every query, before it is cut into tokens
    passage_prefix: str = ""
    layout: Layout | None = None  # None: that of single-vector models, `length` tokens long
    projection: torch.nn.Linear | None = None  # of every token
    pooling: str = "mean"
    similarity: str = "cosine"
    length: int = 512  # tokens of a text
    head: list[tuple[torch.nn.Linear, str]] = field(default_factory=list)  # maps of the pooled vector, activations
    record: dict = field(default_factory=dict)  # how it was trained, where that was here


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.nn.Linear:
    """A linear map of these weights."""
    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight.data.copy_(weight)
    if bias is not None:
        made.bias.data.copy_(bias)
    return made
