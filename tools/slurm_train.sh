#!/usr/bin/env bash
# Train through Slurm: ./tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [train.py arguments]
# GPUS, GPUS_PER_NODE and more from the environment: see slurm.sh.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [train.py arguments]" >&2
    exit 2
fi
exec "$(dirname "$0")/slurm.sh" "$1" "$2" train.py "$3" --work-dir "$4" "${@:5}"
