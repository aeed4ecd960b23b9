#!/usr/bin/env bash
# manifests.sh VERSION HOMEPAGE SUMS DIRECTORY: writes the Homebrew formula, the winget and the scoop manifests of a release into DIRECTORY.
#
# HOMEPAGE is the address of the repository, SUMS the release's SHA256SUMS. In the templates @VERSION@ and @HOMEPAGE@ stand for those, @RELEASE@ for the
# address that the release's files are below, and @SHA256:FILE@ for a sum. A sum that is missing is an error.
set -euo pipefail
cd "$(dirname "$0")" || exit

if [ $# -ne 4 ]; then
    sed -n '2,5s/^# //p' manifests.sh >&2
    exit 2
fi
version=$1 homepage=${2%/} sums=$3 directory=$4

mkdir -p "$directory"
for template in homebrew/ztun.rb winget/*.yaml scoop/ztun.json; do
    file=$directory/${template##*/}
    sed -e "s|@VERSION@|$version|g; s|@RELEASE@|@HOMEPAGE@/releases/download/v$version|g; s|@HOMEPAGE@|$homepage|g" "$template" |
        awk -v sums="$sums" '
            BEGIN { while ((getline line < sums) > 0) { split(line, word, "  "); sum[word[2]] = word[1] } }
            {
                while (match($0, /@SHA256:[^@]*@/)) {
                    name = substr($0, RSTART + 8, RLENGTH - 9)
                    if (!(name in sum)) { print "no sum of " name " in " sums >"/dev/stderr"; exit 1 }
                    $0 = substr($0, 1, RSTART - 1) sum[name] substr($0, RSTART + RLENGTH)
                }
                print
            }' >"$file"
done
