# The commands of the book. `make` alone lists them.
PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JOBS ?= 2
CHAPTERS ?=
OUTPUTS ?=
export PYTHON VENV JOBS

.DEFAULT_GOAL := help
.PHONY: help install demo test lab chapters handout export site bench clean

help:  ## this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

# Installs again only when what it installs has changed.
$(INSTALLED): settings.ini setup.py pyproject.toml constraints.txt .ci/install
	@.ci/install
	@touch $@

install: $(INSTALLED)  ## set up .venv (the other commands do it when it is needed)

demo: $(INSTALLED)  ## train a model on the shipped tales and let it tell some
	@$(BIN)/tinygpt demo

test: $(INSTALLED)  ## everything CI runs: notebooks in sync, clean and linted, every chapter, every test
	@.ci/test

lab: $(INSTALLED)  ## open JupyterLab at the first chapter
	@$(BIN)/jupyter trust nbs/*.ipynb > /dev/null  # else stored explorers stand still until a cell is run
	@$(BIN)/jupyter lab nbs/00_surprise.ipynb

export: $(INSTALLED)  ## write tinygpt/ and the site's lists from the notebooks, and clean them
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@$(BIN)/python tests/strip_widgets.py
	@$(BIN)/python tests/type_stub.py
	@$(BIN)/python site/make_pages.py

chapters: $(INSTALLED)  ## run notebooks and store their outputs: all, or make chapters CHAPTERS="00 05"
	@$(BIN)/python tests/run_notebooks.py $(CHAPTERS)

handout: $(if $(CHAPTERS),$(INSTALLED))  ## chapters for a class, without the solutions: make handout CHAPTERS="05 12" [OUTPUTS=no]
	@[ -n "$(CHAPTERS)" ] || { echo 'make handout: say which chapters: make handout CHAPTERS="05 12"' >&2; exit 2; }
	@$(BIN)/python site/handout.py $(CHAPTERS) $(if $(filter no,$(OUTPUTS)),--no-outputs)

# Quarto caches a chapter by its time alone and would miss a change in tinygpt/, so its cache goes first.
site: $(INSTALLED)  ## render the book as a website into _site (needs Quarto)
	@command -v quarto >/dev/null || { \
		echo "make site: Quarto is not installed; get it from https://quarto.org/docs/get-started/ and run 'make site' again" >&2; \
		exit 2; }
	@$(BIN)/python site/make_pages.py
	@rm -rf .quarto
	@bin=$$(cd "$(BIN)" && pwd) && PATH="$$bin:$$PATH" QUARTO_PYTHON="$$bin/python" quarto render
	@$(BIN)/python site/check_site.py
	@echo "make site: the pages are in _site; to look at them with search: $(BIN)/python -m http.server --directory _site"

bench: $(INSTALLED)  ## our code beside other libraries, on the same work
	@set -- bench/*.py; \
	[ -e "$$1" ] || { echo "make bench: there is nothing in bench/ yet" >&2; exit 2; }; \
	for script in "$$@"; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

clean:  ## remove what the tools have written; .venv and your runs/ stay
	rm -rf build dist *.egg-info _proc _site .quarto .pytest_cache .hypothesis nbdev.yml sidebar.yml
	find nbs tests tinygpt -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
