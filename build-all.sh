#!/usr/bin/env bash
# Everything that is done to this project, one command each. `./build-all.sh test` on a new machine installs what it needs and runs every test.
set -euo pipefail
cd "$(dirname "$0")"

# Programs that the tests talk to, and the package of each.
readonly PROGRAMS=(
    microsocks:microsocks danted:dante-server curl:curl iperf3:iperf3 dig:dnsutils dnsperf:dnsperf ip:iproute2 nft:nftables
    ping:iputils-ping ps:procps nc:netcat-openbsd setpriv:util-linux python3:python3 prlimit:util-linux valgrind:valgrind
    systemctl:systemd shellcheck:shellcheck ruby:ruby strip:binutils rpmbuild:rpm
)
# What `bench` needs besides: hev-socks5-tunnel is built from C.
readonly BENCH_PROGRAMS=(pasta:passt make:make cc:gcc)
readonly CARGO_DENY=0.20
readonly ZTUN_ROOT=$PWD
# shellcheck source=packaging/cross.sh
source packaging/cross.sh

usage() {
    cat <<'TEXT'
usage: ./build-all.sh COMMAND
  deps    install the programs that the tests use (Debian packages; root or sudo)
  check   format, lints, documentation, licences, the core without an OS, instructions within their budgets (deps first)
  test    deps, then every test; those that need network namespaces run as root (through sudo for others), or not at all with ZTUN_SKIP_NETNS=1
  lib     the C library, static and shared, with its header and a pkg-config file, into dist/lib (PREFIX: where the file says that it is)
  lib aarch64-linux-android | aarch64-apple-ios   the same for apps of a phone, static, into dist/lib-TARGET
  soak    churn for a day, or for SECONDS: descriptors, memory and tables stay flat (root)
  package [DIRECTORY [HOMEPAGE]]  what is installed, in target/packages: archives, .deb, .rpm, SHA256SUMS, manifests for package managers
  portable             lints and tests of what is the same on every system, on any of them
  system               tests with the real device, routes and DNS of macOS (root, or through sudo) or of Windows (administrator); Linux's are part of test
  bench   micro-benches, then ztun beside hev-socks5-tunnel, tun2proxy, pasta and a plain relay (root; 25 minutes; the options of benches/relay, as --rounds 1)
  release [TARGET...]  programs for Linux (static), macOS and Windows in dist/, with what builds them
  reproduce [TARGET...]  makes the release once more, elsewhere, and compares it with dist/
  cross-check          lints for all of those systems, and of the C library for Android and iOS
  cross-test           the core's tests on Windows code (wine) and on aarch64 (qemu)
  demo    see it work
TEXT
}

say() { printf '== %s\n' "$*"; }

# The packages of those programs, each PROGRAM:PACKAGE, that are not here.
missing_packages() {
    local entry
    for entry in "$@"; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "${entry%%:*}" >/dev/null || printf '%s\n' "${entry##*:}"
    done | sort -u
}

# Installs packages, as root or through sudo.
install_packages() {
    local as_root=()
    say "installing $*"
    command -v apt-get >/dev/null || { say "no apt-get here: install $* yourself"; return 1; }
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo)
    fi
    "${as_root[@]}" apt-get update -qq
    # The servers among them must not be started: the tests start their own.
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Installs what is missing of PROGRAM:PACKAGE...
install_programs() {
    local packages
    mapfile -t packages < <(missing_packages "$@")
    if [ ${#packages[@]} -eq 0 ]; then
        return
    fi
    install_packages "${packages[@]}"
    mapfile -t packages < <(missing_packages "$@")
    if [ ${#packages[@]} -ne 0 ]; then
        say "still missing after the installation: ${packages[*]}"
        return 1
    fi
}

# Installs PROGRAMS, and those that are named.
deps() {
    install_programs "${PROGRAMS[@]}" "$@"
}

cargo_deny() {
    if ! cargo deny --version >/dev/null 2>&1; then
        say "installing cargo-deny"
        # Not optimised: it runs for a second and would take minutes to build.
        CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug "cargo-deny@^$CARGO_DENY"
    fi
    cargo deny --log-level error check licenses bans
}

check() {
    bash -n build-all.sh .ci/run benches/soak.sh packaging/*.sh
    say "format";        cargo fmt --check
    say "lints";         cargo clippy --quiet --locked --all-targets -- -D warnings
    say "the core alone"; cargo clippy --quiet --locked --lib --no-default-features -- -D warnings
    say "documentation"; RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --no-deps --document-private-items
    say "licences and bans"; cargo_deny
    say "other systems"; cross_check
    say "instructions"; deps; cargo bench --quiet --locked --bench instructions
    say "all checks passed"
}

# Has cargo start what it has built as root, when this is somebody else; what cargo writes stays that somebody's.
run_as_root() {
    local host runner
    if [ "$(id -u)" -eq 0 ] || [ "${ZTUN_SKIP_NETNS:-}" = 1 ] || ! command -v sudo >/dev/null; then
        return
    fi
    host=$(rustc -vV | sed -n 's/^host: //p')
    runner="CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$host")_RUNNER"
    export "$runner=sudo -E"
}

tests() {
    deps
    export PATH="$PATH:/usr/sbin:/sbin"
    run_as_root
    say "unit, property, conformance, simulation and namespace tests"
    cargo test --locked --no-fail-fast
    say "all tests passed"
}

# What a program in C needs, for the machine that this runs on.
lib() {
    local out=dist/lib target="${CARGO_TARGET_DIR:-target}/release" version natives said name=()
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    say "the C library $version"
    # Said by the compiler only when it has something to do.
    touch src/lib.rs
    [ "$(uname)" = Linux ] && name=(-C "link-arg=-Wl,-soname,libztun.so")
    said=$(cargo rustc --release --locked --lib --features ffi --crate-type staticlib,cdylib -- \
        --print native-static-libs "${name[@]}" 2>&1) || { printf '%s\n' "$said"; return 1; }
    natives=$(sed -n 's/.*native-static-libs: //p' <<<"$said" | tail -n 1)
    mkdir -p "$out"
    install -m 644 "$target/libztun.a" include/ztun.h "$out"
    install -m 755 "$target/libztun.so" "$out"
    cat >"$out/ztun.pc" <<TEXT
prefix=${PREFIX:-/usr/local}
libdir=\${prefix}/lib
includedir=\${prefix}/include

Name: ztun
Description: Sends what comes out of a TUN device through a SOCKS5 proxy
Version: $version
Cflags: -I\${includedir}
Libs: -L\${libdir} -lztun
Libs.private: $natives
TEXT
    (cd "$out" && sha256sum -- *)
}

bench() {
    deps "${BENCH_PROGRAMS[@]}"
    export PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"
    # One that cannot be had is left out of the tables, with a word.
    cargo build --quiet --release --locked --manifest-path benches/hev/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-target}/hev" ||
        say "hev-socks5-tunnel cannot be built"
    command -v tun2proxy-bin >/dev/null || cargo install --quiet --locked tun2proxy || say "tun2proxy cannot be installed"
    cargo build --release --locked
    cargo bench --locked --bench micro
    cargo bench --locked --bench relay -- "$@"
}

# package [DIRECTORY [HOMEPAGE]]: of the binaries that `release` has made, and of one for this machine where it has made none.
package() {
    local target=${CARGO_TARGET_DIR:-target} binaries=dist version
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    deps
    cargo build --quiet --release --locked
    if ! compgen -G "dist/ztun-$version-*" >/dev/null; then
        binaries=$target/native
        rm -rf "$binaries"
        mkdir -p "$binaries"
        strip -o "$binaries/ztun-$version-$(uname -m)-linux-gnu" "$target/release/ztun"
    fi
    packaging/package.sh "$target/release/ztun" "$binaries" "${1:-target/packages}" "${2:-}"
}

# What any system can do: lints of what is compiled for it, the core's tests, and a program that starts.
portable() {
    cargo clippy --quiet --locked --lib --bins -- -D warnings
    cargo clippy --quiet --locked --lib --no-default-features -- -D warnings
    cargo run --quiet --locked -- --version
    cargo test --quiet --locked --lib --no-default-features
}

# What only the system itself can say, on machines that have it.
system() {
    local tests built=${CARGO_TARGET_DIR:-target}/debug
    case "$(uname -s)" in
        Darwin) tests=(--test macos); run_as_root ;;
        # Beside the program, and beside its tests.
        MINGW* | MSYS*) tests=(--test windows --test windows_host); packaging/wintun.sh "$built"; packaging/wintun.sh "$built/deps" ;;
        *) say "this is for macOS and Windows: ./build-all.sh test does it on Linux"; return 1 ;;
    esac
    cargo test --locked --no-fail-fast --lib "${tests[@]}" -- --test-threads=1
}

case "${1:-}" in
    deps) deps ;;
    check) check ;;
    test) tests ;;
    lib) shift; if [ $# -eq 0 ]; then lib; else cross_lib "$@"; fi ;;
    bench) shift; bench "$@" ;;
    soak) shift; deps; run_as_root; benches/soak.sh "$@" ;;
    release) shift; cross_release "$@" ;;
    reproduce) shift; cross_reproduce "$@" ;;
    cross-check) cross_check ;;
    cross-test) cross_test ;;
    package) shift; package "$@" ;;
    portable) portable ;;
    system) system ;;
    demo) cargo run --quiet --release --locked -- demo ;;
    *) usage; [ "${1:-}" = help ] || exit 2 ;;
esac
