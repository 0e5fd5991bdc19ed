#!/usr/bin/env bash
# From a bare Debian 12/13 or Ubuntu 24.04 to a fine-tuned model, in one command: installs what is
# missing, builds Offshoot, fetches a small real model and fine-tunes it on this machine.
#
#   scripts/quickstart.sh [--cpu | --cuda] [OPTION OF `offshoot run` ...]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setup_options=()
while [ $# -gt 0 ]; do
  case $1 in
    --cpu | --cuda) setup_options+=("$1") ;;
    -h | --help)
      sed -n '2,/^set/p' "$0" | grep '^#' | cut -c3-
      exit 0
      ;;
    *) break ;;
  esac
  shift
done

cd "$OFFSHOOT_ROOT"
scripts/setup.sh "${setup_options[@]}"
find_cargo || fail "cargo is not in PATH" "Run scripts/setup.sh again."

say "Building Offshoot"
mkdir -p build
cmake --preset release >build/configure.log 2>&1 ||
  fail "CMake failed; the end of build/configure.log:
$(tail -n 15 build/configure.log)" "Correct it, or remove build/ and run this again."
cmake --build --preset release

fetch_demo_model
say "Fine-tuning SmolLM2-135M-Instruct on WordNet definitions"
exec build/release/bin/offshoot run configs/jobs/quickstart.yaml \
  --state-dir "${OFFSHOOT_STATE_DIR:-$OFFSHOOT_CACHE_DIR/quickstart-state}" "$@"
