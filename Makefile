# The few verbs of this project. Each sets up what it needs, in .venv, and nothing outside it.

# python3 if it fits, else one beside it that does; requires-python in pyproject.toml says the same
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
ifndef PYTHON
PYTHON := $(shell for each in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$each -c '$(FITS)' 2>/dev/null && echo $$each && break; done)
endif
BIN := .venv/bin

.PHONY: demo test docs pictures faults lint nano runner bench true-size clean

demo: .venv/installed  ## export nano to a .pte and to ONNX, prove both, chat with both
	$(BIN)/lfm2-export export nano --recipe xnnpack-int8 --output out/demo-xnnpack --force
	$(BIN)/lfm2-export chat out/demo-xnnpack --prompt "What color is the sky?"
	$(BIN)/lfm2-export export nano --recipe onnx-int8 --output out/demo-onnx --force
	$(BIN)/lfm2-export chat out/demo-onnx --prompt "What color is the sky?"

# one thread for each of the two workers: torch's would wait for each other's cores
test: .venv/installed-test .venv/installed-web .venv/installed-android .venv/installed-runner .venv/installed-runner-asan .venv/installed-oldest .venv/installed-strace .venv/installed-vision .venv/installed-webgpu lint  ## what CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --max-worker-restart=0 --durations=10

docs: .venv/installed-docs  ## README and docs/ as a site, in out/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "python3 -m http.server --bind 127.0.0.1 --directory out/docs 8000"

pictures: .venv/installed-web .venv/installed-vision  ## those of README and docs, drawn and taken anew
	$(BIN)/python docs/pictures/make.py
	LFM2_PICTURES=$(CURDIR)/docs/pictures $(BIN)/python -m pytest -q -k test_a_picture_of \
		runtime_tests/test_report_page.py runtime_tests/test_web_images.py

faults: .venv/installed-test .venv/installed-web .venv/installed-strace  ## every command, failed or killed at every change of the disk: hours
	PYTHONPATH=tests $(BIN)/python -m faults

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for platform in darwin win32; do \
		$(BIN)/mypy --package lfm2_export --platform $$platform --cache-dir .mypy_cache/$$platform || exit 1; done

nano: .venv/installed-test  ## train the embedded nano model anew
	$(BIN)/python training/nano.py

runner: .venv/installed-runner  ## lfm2_runner in C++, for this machine and for ARM64 under qemu

bench: .venv/installed-bench  ## 350M beside llama.cpp, ExecuTorch's own export, genai's and eager: hours; see benchmarks/
	$(BIN)/python -m benchmarks.cpu --target xnnpack --size 350m
	$(BIN)/python -m benchmarks.cpu --target onnx --size 350m

true-size: .venv/installed-test  ## 350M, random weights: every main recipe exported and proven, beside its peers, on one page: 15 to 60 minutes
	$(BIN)/python -m benchmarks.true_size

# --without-pip: Debian's python3 has venv but not ensurepip, which is a package of its own
.venv/bin/python:
	@$(or $(PYTHON),false) -c '$(FITS)' 2>/dev/null || { echo "error: $(or $(PYTHON),python3) is no Python from 3.11 to 3.14;" \
		"install one (Debian and Ubuntu: apt install python3) or name one: make PYTHON=python3.13" >&2; exit 2; }
	$(PYTHON) -m venv --without-pip .venv

.venv/installed: .venv/bin/python pyproject.toml
	@echo "setting up .venv (torch and executorch are large: a minute or two)"
	$(PYTHON) -m pip --python .venv/bin/python install --quiet --editable .
	@touch $@

.venv/installed-test: .venv/installed
	$(PYTHON) -m pip --python .venv/bin/python install --quiet --editable ".[test]"
	@touch $@

.venv/installed-docs: .venv/installed
	$(PYTHON) -m pip --python .venv/bin/python install --quiet --editable ".[docs]"
	@touch $@

# transformers.js, onnxruntime-web and a Chromium for the web tests; no package's script is run
.venv/installed-web: .venv/installed-test runtime_tests/web/package-lock.json
	PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --prefix runtime_tests/web
	@touch $@

# onnxruntime once more in each version that a manifest names as the oldest for its file, beside the current one
.venv/installed-oldest: .venv/installed-test lfm2_export/targets/onnx/target.py
	for version in $$(sed -n 's/^_OLDEST.* = "\([0-9.]*\)".*/\1/p' lfm2_export/targets/onnx/target.py); do \
		test -d .venv/onnxruntime/$$version || $(PYTHON) -m pip --python .venv/bin/python install --quiet --no-deps \
			--target .venv/onnxruntime/$$version onnxruntime==$$version || exit 1; \
	done
	@touch $@

# torchvision apart: PyPI's is built for CUDA, and beside a torch without it transformers could import nothing any more
.venv/installed-vision: .venv/installed-test pyproject.toml
	test -d .venv/torchvision/torchvision || $(PYTHON) -m pip --python .venv/bin/python install --quiet --no-deps \
		--target .venv/torchvision $$(sed -n 's/^ *"\(torchvision==[0-9.]*\)".*/\1/p' pyproject.toml)
	@touch $@

# a GPU in software for the WebGPU tests: Mesa's Vulkan from Debian's packages, unpacked
.venv/installed-webgpu: .venv/installed-test runtime_tests/webgpu/setup.sh runtime_tests/webgpu/debian.sources
	runtime_tests/webgpu/setup.sh .venv/lavapipe
	@touch $@

# Kotlin's compiler, ExecuTorch's Android classes, Debian's Android tools and Java, unpacked; nothing is installed
.venv/installed-android: .venv/installed-test runtime_tests/android/setup.sh runtime_tests/android/debian.sources runtime_tests/android/package-lock.json
	PATH="$(CURDIR)/$(BIN):$$PATH" runtime_tests/android/setup.sh .venv/android
	@touch $@

# a cross compiler, an emulator, ARM64's libraries and a Jinja engine, unpacked there; root is not needed, npm is [test]'s
.venv/runner/fetched: .venv/installed-test runner/fetch.sh runner/text/package-lock.json
	runner/fetch.sh .venv/runner $(BIN)/python
	@touch $@

.venv/installed-runner: .venv/runner/fetched $(wildcard runner/*.cpp runner/*.h runner/text/*.cpp runner/text/*.h) runner/build.sh
	runner/build.sh .venv/runner $(BIN)/python x86_64
	runner/build.sh .venv/runner $(BIN)/python aarch64
	@touch $@

# the same program, made to stop at the first bad access: what the tests give damaged files to
.venv/installed-runner-asan: .venv/installed-runner
	runner/build.sh .venv/runner $(BIN)/python x86_64-asan
	@touch $@

# strace, unpacked there unless it is installed
.venv/installed-strace: .venv/installed-test tests/faults/setup.sh
	tests/faults/setup.sh .venv/strace
	@touch $@

# llama.cpp is compiled here; pip itself is needed for its sources
.venv/installed-bench: .venv/installed
	$(PYTHON) -m pip --python .venv/bin/python install --quiet --editable ".[bench]" pip
	@touch $@

clean:
	rm -rf .venv out build dist runtime_tests/web/node_modules
