#!/usr/bin/env bash
# Packs a binary as a tarball and as a Debian package, both with manual pages, completions and the unit:
#
#   deploy/package.sh target/dist/replicator DIR
#
# It runs the binary, for the manual pages. The same binary and the same SOURCE_DATE_EPOCH, by default
# the time of the commit, give the same packages on the same release of Debian.
set -euo pipefail
binary=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "$0")/.."
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)} LC_ALL=C
umask 022

# "replicator VERSION (COMMIT, TARGET)"
read -r _ version build <<<"$("$binary" --version)"
build=${build%)}
name=replicator-$version-${build##*[ (]}

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
tree=$stage/$name

# The layout below /usr/local.
put() { install -D -m 0644 "$1" "$tree/$2"; }
install -D -m 0755 "$binary" "$tree/bin/replicator"
strip --strip-unneeded --remove-section=.comment "$tree/bin/replicator"
env -i "$binary" man --dir "$tree/share/man/man1"
for file in bash:bash-completion/completions/replicator zsh:zsh/site-functions/_replicator \
    fish:fish/vendor_completions.d/replicator.fish; do
    env -i "$binary" completions "${file%%:*}" >"$stage/completion"
    put "$stage/completion" "share/${file#*:}"
done
put deploy/replicator.service lib/systemd/system/replicator.service
put deploy/replicator.sysusers lib/sysusers.d/replicator.conf
for file in README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE; do
    put "$file" "share/doc/replicator/$file"
done
for file in deb/replicator.env replicator.toml prometheus/replicator.rules.yml grafana/replicator.json; do
    put "deploy/$file" "share/doc/replicator/examples/${file##*/}"
done
tar -C "$stage" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
    --format=gnu -c "$name" | gzip -n >"$out/$name.tar.gz"
# The names of functions and lines, for addr2line and gdb.
objcopy --only-keep-debug "$binary" "$out/$name.debug"
chmod 0644 "$out/$name.debug"

# Where dpkg-shlibdeps looks.
deb=$stage/debian/replicator
doc=$deb/usr/share/doc/replicator
mkdir -p "$deb/DEBIAN"
cp -r "$tree" "$deb/usr"
sed -i 's#/usr/local/bin/#/usr/bin/#' "$deb/usr/lib/systemd/system/replicator.service"
mv "$deb/usr/share/zsh/site-functions" "$deb/usr/share/zsh/vendor-completions"
install -D -m 0644 deploy/deb/replicator.env "$deb/etc/replicator/replicator.env"
rm "$doc"/LICENSE-* "$doc/examples/replicator.env"
mv "$doc/CHANGELOG.md" "$doc/changelog"
install -m 0644 deploy/deb/copyright "$doc/copyright"
# A pre-release sorts before its release.
package=${version/-/\~}-1
cat >"$doc/changelog.Debian" <<END
replicator ($package) stable; urgency=medium

  * See changelog.gz.

 -- $(sed -n 's/^Maintainer: //p' deploy/deb/control)  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END
gzip -n -9 "$doc"/changelog* "$deb"/usr/share/man/man1/*

for script in postinst prerm postrm; do
    install -m 0755 "deploy/deb/$script" "$deb/DEBIAN/$script"
done
echo /etc/replicator/replicator.env >"$deb/DEBIAN/conffiles"
(cd "$deb" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
# dpkg-shlibdeps runs only beside a source package.
printf 'Source: replicator\n\nPackage: replicator\nArchitecture: any\n' >"$stage/debian/control"
libraries=$(cd "$stage" && dpkg-shlibdeps -O debian/replicator/usr/bin/replicator)
architecture=$(dpkg --print-architecture)
sed -e "s/@VERSION@/$package/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@LIBRARIES@/${libraries#*=}/" \
    -e "s/@SIZE@/$(du -k -s --apparent-size "$deb/usr" | cut -f 1)/" deploy/deb/control >"$deb/DEBIAN/control"
# Level 1 takes a seventh of the time and makes it 15 % larger.
dpkg-deb --root-owner-group -z1 --build "$deb" "$out/replicator_${package}_$architecture.deb"
