#!/usr/bin/env bash
# Makes what is released, in target/release-VERSION/: the packages, the symbols, what is in the binary (an
# SBOM in CycloneDX), the commit, and the checksums of all of them. Needs the network and these tools:
#
#   sudo apt-get install build-essential lintian
#   cargo install --locked cargo-deny cargo-cyclonedx
#   deploy/release.sh
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in lintian cargo-deny cargo-cyclonedx; do
    command -v "$tool" >/dev/null || { echo "there is no $tool: see the head of $0" >&2; exit 1; }
done
[ -z "$(git status --porcelain)" ] || { echo "the work tree is not clean: what is released would have no commit" >&2; exit 1; }

cargo deny --locked check
./tests/run
# On a quiet machine: the ratios are of the daemon and its references.
cargo bench --locked --bench e2e -- guard

version=$(cargo metadata --locked --no-deps --format-version 1 | sed -n 's/.*"name":"replicator","version":"\([^"]*\)".*/\1/p')
out=target/release-$version
rm -rf "$out"
# Without the feature `faults`.
deploy/build.sh
deploy/package.sh target/release-build/dist/replicator "$out"
# The first upload to Debian closes a bug there. This is none.
lintian --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs "$out"/*.deb

# With the time of the commit and without a random number.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) cargo cyclonedx --format json --override-filename replicator-sbom
mv replicator-sbom.json "$out/replicator-$version.cdx.json"

git rev-parse HEAD >"$out/COMMIT"
(cd "$out" && sums=$(sha256sum -- *) && echo "$sums" | tee SHA256SUMS)
echo "in $out; sign SHA256SUMS, tag the commit"
