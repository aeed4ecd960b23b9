# shellcheck shell=bash
# Builds for systems other than this one. Sourced by build-all.sh in the root of the project; docs/adr/0022-cross-builds.md tells why it is done so.
#
# Where `rustup target add` works, the standard library comes from there. Where it does not (a machine that reaches the registries of Debian and Python only),
# Debian's own compiler compiles it from Debian's own source: the two have to be of one version, so rustup's compiler is of no use for it. Either way zig
# links for Linux and macOS, since it brings their C libraries along, and mingw for Windows. All of it is installed here, and what is built is
# kept in $CROSS_HOME.
#
# What one runs into:
#   - musl: zig supplies the start files, so rustc must not look for its own (-Clink-self-contained=no).
#   - macOS: rustc would strip by a program that Debian does not have, so the linker drops the symbols. Without MACOSX_DEPLOYMENT_TARGET the program asks for the newest
#     macOS. Without SDKROOT, which leads to an empty directory, rustc calls xcrun. No framework can be linked.
#   - Windows: a mere check needs mingw's dlltool. ld would write the time into the program.
#   - wine 8.0 has no bcryptprimitives.dll, where Rust's standard library gets randomness: the tests bring a stand-in along.
#   - `cargo clippy` looks for cargo-clippy in ~/.cargo/bin first, where rustup's is; so Debian's is called by its path.

readonly CROSS_HOME=${ZTUN_CROSS_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/ztun-cross}
readonly CROSS_TARGETS=(
    x86_64-unknown-linux-musl aarch64-unknown-linux-musl x86_64-apple-darwin aarch64-apple-darwin x86_64-pc-windows-gnu
)
# Systems whose apps take the C library.
readonly MOBILE_TARGETS=(aarch64-linux-android aarch64-apple-ios)
readonly ZIG_VERSION=0.17.0
readonly MACOS_MINIMUM=11.0
# What starts programs for other systems.
readonly CROSS_RUNNERS=(wine:wine qemu-aarch64-static:qemu-user-static curl:curl)
# The tests of the core, which need no system.
readonly CORE_TESTS=(--lib --test tcp_conformance --test tcp_sim --test engine_sim --test ip_conformance)

# Whether rustup has the standard library of each target, or gets it.
rustup_has() {
    local target
    command -v rustup >/dev/null || return 1
    for target in "$@"; do
        rustup target list --installed 2>/dev/null | grep -qx "$target" ||
            timeout 300 rustup target add "$target" >/dev/null 2>&1 || return 1
    done
}

# cross_install [PROGRAM:PACKAGE...]: what cross_cargo needs for any target, and those. Says in $CROSS_STD where the standard library comes from:
# `rustup` or `source`. ZTUN_CROSS_STD=source asks for the second where both would do.
cross_install() {
    local programs=()
    CROSS_STD=${ZTUN_CROSS_STD:-}
    [ -n "$CROSS_STD" ] || if rustup_has "${CROSS_TARGETS[@]}" "${MOBILE_TARGETS[@]}"; then CROSS_STD=rustup; else CROSS_STD=source; fi
    if [ "$CROSS_STD" = source ]; then
        programs=(/usr/bin/rustc:rustc-web /usr/bin/cargo:cargo-web /usr/bin/cargo-clippy:rust-web-clippy)
    fi
    [ "$(uname -s)" = Linux ] || { say "this is done on Linux; elsewhere cargo builds for the system that it runs on"; return 1; }
    install_programs "${programs[@]}" x86_64-w64-mingw32-gcc:gcc-mingw-w64-x86-64-win32 file:file "$@"
    # A package without a program, and one whose module is not always there.
    if [ "$CROSS_STD" = source ] && [ ! -f "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ]; then
        install_packages rust-web-src
    fi
    if [ ! -x "$CROSS_HOME/venv/bin/pip" ]; then
        python3 -m venv "$CROSS_HOME/venv" 2>/dev/null || {
            install_packages python3-venv
            /usr/bin/python3 -m venv --clear "$CROSS_HOME/venv"
        }
    fi
    "$CROSS_HOME/venv/bin/pip" install --quiet "ziglang==$ZIG_VERSION"
    mkdir -p "$CROSS_HOME/no-sdk"
    CROSS_OUTPUT=$CROSS_HOME/target-$CROSS_STD
}

# cross_cargo TARGET COMMAND [ARGUMENT...]: cargo for that target.
cross_cargo() (
    local target=$1 command=$2 flags=() cargo=(cargo)
    shift 2
    # What the program tells of files must not depend on where it was built.
    flags=(
        "--remap-path-prefix=$PWD=/ztun"
        "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    )
    if [ "$CROSS_STD" = source ]; then
        export PATH=/usr/bin:/bin:/usr/sbin:/sbin RUSTC_BOOTSTRAP=1 CARGO=/usr/bin/cargo RUSTC=/usr/bin/rustc
        unset RUSTUP_TOOLCHAIN
        cargo=(/usr/bin/cargo)
        [ "$command" != clippy ] || cargo=(/usr/bin/cargo-clippy)
        set -- -Zbuild-std=std,panic_abort "$@"
    fi
    local linker=$ZTUN_ROOT/packaging/zig-cc.sh
    export ZTUN_ZIG_PYTHON=$CROSS_HOME/venv/bin/python
    export ZIG_GLOBAL_CACHE_DIR=$CROSS_HOME/zig ZIG_LOCAL_CACHE_DIR=$CROSS_HOME/zig
    case "$target" in
        *-linux-musl)
            export ZTUN_ZIG_TARGET=${target%%-*}-linux-musl
            flags+=(-Clink-self-contained=no -Crelocation-model=static) ;;
        *-apple-darwin)
            export ZTUN_ZIG_TARGET=${target%%-*}-macos.$MACOS_MINIMUM-none
            export MACOSX_DEPLOYMENT_TARGET=$MACOS_MINIMUM SDKROOT=$CROSS_HOME/no-sdk CARGO_PROFILE_RELEASE_STRIP=none
            flags+=("-Clink-arg=-Wl,-x" "-Clink-arg=-Wl,-S") ;;
        *-windows-gnu)
            linker=$ZTUN_ROOT/packaging/mingw-cc.sh
            flags+=("-Clink-arg=-Wl,--no-insert-timestamp") ;;
        *)
            # What is checked, or put into an archive, is not linked: there is no C library for it here.
            linker=false
            export SDKROOT=$CROSS_HOME/no-sdk ;;
    esac
    flags+=("-Clinker=$linker")
    # A crate of the tests has a line of C.
    export "CC_${target//-/_}=$linker"
    local IFS=$'\x1f'
    export CARGO_ENCODED_RUSTFLAGS="${flags[*]}"
    unset RUSTFLAGS IFS
    export CARGO_TARGET_DIR=$CROSS_OUTPUT
    "${cargo[@]}" "$command" --locked --target "$target" "$@"
)

# How a target is called in what is given away: what people look for.
cross_name() {
    case "$1" in
        *-linux-musl) printf '%s-linux-musl' "${1%%-*}" ;;
        *-apple-darwin) printf '%s-macos' "${1%%-*}" ;;
        *-windows-gnu) printf '%s-windows.exe' "${1%%-*}" ;;
    esac
}

# cross_release [TARGET...]: stripped programs in dist/, listed with size and hash.
cross_release() {
    local target suffix version program targets=("$@")
    [ $# -gt 0 ] || targets=("${CROSS_TARGETS[@]}")
    for target in "${targets[@]}"; do
        [[ " ${CROSS_TARGETS[*]} " = *" $target "* ]] || { say "$target is none of ${CROSS_TARGETS[*]}"; return 2; }
    done
    cross_install "${CROSS_RUNNERS[@]}"
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    mkdir -p dist
    export SOURCE_DATE_EPOCH
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0)
    for target in "${targets[@]}"; do
        say "release for $target"
        suffix=
        [[ $target != *windows* ]] || suffix=.exe
        CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_PROFILE_RELEASE_DEBUG=0 cross_cargo "$target" build --quiet --release --bin ztun
        program="dist/ztun-$version-$(cross_name "$target")"
        install -m 755 "$CROSS_OUTPUT/$target/release/ztun$suffix" "$program"
        cross_look_at "$target" "$program"
    done
    (cd dist && rm -f SHA256SUMS && { sha256sum "ztun-$version"-* 2>/dev/null || shasum -a 256 "ztun-$version"-*; } >SHA256SUMS)
    wc -c "dist/ztun-$version"-* | sed '$!b; / total$/d'
    cat dist/SHA256SUMS
}

# Whether a program is what its name says; and where it can be started here, whether it starts, and carries a transfer through its `ztun proxy`.
cross_look_at() {
    local kind runner=()
    kind=$(file -b "$2")
    case "$1" in
        *-linux-musl) [[ $kind = ELF*"statically linked"* ]] ;;
        *-apple-darwin) [[ $kind = Mach-O* ]] ;;
        *-windows-gnu) [[ $kind = PE32+* ]] ;;
    esac || { say "$2 is no program for $1: $kind"; return 1; }
    case "$1" in
        "$(uname -m)"-*-linux-*) ;;
        aarch64-*-linux-*) runner=(qemu-aarch64-static) ;;
        *-windows-*) cross_wine; runner=(wine) ;;
        *) return ;;
    esac
    "${runner[@]}" "$2" --version | grep -q "^ztun "
    python3 packaging/through.py "${runner[@]}" "$2"
}

# Has wine ready.
cross_wine() {
    export WINEPREFIX=$CROSS_HOME/wine WINEDEBUG=-all WINEPATH=$CROSS_HOME/wine-dlls
    mkdir -p "$WINEPATH"
    x86_64-w64-mingw32-gcc -O2 -shared -s -o "$WINEPATH/bcryptprimitives.dll" packaging/bcryptprimitives.c -ladvapi32
    [ -d "$WINEPREFIX" ] || wine wineboot -i >/dev/null 2>&1
}

# cross_reproduce [TARGET...]: makes the release once more, of a clean clone in another directory with another cache, and compares it with dist/.
cross_reproduce() {
    local place
    [ -s dist/SHA256SUMS ] || { say "there is nothing to compare with: ./build-all.sh release makes it"; return 1; }
    [ -z "$(git status --porcelain)" ] || { say "a clone would not have what is not committed"; return 1; }
    place=$(mktemp -d "${TMPDIR:-/tmp}/ztun-reproduce.XXXXXX")
    # shellcheck disable=SC2064 # The place is known by now.
    trap "rm -rf '$place'" EXIT
    git clone --quiet . "$place/another/place"
    (
        cd "$place/another/place"
        unset CARGO_TARGET_DIR
        ZTUN_CROSS_HOME=$place/cache CARGO_HOME=$place/cargo ./build-all.sh release "$@"
    )
    (cd dist && sha256sum --check "$place/another/place/dist/SHA256SUMS") || { say "not the same octets twice"; return 1; }
    say "the same octets twice"
}

# cross_lib TARGET...: the C library for apps of a phone, in dist/lib-TARGET. An archive needs no linker; the app's has the rest.
cross_lib() {
    local target out
    for target in "$@"; do
        [[ " ${MOBILE_TARGETS[*]} " = *" $target "* ]] || { say "$target is none of ${MOBILE_TARGETS[*]}"; return 2; }
    done
    cross_install
    for target in "$@"; do
        say "the C library for $target"
        CARGO_PROFILE_RELEASE_DEBUG=0 cross_cargo "$target" rustc --quiet --release --lib --features ffi --crate-type staticlib
        out=dist/lib-$target
        mkdir -p "$out"
        install -m 644 "$CROSS_OUTPUT/$target/release/libztun.a" include/ztun.h "$out"
        python3 packaging/exports.py "$out/libztun.a" "$out/ztun.h"
        (cd "$out" && sha256sum -- *)
    done
}

# Lints of what is compiled for each system, the C library among it where there is one.
cross_check() {
    local target
    cross_install
    for target in "${CROSS_TARGETS[@]}"; do
        say "lints for $target"
        case "$target" in
            x86_64-*-linux-* | x86_64-apple-*) cross_cargo "$target" clippy --quiet --lib --bins --features ffi -- -D warnings ;;
            # The tests that only such a system can run.
            *-apple-*) cross_cargo "$target" clippy --quiet --lib --bins --test macos -- -D warnings ;;
            *-windows-*) cross_cargo "$target" clippy --quiet --lib --bins --test windows --test windows_host -- -D warnings ;;
            *) cross_cargo "$target" clippy --quiet --lib --bins -- -D warnings ;;
        esac
    done
    for target in "${MOBILE_TARGETS[@]}"; do
        say "lints of the C library for $target"
        cross_cargo "$target" clippy --quiet --lib --features ffi -- -D warnings
    done
}

# The core's tests on other systems' code: on Windows's under wine, on that of aarch64 under qemu. Of the rest, what takes any octets without opening a socket
# (tests/robustness.rs). What opens sockets or asks a kernel is left to those systems themselves: under wine 8.0 a reset reads as an end of file, and there is no
# TUN; qemu's user mode knows no pidfd and not all of netlink. What wine has of Windows is tested there too (pipes, signals, callbacks, rows of interfaces and
# sockets, the registry, locks): not what only Windows itself has (on_windows_...), which is all that changes routes, name servers and filters.
cross_test() {
    local target
    cross_install "${CROSS_RUNNERS[@]}"
    cross_wine
    export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=wine CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER=qemu-aarch64-static
    for target in x86_64-pc-windows-gnu aarch64-unknown-linux-musl; do
        say "the core's tests on $target"
        cross_cargo "$target" test --quiet --no-fail-fast --no-default-features "${CORE_TESTS[@]}"
        cross_cargo "$target" test --quiet --test robustness
    done
    say "the library's tests on Windows code"
    cross_cargo x86_64-pc-windows-gnu test --quiet --lib -- --skip on_windows_
}
