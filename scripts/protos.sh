#!/usr/bin/env bash
# Regenerates services/charter/v1 and services/charter/spec/schemas from protos/. An argument writes to another root (the
# freshness test does).
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-services}"
python="${PYTHON:-.venv/bin/python}"
export PATH="$(dirname "$python"):$PATH"
mkdir -p "$out"
"$python" -m grpc_tools.protoc -I protos --python_out="$out" --mypy_out="$out" \
  --grpc_python_out="$out" --mypy_grpc_out="$out" protos/charter/v1/*.proto
# Of the contracts as they are in the tree, with the comments in protos/.
PYTHONPATH=services "$python" scripts/schemas.py "$out"
