# make demo: from nothing to a trained and evaluated encoder. make test: lint, types and tests.
# make torture: what make test has no time for.
# make test PYTHON=python3.12: the tests with the lowest versions that pyproject.toml promises.
# CUDA=12 installs DALI for CUDA 12 drivers; PYTHON chooses the interpreter.
CUDA ?= 13
PYTHON ?= python3
# Two runs hold both ends: make test is the newest versions, with Python 3.12 named the lowest.
LOWEST := $(and $(filter python3.12,$(notdir $(PYTHON))),$(filter test torture,$(MAKECMDGOALS)))
CONSTRAINTS := constraints$(if $(LOWEST),-lowest).txt
# The two builds of DALI would overwrite each other.
VENV := .venv$(if $(LOWEST),-lowest)$(if $(filter 12,$(CUDA)),-cuda12)
TORCH := $(if $(filter 12,$(CUDA)),--torch-backend=cu126)
READY := $(VENV)/ready
# The demo needs a part of what the tests need; where these have run, it uses theirs.
DEMO := $(if $(wildcard $(READY)),$(READY),$(VENV)/demo-ready)

.PHONY: demo test torture lint clean

demo: $(DEMO)
	$(VENV)/bin/python -m tools.demo

# Types are those of the newest versions: older NumPy, Pillow and torch declare theirs otherwise.
test: $(READY) $(if $(LOWEST),,lint)
	$(VENV)/bin/python -m pytest

# An hour: kills, damage and rank failures, many times over.
torture: $(READY)
	$(VENV)/bin/python -m pytest -m slow
	$(VENV)/bin/python -m tests.torture
	$(VENV)/bin/python -m tests.fuzz --cases 5000

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/hadolint Dockerfile

# Compiled here once, because with PYTHONDONTWRITEBYTECODE set, as in many containers, every start
# would compile torch again, for ten seconds. The mark is written last: an installation that was
# interrupted is taken up again.
$(VENV)/ready: EXTRAS := dev
$(VENV)/demo-ready: EXTRAS := report
$(VENV)/ready $(VENV)/demo-ready: pyproject.toml $(CONSTRAINTS)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@echo "installing PyTorch, DALI and what else is needed into $(VENV): some gigabytes, a minute or two"
	$(VENV)/bin/uv pip install $(if $(CI),--quiet) --compile-bytecode --python $(VENV)/bin/python \
	    $(TORCH) --constraint $(CONSTRAINTS) --editable '.[cuda$(CUDA),$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv .venv-*
