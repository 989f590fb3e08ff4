#!/usr/bin/env bash
# Builds the binary of a release. The same commit, Rust and Debian give the same bytes in every directory,
# as no path of this machine gets into it:
#
#   deploy/build.sh [PROFILE [TARGET_DIR]]
#
# By default the profile `dist` below target/release-build.
set -euo pipefail
cd "$(dirname "$0")/.."

export REPLICATOR_COMMIT=${REPLICATOR_COMMIT:-$(git rev-parse HEAD)}
cargo=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="--remap-path-prefix=$PWD=/replicator --remap-path-prefix=$cargo=/cargo"
# For the parts in C.
export CFLAGS="-ffile-prefix-map=$PWD=/replicator -ffile-prefix-map=$cargo=/cargo"
# Incremental builds number their parts by what was built before.
export CARGO_INCREMENTAL=0
cargo build --locked --profile "${1:-dist}" --target-dir "${2:-target/release-build}"
