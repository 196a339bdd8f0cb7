# The front door; CMake does the work.
#   make        installs what is missing (Debian packages) and builds ./orpo's libraries
#   make test   the same, then runs every test
BUILD ?= build
JOBS  ?= $(shell nproc)

.PHONY: all setup configure test clean
all: configure
	cmake --build $(BUILD) -j $(JOBS)

setup:
	@sh tools/setup.sh

configure: setup
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release

test: all
	ctest --test-dir $(BUILD) --output-on-failure

clean:
	rm -rf $(BUILD)
