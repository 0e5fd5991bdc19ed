#!/usr/bin/env bash
# Installs what Offshoot needs to be built: apt packages, Rust, and LibTorch in a per-user cache.
# Idempotent: what is there is not fetched again. Needs root or sudo only for apt.
#
#   scripts/setup.sh [--cpu | --cuda] [--tests]
#
#   --cpu     CPU parts of LibTorch only (the default where no NVIDIA GPU is seen)
#   --cuda    LibTorch with CUDA and NCCL, and nvcc (the default where an NVIDIA GPU is seen)
#   --tests   also what only the tests use: Python with transformers and peft, and grpcurl
#
# A LibTorch of your own (2.11 or newer) is used if CMAKE_PREFIX_PATH names it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

flavour=""
tests=false
while [ $# -gt 0 ]; do
  case $1 in
    --cpu) flavour=cpu ;;
    --cuda) flavour=cuda ;;
    --tests) tests=true ;;
    -h | --help)
      sed -n '2,/^set/p' "$0" | grep '^#' | cut -c3-
      exit 0
      ;;
    *) fail "unknown option: $1" "scripts/setup.sh --help lists the options." ;;
  esac
  shift
done
if [ -z "$flavour" ]; then
  flavour=cpu
  if [ -e /dev/nvidiactl ]; then flavour=cuda; fi
fi

BUILD_PACKAGES=(build-essential cmake ninja-build pkg-config ca-certificates python3-venv python3-pip
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc libabsl-dev libsqlite3-dev
  libcli11-dev libyaml-cpp-dev nlohmann-json3-dev prometheus-cpp-dev
  libspdlog-dev libgtest-dev libgmock-dev libbenchmark-dev libgloo-dev libssl-dev
  libcurl4-openssl-dev libmicrohttpd-dev)

install_rust() {
  find_cargo && return
  # Debian 12 ships a new Rust as rustc-web; others have it under its own name or a versioned one.
  local candidate version
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq || true
  for candidate in cargo cargo-web $(apt-cache search --names-only '^cargo-1\.[0-9]+$' |
    awk '{print $1}' | sort -rV); do
    version=$(apt-cache policy "$candidate" 2>/dev/null | awk '/Candidate:/ {print $2}')
    case $candidate in
      cargo-1.*) version=${candidate#cargo-} ;;
    esac
    version=$(printf '%s' "$version" | grep -oE '[0-9]+\.[0-9]+' | head -n 1 || true)
    if [ -n "$version" ] && version_at_least "$version" "$MINIMUM_RUST"; then
      apt_install "${candidate/cargo/rustc}" "$candidate"
      find_cargo && return
    fi
  done
  fail "no Rust $MINIMUM_RUST or newer was found, and apt offers none" \
    "Install one from https://rustup.rs and run this again."
}

# The user's own LibTorch, if CMAKE_PREFIX_PATH names one (cmake/LibTorch.cmake looks the same way).
user_libtorch() {
  local prefix candidate
  local prefixes=${CMAKE_PREFIX_PATH:-}
  for prefix in ${prefixes//[:;]/ }; do
    for candidate in "$prefix" "$prefix/../.." "$prefix/torch"; do
      if [ -e "$candidate/include/ATen/ATen.h" ]; then
        say "Using the LibTorch at $candidate (CMAKE_PREFIX_PATH)"
        return 0
      fi
    done
  done
  return 1
}

# Fetched and unpacked beside the final place, which appears whole by a rename.
install_libtorch() {
  local target=$OFFSHOOT_CACHE_DIR/libtorch-$TORCH_VERSION-$flavour
  [ -e "$target/torch/lib/libtorch_cpu.so" ] && return
  local needed_gb=3
  [ "$flavour" = cuda ] && needed_gb=14
  mkdir -p "$OFFSHOOT_CACHE_DIR"
  local free_gb
  free_gb=$(df -BG --output=avail "$OFFSHOOT_CACHE_DIR" | tail -n 1 | tr -dc 0-9)
  [ "$free_gb" -ge "$needed_gb" ] ||
    fail "LibTorch ($flavour) needs $needed_gb GB in $OFFSHOOT_CACHE_DIR; $free_gb GB are free" \
      "Free some space, or name another place with OFFSHOOT_CACHE_DIR."
  local work
  work=$(mktemp -d "$OFFSHOOT_CACHE_DIR/.libtorch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  say "Fetching LibTorch $TORCH_VERSION ($flavour) from PyPI"
  if [ "$flavour" = cpu ]; then
    fetch_wheels "$work/wheels" --no-deps "torch==$TORCH_VERSION" \
      "nvidia-cuda-runtime==$CUDA_RUNTIME_VERSION" "nvidia-cuda-cupti==$CUDA_RUNTIME_VERSION"
  else
    fetch_wheels "$work/wheels" "torch==$TORCH_VERSION" 'nvidia-cuda-nvcc==13.2.*' \
      'nvidia-cuda-crt==13.2.*' 'nvidia-cuda-cccl==13.2.*' 'nvidia-nvvm==13.2.*'
  fi
  python3 "$OFFSHOOT_ROOT/scripts/unpack_libtorch.py" "$flavour" "$work/wheels" "$work/unpacked" ||
    fail "the LibTorch wheels could not be unpacked" "Run this again; if it persists, remove $OFFSHOOT_CACHE_DIR."
  rm -rf "$target"
  mv "$work/unpacked" "$target"
  rm -rf "$work"
  trap - EXIT
}

# A Python with the real transformers and peft: tests load published results in them.
install_test_python() {
  local target=$OFFSHOOT_CACHE_DIR/python-$(sha256sum "$OFFSHOOT_ROOT/tests/requirements.txt" | cut -c1-12)
  if [ ! -e "$target/.complete" ]; then
    say "Making a Python for the tests (torch, transformers, peft; about 6 GB)"
    rm -rf "$target"
    python3 -m venv "$target"
    "$target/bin/pip" install --quiet --disable-pip-version-check \
      -r "$OFFSHOOT_ROOT/tests/requirements.txt" ||
      fail "pip could not install tests/requirements.txt" \
        "Check the network and the free space (6 GB) of $OFFSHOOT_CACHE_DIR, then run this again."
    touch "$target/.complete"
  fi
  ln -sfn "$target" "$OFFSHOOT_CACHE_DIR/test-python"
}

install_grpcurl() {
  [ -x "$OFFSHOOT_CACHE_DIR/bin/grpcurl" ] && return
  command -v go >/dev/null || apt_install golang-go
  say "Building grpcurl $GRPCURL_VERSION"
  GOBIN=$OFFSHOOT_CACHE_DIR/bin go install \
    "github.com/fullstorydev/grpcurl/cmd/grpcurl@$GRPCURL_VERSION" ||
    fail "grpcurl could not be built" "Check the network (Go module proxy), then run this again."
}

apt_install "${BUILD_PACKAGES[@]}"
install_rust
user_libtorch || install_libtorch
if [ "$tests" = true ]; then
  apt_install wordnet-base clang libclang-rt-dev clang-format pylint iproute2 slurm-wlm munge
  install_test_python
  install_grpcurl
fi
say "Set-up is complete."
