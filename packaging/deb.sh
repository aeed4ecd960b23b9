#!/usr/bin/env bash
# deb.sh BINARY ARCHITECTURE NATIVE DIRECTORY: makes ztun_VERSION_ARCHITECTURE.deb of BINARY in DIRECTORY and writes its path to standard output.
#
# NATIVE is a ztun of the same version that runs here: it writes the manual page and the completions. Why this is dpkg-deb and no more:
# docs/adr/0021-packages.md. The same input gives the same octets.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.." || exit
# shellcheck source=packaging/tree.sh
source packaging/tree.sh

if [ $# -ne 4 ]; then
    sed -n '2,5s/^# //p' packaging/deb.sh >&2
    exit 2
fi
binary=$1 architecture=$2 native=$3 directory=$4
version=$("$native" --version | cut -d' ' -f2)
package=$directory/ztun_${version}_$architecture.deb
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

# The newest glibc that the binary asks for; nothing when it is static.
glibc() {
    objdump -T "$binary" 2>/dev/null | grep -o 'GLIBC_[0-9.]*' | sed 's/.*_//' | sort -uV | tail -1
}

# The changelog as Debian writes it, of docs/CHANGELOG.md; the day is that of the commit.
changelog() {
    printf 'ztun (%s) unstable; urgency=medium\n\n' "$version"
    awk -v version="$version" '/^## / { wanted = index($2, version) == 1; next } wanted && /^- / { print "  *" substr($0, 2) } wanted && /^  / { print "  " $0 }' docs/CHANGELOG.md
    printf '\n -- The ztun authors <ztun@localhost>  %s\n' "$(date -R -u -d "@$SOURCE_DATE_EPOCH")"
}

# The licence as a field of the copyright file: indented, with a dot for an empty line.
license() {
    sed '1,/^Copyright/d' LICENSE | sed '1{/^$/d}; s/^$/./; s/^/ /'
}

epoch
installed "$root" "$binary" "$native"
install -d "$root/DEBIAN" "$root/usr/share/zsh/vendor-completions"
"$native" completions zsh >"$root/usr/share/zsh/vendor-completions/_ztun"
changelog | gzip -9n >"$root/usr/share/doc/ztun/changelog.gz"
license | sed -e '/^@LICENSE@$/{r /dev/stdin' -e 'd}' packaging/deb/copyright >"$root/usr/share/doc/ztun/copyright"

needs=$(glibc || true)
size=$(du -sk --apparent-size "$root" | cut -f1)
sed -e "s/@VERSION@/$version/; s/@ARCHITECTURE@/$architecture/; s/@SIZE@/$size/" \
    -e "s/@DEPENDS@/${needs:+Depends: libc6 (>= $needs), libgcc-s1\\n}/" packaging/deb/control >"$root/DEBIAN/control"
echo /etc/ztun/ztun.toml >"$root/DEBIAN/conffiles"
install -m755 packaging/deb/{postinst,prerm,postrm} "$root/DEBIAN"
(cd "$root" && find etc usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
chmod 644 "$root"/DEBIAN/{control,conffiles,md5sums}

mkdir -p "$directory"
dpkg-deb --root-owner-group --build "$root" "$package" >/dev/null
echo "$package"
