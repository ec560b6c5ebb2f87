#!/usr/bin/env bash
# Runs a task of one method on one data set: task.sh SCRIPT METHOD DEFAULT_REFERENCE DATASET SEED [KEY VALUE ...]
# The scripts in the folders beside this file call it.
set -euo pipefail

if [[ ${1--h} == -h || ${1-} == --help ]]; then
    echo "usage: bash scripts/task.sh SCRIPT METHOD DEFAULT_REFERENCE DATASET SEED [SEED ...] [KEY=VALUE ...]"
    echo "The scripts in the folders beside it call it, such as: bash scripts/gopro/main.sh --help"
    exit 0
fi
script=$1 method=$2 reference=${REFERENCE-$3}
shift 3

usage() {
    cat <<TEXT
usage: bash $script DATASET SEED [SEED ...] [options] [KEY VALUE ...]

Runs $method on DATASET (icons, pacs, vlcs, office_home, ...: a file of configs/datasets, or the path of a yaml file)
with one SEED, or several (1 2 3 or 1,2,3). Finished runs are skipped, broken ones redone; a table ends the output.
KEY VALUE may be KEY=VALUE. The options are those of \`dassl-clip task\`, such as --root DIR and --backbone NAME; they
count more than the environment.

Environment:
  TASK       fewshot, lodo, zeroshot, probe,       default: what the configs say
             attacks, styles, batch, stream,
             online, b2n, xd, dg, or several
  DATA       folder above the data sets            default: what the data set's config says
  OUT        folder above all runs                 default: output
  CFG        config of the method, name or file    default: the data set's own, else vit_b16
  SHOTS      images per class, 0 for all             default: what the data set's config says, else 16
  JOBS       runs at a time                        default: 1 with a GPU, else the number of cores
  REFERENCE  method to compare with, or none       default: ${reference:-none}
  PYTHON     the Python to use                     default: python

examples:
  TASK=fewshot SHOTS=4 bash $script icons 1 OPTIM.MAX_EPOCH=4
  bash $script pacs 1 2 3 --root /path/to/data --backbone ViT-B/16
TEXT
}

for word in "$@"; do
    if [[ $word == -h || $word == --help ]]; then
        usage
        exit 0
    fi
done
if (($# < 2)); then
    usage >&2
    exit 2
fi

python=${PYTHON:-python}
if ! command -v "$python" >/dev/null; then
    echo "error: there is no program '$python': activate the environment of dassl-clip, or set PYTHON" >&2
    exit 2
fi
if ! "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("dassl_clip") is None)'; then
    checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    echo "error: dassl-clip is not installed for $(command -v "$python"):" \
        "$python -m pip install $checkout/toolbox -e $checkout" >&2
    exit 2
fi

options=("--reference=${reference:-none}") # before what was typed, which may change them
[[ -n ${TASK-} ]] && options+=("--task=$TASK")
[[ -n ${DATA-} ]] && options+=("--data=$DATA")
[[ -n ${OUT-} ]] && options+=("--out=$OUT")
[[ -n ${CFG-} ]] && options+=("--config=$CFG")
[[ -n ${SHOTS-} ]] && options+=("--shots=$SHOTS")
[[ -n ${JOBS-} ]] && options+=("--jobs=$JOBS")

export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # idle threads give way to the runs beside them
exec "$python" -m dassl_clip.cli task "${options[@]}" "$method" "$@"
