# Two commands set everything up: `make serve` and `make test`.
# They need Python 3.11 or later (PYTHON=python3.12 to choose one) and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
HOST ?= 127.0.0.1
PORT ?= 8000
TARGET ?= cpu
PROFILE ?= cpu
# Tests of one file run one after the other, files side by side.
PARALLEL ?= --numprocesses logical --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help serve install-train docs up down image locks sbom test test-all check format train clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort

# A stamp for each set of dependencies: nothing is installed twice, and a changed
# pyproject.toml or constraints.txt is installed anew.
$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/serve: $(VENV)/made pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

$(VENV)/train: $(VENV)/made pyproject.toml constraints.txt
	$(PIP) --editable '.[train]'
	@touch $@ $(VENV)/serve

$(VENV)/dev: $(VENV)/made pyproject.toml constraints.txt
	$(PIP) --editable '.[train,test,dev]'
	@touch $@ $(VENV)/train $(VENV)/serve

serve: $(VENV)/serve ## Install what the service needs and serve the bundle that ships (HOST, PORT)
	$(BIN)/iafvae serve --host $(HOST) --port $(PORT)

test: $(VENV)/dev ## Install everything and run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not gpu and not data" $(PARALLEL)

test-all: $(VENV)/dev ## Run the slow tests too, and those on full data where IAFVAE_DATA_DIR is set
	$(BIN)/python -m pytest -q

check: $(VENV)/dev ## Lint, format, types, layering, and the files of deploy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck deploy/*.sh .ci/run
	$(BIN)/yamllint -c .yamllint.yml deploy .github tests/deploy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(BIN)/zizmor --quiet --offline .github
	! command -v promtool >/dev/null || promtool check rules deploy/chart/files/rules.yml

format: $(VENV)/dev ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/serve ## Write what is generated: a page, the dashboard
	$(BIN)/iafvae settings --markdown > docs/settings.md
	$(BIN)/python deploy/dashboard.py > deploy/chart/files/dashboard.json

up: ## Serve with Prometheus and Grafana in containers (PROFILE=cpu or cuda)
	REVISION=$$(git rev-parse HEAD) docker compose -f deploy/compose.yaml --profile $(PROFILE) up --build --detach --wait

down: ## Stop them
	docker compose -f deploy/compose.yaml --profile cpu --profile cuda down

image: ## Build the image TARGET (cpu or cuda), labelled with the revision
	docker build --target $(TARGET) --build-arg REVISION=$$(git rev-parse HEAD) \
	  --build-arg SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) -t iafvae:$(TARGET) .

# torch as PyPI has it depends on NVIDIA's libraries at one release each: of constraints that
# contradict it a machine whose torch is built for the CPU knows nothing.
locks: $(VENV)/made ## Write deploy/locks: what the images install, each file at its hash
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --constraint constraints.txt \
	  --extra train --extra test --extra dev --extra cuda pyproject.toml --output-file /dev/null
	mkdir -p build/tools && echo setuptools > build/tools/requirements.txt
	for target in cpu cuda; do $(BIN)/python deploy/service_project.py pyproject.toml $$target build/$$target || exit 1; done
	for target in tools cpu cuda; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --generate-hashes \
	    --constraint constraints.txt build/$$target/requirements.txt --output-file deploy/locks/$$target.txt || exit 1; \
	done

sbom: $(VENV)/dev ## Write sbom.json (CycloneDX) of what the service and its extras install
	rm -rf build/lib # what pip builds here keeps files that are gone
	$(PYTHON) -m venv build/sbom && build/sbom/bin/python -m pip install --quiet --constraint constraints.txt '.[otel,remote]'
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o sbom.json build/sbom

install-train: $(VENV)/train ## Install what training needs (torch and the rest of the extra)

train: $(VENV)/train ## Train the MNIST model (DATA_DIR: where the digits are, or are downloaded to)
	$(BIN)/iafvae-train fit --preset mnist --out runs/mnist $(if $(DATA_DIR),--data-dir $(DATA_DIR))

clean: ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
