#!/usr/bin/env bash
# Train and test the eight models of configs/cbn on COCO, then print their AP beside the published ones:
#   ./tools/reproduce_paper.sh [--gpus 4] [--work-dir work_dirs/paper] [--only PATTERN] [--as-released] [--cfg-options K=V ...]
# COCO is in data/coco (or --cfg-options data_root=DIR/). After an interruption run it again: finished models are
# skipped, the interrupted one is resumed from its last checkpoint. 4 images per GPU as in the paper; with another
# number of GPUs the learning rate is scaled. --only _cbn_ takes the configs with that in their name, --only mask
# the four with masks. --as-released adds two: what the released CBN layer computed when the table was published.
set -euo pipefail
gpus=4 out=work_dirs/paper only= options=() norms=('' _syncbn _gn _cbn_buffer3_burnin8)
while [ $# -gt 0 ]; do
    case $1 in
        --gpus) gpus=$2; shift 2 ;;
        --work-dir) out=$2; shift 2 ;;
        --only) only=$2; shift 2 ;;
        --as-released) norms+=(_cbn_as_released); shift ;;
        --cfg-options) shift; options=("$@"); break ;;
        -h | --help) sed -n '2,9s/^# //p' "$0"; exit 0 ;;
        *) sed -n '2,9s/^# //p' "$0" >&2; echo "unknown argument: $1" >&2; exit 2 ;;
    esac
done
root=$(cd "$(dirname "$0")/.." && pwd)
extra=()
[ ${#options[@]} -eq 0 ] || extra=(--cfg-options "${options[@]}")

chosen=0
for model in faster mask; do
    for norm in "${norms[@]}"; do
        name=${model}_rcnn_r50_fpn${norm}_1x
        [[ $name == *"$only"* ]] || continue
        chosen=$((chosen + 1))
        config=$root/configs/cbn/$name.py dir=$out/$name
        if [ -e "$dir/ap.json" ]; then
            echo "== $name: done before"
            continue
        fi
        if [ ! -e "$dir/trained" ]; then
            echo "== $name: training"
            "$root/tools/dist_train.sh" "$config" "$gpus" --work-dir "$dir" --resume --auto-scale-lr "${extra[@]}"
            touch "$dir/trained"
        fi
        echo "== $name: testing"
        metrics=(bbox)
        [ $model = faster ] || metrics=(bbox segm)
        rm -rf "$dir/test"
        "$root/tools/dist_test.sh" "$config" "$(cat "$dir/last_checkpoint")" "$gpus" --work-dir "$dir/test" \
            --eval "${metrics[@]}" "${extra[@]}"
        cp "$dir"/test/*/*.json "$dir/ap.json"  # the one file that the Runner leaves: the metrics
    done
done
[ $chosen -gt 0 ] || { echo "--only $only: none of the configs has that in its name" >&2; exit 2; }
"${PYTHON:-python}" "$root/projects/norm_study/paper_table.py" "$out"
