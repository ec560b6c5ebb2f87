#!/usr/bin/env bash
# GOPro on a data set, beside zero-shot CLIP with the same prompt words. Usage: bash scripts/gopro/main.sh DATASET SEED [KEY VALUE ...]
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../task.sh" "$0" GOPro "ZeroshotCLIP" "$@"
