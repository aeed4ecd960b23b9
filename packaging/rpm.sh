#!/usr/bin/env bash
# rpm.sh BINARY MACHINE NATIVE DIRECTORY: makes ztun-VERSION-1.MACHINE.rpm of BINARY in DIRECTORY and writes its path to standard output.
#
# NATIVE is a ztun of the same version that runs here: it writes the manual page and the completions. What happens on a removal is what packaging/deb/prerm
# does. The same input gives the same octets.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.." || exit
# shellcheck source=packaging/tree.sh
source packaging/tree.sh

if [ $# -ne 4 ]; then
    sed -n '2,5s/^# //p' packaging/rpm.sh >&2
    exit 2
fi
binary=$1 machine=$2 native=$3 directory=$4
version=$("$native" --version | cut -d' ' -f2)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

epoch
installed "$work/tree" "$binary" "$native"
install -d "$work"/tree/usr/share/{zsh/site-functions,licenses/ztun}
"$native" completions zsh >"$work/tree/usr/share/zsh/site-functions/_ztun"
install -m644 LICENSE "$work/tree/usr/share/licenses/ztun"
# rpm tells a removal by the number of versions that are left.
undo() {
    sed -e '1d' -e 's/"\$1" = remove/"$1" -eq 0/' packaging/deb/prerm
}
sed -e "s/@VERSION@/$version/" -e "s|@TREE@|$work/tree|" -e '/^@UNDO@$/{r /dev/stdin' -e 'd}' packaging/rpm/ztun.spec >"$work/ztun.spec" < <(undo)

# Nothing of the machine that builds it is told, the program stays as it is, and gzip is what every rpm can read.
settings=(
    "_topdir $work" "_buildhost localhost" "_binary_payload w9.gzdio"
    "_build_id_links none" "__os_install_post %{nil}" "debug_package %{nil}"
    "use_source_date_epoch_as_buildtime 1" "clamp_mtime_to_source_date_epoch 1" "build_mtime_policy clamp_to_source_date_epoch"
)
rpmbuild -bb --quiet --target "$machine-linux" "${settings[@]/#/--define=}" "$work/ztun.spec" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
mkdir -p "$directory"
package=$directory/ztun-$version-1.$machine.rpm
cp "$work/RPMS/$machine/ztun-$version-1.$machine.rpm" "$package"
echo "$package"
