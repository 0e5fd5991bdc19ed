#!/usr/bin/env bash
# Sets up, builds and runs every test. On 2 cores a bare machine takes about 50 minutes.
#
#   scripts/test.sh [CTEST OPTION ...]      e.g. scripts/test.sh -L unit
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$OFFSHOOT_ROOT"

scripts/setup.sh --cpu --tests
find_cargo || fail "cargo is not in PATH" "Run scripts/setup.sh again."
fetch_demo_model

cmake --preset release -DOFFSHOOT_TESTS=ON >/dev/null
cmake --build --preset release
# The crate is the same one; the fuzz targets' own code is what the sanitizers look at.
cmake --preset fuzz >/dev/null \
  -DOFFSHOOT_TOKENIZER_LIBRARY="$PWD/build/release/trainer/tokenizer/cargo/release/liboffshoot_tokenizer.a"
cmake --build --preset fuzz

export OFFSHOOT_DEMO_MODEL=$DEMO_MODEL
export OFFSHOOT_TEST_PYTHON=$OFFSHOOT_CACHE_DIR/test-python/bin/python
export OFFSHOOT_GRPCURL=$OFFSHOOT_CACHE_DIR/bin/grpcurl
# Threads that wait should not spin: tests share the machine with each other's processes.
export OMP_WAIT_POLICY=passive
ctest --test-dir build/release --output-on-failure "$@"
ctest --test-dir build/fuzz --output-on-failure -L fuzz
