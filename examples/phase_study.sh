#!/usr/bin/env bash
# The autoencoder study: the shape of the latent, variational or not, the weights of the losses, the
# final training. The winner of each phase is written into the configs of the next.
#
#   examples/phase_study.sh --tiny          eighteen trainings of a minute or less, on two CPU cores
#   examples/phase_study.sh [OPTION...]     the study; options go to `imgtool sweep`, e.g. --slots 2
#
#   LAYOUTS=layouts.csv     your floor plans; without it some are made
#   EXECUTOR=lsf            trials become jobs of a cluster: lsf, slurm or cluster
#   OUT=out/phase_study     configs, winners and reports
#
# Run it again after a stop: what is done is skipped, what stopped goes on.
set -euo pipefail
out=${OUT:-out/phase_study}
executor=(--executor local)
case ${EXECUTOR:-local} in local) ;; *) executor=(--executor "$EXECUTOR" --wait) ;; esac
size=(--n 2000 --size 512)
case " $* " in *" --tiny "*) size=(--n 60 --size 64) ;; esac
mkdir -p "$out"
layouts=${LAYOUTS:-$out/layouts/layouts.csv}
if [ -z "${LAYOUTS-}" ] && [ ! -e "$layouts" ]; then
    imgtool data make layouts "$out/layouts" "${size[@]}" --seed 0 --quiet
fi
[ -e "$out/configs" ] || imgtool presets copy phase1 "$out/configs" --quiet

phase() {  # train a phase; choose its winner
    local name=$1
    shift
    imgtool sweep "$out/configs/$name.yaml" --set data.manifest="$layouts" "${executor[@]}" "$@" |
        imgtool select-winner - --report "$out/report/$name" | tee "$out/$name.winner.json"
}
phase phase1_1 "$@" | imgtool update-config "$out"/configs/phase1_2/*.yaml
phase phase1_2 "$@" | imgtool update-config "$out"/configs/phase1_3/*.yaml
phase phase1_3 "$@" | imgtool update-config "$out"/configs/phase1_final/*.yaml
phase phase1_final "$@"
