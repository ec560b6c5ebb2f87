#!/usr/bin/env bash
# CoOp on a data set, beside zero-shot CLIP with the same prompt words. Usage: bash scripts/coop/main.sh DATASET SEED [KEY VALUE ...]
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../task.sh" "$0" CoOp "ZeroshotCLIP" "$@"
