#!/usr/bin/env bash
# Everything that is measured on a GPU: parity with the CPU, exact maps beside bare passes, budgets, placement of nodes.
#   bash benchmarks/gpu.sh [OUTPUT.json] [more options of gpu.py]
# Needs onnxruntime-gpu and torchvision (for untrained, seeded networks); reaches for nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-benchmarks/results/gpu.json}
shift || true
"${PYTHON:-python3}" benchmarks/gpu.py --output "$output" "$@"
