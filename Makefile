# Each target is enough on a fresh machine with Python and make: it sets up its own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# Compiled Python is kept, whatever the environment says: the tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: example check test thorough quick lowest docs coverage magika models benchmark screenshot clean

example: $(VENV)/installed ## install, and sweep the bundled digits model
	$(BIN)/precisionlab sweep calib_data/digits.onnx --data calib_data

magika: $(VENV)/installed-models ## sweep magika's model, which breaks in FP16
	$(BIN)/python -m examples.prepare magika
	$(BIN)/precisionlab sweep examples/prepared/magika/magika.onnx --data examples/prepared/magika/data --precisions fp16

models: $(VENV)/installed-models ## prepare all real models and their labelled data
	$(BIN)/python -m examples.prepare all

check: $(VENV)/installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(VENV)/installed-dev ## install, check and test everything
	$(MAKE) --jobs=2 check models
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not thorough"

thorough: $(VENV)/installed-dev $(VENV)/installed-models ## the tests that take longest: real models, browsers, every TensorRT's bindings and its double, kills, little memory
	$(BIN)/python -m examples.prepare all
	$(BIN)/python -m pytest -n auto --dist worksteal -m "thorough or property"

quick: $(VENV)/installed-dev ## the tests that take little, in about a minute on two cores
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

lowest: $(LOWEST)/installed ## the same tests with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest -n auto --dist worksteal -m "not slow and not newest"

docs: $(VENV)/installed-docs ## build the documentation into site/; a dead link is an error
	$(BIN)/mkdocs build --strict

coverage: $(VENV)/installed-dev ## the tests with coverage, and which errors no test raises
	$(BIN)/python -m examples.prepare all
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term
	$(BIN)/python -m benchmarks.errors --data .coverage

benchmark: $(VENV)/installed-models ## what comparison and calibration cost, beside plain passes and ONNX Runtime's tools
	$(BIN)/python -m examples.prepare all
	$(BIN)/python -m benchmarks.comparison --peer
	$(BIN)/python -m benchmarks.calibration --peers

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# TensorRT-RTX compiles without a GPU, on Linux x86_64; elsewhere its tests are skipped. Its package on PyPI is a source
# distribution that fetches its wheels, and builds only with what is installed already.
# The report is tested in a browser: the system's Chromium. Where it is missing and cannot be had those tests are skipped.
# All in one call, and compiled where it is first imported: most of what comes along is never imported.
$(VENV)/installed-dev: pyproject.toml examples/requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[dev,models]" wheel setuptools
	$(BIN)/python -m pip install --quiet --no-compile --no-deps -r examples/requirements.txt
	command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| test "`id -u`" != 0 || ! command -v apt-get >/dev/null \
		|| (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core) \
		|| echo "Chromium could not be installed: the tests in a browser are skipped"
	test "`uname -sm`" != "Linux x86_64" || $(BIN)/python -m pip install --quiet --no-compile --no-build-isolation "tensorrt-rtx-cu13==1.7.1.116"
	touch $(VENV)/installed $(VENV)/installed-models $@

$(VENV)/installed-models: pyproject.toml examples/requirements.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[models]"
	$(BIN)/python -m pip install --quiet --no-deps -r examples/requirements.txt
	touch $@

# Python 3.10 to 3.12: for newer ones the lowest versions have no wheels.
$(LOWEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable ".[dev,models]"
	touch $@

$(VENV)/installed-docs: pyproject.toml $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

screenshot: $(VENV)/installed-dev ## draw docs/report.png and docs/repaired.png, the pictures of a report
	$(BIN)/python -m examples.prepare magika
	$(BIN)/python -m examples.screenshot docs

clean:
	rm -rf $(VENV) $(LOWEST) build site *.egg-info
