# What a contributor runs. Needs Python 3.11 or later with pip, and make; everything else goes into .venv.

PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys, pip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PIP := $(PYTHON) -m pip --python .venv/bin/python --disable-pip-version-check --quiet
RUN := .venv/bin/python -m

.PHONY: demo test check coverage mutants docs bench fuzz roundtrips differential differential-qemu clean

demo: .venv/demo.stamp
	.venv/bin/x86tables dump tests/images/linux.core --symbols tests/images/linux.map

test: .venv/test.stamp
	$(RUN) pytest -n auto

check: .venv/check.stamp
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
	$(RUN) pytest tests/test_layers.py

# Lines and branches of the delivery that its tests do not reach: there are none.
coverage: .venv/check.stamp
	$(RUN) coverage run --branch --source=x86tables/delivery -m pytest -p no:xdist \
		$(addprefix tests/test_,$(addsuffix .py,deliver simulate scenarios stacks prove check checks images machine))
	$(RUN) coverage report --show-missing --skip-covered --fail-under=100

# One operator, constant or condition of the delivery changed at a time: does a test notice? Ten minutes on two cores.
mutants: .venv/test.stamp
	.venv/bin/python tests/mutate.py

# What the documents take from the code; then the site, in docs/site.
docs: .venv/check.stamp
	$(RUN) x86tables.checks > docs/rules.md
	$(RUN) x86tables.render.json x86tables/json_schemas
	$(RUN) x86tables completion man > data/share/man/man1/x86tables.1
	rm -rf docs/site
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet
	mv build/site docs/site

# Our deliveries against Bochs' on N machines, on all cores; the same ones for the same SEED.
N := 10000
SEED := 1
differential: .venv/test.stamp
	$(RUN) differential.bochs $(N) --seed $(SEED)

# The same against QEMU's, in one QEMU process: N=5000 takes two minutes.
differential-qemu: N := 5000
differential-qemu: .venv/test.stamp
	$(RUN) differential.qemu $(N) --seed $(SEED)

bench: .venv/bench.stamp
	$(RUN) benchmarks

# Damaged files for every reader and every command that reads one, for ten minutes: make fuzz SECONDS=600 SEED=1
fuzz: .venv/test.stamp
	.venv/bin/python tests/fuzz.py $(or $(SECONDS),600) $(or $(SEED),0)

# A million round trips of every layout: make roundtrips N=1000000
roundtrips: N := 1000000
roundtrips: .venv/test.stamp
	.venv/bin/python tests/roundtrips.py $(N) $(SEED)

clean:
	rm -rf .venv build docs/site *.egg-info

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or later with pip is needed, none was found" >&2; exit 1; }
	$(PYTHON) -m venv --clear --without-pip .venv

# One stamp per set of packages: older than pyproject.toml means install again.
.venv/demo.stamp: pyproject.toml | .venv/bin/python
	$(PIP) install -e .
	@touch $@

# bochscpu-python is a binary wheel: where there is none for this system, the tests that need it are skipped.
.venv/test.stamp: pyproject.toml | .venv/bin/python
	$(PIP) install --only-binary bochscpu-python -e '.[test,bochs]' || $(PIP) install -e '.[test]'
	@touch $@

.venv/check.stamp: .venv/test.stamp
	$(PIP) install -e '.[check]'
	@touch $@

.venv/bench.stamp: pyproject.toml | .venv/bin/python
	$(PIP) install pip -e '.[bench]'  # pip makes the environment whose start-up time is taken
	@touch $@
