"""The `sample` collection: a parallel collection in 19 languages, generated without a download. See README.md here."""

from .generate import SPLITS, load, passages, qrels, queries

__all__ = ["SPLITS", "load", "passages", "qrels", "queries"]
