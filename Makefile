# The one entry point, for people and for CI. `make help` lists what there is.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export ORT_DISABLE_TELEMETRY := 1
# Property tests draw the same cases everywhere; `make soak` looks at new ones.
export PROPTEST_RNG_SEED ?= 20

.PHONY: help demo test check lint rust-test python-test soak miri asan aarch64-test bench bench-rust bench-python bench-kernels wheel clean
.DEFAULT_GOAL := help

help: ## print this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# Rebuilt when sources change; a failed install leaves no stamp.
SOURCES := $(shell find rust -name '*.rs' -o -name Cargo.toml) Cargo.toml pyproject.toml

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "requant needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(SOURCES)
	@command -v cargo >/dev/null || { echo 'requant needs a Rust toolchain: https://rustup.rs'; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[ort,images]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(VENV)/.installed ## build, then quantize the shipped model and print its report
	mkdir -p build
	$(BIN)/requant quantize examples/digits/digits.onnx --data examples/digits/calib.npz \
		--eval examples/digits/eval.npz -o build/digits.int8.onnx --report build/report.json
	@ls -l build/digits.int8.onnx build/report.json

test: check rust-test python-test ## everything: format, lints, types, stubs, cargo tests, pytest

check: $(VENV)/.installed-dev ## format, lints and types
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

lint: check ## the same as check

rust-test: ## cargo tests
	cargo test --workspace --exclude requant-py

python-test: $(VENV)/.installed-dev ## pytest
	$(BIN)/python -m pytest

SOAK ?= 20
soak: $(VENV)/.installed-dev ## the property tests on new cases, SOAK rounds of them
	for i in $$(seq $(SOAK)); do \
		PROPTEST_RNG_SEED=$$(date +%s%N) cargo test --quiet --package requant-core --tests || exit 1; done
	$(BIN)/python -m pytest --hypothesis-profile=slow --timeout 0 $$(grep -rl '^@given' tests)

# The next three prove what the tests above cannot see, with tools that are not there everywhere: each says what it lacks.
X86_64  := x86_64-unknown-linux-gnu
AARCH64 := aarch64-unknown-linux-gnu

# Pools of threads are never dropped, and what they stand on obeys the newer of Miri's two aliasing models.
miri: ## the kernels, AVX2 ones too, in an interpreter that finds undefined behaviour and data races
	@cargo +nightly miri --version >/dev/null 2>&1 \
		|| { echo 'make miri needs nightly Rust with Miri: rustup toolchain install nightly --component miri,rust-src'; exit 1; }
	RUSTFLAGS='-C target-feature=+avx2,+fma,+popcnt,+f16c' MIRIFLAGS='-Zmiri-tree-borrows -Zmiri-ignore-leaks' \
		cargo +nightly miri test --package requant-core --test memory --target $(X86_64)

asan: ## cargo tests of the core with AddressSanitizer
	@cargo +nightly --version >/dev/null 2>&1 || { echo 'make asan needs nightly Rust: rustup toolchain install nightly'; exit 1; }
	RUSTFLAGS='-Zsanitizer=address' cargo +nightly test --package requant-core --lib --tests --target $(X86_64)

aarch64-test: ## cargo tests of the core for aarch64, in an emulator
	@command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null && test -d "$$(rustc --print target-libdir --target $(AARCH64))" \
		|| { echo 'make aarch64-test needs: rustup target add $(AARCH64); apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user'; exit 1; }
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64 -L /usr/aarch64-linux-gnu' \
		cargo test --package requant-core --lib --tests --target $(AARCH64)

bench: bench-rust bench-python bench-kernels ## all benchmarks; benches/record holds results

bench-rust: ## criterion benchmarks of the core
	cargo bench --package requant-core

bench-python: $(VENV)/.installed-dev ## pytest benchmarks beside NumPy and onnxruntime, and whole calibration runs
	mkdir -p build
	$(BIN)/python -m pytest benches/python --benchmark-only --benchmark-json=build/bench.json --ignore benches/python/test_lowbit.py
	taskset -c 0 $(BIN)/python -m pytest benches/python/test_lowbit.py --benchmark-only
	$(BIN)/python benches/python/calibration_cost.py
	$(BIN)/python benches/python/planning_cost.py
	$(BIN)/python benches/python/drift_cost.py

bench-kernels: $(VENV)/.installed-dev ## every kernel beside its peers and limits; writes benches/record/kernels-DATE
	$(BIN)/python benches/python/kernels --record benches/record/kernels-$$(date +%F)

wheel: $(VENV)/.installed-dev ## build the wheel into dist
	$(BIN)/maturin build --release --out dist

clean: ## remove what was built
	rm -rf target build dist $(VENV)
