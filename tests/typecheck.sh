#!/bin/sh
# `mypy --strict` on the packages as installed: the folder X/ is the package defection.X only there. From copies, so that
# nothing is built in this tree, where an editable install may keep its links.
set -eu
bin="${BIN:-$(dirname "$(command -v python3)")}"
tree="$(mktemp -d)"
trap 'rm -rf "$tree"' EXIT
mkdir "$tree/defection"
cp -R activations training probes experiments "$tree/defection/"
MYPYPATH="$tree" "$bin/python" -m mypy --strict --config-file pyproject.toml -p defection
