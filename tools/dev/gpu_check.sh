#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes: build for the GPU found, the tests on `cuda`, the
# memory checker where it is installed, and the benchmarks.
#
#   tools/dev/gpu_check.sh [OUTPUT_FOLDER]        default ${OUT:-work_dirs/gpu_check}
#   PYTHON=python3 tools/dev/gpu_check.sh         another interpreter
#
# Each step goes on when the one before fails; the exit status is the number of failed steps.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-work_dirs/gpu_check}}
python=${PYTHON:-python}
mkdir -p "$out"
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
failed=0

step() { # name, seconds, command
    local name=$1 limit=$2
    shift 2
    local start=$SECONDS
    timeout "$limit" "$@" >"$out/$name.txt" 2>&1
    local status=$?
    printf '%-12s %s after %d s\n' "$name" "$([ $status = 0 ] && echo ok || echo "FAILED ($status)")" $((SECONDS - start)) |
        tee -a "$out/summary.txt"
    if [ $status != 0 ]; then
        failed=$((failed + 1))
        tail -n 15 "$out/$name.txt"
    fi
}

: >"$out/summary.txt"
step machine 20 nvidia-smi
step build 300 env MMDET_CUDA=1 "$python" setup.py build_ext --inplace
step kernels 60 "$python" -m mmdet.ops
step tests_ops 150 "$python" -m pytest -q -p no:cacheprovider tests/ops -m 'not slow' -k cuda
step tests_cuda 120 "$python" -m pytest -q -p no:cacheprovider tests -m cuda --ignore tests/ops
step bench_ops 120 "$python" benchmarks/ops.py --device cuda --json "$out/ops.json"
step bench_cbn 60 "$python" benchmarks/cbn.py layers --device cuda --dtype bfloat16
step bench_model 60 "$python" benchmarks/cbn.py model --device cuda --size 800 1216 --batch 2
step bench_whole 90 "$python" benchmarks/detectors.py --device cuda --amp --parts whole --models mask_rcnn --repeats 3
if command -v compute-sanitizer >/dev/null; then
    step memcheck 120 compute-sanitizer --error-exitcode 1 "$python" -m pytest -q -p no:cacheprovider tests/ops \
        tests/layers/test_cbn_compiled.py -k 'cuda and (wild or empty or rois)'
else
    echo 'memcheck     not run: compute-sanitizer is not installed' | tee -a "$out/summary.txt"
fi
exit $failed
