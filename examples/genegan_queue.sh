#!/usr/bin/env bash
# The GeneGAN queue: seventeen experiments of three hours each, and FID of each at 128 px.
#
#   examples/genegan_queue.sh --tiny        the whole queue, a minute or less each on two CPU cores
#   examples/genegan_queue.sh               the whole queue, one after the other, and the winner
#   examples/genegan_queue.sh NUMBER        one of them, 1 to 17: an element of a job array
#
#   CELEBA=img_align_celeba    CelebA; without it some faces are drawn
#   OUT=out/genegan_queue      the experiments and the report
#
# Run it again after a stop: what has reached its last iteration is skipped, the others go on for
# another three hours.
set -euo pipefail
queue=(exp00 exp01 exp02 exp02_critics exp03_all exp03_random exp04_group_norm exp05_s2
    exp05_inv_s2 exp06a exp06b exp07_resize exp07_critic_group_norm exp07_gp exp07_r1 exp07_r1r2
    exp07_spectral_norm)
chosen=("${queue[@]}")
tiny=()
num_faces=4000
fid=(--img-size 128 --n 5000)
rule=(--rule fid)
[ -n "${CELEBA-}" ] || fid=(--img-size 128) rule=(--rule fid --set "filters=[]")  # fewer images
for word in "$@"; do
    case $word in
        --tiny)
            tiny=(--tiny)
            num_faces=64
            fid=(--n 4 --weights random)
            rule=(--rule fid --set "filters=[]")
            ;;
        *) chosen=("${queue[word - 1]}") ;;
    esac
done
out=${OUT:-out/genegan_queue}
faces=${CELEBA:-$out/faces}
if [ -z "${CELEBA-}" ] && [ ! -e "$faces" ]; then
    # Elements of an array begin at once: whoever is first names the folder.
    imgtool data make faces "$faces.$$" --n "$num_faces" --seed 0 --quiet
    mv -T "$faces.$$" "$faces" || rm -r "$faces.$$"
fi

train() {  # NAME DIR [OPTION...]: three hours
    local name=$1 dir=$2
    shift 2
    imgtool run-timed --exp-dir "$dir" --duration 3h --keep 2 -- \
        imgtool train genegan --config "genegan/$name" --data-root "$faces" --exp-dir "$dir" \
        ${tiny[@]+"${tiny[@]}"} "$@"
}

failed=0
for name in "${chosen[@]}"; do
    start=()
    if [ "$name" = exp06b ]; then  # begins with the weights of a VQ-VAE
        train vqvae "$out/vqvae"
        start=(--init-vqvae-ckpt "$out/vqvae/checkpoints/latest.safetensors")
    fi
    if ! train "$name" "$out/queue/$name" ${start[@]+"${start[@]}"}; then
        echo "$name has failed: see $out/queue/$name/train.log" >&2
        failed=1
        continue
    fi
    imgtool eval-fid --ckpt "$out/queue/$name" "${fid[@]}" \
        --out "$out/queue/$name/fid_128_n5000.json"
done
if [ ${#chosen[@]} -gt 1 ]; then
    imgtool select-winner "$out"/queue/* "${rule[@]}" --report "$out/report"
fi
exit "$failed"
