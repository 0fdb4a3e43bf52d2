# Two commands do everything: `make demo` runs the main job, `make test` passes the tests. Both set up what they need.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-slow test-oldest lint types check bench suite table results clean chromium

demo: $(READY)  ## train three methods on noisy digits, print a table, write demo-out/report.html
	$(BIN)/labelproof demo --out demo-out

test: $(READY) chromium  ## the test suite, under 10 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 -q -m "not slow"

test-slow: $(READY) chromium  ## the tests that take longer
	$(BIN)/python -m pytest -n 2 -q -m slow

TORCH ?= 2.13.0
test-oldest: chromium  ## the test suite with the oldest dependencies that pyproject.toml admits
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet torch==$(TORCH)
	.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt -e . pytest pytest-timeout pytest-xdist hypothesis
	.venv-oldest/bin/python -m pytest -n 2 -q -m "not slow"

lint: $(READY)  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## static types, strict
	$(BIN)/mypy

check: lint types test  ## what a commit must pass

bench: $(READY)  ## what engine, methods and losses cost, as ratios in one run each
	$(BIN)/python benchmarks/overhead.py --out benchmarks/results/overhead.json
	$(BIN)/python benchmarks/overhead.py --methods --rounds 9 --out benchmarks/results/methods.json
	$(BIN)/python benchmarks/losses.py --out benchmarks/results/losses.json
	$(BIN)/python benchmarks/two_networks.py --out benchmarks/results/two_networks.json
	$(BIN)/python benchmarks/gradnorm.py --out benchmarks/results/gradnorm.json

suite: $(READY)  ## all methods on small data, the first table of docs/results.md; resumes, under 3 hours on 2 cores
	$(BIN)/labelproof bench run cpu --jobs 2

table: $(READY)  ## the longer tables of docs/results.md, images and regression; resumes, about 9 hours on 2 cores
	$(BIN)/python benchmarks/mnist_table.py --jobs 2
	$(BIN)/python benchmarks/incv_table.py --jobs 2
	$(BIN)/python benchmarks/contrast_table.py --jobs 2
	$(BIN)/python benchmarks/noise_model.py
	$(BIN)/python benchmarks/uci_table.py --jobs 2

results: $(READY)  ## docs/results.md and its figures, from benchmarks/results alone
	$(BIN)/python benchmarks/results_page.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "labelproof needs Python 3.10 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

# The report is tested in a real browser. Where it cannot be installed those tests skip and say so.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	 { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	 echo "no Chromium found and none could be installed: the browser tests will skip"

clean:
	rm -rf .venv demo-out runs build dist src/*.egg-info
