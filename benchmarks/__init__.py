"""Side-by-side measurements against peers: one command each, results under runs/benchmarks/."""
