#!/usr/bin/env bash
# What makes the drawn smile good: four trainings of equal time, each judged by `eval edit`.
#
#   benchmarks/faces_quality.sh                        all four, two hours of two cores each
#   benchmarks/faces_quality.sh base all               some of them
#   MINUTES=10 OUT=/tmp/q benchmarks/faces_quality.sh  a trial
#   ITERATIONS=2000 benchmarks/faces_quality.sh        equal iterations, on however busy a machine
#
# base       what genegan/faces64 was: transposed convolutions, clipped critics, rmsprop
# resize     base, with repetition and a convolution in the joiner
# penalty    base, with r1 in place of clipping, and the loss weights and optimizer that go with it
# all        genegan/faces64 as it is
set -euo pipefail
out=${OUT:-out/faces_quality}
limit=(--max-time "${MINUTES:-120}m")
[ -z "${ITERATIONS-}" ] || limit=(--max-iter "$ITERATIONS" --decay-iterations "$ITERATIONS")
faces=$out/faces

[ -e "$faces" ] || imgtool data make faces "$faces" --n 4000 --aligned --seed 0
# The judge: a classifier that sees no face of the test part either.
[ -e "$out/judge/checkpoints/latest.safetensors" ] ||
    imgtool train attributes --config attributes/tiny --data-root "$faces" --official-split \
        --device cpu --exp-dir "$out/judge"

clipped=(--critic-norm same --critic-loss wasserstein --critic-penalty clip --cycle 1
    --parallelogram 0.01 --optimizer rmsprop --ema-decay 0)
chosen=("$@")
[ $# -gt 0 ] || chosen=(base resize penalty all)
for name in "${chosen[@]}"; do
    case $name in
        base) options=(--upsampling transposed "${clipped[@]}") ;;
        resize) options=("${clipped[@]}") ;;
        penalty) options=(--upsampling transposed) ;;
        all) options=() ;;
        *) echo "$name is none of base, resize, penalty, all" >&2 && exit 2 ;;
    esac
    imgtool train genegan --config genegan/faces64 --data-root "$faces" --official-split \
        --device cpu --threads "${THREADS:-2}" "${limit[@]}" --exp-dir "$out/$name" \
        ${options[@]+"${options[@]}"}
    imgtool eval edit "$out/$name" --judge "$out/judge" --device cpu --n 400 \
        --out "$out/$name/edit.json" --report "$out/$name/edits"
done
