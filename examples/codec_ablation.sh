#!/usr/bin/env bash
# The ablation of the codec's two regularisers: without, each alone, both; four lambdas each, which
# make a rate-distortion curve; then BD-rates.
#
#   examples/codec_ablation.sh --tiny          sixteen trainings of seconds, on two CPU cores
#   examples/codec_ablation.sh [OPTION...]     the ablation; options go to `imgtool sweep`
#
#   PHOTOS=flickr2w           your photographs; without it some pictures are made
#   KODAK=kodak               images to measure on; without it those that were held out
#   EXECUTOR=slurm            trials become jobs of a cluster, and the BD-rates a job after them
#   OUT=out/codec_ablation    BD-rates and the curves' picture
#
# Run it again after a stop: what is done is skipped, what stopped goes on.
set -euo pipefail
out=${OUT:-out/codec_ablation}
size=(--n 2000 --size 512)
trials=experiments/hpcm_phases
case " $* " in *" --tiny "*)
    size=(--n 12 --size 96)
    trials=experiments/hpcm_phases/tiny
    set -- --set data.val_fraction=0.34 "$@"  # four images, for an interval
    ;;
esac
photos=${PHOTOS:-$out/photos}
if [ -z "${PHOTOS-}" ] && [ ! -e "$photos" ]; then
    imgtool data make photos "$photos" "${size[@]}" --seed 0 --quiet
fi

mkdir -p "$out"
measure="imgtool eval bd-rate --sweep $trials --anchor hpcm_phases_baseline ${KODAK:+--data $KODAK}"
# exec: a signal to the job reaches the sweep, which lets its trials save.
exec imgtool sweep hpcm_phases --set data.root="$photos" --executor "${EXECUTOR:-local}" \
    --then "$measure --plot $out/curves.png --json > $out/bd_rates.jsonl" "$@"
