# On a fresh machine with Python 3.11 or later, `make demo` and `make test` are the only commands needed.
# Variables: PYTHON (the Python that makes the environment), VENV (where), profile, lang, args.

PYTHON ?= python3
VENV ?= .venv
profile ?= demo
workers ?= 2
RUN = $(VENV)/bin/python
READY = $(VENV)/.ready
EXECUTED = $${XMLIB_RUNS:-runs}/$(profile)

.DEFAULT_GOAL := help
.PHONY: help demo plan test lab figures eval bench bench-engines check filter clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## all notebooks in miniature: minutes on two CPU cores, no download; profile=small for real data
	$(RUN) -m xmlib.run_notebooks --profile $(profile)

plan: $(READY) ## what a profile would download, take and reach, before it does: make plan profile=paper
	$(RUN) -m xmlib.plan --profile $(profile)

test: $(READY) ## every test, the notebooks in the smoke profile included; args="-k stages" picks some
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(workers) --dist loadgroup $(args)

lab: $(READY) filter ## JupyterLab with the notebooks
	$(RUN) -m jupyter lab --notebook-dir notebooks

figures: $(READY) ## redraw every table and figure from figures/<profile>/*.csv
	$(RUN) -m xmlib.run_notebooks --profile $(profile) --again 10_paper

eval: $(READY) ## evaluate one language: make eval lang=ar
	@test -n "$(lang)" || { echo "which language? make eval lang=ar" >&2; exit 2; }
	@mkdir -p "$(EXECUTED)"
	$(RUN) -m papermill notebooks/03_eval.ipynb "$(EXECUTED)/03_eval.$(lang).ipynb" \
	    -k python3 -f params/03_eval.$(profile).yaml -r lang "$(lang)"

bench: $(READY) ## speed of encoding and of a training step beside stock transformers, in one run
	$(RUN) -m benchmarks.encoder
	$(RUN) -m benchmarks.training

bench-engines: $(READY) ## our indexes beside brute force and peers="<Pythons that have some>"; vectors=<what benchmarks.vectors wrote>
	$(RUN) benchmarks/engines.py $(or $(vectors),--generate 20000) $(if $(peers),--peers $(peers)) --record RECORDS.md

check: $(READY) ## style, and the tests that take seconds
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest -q -m "not slow" $(args)

filter: $(READY) ## let git store notebooks without their outputs, in this clone
	git config filter.notebook.clean "$(RUN) -m xmlib.notebook"

clean: ## remove the environment and caches; runs/ and figures/ stay
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch goes first and by itself: a bare requirement on it would be free to choose another version, and another build
# with gigabytes of CUDA libraries.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or later is needed; '$(PYTHON)' is not. Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	    echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install "$$(grep '^torch==' constraints.txt)"
	$(RUN) -m pip install -c constraints.txt -e '.[cpu,test]'
	@touch $@
