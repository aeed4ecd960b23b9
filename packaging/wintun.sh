#!/usr/bin/env bash
# wintun.sh DIRECTORY: puts wintun.dll into DIRECTORY, and the licence by which it may be passed on, as LICENSE-wintun.txt.
#
# The library is the one that its makers have built and signed. The crate of that name has it among its sources, which Cargo.lock names by their sum.
set -euo pipefail
cd "$(dirname "$0")/.." || exit
readonly SUM=e5da8447dc2c320edc0fc52fa01885c103de8c118481f683643cacc3220dafce

if [ $# -ne 1 ]; then
    sed -n '2,4s/^# //p' packaging/wintun.sh >&2
    exit 2
fi
cargo fetch --quiet --locked --target x86_64-pc-windows-gnu
manifest=$(cargo metadata --quiet --locked --format-version 1 --filter-platform x86_64-pc-windows-gnu |
    grep -o '"manifest_path":"[^"]*wintun-[0-9.]*[^"]*Cargo.toml"' | sed 's/^"manifest_path":"//; s/"$//' | sed 's|\\\\|/|g')
crate=${manifest%/*}
echo "$SUM *$crate/wintun/bin/amd64/wintun.dll" | sha256sum --check --quiet
mkdir -p "$1"
install -m 644 "$crate/wintun/bin/amd64/wintun.dll" "$1/wintun.dll"
install -m 644 "$crate/wintun/LICENSE.txt" "$1/LICENSE-wintun.txt"
