#!/usr/bin/env bash
# The linker that rustc calls for Linux and macOS, and the C compiler of build scripts: zig's, for $ZTUN_ZIG_TARGET, less the flags that it does not know or must not get.
set -euo pipefail
flags=()
skip=
for flag in "$@"; do
    if [ -n "$skip" ]; then
        skip=
        continue
    fi
    case "$flag" in
        -arch | -isysroot) skip=yes ;;
        -m64 | --target=* | -liconv | -mmacosx-version-min=*) ;;
        *) flags+=("$flag") ;;
    esac
done
exec "$ZTUN_ZIG_PYTHON" -m ziglang cc -target "$ZTUN_ZIG_TARGET" "${flags[@]}"
