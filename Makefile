# Two commands do everything on a machine with Python >= 3.11, git, make and gcc: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
# DeepSpeed compiles a small communication library on its first CPU start and needs ninja on the PATH for it.
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: install demo test test-docs test-long soak lint docs bench bench-gpu paper-tiny clean
install: $(VENV)/.installed $(VENV)/.languages

# torch is installed by its constraint first: an unpinned one would pull gigabytes of CUDA onto machines without a GPU.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'dft_mm needs Python >= 3.11, this is ' + sys.version)"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt torch
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[eval,demo,docs,dev]"
	$(RUN) -m pip install --quiet --no-deps --constraint constraints.txt ms-vlmeval
	touch $@

# Sandbox and languages of the code benchmarks: tried once, and no reason to fail.
$(VENV)/.languages: scripts/install_languages.sh | $(VENV)/.installed
	sh scripts/install_languages.sh
	touch $@

# A browser for the tests of the page; neither `make install` nor `make demo` needs it.
$(VENV)/.browser: scripts/install_browser.sh | $(VENV)/.installed
	sh scripts/install_browser.sh
	touch $@

demo: install
	$(RUN) -m dft_mm demo

# Two files at a time, with a thread each; what the tests of a file share stays together.
test test-docs: export OMP_NUM_THREADS := 1
test: install $(VENV)/.browser
	$(RUN) -m pytest -m "not long and not gpu and not docs" --numprocesses 2 --dist loadfile --no-loadscope-reorder

# What the pages and examples/ tell to type, typed: five minutes.
test-docs: install
	$(RUN) -m pytest -m "docs and not long" --numprocesses 2

test-long: install
	$(RUN) -m pytest -m "long"

# Faults by the dozen on real two-rank runs: half an hour.
soak: install
	$(RUN) -m pytest -m long -s tests/faults

lint: install
	$(RUN) -m ruff check .

# The pages of docs/ as HTML, into build/docs; a warning is an error.
docs: install
	$(RUN) -m sphinx -q -W --keep-going docs build/docs

# CPU benches against their targets: an hour on two quiet cores, into scripts/bench/results and its README.
# The real rows are those of DATA; without them the benches that want them say so and are left out.
DATA ?= ../shared/data
bench: install
	$(RUN) -m scripts.bench.loss_head --preset cpu
	$(RUN) -m scripts.bench.packing --data $(DATA)
	$(RUN) -m scripts.bench.images --images $(DATA)/mathvision --sizes 640x480 --out scripts/bench/results/images.json
	$(RUN) -m scripts.bench.readme

# The paper's tables and figures, each script whole with tiny models on the sample rows of DATA: half an hour.
PAPER := table1 table2 table3 table4 table5 table6 table7 table8 figure1 figure2 figure3 prompt_diversity
paper-tiny: install
	for name in $(PAPER); do echo "== $$name"; $(RUN) -m scripts.paper.$$name --tiny --data $(DATA) || exit 1; done

# The benches for one large GPU. `make bench-gpu DRY=1` tries all of it in tiny sizes on any machine and keeps no figures;
# `make bench-gpu RUN=python3 INSTALLED=` uses an environment that is there already.
INSTALLED ?= install
bench-gpu: $(INSTALLED)
	$(RUN) -m pytest -m gpu
	$(RUN) -m scripts.bench.loss_head --preset gpu $(if $(DRY),--dry --rounds 1)
	$(RUN) -m scripts.bench.step --preset gpu $(if $(DRY),--dry --warm 1 --timed 1)
	$(if $(DRY),,$(RUN) -m scripts.bench.readme)

clean:
	rm -rf runs build dist
