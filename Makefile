# make run    set up, train on CDNOW, judge, and serve the champion on http://127.0.0.1:8000
# make test   set up and prove everything: package in step with notebooks, every notebook, every test
# All set-up goes into .venv; nothing else on the machine is touched.

PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := 0.13.9
PART := $(PYTHON) tests/support/part.py
PYTEST := $(BIN)/python -m pytest -q -p no:cacheprovider --dist loadfile --no-loadscope-reorder
NBVAL := --nbval --nbval-sanitize-with nbs/.nbval.cfg
export UV_NATIVE_TLS ?= true
# No telemetry of what the notebooks use, however a kernel starts; `churn_nb` sets the same when it is imported.
export ORT_DISABLE_TELEMETRY ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true
export DVC_NO_ANALYTICS ?= 1
export DO_NOT_TRACK ?= 1
export PYTHONWARNINGS ?= ignore::DeprecationWarning

.DEFAULT_GOAL := help
.PHONY: help setup data run pipeline serve test test-fast test-rest test-notebooks test-outputs test-code check touched coverage e2e e2e-tests soak bench site map lab export readme lint lint-python wheel release lock clean

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

setup: .venv/.ready ## make .venv with every pinned package, once
.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	@echo "== set-up: .venv with the pinned packages (a few minutes the first time)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) can't make virtual environments; install your system's package python3-venv"; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@index=$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true); [ -z "$$index" ] || export UV_DEFAULT_INDEX="$$index"; \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

data: setup ## fetch the data set of settings.ini from the DVC remote in the repository
	@$(BIN)/python -c 'from churn_nb.data.datasets import data_hash; from churn_nb.core.settings import load_settings; s = load_settings(); print("== data:", s.data.dataset, data_hash(s))'

pipeline: data ## run the pipeline: features, training, drift, gate, bundle
	@echo "== pipeline: the notebooks, in order, on all customers"
	@$(BIN)/churn run

run: data ## train, judge and serve; a refused model leaves the champion in place and is said so
	@echo "== pipeline: the notebooks, in order, on all customers"
	@$(BIN)/churn run; code=$$?; \
	  if [ $$code -eq 1 ]; then echo "== the gate refused the new model (exit code 1 in CI); what was in production stays"; elif [ $$code -ne 0 ]; then exit $$code; fi
	@echo "== API: stop it with Ctrl-C"
	@exec $(BIN)/churn serve

serve: setup ## serve the champion that is there
	@exec $(BIN)/churn serve

test: data ## every notebook is run and its stored outputs compared; every test; what fails fastest comes first
	@$(PART) "lint, step, unit tests" 100 $(MAKE) --no-print-directory test-fast
	@$(PART) "notebooks, all other tests" 480 $(MAKE) --no-print-directory test-rest

test-notebooks: data ## nbdev-test: every notebook runs, alone, in a temporary workspace; nothing is compared (test-outputs runs them too)
	@echo "== nbdev-test: every notebook runs from top to bottom"
	@$(BIN)/nbdev-test --n-workers 2 --timing

test-outputs: data ## nbval: every stored output is what the code gives today
	@$(BIN)/python tests/support/compared.py
	@$(PYTEST) $(NBVAL) -n 2 nbs

test-code: data ## pytest: what a cell can't hold
	@$(PYTEST) -n 3 --durations=8 --ignore tests/e2e tests

test-fast: lint-python ## a first answer: lint, types, what must be in step, and the unit tests that need no service and no time, with their coverage
	@echo "== export in step, unit tests"
	@rm -f .coverage .coverage.*
	@$(PYTEST) -n 3 -m fast --cov --cov-report= tests/unit
	@$(BIN)/coverage report --skip-covered --format=total

test-rest: setup # every notebook with its outputs, and the tests that test-fast leaves out; many wait for processes, so four run side by side
	@$(BIN)/python tests/support/compared.py
	@$(PYTEST) $(NBVAL) -n 4 -m "not fast" --durations=8 --ignore tests/e2e nbs tests

coverage: data ## what every test but e2e executes, processes and kernels included; `make test` measures its unit tests only, as the rest takes half as long again
	@rm -f .coverage .coverage.*
	@$(PYTEST) $(NBVAL) -n 4 --cov --cov-report= --cov-fail-under=0 --ignore tests/e2e nbs tests
	@$(BIN)/coverage report --fail-under=92

check: data ## a first answer on a change in about two minutes: lint, types, what must be in step, and the tests that touch it (BASE=<revision> SECONDS=<budget>)
	@$(BIN)/python tests/support/check.py $(if $(BASE),--base $(BASE)) $(if $(SECONDS),--seconds $(SECONDS))

touched: data ## record which test executes which function, into tests/touched.json, for `make check`: runs every test and notebook
	@rm -f .coverage .coverage.*; mkdir -p build
	@RECORD_TOUCHED=build/touched.json $(PYTEST) $(NBVAL) -n 4 --cov --cov-report= --cov-fail-under=0 --ignore tests/e2e nbs tests || echo "== touched: not every test passed; what they executed counts all the same"
	@$(BIN)/python tests/support/touched.py build/touched.json

e2e: setup ## what takes minutes and root: a fresh clone, README's examples, the images, a push that ends in a running service
	@$(PART) "e2e: clone, images, push" 480 $(MAKE) --no-print-directory e2e-tests

e2e-tests: setup # three sides by side: most of it waits for containers and downloads
	@echo "== e2e: a fresh clone in an empty environment; images; measurements; from a push to a running service"
	@$(PYTEST) -n 3 -rA --durations=12 -o faulthandler_timeout=3600 tests/e2e

soak: data ## 40 kills of a fresh run at random moments, each followed by a whole run, which must give the model and the answers of an undisturbed one; goes on where it stopped (an hour or two)
	@$(BIN)/python tests/soak/killed_runs.py

BENCHES := quantize drift features score serve batching pipeline capacity
bench: data ## measure side by side on this machine, into bench/RESULTS.md: all (an hour or two), or WHAT=serve|drift|features|score|quantize|batching|pipeline|capacity (QUICK=1: does it run?), or WHAT=freshness (needs `make pipeline`)
	@for what in $(or $(WHAT),$(BENCHES)); do echo "== bench: $$what"; $(BIN)/python bench/$$what.py $(if $(QUICK),--quick) || exit; done
	@$(if $(QUICK),,$(BIN)/python bench/results.py)

lint: lint-python ## what is wrong in Python, Dockerfile and workflows, by their linters
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/actionlint && $(BIN)/zizmor --offline --quiet .github/workflows && $(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yaml
	@$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml && $(BIN)/pre-commit validate-config
	@$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/question.yml

lint-python: setup ## of these, Python alone, with types
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@mkdir -p build && { $(BIN)/lint-imports --no-logo > build/imports.txt 2>&1 || { cat build/imports.txt; exit 1; }; }
	@$(BIN)/typos

wheel: setup ## dist/*.whl, and what serves imported from it alone, in an environment with nothing else
	@rm -rf dist build/bare && $(BIN)/uv build --quiet --wheel -o dist
	@$(BIN)/uv venv --quiet build/bare && $(BIN)/uv pip install --quiet --python build/bare/bin/python --require-hashes -r docker/serve.lock && \
	  $(BIN)/uv pip install --quiet --python build/bare/bin/python --no-deps dist/*.whl
	@cd build && bare/bin/python -I -c 'import churn_nb.serve as s; print("== wheel: imported from", s.__file__.split("site-packages/")[1])' && bare/bin/churn serve --help > /dev/null

release: setup ## tag the version of churn_nb/__init__.py and build its wheel; what stands against it is said first
	@$(BIN)/python .github/release.py

site: setup ## the course as static pages, with the last run's report: build/site/index.html
	@$(BIN)/python docs/build.py

map: setup ## the rooms of the package: modules with their sizes, and which room imports which
	@$(BIN)/python docs/rooms.py

lab: setup ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir nbs --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate nbs/index.ipynb

export: setup ## notebooks, formatted -> churn_nb/, formatted; cleaned, README included
	@$(BIN)/ruff format --quiet nbs && $(BIN)/nbdev-export && $(BIN)/ruff format --quiet churn_nb && $(BIN)/nbdev-clean && cp settings.ini k8s/base/settings.ini && $(MAKE) --no-print-directory readme

readme: ## nbs/index.ipynb -> README.md, its links counted from the top folder
	@$(BIN)/jupyter nbconvert --log-level=ERROR --to markdown --output-dir . --output README nbs/index.ipynb
	@sed -i -E 's#\]\((([a-z_]+/)*[0-9]{2}_[a-z0-9_]+\.ipynb)\)#](nbs/\1)#g; s#\]\(images/#](nbs/images/#g; s#\]\(\.\./#](#g' README.md

lock: setup ## pin every package again from pyproject.toml
	@$(BIN)/uv pip compile --universal --fork-strategy fewest --python-version 3.11 --extra dev --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet --upgrade -o requirements.lock pyproject.toml
	@echo 'pyspark>=4,<5' | $(BIN)/uv pip compile --universal --fork-strategy fewest --python-version 3.11 -c requirements.lock --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet -o requirements-spark.lock -
	@echo 'kserve' | $(BIN)/uv pip compile --universal --fork-strategy fewest --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet -o requirements-kserve.lock -
	@for extra in serve online triton pipeline; do $(BIN)/uv pip compile --universal --fork-strategy fewest --python-version 3.11 -c requirements.lock --extra $$extra --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet -o docker/$$extra.lock pyproject.toml; done
	@printf 'setuptools>=77\ncyclonedx-bom\n' | $(BIN)/uv pip compile --universal --fork-strategy fewest --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet -o docker/build.lock -

clean: ## delete what a run and the tests made; .venv stays
	@rm -rf work .coverage .coverage.* build dist *.egg-info .pytest_cache .hypothesis
