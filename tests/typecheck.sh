#!/bin/sh
# `mypy --strict` on the packages as installed: the folder X/ is the package defection.X only there.
set -eu
bin="${BIN:-$(dirname "$(command -v python3)")}"
tree="$(mktemp -d)"
trap 'rm -rf "$tree"' EXIT
"$bin/python" -m pip install --quiet --no-deps --target "$tree" .
rm -rf build ./*.egg-info
MYPYPATH="$tree" "$bin/python" -m mypy --strict --config-file pyproject.toml -p defection
