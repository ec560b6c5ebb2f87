#!/usr/bin/env bash
# CLAP on a data set, beside zero-shot CLIP with the same templates. Usage: bash scripts/clap/main.sh DATASET SEED [KEY VALUE ...]
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../task.sh" "$0" CLAP "ZeroshotCLIP" "$@"
