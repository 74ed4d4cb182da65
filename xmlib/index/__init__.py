"""Indexes over token vectors, pooled vectors and words: one module per idea, one way to build, open and search."""

GENERATIONS = {"v1": "token_ann", "v2": "lower_bounds", "plaid": "plaid"}  # of late-interaction engines: Table 5


def generation(name: str):
    """The module of a generation: `build` and `open`; what is open has search, add, remove, size_report."""
    from importlib import import_module  # the compilers of one generation are no concern of the others

    if name not in GENERATIONS:
        raise ValueError(f"no generation {name!r}; have: {', '.join(GENERATIONS)}")
    return import_module(f"xmlib.index.{GENERATIONS[name]}")
