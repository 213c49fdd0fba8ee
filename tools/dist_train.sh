#!/usr/bin/env bash
# Train on GPUS processes of this machine (one per GPU; on CPU where there is no GPU):
#   ./tools/dist_train.sh CONFIG GPUS [train.py arguments]
# Several machines: the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [train.py arguments]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
exec "${PYTHON:-python}" "$(dirname "$0")/train.py" "$config" --gpus "$gpus" "$@"
