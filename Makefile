# make demo | test | test-fallback | test-all | faults | faults-full | lint | docs | wheel | norm-study-quick
# Each sets up .venv first: Python >= 3.10, pip and a C++ compiler suffice.
PYTHON ?= python3
VENV ?= .venv
BIN = $(abspath $(VENV))/bin
# PYTHON here is the interpreter that makes the environment; the scripts below use the one in it.
RUN = PATH="$(BIN):$$PATH" PYTHON=python
# On shared CPUs, waiting threads that spin cost more than they save.
export OMP_WAIT_POLICY ?= PASSIVE

# One process of one thread for each core takes half the time of one process.
PARALLEL = -n auto --maxprocesses 8 --dist worksteal

DEMO_CONFIG = configs/demo/mask_rcnn_r18_fpn_cbn_shapes.py
DEMO_DIR = work_dirs/demo
INSTALLED = $(VENV)/.installed
SOURCES = setup.py pyproject.toml requirements.txt $(wildcard mmdet/ops/csrc/* mmdet/ops/csrc/*/*)

.PHONY: install demo test test-fallback test-all faults faults-full lint docs wheel norm-study-quick clean

install: $(INSTALLED)

$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet setuptools wheel ninja
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --no-build-isolation --no-deps -e .
	$(BIN)/python -m pip install --quiet pytest pytest-xdist hypothesis ruff scikit-learn tensorboard supervision labelformat sahi pandas timm
	$(BIN)/python -m mmdet.ops
	touch $@

# Train on two processes, evaluate on two, draw detections and curves. An interrupted demo is resumed.
# On a machine with one GPU it is one process with the batch of both.
demo: install
	$(RUN) python -m projects.demo.shapes data/shapes
	processes=$$($(RUN) python -c 'import torch; print(min(torch.cuda.device_count() or 2, 2))') && \
	$(RUN) ./tools/dist_train.sh $(DEMO_CONFIG) $$processes --work-dir $(DEMO_DIR) --seed 0 --resume \
		--cfg-options train_dataloader.batch_size=$$((4 / processes)) && \
	$(RUN) python tools/test.py $(DEMO_CONFIG) $$(ls -t $(DEMO_DIR)/best_*.pth | head -1) --gpus $$processes \
		--out $(DEMO_DIR)/results.pkl --eval bbox segm --show-dir $(DEMO_DIR)/detections --show-score-thr 0.5
	$(RUN) mmdet curves $(DEMO_DIR) -o $(DEMO_DIR)/curves.png
	@echo "Detections: $(DEMO_DIR)/detections; loss and AP over time: $(DEMO_DIR)/curves.png"

test: install
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -m "not slow" $(PARALLEL)

# The tests of the ops without the compiled ones, within a memory limit.
test-fallback: install
	$(RUN) python -m pytest tests/ops/test_build.py -k fallback

# Kills, signals, a full disk and fuzz: docs/reliability.md
faults: install
	$(RUN) python tools/dev/faults.py --minutes 10

MINUTES ?= 480
faults-full: install
	$(RUN) python tools/dev/faults.py --minutes $(MINUTES)

test-all: install
	$(RUN) OMP_NUM_THREADS=1 python -m pytest $(PARALLEL)

# The norm study on sklearn's digits at a small scale; projects/norm_study has the larger ones.
norm-study-quick: install
	$(RUN) python -m projects.norm_study.classify --regimes digits-one digits-fc --batches 2 8 --seeds 4 \
		--samples 1024 --out work_dirs/norm_study/classify.json
	$(RUN) python -m projects.norm_study.report --print --results work_dirs/norm_study

# The documentation site, in work_dirs/site. Needs no network once the tools are there.
docs: install
	$(BIN)/python -c 'import mkdocstrings, material' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet mkdocs-material 'mkdocstrings[python]'
	$(RUN) NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict --quiet
	@echo "Open work_dirs/site/index.html"

lint: install
	$(RUN) ruff check .

# For other machines with the same torch and Python: pip install dist/mmdet-*.whl takes seconds and needs no compiler.
wheel: install
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf build *.egg-info mmdet/ops/_C*.so $(INSTALLED)
