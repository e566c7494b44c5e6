# `make help` lists the targets. Settings: PYTHON, PROFILE, VOC_ROOT, ARGS, JOBS, N.
# What makes the environment; empty: python3.12, python3.11 or python3, else a Python 3.12 of uv's.
PYTHON ?=
PROFILE ?= toy
ARGS ?=
# The lesson that make chapter prepares.
N ?=
# Processes that share the tests.
JOBS ?= 2

BIN := .venv/bin
READY := .venv/.ready
SITE := .site/.ready
# The kernel of this environment comes before a python3 kernel in the home folder.
export JUPYTER_PREFER_ENV_PATH := 1
unexport JUPYTER_PATH

SHARED = --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
SPREAD = OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SHARED)
LOWEST = OMP_NUM_THREADS=1 .lowest/bin/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help run chapter exercises test long lowest lab bench gpu ablation beyond notebooks slides site lint

help:  ## list the targets
	@echo 'Targets, with PROFILE=$(PROFILE):'
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

run: $(READY)  ## execute the notebooks with a profile: make run PROFILE=photos VOC_ROOT=...
	@$(BIN)/python -m affinity_lib run $(PROFILE) $(ARGS)

chapter: $(READY)  ## make all that a lesson reads, to begin there: make chapter N=4
	@$(BIN)/python -m affinity_lib run $(PROFILE) --before '$(N)' $(ARGS)

exercises: $(READY)  ## make the exercises of the solutions; your answers are kept aside
	@$(BIN)/python -m affinity_lib exercises

test: $(READY)  ## check style, run the tests and every notebook, at its smallest size
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(SPREAD) -m 'not long' tests $(ARGS)
	@$(BIN)/python tests/tiny.py runs/lessons
	@$(BIN)/python -m pytest --nbval-lax --nbval-cell-timeout 900 runs/lessons/*.ipynb $(ARGS)

long: $(READY)  ## run what takes minutes: every notebook as it is, kills, Snakemake, the paper's profiles
	@$(SPREAD) -m long tests $(ARGS)
	@$(BIN)/python -m pytest --nbval-lax --nbval-cell-timeout 900 notebooks/[0-9]*.ipynb $(ARGS)
	@$(BIN)/python -m pytest --nbval-lax --nbval-cell-timeout 20 notebooks/solutions $(ARGS)

lowest: $(READY)  ## run the tests and lessons 0 to 2 at the lowest versions that pyproject.toml allows
	@$(BIN)/python -m venv --clear .lowest
	@.lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	@.lowest/bin/uv pip install --quiet --python .lowest/bin/python --resolution lowest-direct -e '.[test]'
	@$(LOWEST) $(SHARED) -m 'not long' tests $(ARGS)
	@.lowest/bin/python tests/tiny.py runs/lowest
	@$(LOWEST) --nbval-lax --nbval-cell-timeout 900 runs/lowest/0[0-2]*.ipynb

lab: $(READY)  ## open JupyterLab at the notebooks
	@$(BIN)/jupyter lab --allow-root notebooks

bench: $(READY)  ## measure the library against its references
	@$(BIN)/python tests/bench/bench.py $(ARGS)

gpu: $(READY)  ## compare a GPU with the CPU, and measure the paper's training steps on it
	@$(BIN)/python tests/bench/gpu.py $(ARGS)

ablation: $(READY)  ## change one thing of the chain at a time, over seeds (toy: an hour): make ablation PROFILE=photos
	@$(BIN)/python notebooks/ablation.py $(PROFILE) $(ARGS)

beyond: $(READY)  ## try the ideas of lesson 8 on a finished run (toy: half an hour): make beyond PROFILE=photos
	@$(BIN)/python notebooks/beyond.py $(PROFILE) $(ARGS)

notebooks: $(READY)  ## re-execute the committed notebooks in place, from an empty runs/toy
	rm -rf runs/toy
	@$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	  notebooks/[0-9]*.ipynb notebooks/solutions/*.ipynb \
	  --ExecutePreprocessor.timeout=-1 \
	  --ExecutePreprocessor.record_timing=False \
	  --ExecutePreprocessor.store_widget_state=False \
	  --ClearMetadataPreprocessor.enabled=True \
	  --ClearMetadataPreprocessor.preserve_nb_metadata_mask="{'kernelspec', ('language_info', 'name')}" \
	  --ClearMetadataPreprocessor.preserve_cell_metadata_mask="{'tags', 'caption', 'nbgrader'}"

slides: $(SITE)  ## make a deck of each lesson, in build/slides
	@$(BIN)/python notebooks/site/slides.py build/slides

site: $(SITE)  ## build the web site in build/site: ARGS=--class leaves the solutions out
	@.site/bin/python notebooks/site/build.py build/site $(ARGS)
	@echo build/site/index.html

lint: $(READY)  ## check style and mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	@sh .ci/environment '$(PYTHON)'
	@touch $@

# Sphinx wants an older docutils than the rest; reveal.js, MathJax and axe-core come from npm.
$(SITE): $(addprefix notebooks/site/,requirements.txt package.json package-lock.json) | $(READY)
	@command -v npm >/dev/null || { echo 'npm is needed for slides and site: install it (Debian, Ubuntu: npm)' >&2; exit 1; }
	@$(BIN)/python -m venv --clear .site
	@.site/bin/python -m pip install --quiet --disable-pip-version-check -r notebooks/site/requirements.txt
	@cp notebooks/site/package.json notebooks/site/package-lock.json .site
	@npm ci --prefix .site --silent --ignore-scripts --no-audit --no-fund
	@touch $@
