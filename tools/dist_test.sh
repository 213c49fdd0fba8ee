#!/usr/bin/env bash
# Test on GPUS processes of this machine (one per GPU; on CPU where there is no GPU):
#   ./tools/dist_test.sh CONFIG CHECKPOINT GPUS [test.py arguments]
# Several machines: the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [test.py arguments]" >&2
    exit 2
fi
config=$1 checkpoint=$2 gpus=$3
shift 3
exec "${PYTHON:-python}" "$(dirname "$0")/test.py" "$config" "$checkpoint" --gpus "$gpus" "$@"
