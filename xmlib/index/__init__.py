"""Indexes over token vectors, pooled vectors and words: one module per idea, one way to build, open and search."""
