#!/usr/bin/env bash
# deb.sh BINARY ARCHITECTURE NATIVE DIRECTORY: makes ztun_VERSION_ARCHITECTURE.deb of BINARY in DIRECTORY and writes its path to standard output.
#
# NATIVE is a ztun of the same version that runs here: it writes the manual page and the completions. Why this is dpkg-deb and no more:
# docs/adr/0021-packages.md. The same input gives the same octets.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.." || exit

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

: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y docs/CHANGELOG.md)}"
export SOURCE_DATE_EPOCH

install -D -m755 "$binary" "$root/usr/bin/ztun"
install -d "$root/usr/lib/systemd/system" "$root/usr/share/man/man1" "$root/usr/share/doc/ztun/examples" "$root/etc/ztun" "$root/DEBIAN" \
    "$root"/usr/share/{bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d}
sed 's|/usr/local/bin/|/usr/bin/|' contrib/systemd/ztun.service >"$root/usr/lib/systemd/system/ztun.service"
"$native" man | gzip -9n >"$root/usr/share/man/man1/ztun.1.gz"
"$native" completions bash >"$root/usr/share/bash-completion/completions/ztun"
"$native" completions zsh >"$root/usr/share/zsh/vendor-completions/_ztun"
"$native" completions fish >"$root/usr/share/fish/vendor_completions.d/ztun.fish"
changelog | gzip -9n >"$root/usr/share/doc/ztun/changelog.gz"
install -m644 README.md docs/HOST-CHANGES.md "$root/usr/share/doc/ztun"
install -m644 contrib/ztun.toml "$root/usr/share/doc/ztun/examples"
license | sed -e '/^@LICENSE@$/{r /dev/stdin' -e 'd}' packaging/deb/copyright >"$root/usr/share/doc/ztun/copyright"
# The proxy is left for the owner of the machine to name; the file may get a password.
sed 's/^socks5 =/#&/' contrib/ztun.toml | install -m600 /dev/stdin "$root/etc/ztun/ztun.toml"

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
