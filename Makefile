# `make demo` and `make test` need Python 3.11 or newer, pip and make; the rest they install.
#
#   make demo    install into .venv, then tell the story: with and without privacy
#   make test    install into .venv, then run all tests but the long ones, as CI does
#   make fast    the tests that take less than ten minutes on two cores
#   make check   what must pass before a change lands: formatting, lint, types, imports, docs, tests
#   make slow    the long tests
#   make bench   what a private step costs, beside a plain loop and Opacus; 35 minutes on 2 idle cores
#                (ARGS=--quick: a minute or two, to see that it works)
#   make figures every other measurement in bench/, one after the other: hours
#   make docs    build the documentation's site in build/site, and check that it tells the truth
#   make docs-version VERSION=0.1
#                add the site of a version to the branch gh-pages, beside those that are there
#   make install install into .venv what development needs, and nothing else
#   make dist    build the wheel and the source distribution in dist/, twice, and compare the two
#   make sbom    the same, and say in build/sbom/ what the wheel brings (CycloneDX)
#   make extras  install the client and each extra by itself, use it, and print size and times
#   make clean   remove .venv and caches
#
# PYTHON=python3.12   another interpreter       VENV=/tmp/venv   another place
# ARGS="-k clipping"  passed on to pytest or taciturn

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; exit; }; done; echo python3)
VENV ?= .venv
DIST ?= dist
SBOM ?= build/sbom
ARGS ?=
BIN := $(VENV)/bin

# The name of a stamp says what is installed: other requirements or another Python make another stamp.
KEY := $(shell { cat pyproject.toml constraints.txt; echo "$(PYTHON)"; } | cksum | cut -d' ' -f1)
USER_STAMP := $(VENV)/installed-user-$(KEY)
DEV_STAMP := $(VENV)/installed-dev-$(KEY)
BENCH_STAMP := $(VENV)/installed-bench-$(KEY)
DOCS_STAMP := $(VENV)/installed-docs-$(KEY)

# What Python compiles is kept, also where the surroundings (a container, say) ask it not to: --no-compile
# below leaves all of it to the first import, and tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

# One thread per worker: several test processes with several threads each are slower than one.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest
SOURCES = src tests bench docs/site
CYCLONEDX = --sv 1.6 --output-reproducible --validate

.PHONY: demo test fast slow check lint bench figures docs docs-version install dist sbom extras clean
.DEFAULT_GOAL := test

demo: $(USER_STAMP)
	$(BIN)/taciturn demo $(ARGS)

test: $(DEV_STAMP)
	$(PYTEST) -m "not slow and not quick" --durations=30 --durations-min=5 $(ARGS)

fast: $(DEV_STAMP)
	$(PYTEST) $(ARGS)

slow: $(DEV_STAMP)
	$(PYTEST) -m slow $(ARGS)

check: lint test

lint: $(DEV_STAMP)
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(BENCH_STAMP)
	$(BIN)/python bench/private_step.py $(ARGS)

figures: $(DEV_STAMP)
	@for script in $(filter-out bench/private_step.py,$(wildcard bench/*.py)); do \
		echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(DEV_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	$(BIN)/python -m pytest tests/contracts/test_docs.py tests/contracts/test_site.py

docs-version: $(DOCS_STAMP)
	@test -n "$(VERSION)" || { echo "say which version: make docs-version VERSION=0.1" >&2; exit 1; }
	PATH="$(abspath $(BIN)):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mike deploy --update-aliases $(ARGS) $(VERSION) latest
	$(BIN)/mike set-default latest

install: $(DEV_STAMP)

# In an environment of its own, and without build isolation: the builder's version is this one.
dist:
	rm -rf $(DIST) $(VENV)-dist
	"$(PYTHON)" -m venv $(VENV)-dist
	$(VENV)-dist/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt \
		hatchling==1.27.0 cyclonedx-bom==7.5.0
	.ci/dist $(VENV)-dist/bin/python $(DIST)

# Two lists: what `pip install taciturn` brings, with the licences, and all that CI tests it with. The
# file that is removed says where on this machine the wheel was, which would be in the list.
sbom: dist
	rm -rf $(SBOM) $(VENV)-wheel
	mkdir -p $(SBOM)
	"$(PYTHON)" -m venv --without-pip $(VENV)-wheel
	$(VENV)-dist/bin/python -m pip --python $(VENV)-wheel/bin/python install --quiet --no-compile \
		--disable-pip-version-check -c constraints.txt $(DIST)/*.whl
	rm $(VENV)-wheel/lib/python3*/site-packages/taciturn-*.dist-info/direct_url.json
	$(VENV)-dist/bin/cyclonedx-py environment $(CYCLONEDX) -o $(SBOM)/taciturn.cdx.json \
		$(VENV)-wheel/bin/python
	$(VENV)-dist/bin/cyclonedx-py requirements $(CYCLONEDX) -o $(SBOM)/tested.cdx.json \
		--pyproject pyproject.toml --mc-type library constraints.txt

extras: $(DEV_STAMP)
	$(PYTEST) -s -m "" -k is_installed tests/contracts/test_extras.py $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-dist $(VENV)-wheel $(DIST) $(SBOM) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(USER_STAMP):
	$(call install,engine)
	@touch $@

$(DEV_STAMP):
	$(call install,all,dev)
	@rm -f $(VENV)/installed-*
	@touch $@ $(USER_STAMP)

$(BENCH_STAMP): $(DEV_STAMP)
	$(call install,all,bench)
	@touch $@

$(DOCS_STAMP): $(DEV_STAMP)
	$(call install,all,docs)
	@touch $@

# --no-compile: torch and transformers have thousands of modules that nobody imports; Python compiles
# the others when they are first used. That and a current pip take a third of the processor time.
# Debian ships venv without ensurepip unless python3-venv is there; pip can fill such a venv itself.
comma := ,
define install
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "taciturn needs Python 3.11 or newer; $(PYTHON) is not ($$("$(PYTHON)" --version 2>&1));" \
			"install it, or name another: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing taciturn[$(1)$(if $(2),$(comma)$(2))] into $(VENV) with $(PYTHON) (once; a few minutes)"
	@"$(PYTHON)" -m venv $(VENV) >/dev/null 2>&1 || { \
		"$(PYTHON)" -m venv --clear --without-pip $(VENV) && \
		"$(PYTHON)" -m pip --quiet --python $(VENV)/bin/python install pip; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt \
		-e '.[$(1)$(if $(2),$(comma)$(2))]'
endef
