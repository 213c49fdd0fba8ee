#!/usr/bin/env bash
# Train through Slurm:
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] ./tools/slurm_train.sh PARTITION JOB CONFIG WORK_DIR [train.py arguments]
# GPUS_PER_NODE=0 trains on CPU, GPUS then counts processes.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [train.py arguments]" >&2
    exit 2
fi
partition=$1 job=$2 config=$3 work_dir=$4
shift 4
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
tasks_per_node=$((per_node > 0 ? (per_node < gpus ? per_node : gpus) : gpus))
gres=()
if [ "$per_node" -gt 0 ]; then gres=(--gres="gpu:$tasks_per_node"); fi
# shellcheck disable=SC2086
exec srun -p "$partition" --job-name="$job" "${gres[@]}" --ntasks="$gpus" --ntasks-per-node="$tasks_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" --work-dir "$work_dir" --launcher slurm "$@"
