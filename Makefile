# make demo | ui | test | test-hosts | lint | bench | clean
#
# Each target makes its own virtual environment in .venv, once; test-hosts makes two more (.venv-a1111, .venv-forge) with
# the versions that the WebUI and Forge pin, and runs the same tests in each. Overridable, for instance:
#   make demo PYTHON=python3.10
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu    (a small torch on Linux without an NVIDIA GPU)
#   make test PIP_ARGS="--no-index --find-links wheels" PYTEST_ARGS="-x -k lora"
#   make ui UI_ARGS="--port 7870 --folder my-studio"
#   make test-forge FORGE_TORCH=torch==2.3.1
#   make test-a1111 A1111_PYTHON=/path/to/python3.10

PYTHON ?= $(shell for name in python3.11 python3.10 python3; do \
  $$name -c "" >/dev/null 2>&1 && echo $$name && break; done)
A1111_PYTHON ?= $(shell for name in python3.10 $$HOME/.pyenv/versions/3.10.*/bin/python; do \
  $$name -c "" >/dev/null 2>&1 && echo $$name && break; done)
A1111_TORCH ?= torch==2.1.2
FORGE_PYTHON ?= $(PYTHON)
FORGE_TORCH ?= $(shell grep ^torch requirements/torch.txt)
TORCH_INDEX ?=
PIP_ARGS ?=
PYTEST_ARGS ?=
UI_ARGS ?=

NAME_ONE := ; name one with: make PYTHON=/path/to/python3.11
RUN := .venv/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

# Passive waiting: idle threads do not spin against the working ones on machines with few cores.
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE ?= 1
export GRADIO_ANALYTICS_ENABLED ?= False

.PHONY: demo ui test test-hosts test-a1111 test-forge lint bench clean
.NOTPARALLEL:

demo: .venv/.installed
	$(RUN) -m extensions_lib demo

ui: .venv/.installed
	$(RUN) -m extensions_lib ui $(UI_ARGS)

test: .venv/.installed-dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(RUN) -m pytest tests --ignore=tests/host $(PYTEST_ARGS)

test-hosts: test-a1111 test-forge

test-a1111 test-forge: test-%: .venv-%/.installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} .venv-$*/bin/python -m pytest tests --ignore=tests/host $(PYTEST_ARGS)

lint: .venv/.installed-dev
	$(RUN) -m ruff check .

bench: .venv/.installed-dev
	$(RUN) -m benchmarks.run

clean:
	rm -rf .venv .venv-a1111 .venv-forge .pytest_cache .ruff_cache build dist *.egg-info demo studio
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

# A host's environment: its torch alone first, for the same reason, then its pins and the tools of the tests.
.venv-a1111/.installed: HOST_PYTHON = $(A1111_PYTHON)
.venv-a1111/.installed: HOST_TORCH = $(A1111_TORCH)
.venv-forge/.installed: HOST_PYTHON = $(FORGE_PYTHON)
.venv-forge/.installed: HOST_TORCH = $(FORGE_TORCH)
HOST_PIP = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

.venv-a1111/.installed .venv-forge/.installed: .venv-%/.installed: requirements/%.txt requirements/dev.txt requirements/no-deps.txt
	@test -n "$(HOST_PYTHON)" || { echo "No Python for $(@D) was found; the WebUI's is 3.10, Forge's 3.10 or 3.11: name it in A1111_PYTHON or FORGE_PYTHON"; exit 1; }
	@echo "Making $(@D) with $(HOST_PYTHON) and $(HOST_TORCH); this takes some minutes, once."
	"$(HOST_PYTHON)" -m venv $(@D)
	$(HOST_PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(HOST_TORCH)"
	$(HOST_PIP) "$(HOST_TORCH)" -r $< -r requirements/dev.txt
	$(HOST_PIP) --no-deps -r requirements/no-deps.txt
	@touch $@
