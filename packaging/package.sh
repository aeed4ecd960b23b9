#!/usr/bin/env bash
# package.sh NATIVE BINARIES DIRECTORY [HOMEPAGE]: makes of the binaries what people download, in DIRECTORY.
#
# BINARIES has a program for each system, called ztun-VERSION-MACHINE-SYSTEM, on Windows with .exe. NATIVE is a ztun of the same version that runs here. Made
# are: an archive for each program, a .deb and an .rpm for each of Linux, SHA256SUMS, and with HOMEPAGE, the address of the repository, the manifests of package managers
# (all programs have to be there for them). The same input gives the same octets.
set -euo pipefail
umask 022
here=$(cd "$(dirname "$0")" && pwd)
project=${here%/*}

if [ $# -lt 3 ]; then
    sed -n '2,6s/^# //p' "$here/package.sh" >&2
    exit 2
fi
native=$(realpath "$1") binaries=$(realpath "$2") homepage=${4:-}
mkdir -p "$3"
directory=$(realpath "$3")
: "${SOURCE_DATE_EPOCH:=$(git -C "$project" log -1 --format=%ct 2>/dev/null || stat -c %Y "$project/docs/CHANGELOG.md")}"
export SOURCE_DATE_EPOCH
version=$("$native" --version | cut -d' ' -f2)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What Debian calls the machine that a program is for; nothing for other systems.
debian() {
    case "$1" in
        *-x86_64-linux*) echo amd64 ;;
        *-aarch64-linux*) echo arm64 ;;
    esac
}

# zip FOLDER FILE: an archive without owners, sorted, all of one time.
zip() {
    python3 - "$1" "$2" "$SOURCE_DATE_EPOCH" <<'PY'
import pathlib, sys, time, zipfile
folder, file, when = pathlib.Path(sys.argv[1]), sys.argv[2], time.gmtime(int(sys.argv[3]))[:6]
with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        entry = zipfile.ZipInfo(str(path.relative_to(folder.parent)), when)
        entry.external_attr = 0o100644 << 16
        entry.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(entry, path.read_bytes())
PY
}

# archive NAME PROGRAM: the program and what belongs to it, in a folder called NAME.
archive() {
    local name=$1 folder=$work/$1
    mkdir -p "$folder/share"
    cp "$project/LICENSE" "$project/README.md" "$folder"
    cp "$project/contrib/ztun.toml" "$folder/share"
    case "$name" in
        *-windows)
            "$native" completions powershell >"$folder/share/ztun.ps1"
            cp "$2" "$folder/ztun.exe"
            "$here/wintun.sh" "$folder"
            zip "$folder" "$directory/$name.zip"
            return
            ;;
        *-macos) cp "$here/launchd/ztun.plist" "$folder/share" ;;
        *) cp "$project/contrib/systemd/ztun.service" "$here"/openwrt/ztun.{init,config} "$folder/share" ;;
    esac
    "$native" man >"$folder/share/ztun.1"
    "$native" completions bash >"$folder/share/ztun.bash"
    "$native" completions zsh >"$folder/share/_ztun"
    "$native" completions fish >"$folder/share/ztun.fish"
    install -m755 "$2" "$folder/ztun"
    tar --create --directory "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" "$name" |
        gzip -9n >"$directory/$name.tar.gz"
}

# None of an earlier version stays among the files of this one.
rm -f "$directory"/ztun-*.tar.gz "$directory"/ztun-*.zip "$directory"/ztun_*.deb "$directory"/ztun-*.rpm "$directory/SHA256SUMS"
for program in "$binaries/ztun-$version"-*; do
    name=$(basename "$program" .exe)
    archive "$name" "$program"
    architecture=$(debian "$name")
    if [ -n "$architecture" ]; then
        "$here/deb.sh" "$program" "$architecture" "$native" "$directory" >/dev/null
        name=${name#"ztun-$version-"}
        "$here/rpm.sh" "$program" "${name%%-*}" "$native" "$directory" >/dev/null
    fi
done
cd "$directory"
sha256sum ztun[-_]* >SHA256SUMS
if [ -n "$homepage" ]; then
    "$here/manifests.sh" "$version" "$homepage" "$directory/SHA256SUMS" "$directory/manifests"
fi
cat SHA256SUMS
