#!/usr/bin/env bash
# Makes what is released, in target/release-VERSION/: the binary, what is in it (an SBOM in
# CycloneDX), and their checksums. Needs cargo-deny, cargo-cyclonedx and the network:
#
#   cargo install --locked cargo-deny cargo-cyclonedx
#   deploy/release.sh
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in cargo-deny cargo-cyclonedx; do
    command -v "$tool" >/dev/null || { echo "there is no $tool: cargo install --locked $tool" >&2; exit 1; }
done
[ -z "$(git status --porcelain)" ] || { echo "the work tree is not clean: what is released would have no commit" >&2; exit 1; }

cargo deny --locked check
./tests/run
# On a quiet machine: the ratios are of the daemon and its references.
cargo bench --locked --bench e2e -- guard

# Without the feature `faults`, and with no path of this machine in it.
version=$(cargo metadata --locked --no-deps --format-version 1 | sed -n 's/.*"name":"replicator","version":"\([^"]*\)".*/\1/p')
out=target/release-$version
rm -rf "$out"
mkdir -p "$out"
RUSTFLAGS="--remap-path-prefix=$PWD=/replicator --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" \
    cargo build --profile dist --locked --target-dir "target/release-build"
install -m 0755 target/release-build/dist/replicator "$out/replicator"

cargo cyclonedx --format json --override-filename replicator-sbom
mv replicator-sbom.json "$out/replicator.cdx.json"

git rev-parse HEAD >"$out/COMMIT"
(cd "$out" && sha256sum replicator replicator.cdx.json COMMIT >SHA256SUMS && cat SHA256SUMS)
echo "in $out; sign SHA256SUMS, tag the commit"
