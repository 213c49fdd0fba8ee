#!/usr/bin/env bash
# Run a tool on GPUS processes through Slurm; slurm_train.sh and slurm_test.sh call it:
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] ./tools/slurm.sh PARTITION JOB_NAME TOOL.py [its arguments]
# GPUS_PER_NODE=0 runs on CPU, GPUS then counts processes.
set -euo pipefail
partition=$1 job=$2 tool=$3
shift 3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
tasks_per_node=$((per_node > 0 ? (per_node < gpus ? per_node : gpus) : gpus))
gres=()
if [ "$per_node" -gt 0 ]; then gres=(--gres="gpu:$tasks_per_node"); fi
# shellcheck disable=SC2086
exec srun -p "$partition" --job-name="$job" "${gres[@]}" --ntasks="$gpus" --ntasks-per-node="$tasks_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/$tool" "$@" --launcher slurm
