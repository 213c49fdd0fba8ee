#!/usr/bin/env bash
# Test through Slurm: ./tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [test.py arguments]
# GPUS, GPUS_PER_NODE and more from the environment: see slurm.sh.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [test.py arguments]" >&2
    exit 2
fi
exec "$(dirname "$0")/slurm.sh" "$1" "$2" test.py "$3" "$4" "${@:5}"
