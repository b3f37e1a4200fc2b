# make demo | test | lint | bench | clean
#
# Each target makes its own virtual environment in .venv, once. Overridable, for instance:
#   make demo PYTHON=python3.10
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu    (a small torch on Linux without an NVIDIA GPU)
#   make test PIP_ARGS="--no-index --find-links wheels" PYTEST_ARGS="-x -k lora"

PYTHON ?= $(shell for name in python3.11 python3.10 python3; do \
  $$name -c "" >/dev/null 2>&1 && echo $$name && break; done)
TORCH_INDEX ?=
PIP_ARGS ?=
PYTEST_ARGS ?=

NAME_ONE := ; name one with: make PYTHON=/path/to/python3.11
RUN := .venv/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

# Passive waiting: idle threads do not spin against the working ones on machines with few cores.
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE ?= 1
export GRADIO_ANALYTICS_ENABLED ?= False

.PHONY: demo test lint bench clean

demo: .venv/.installed
	$(RUN) -m extensions_lib demo

test: .venv/.installed-dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(RUN) -m pytest tests --ignore=tests/host $(PYTEST_ARGS)

lint: .venv/.installed-dev
	$(RUN) -m ruff check .

bench: .venv/.installed-dev
	$(RUN) -m benchmarks.run

clean:
	rm -rf .venv .pytest_cache .ruff_cache build dist *.egg-info demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first: installed alone, pip takes the build the machine's index offers. no-deps last: see that file.
.venv/.installed: requirements/torch.txt requirements/runtime.txt requirements/no-deps.txt
	@test -n "$(PYTHON)" || { echo "Python 3.10 or 3.11 is needed and none was found$(NAME_ONE)"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.version_info[:2] in ((3, 10), (3, 11)) or sys.exit("Python 3.10 or 3.11 is needed, this is " + sys.version.split()[0] + "$(NAME_ONE)")'
	@echo "Making .venv with $(PYTHON); this takes a minute or two, once."
	"$(PYTHON)" -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r requirements/torch.txt
	$(PIP) -r requirements/torch.txt -r requirements/runtime.txt
	$(PIP) --no-deps -r requirements/no-deps.txt
	@touch $@

.venv/.installed-dev: .venv/.installed requirements/dev.txt
	$(PIP) -r requirements/torch.txt -r requirements/runtime.txt -r requirements/dev.txt
	@touch $@
