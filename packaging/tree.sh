# shellcheck shell=bash
# What every package of Linux installs. Sourced by deb.sh and rpm.sh in the root of the project.

# installed ROOT BINARY NATIVE: the files that all packages have, below ROOT; NATIVE is a ztun of the same version that runs here.
installed() {
    local root=$1 binary=$2 native=$3
    install -D -m755 "$binary" "$root/usr/bin/ztun"
    install -d "$root/usr/lib/systemd/system" "$root/usr/share/man/man1" "$root/usr/share/doc/ztun/examples" "$root/etc/ztun" \
        "$root"/usr/share/{bash-completion/completions,fish/vendor_completions.d}
    sed 's|/usr/local/bin/|/usr/bin/|' contrib/systemd/ztun.service >"$root/usr/lib/systemd/system/ztun.service"
    "$native" man | gzip -9n >"$root/usr/share/man/man1/ztun.1.gz"
    "$native" completions bash >"$root/usr/share/bash-completion/completions/ztun"
    "$native" completions fish >"$root/usr/share/fish/vendor_completions.d/ztun.fish"
    install -m644 README.md docs/HOST-CHANGES.md "$root/usr/share/doc/ztun"
    install -m644 contrib/ztun.toml "$root/usr/share/doc/ztun/examples"
    # The proxy is left for the owner of the machine to name; the file may get a password.
    sed 's/^socks5 =/#&/' contrib/ztun.toml | install -m600 /dev/stdin "$root/etc/ztun/ztun.toml"
}

# Of what time the files are: the commit's.
epoch() {
    : "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y docs/CHANGELOG.md)}"
    export SOURCE_DATE_EPOCH
}
