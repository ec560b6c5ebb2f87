#!/usr/bin/env bash
# Zero-shot CLIP on a data set. Usage: bash scripts/zeroshot/main.sh DATASET SEED [KEY VALUE ...]
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../task.sh" "$0" ZeroshotCLIP "" "$@"
