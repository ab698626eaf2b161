#!/bin/sh
# Put ONNX Runtime's C++ headers into a folder: from Debian 13's package libonnxruntime-dev, through this Debian's own
# package source. Nothing is installed.   sh fetch_headers.sh FOLDER
set -eu
folder=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
source=$(grep -ls '^URIs:.*/debian/*$' /etc/apt/sources.list.d/*.sources | head -1)
test -n "$source" || { echo "no Debian package source in /etc/apt/sources.list.d: no headers" >&2; exit 1; }
awk 'BEGIN { RS = ""; ORS = "\n\n" } NR == 1' "$source" | sed 's/^Suites:.*/Suites: trixie/' > "$work/trixie.sources"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/unpacked"
set -- -qq -o Dir::Etc::sourcelist="$work/trixie.sources" -o Dir::Etc::sourceparts=- \
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root
apt-get "$@" update
(cd "$work" && apt-get "$@" download libonnxruntime-dev)
dpkg -x "$work"/libonnxruntime-dev_*.deb "$work/unpacked"
rm -rf "$folder"
mkdir -p "$(dirname "$folder")"
mv "$work/unpacked/usr/include/onnxruntime" "$folder"
