"""The `sample-ood` collection: how languages are written, in ten languages, not parallel. See README.md here."""

from .generate import load, passages, qrels, queries

__all__ = ["load", "passages", "qrels", "queries"]
