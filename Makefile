PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# In the order of the files, for a file of a few long tests must not come last: one worker would wait for the other.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast conformance check fmt reference bench kills faults bench-teacher real-models rivals client-transformers-4 client-llama-cpp client-tuning client-onnx client-llm-compressor client-browser

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-24s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## compress the small model that ships, end to end, then show the report (two minutes)
	$(BIN)/minitron demo

test: $(READY)  ## every test that needs neither an accelerator nor the network
	$(PYTEST) -m "not conformance and not gpu and not network"

conformance: $(READY)  ## every test of the families of which `make test` runs the cheapest
	$(PYTEST) -m conformance

test-fast: $(READY)  ## those of them that take a minute or two in all
	$(PYTEST) -m "not slow and not conformance and not gpu and not network"

check: $(READY)  ## style, types (on macOS too) and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin
	$(BIN)/lint-imports

fmt: $(READY)  ## format and sort imports
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

reference: $(READY)  ## write docs/reference from help texts and docstrings
	$(BIN)/python scripts/reference.py

bench: $(READY)  ## measure speed and memory
	$(BIN)/python -m benchmarks

kills: $(READY)  ## kill trainings a hundred times and compare each with an undisturbed one (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.training_kills --out $(RESULTS)/training-kills.json

faults: $(READY)  ## kill, starve and mislead every command, then write docs/results/reliability.md (40 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.campaign --out docs/results/reliability.md

bench-teacher: $(READY)  ## train the teacher that ships again, for the studies, and compare the two (half an hour)
	$(BIN)/python scripts/bench_teacher.py

real-models: $(READY)  ## assemble pretrained Gemma 3 270M and Qwen2.5-Coder 0.5B in the user's cache (0.7 GB to download)
	$(ONE_THREAD) $(BIN)/python scripts/real_models.py

# Programs that users load a child with, each in an environment of its own. Not part of `make test`: they are downloaded.
CLIENTS := .client-venvs
CHILDREN := $(CLIENTS)/children
RESULTS := benchmarks/results
LLAMA_CPP := 0.3.36
OPTIPFAIR := 0.4.2
TORCH_PRUNING := 1.6.1
TRL := 1.16.0
PEFT := 0.21.2
TORCHAO := 0.18.0
OPTIMUM_ONNX := 0.1.0
ONNXRUNTIME := 1.32.0
LLM_COMPRESSOR := 0.14.0.1
CHROMIUM ?= chromium
ONE_THREAD := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

$(CHILDREN): $(READY) FORCE
	rm -rf $@ && mkdir -p $(CLIENTS)
	$(ONE_THREAD) $(BIN)/python -m tests.clients.write $@

FORCE:

client-transformers-4: $(CHILDREN)  ## read children of every family with transformers 4.57
	test -x $(CLIENTS)/transformers-4/bin/python || $(PYTHON) -m venv $(CLIENTS)/transformers-4
	$(CLIENTS)/transformers-4/bin/pip install -qq transformers==4.57.6 $$(grep ^torch== constraints.txt)
	$(ONE_THREAD) $(CLIENTS)/transformers-4/bin/python tests/clients/run_transformers_4.py \
		$(CHILDREN) $(RESULTS)/client-transformers-4.json

client-llama-cpp: $(CHILDREN)  ## convert children, run and quantize them with llama.cpp (built first: ten minutes)
	test -x $(CLIENTS)/llama-cpp/bin/python || $(PYTHON) -m venv $(CLIENTS)/llama-cpp
	CMAKE_BUILD_PARALLEL_LEVEL=2 CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF" \
		$(CLIENTS)/llama-cpp/bin/pip install -qq llama-cpp-python==$(LLAMA_CPP) safetensors sentencepiece protobuf \
		transformers==4.57.6 $$(grep -E '^(torch|gguf)==' constraints.txt)
	test -d $(CLIENTS)/llama_cpp_python-$(LLAMA_CPP) || { \
		$(CLIENTS)/llama-cpp/bin/pip download -qq --no-deps --no-binary llama-cpp-python -d $(CLIENTS) \
			llama-cpp-python==$(LLAMA_CPP) && \
		tar -xzf $(CLIENTS)/llama_cpp_python-$(LLAMA_CPP).tar.gz -C $(CLIENTS); }
	$(ONE_THREAD) $(CLIENTS)/llama-cpp/bin/python tests/clients/run_llama_cpp.py \
		$(CHILDREN) $(CLIENTS)/llama_cpp_python-$(LLAMA_CPP)/vendor/llama.cpp $(RESULTS)/client-llama-cpp.json

FOR_TOOLS := $(CLIENTS)/for-tools

$(FOR_TOOLS): $(READY) FORCE
	rm -rf $@ && mkdir -p $(CLIENTS)
	$(ONE_THREAD) $(BIN)/python -m tests.clients.write_for_tools $@

client-tuning: $(FOR_TOOLS)  ## fine-tune children with peft and quantize them with torchao
	test -x $(CLIENTS)/tuning/bin/python || $(PYTHON) -m venv $(CLIENTS)/tuning
	$(CLIENTS)/tuning/bin/pip install -qq peft==$(PEFT) torchao==$(TORCHAO) \
		$$(grep -E '^(torch|transformers)==' constraints.txt)
	$(ONE_THREAD) $(CLIENTS)/tuning/bin/python tests/clients/run_tuning.py $(FOR_TOOLS) $(RESULTS)/client-tuning.json

client-onnx: $(FOR_TOOLS)  ## export children with optimum and run them with ONNX Runtime
	test -x $(CLIENTS)/onnx/bin/python || $(PYTHON) -m venv $(CLIENTS)/onnx
	$(CLIENTS)/onnx/bin/pip install -qq optimum-onnx==$(OPTIMUM_ONNX) onnxruntime==$(ONNXRUNTIME) \
		$$(grep ^torch== constraints.txt)
	$(ONE_THREAD) $(CLIENTS)/onnx/bin/python tests/clients/run_onnx.py $(FOR_TOOLS) $(RESULTS)/client-onnx.json

client-llm-compressor: $(FOR_TOOLS)  ## quantize children with llm-compressor: GPTQ, fp8
	test -x $(CLIENTS)/llm-compressor/bin/python || $(PYTHON) -m venv $(CLIENTS)/llm-compressor
	$(CLIENTS)/llm-compressor/bin/pip install -qq llmcompressor==$(LLM_COMPRESSOR) $$(grep ^torch== constraints.txt)
	$(ONE_THREAD) $(CLIENTS)/llm-compressor/bin/python tests/clients/run_llm_compressor.py \
		$(FOR_TOOLS) $(RESULTS)/client-llm-compressor.json

rivals: $(READY)  ## install other pruning libraries beside minitron, for scripts/rivals_study.py
	test -x $(CLIENTS)/rivals/bin/python || $(PYTHON) -m venv $(CLIENTS)/rivals
	$(CLIENTS)/rivals/bin/pip install -qq -c constraints.txt -e . optipfair==$(OPTIPFAIR) \
		torch-pruning==$(TORCH_PRUNING) trl==$(TRL)

client-browser: $(READY)  ## look at the report, and at PAGES=..., in Chromium: three widths, light and dark, printed
	$(ONE_THREAD) $(BIN)/python -m tests.clients.run_browser $(CHROMIUM) $(CLIENTS)/browser $(RESULTS)/client-browser.json $(PAGES)

# Made again when what it was made from has changed. pip takes the pinned versions through the constraints.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
