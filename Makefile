# The front door; CMake does the work.
#   make              installs what is missing (Debian packages) and builds ./orpo
#   make quickstart   the same, gets the real 135M model, trains it on data/samples and shows what changed
#   make test         installs, builds everything and runs every test (with the real model); with clang, it also lets
#                     libFuzzer search each parser for a minute (FUZZ_SECONDS=0: neither clang nor this)
#   make kernel-report   counts what every CUDA kernel asks of memory, and writes docs/kernel-report.md (no GPU needed)
#   make mutation-check  spoils every barrier of the CUDA kernels in turn and shows which test notices (no GPU needed)
#   make profile         one step of one layer under nsys and ncu (on a CPU: the program's own table)
#   make gpu-pack        what tools/gpu_check.sh needs on a machine with a GPU, in one archive (needs nvcc)
# With an NVIDIA driver on the machine the CUDA side is built too, for its GPU (needs the CUDA toolkit's nvcc). CUDA=ON
# builds it anywhere for every target, CUDA=OFF nowhere.
BUILD ?= build
JOBS  ?= $(shell nproc)
FUZZ_SECONDS ?= 60
CUDA  ?= $(if $(wildcard /dev/nvidiactl),native,OFF)
NVCC  := $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
ifeq ($(CUDA),native)
cuda_flags = $(if $(NVCC),-DORPO_CUDA=ON -DCMAKE_CUDA_COMPILER=$(NVCC) -DCMAKE_CUDA_ARCHITECTURES=native,-DORPO_CUDA=OFF)
else
cuda_flags = -DORPO_CUDA=$(CUDA)
endif

.PHONY: all orpo quickstart test kernel-report mutation-check profile gpu-pack setup configure clean
all: orpo

setup:
	@sh tools/setup.sh build

configure: setup
ifeq ($(CUDA)$(NVCC),native)
	@echo "orpo: there is an NVIDIA driver but no nvcc: building for the CPU only. Install the CUDA toolkit to use the GPU" >&2
endif
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release $(cuda_flags) >$(BUILD).log 2>&1 || { cat $(BUILD).log; rm -f $(BUILD).log; exit 1; }
	@rm -f $(BUILD).log

orpo: configure
	cmake --build $(BUILD) -j $(JOBS) --target orpo
	@ln -sf $(BUILD)/orpo orpo

quickstart: orpo
	@sh tools/quickstart.sh

test: orpo
	@sh tools/fetch_model.sh
	cmake --build $(BUILD) -j $(JOBS)
ifneq ($(FUZZ_SECONDS),0)
	@sh tools/setup.sh fuzz
	sh tools/fuzz.sh build
endif
	@cmake -S . -B $(BUILD) -DORPO_FUZZ_SECONDS=$(FUZZ_SECONDS) >/dev/null
	ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)

kernel-report: configure
	cmake --build $(BUILD) -j $(JOBS) --target kernel_report_page

mutation-check: configure
	cmake --build $(BUILD) -j $(JOBS) --target mutation-check

profile: orpo
	@sh tools/profile.sh ./orpo

gpu-pack: setup
	@GPU_PACK_CMAKE="$(if $(NVCC),-DCMAKE_CUDA_COMPILER=$(NVCC)) $(GPU_PACK_CMAKE)" sh tools/gpu_pack.sh build-gpu gpu-pack

clean:
	rm -rf $(BUILD) orpo
