#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes: build for the GPU found, the tests on `cuda`, training
# and evaluation from the command line, the memory and race checkers where they are installed, and the benchmarks.
#
#   tools/dev/gpu_check.sh [OUTPUT_FOLDER]        default ${OUT:-work_dirs/gpu_check}
#   PYTHON=python3 tools/dev/gpu_check.sh         another interpreter
#   SECONDS_IN_ALL=1800 tools/dev/gpu_check.sh    other time than 570 s
#   ONLY='build|bench' tools/dev/gpu_check.sh     the steps whose names hold this regular expression
#
# The most important steps run first, each within the time that is left; where it runs out, a second call with ONLY runs
# the rest. A failed step does not stop the others. The last lines name the failed steps; the exit status is their
# number. OUTPUT_FOLDER/summary.txt has the table, STEP.txt each step's output.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-work_dirs/gpu_check}}
python=${PYTHON:-python}
in_all=${SECONDS_IN_ALL:-570}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
failed=()

step() { # name, seconds at most, command
    local name=$1 limit=$2 start=$SECONDS left=$((in_all - SECONDS)) status
    shift 2
    [[ $name =~ ${ONLY:-.} ]] || return 0
    rm -f "$out/$name.txt"
    if [ $left -lt 5 ]; then
        status='NOT RUN: no time left'
    else
        timeout -k 5 $((left < limit ? left : limit)) "$@" >"$out/$name.txt" 2>&1
        status=$?
        case $status in 0) status=ok ;; 124 | 137) status="FAILED (no end within its time)" ;; *) status="FAILED ($status)" ;; esac
    fi
    printf '%-12s %s after %d s\n' "$name" "$status" $((SECONDS - start)) | tee -a "$out/summary.txt"
    if [ "$status" != ok ]; then
        failed+=("$name")
        [ -f "$out/$name.txt" ] && tail -n 15 "$out/$name.txt"
    fi
}

pytest=("$python" -m pytest -q -p no:cacheprovider)
: >"$out/summary.txt"
step machine 20 nvidia-smi
step build 240 env MMDET_CUDA=1 "$python" setup.py build_ext --inplace
step kernels 60 "$python" -c 'import torch, mmdet.ops as ops; print(ops.describe())
assert torch.cuda.is_available() and ops.BUILD.get("cuda") == "1", "every test would be skipped"'
step tests_ops 120 "${pytest[@]}" tests/ops -m 'not slow' -k cuda
step tests_cbn 120 "${pytest[@]}" tests/layers -m cuda
step bench_cbn 60 "$python" benchmarks/cbn.py layers --device cuda --dtype bfloat16
step bench_ops 90 "$python" benchmarks/ops.py --device cuda --repeats 15 --json "$out/ops.json"
step training 150 "${pytest[@]}" tests/tools/test_gpu_training.py -m cuda
step bench_model 60 "$python" benchmarks/cbn.py model --device cuda --size 800 1216 --batch 2
step detectors 90 "${pytest[@]}" tests/models/test_like_cuda.py -m cuda
step bench_whole 90 "$python" benchmarks/detectors.py --device cuda --amp --parts whole --models mask_rcnn --repeats 3
step tests_rest 60 "${pytest[@]}" tests/engine/test_message_hub.py tests/structures tests/models/test_preprocess.py -m cuda
if command -v compute-sanitizer >/dev/null; then
    # Of this project's kernels alone. Without torch's cache of memory, in which one tensor's end is another's start.
    check=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --kernel-name kns=mmdet --report-api-errors no --error-exitcode 1)
    step memcheck 90 "${check[@]}" "${pytest[@]}" tests/ops tests/layers/test_cbn_compiled.py \
        -k 'cuda and (wild or empty or rois or half or other_memory)'
    step racecheck 90 "${check[@]}" --tool racecheck "${pytest[@]}" tests/ops tests/layers/test_cbn_compiled.py \
        -k 'cuda and (ties or any_integers or level_rule or deterministic or few_and_many or rois)'
else
    echo 'memcheck     not run: compute-sanitizer is not installed' | tee -a "$out/summary.txt"
fi
step bench_last 60 "$python" benchmarks/detectors.py --device cuda --amp --parts whole --models mask_rcnn --repeats 3 --channels-last

printf '\n%s, %d s in all:\n' "$(date '+%F %T')" $SECONDS
cat "$out/summary.txt"
[ ${#failed[@]} = 0 ] && echo 'nothing failed' || echo "${#failed[@]} failed: ${failed[*]}"
exit ${#failed[@]}
