# Every target does all its set-up on a fresh machine: virtual environment, install of what is locked, run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := .venv-tools
TOOLS_INSTALLED := $(TOOLS)/.installed
# Nothing is installed that requirements/ has no hash of: not by dependencies, and not to build a package with.
LOCKED := install --disable-pip-version-check -q --require-hashes --no-deps --no-build-isolation
PYTHON_CHECK := import sys; sys.exit("t3d needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)

.PHONY: demo test lint types docs wheel hardening audit lock clean

demo: $(INSTALLED)
	rm -rf t3d-demo
	$(BIN)/t3d demo --out t3d-demo

test: $(INSTALLED) lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict

wheel: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build --no-isolation

hardening: $(INSTALLED) $(TOOLS_INSTALLED)
	$(BIN)/python bench/faults/hardening.py

audit: $(TOOLS_INSTALLED)
	$(TOOLS)/bin/python requirements/audit.py

lock: $(TOOLS_INSTALLED)
	$(TOOLS)/bin/python requirements/lock.py

# PyTorch's build for CPUs where pip is set up to find it, as requirements/torch-cpu.txt says, else PyPI's.
$(INSTALLED): pyproject.toml $(addprefix requirements/,build.txt torch.txt torch-cpu.txt dev.txt)
	$(PYTHON) -c '$(PYTHON_CHECK)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip $(LOCKED) -r requirements/build.txt
	$(BIN)/pip $(LOCKED) -r requirements/torch-cpu.txt 2>/dev/null || $(BIN)/pip $(LOCKED) -r requirements/torch.txt
	$(BIN)/pip $(LOCKED) -r requirements/dev.txt
	$(BIN)/pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	touch $@

$(TOOLS_INSTALLED): requirements/tools.txt
	$(PYTHON) -c '$(PYTHON_CHECK)'
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip $(LOCKED) -r $<
	touch $@

clean:
	rm -rf $(VENV) $(TOOLS) t3d-demo build dist site *.egg-info
