# Every target sets itself up: a fresh clone needs Python (3.11 or newer), make, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
TRIAL := runs/bench
TESTED := check test cuda-check executors rivals
# As many tests at a time as there are processors, within reason: each process has threads of its own.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 8
AS_PTX := exactly or (finishes and (20-132 or 196-260)) or (integers_and_rounded and 200-264) or (mean-sum and ((test_resident and (333 or 2500 or 400)) or (share_a_set and (4-1 or 1-8))))
COMMA := ,
SPACE := $(subst ,, )
WHEEL_TESTS := test_backend.py test_gpu.py test_network.py \
    test_layout.py::test_every_module_of_the_checkout_can_be_imported \
    $(addprefix test_cli.py::test_,train_writes_a_run the_cpu_backend_end_to_end a_command_line_as_people_use_it) \
    $(addprefix test_cli.py::test_evaluate_,prints_what_train_printed shows_estimators_over_set_sizes)

# Packages are installed without byte code (below): the first import leaves it, whatever the surroundings ask for.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help packages demo test host-test simulator-test check cuda-check gpu ptx-test wheel-test executors-test rivals-test bench bench-trial clean

help:
	@echo "make demo         train a small network on the power-spectrum task; see $(RUN)/"
	@echo "make packages     set up .venv with all that the tests need; the other targets set up what they need themselves"
	@echo "make test         the tests: host-test, then simulator-test"
	@echo "make check        lint, format, types"
	@echo "make cuda-check   compile and assemble all cuda kernels, look at their machine code, run some; needs no GPU"
	@echo "make ptx-test     run what the compiler made of all cuda kernels, on NumPy; needs no GPU"
	@echo "make gpu          on a machine with an NVIDIA GPU: the cuda kernels tested, watched and timed; see bench/gpu.py"
	@echo "make wheel-test   build the wheel, install it elsewhere, import and use everything that is in it"
	@echo "make executors-test  sweeps over MPI and Dask on this machine (installs them)"
	@echo "make rivals-test  compare results with PyTorch and JAX (installs them, CPU builds)"
	@echo "make bench        measure time and memory beside PyTorch and JAX; rewrites the tables and plots of the documents"
	@echo "make bench-trial  run all of that on small work; see $(TRIAL)/"
	@echo "make clean        remove what the other targets made, but not runs/"

# One stamp per set of extras: installed again when the metadata changes.
$(VENV)/.made-%: pyproject.toml setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

# All packages that the tests need, at once. The other targets may run side by side (-j) after this one, which may not.
packages: $(VENV)/.made-packages

# What is imported is compiled then: compiling every file of PyTorch and JAX takes pip almost a minute.
$(VENV)/.made-packages: pyproject.toml setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[$(subst $(SPACE),$(COMMA),$(TESTED))]"
	touch $(TESTED:%=$(VENV)/.made-%) $@

demo: $(VENV)/.made-plot
	rm -rf $(RUN)
	$(BIN)/fastperm train --out $(RUN) --width 64 --depth 4 --batch 32 --learning-rate 2e-3 \
	    --steps 8000 --every 1000 --validate 1024 --seed 0
	$(BIN)/fastperm predict $(RUN) examples/samples.csv --out $(RUN)/samples-spectrum

# Threads of BLAS wait for each other in loops: beside other tests on the same cores, all take twice the time.
host-test simulator-test cuda-check ptx-test: export OMP_NUM_THREADS := 1
host-test simulator-test cuda-check ptx-test: export OPENBLAS_NUM_THREADS := 1

# Each part takes some minutes; with an empty folder of compiled code, more of the first go into compiling.
test: host-test simulator-test

host-test: $(VENV)/.made-test
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

simulator-test: $(VENV)/.made-test
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m cuda \
	    tests/test_cuda_kernels.py tests/test_cuda_arrays.py tests/test_step_queue.py tests/test_simulator.py

check: $(VENV)/.made-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The first leaves PTX where others find it; then some of it runs, without a GPU.
cuda-check: $(VENV)/.made-cuda-check
	$(BIN)/python -m pytest -m machine_code tests/test_cuda_machine_code.py
	FASTPERM_NUMPY_GPU=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m cuda -k "$(AS_PTX)" tests/test_cuda_kernels.py

# All of it, with the layouts of a GPU, and strict: about fifteen minutes.
ptx-test: $(VENV)/.made-cuda-check
	FASTPERM_NUMPY_GPU=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m cuda \
	    tests/test_cuda_kernels.py tests/test_cuda_arrays.py tests/test_step_queue.py

gpu: $(VENV)/.made-test $(VENV)/.made-cuda
	PYTHON=$(BIN)/python bash bench/gpu.sh

# The tests run in another folder, where the checkout cannot stand in for a package that the wheel forgot. These import
# every module of it, and whatever else it needs; what they compute, `make test` has checked.
wheel-test: $(VENV)/.made-check
	rm -rf build dist $(VENV)-wheel
	$(BIN)/python -m build --quiet
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet "$$(echo dist/fastperm-*.whl)[test]"
	$(VENV)-wheel/bin/fastperm --version
	cd tests && ../$(VENV)-wheel/bin/pytest --import-mode=importlib -p no:cacheprovider -q $(WHEEL_TESTS)

executors-test: $(VENV)/.made-executors
	$(BIN)/python -m pytest -m executors tests/test_sweeps.py

rivals-test: $(VENV)/.made-test $(VENV)/.made-rivals
	$(BIN)/python -m pytest -m rivals

# Nothing else should run meanwhile; it takes about half an hour.
bench: $(VENV)/.made-test $(VENV)/.made-rivals
	$(BIN)/python -m pytest bench/bench_train_step.py --benchmark-only --benchmark-json=bench/results/pytest_benchmark.json
	$(BIN)/python bench/machine_rates.py
	$(BIN)/python bench/compare.py
	$(BIN)/python bench/active_units.py
	$(BIN)/python bench/angular_layer.py
	$(BIN)/python bench/scaling.py
	$(BIN)/python bench/memory_growth.py
	$(BIN)/python bench/estimators.py
	$(BIN)/python bench/gpu_host.py
	$(BIN)/python bench/plots.py
	$(BIN)/python bench/table.py

# The same programs on small work: whether they run, not how fast.
bench-trial: $(VENV)/.made-test $(VENV)/.made-rivals
	$(BIN)/python bench/machine_rates.py --quick --out $(TRIAL)/machine_rates.json
	$(BIN)/python bench/compare.py --quick --out $(TRIAL)/networks.json
	$(BIN)/python bench/active_units.py --quick --out $(TRIAL)/active_units.json
	$(BIN)/python bench/angular_layer.py --quick --out $(TRIAL)/angular_layer.json
	$(BIN)/python bench/scaling.py --quick --out $(TRIAL)/scaling.json
	$(BIN)/python bench/memory_growth.py --quick --out $(TRIAL)/memory.json
	$(BIN)/python bench/estimators.py --quick --out $(TRIAL)/optimum.json
	$(BIN)/python bench/gpu_host.py --quick --out $(TRIAL)/gpu_host.json
	$(BIN)/python bench/plots.py --results $(TRIAL) --figures $(TRIAL)
	$(BIN)/python bench/table.py --results $(TRIAL) --show

clean:
	rm -rf $(VENV) $(VENV)-wheel build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
