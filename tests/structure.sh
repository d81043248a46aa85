#!/bin/sh
# `mypy --strict`, and that imports run downwards between packages and rooms, on the packages as installed: the folder
# X/ is the package defection.X only there. From copies, so that nothing is built in this tree.
set -eu
bin="${BIN:-$(dirname "$(command -v python3)")}"
tree="$(mktemp -d)"
trap 'rm -rf "$tree"' EXIT
mkdir "$tree/defection"
cp -R activations training probes experiments "$tree/defection/"
touch "$tree/defection/__init__.py"
MYPYPATH="$tree" "$bin/python" -m mypy --strict --config-file pyproject.toml -p defection
PYTHONPATH="$tree" "$bin/lint-imports" --config pyproject.toml --no-cache
