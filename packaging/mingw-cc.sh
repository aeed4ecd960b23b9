#!/usr/bin/env bash
# The linker for Windows. mingw's ld sorts what a program imports by the names of the files that it comes from, paths and all: so the order would
# depend on where cargo keeps its sources. Seen from here, such a path begins with a dot everywhere, and sorts before all others.
set -euo pipefail
args=() before=
for arg; do
    [ "$before" != -L ] || arg=$(realpath -ms --relative-to=. "$arg")
    args+=("$arg")
    before=$arg
done
exec x86_64-w64-mingw32-gcc "${args[@]}"
