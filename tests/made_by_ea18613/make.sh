#!/usr/bin/env bash
# What lies here was made by commit ea18613 with these commands, and is never made anew: it stands
# for what people's disks hold. IMGTOOL is a Python with imgtool at that commit.
#   IMGTOOL=/path/to/ea18613/.venv/bin/python make.sh EMPTY_FOLDER
set -euo pipefail
IMGTOOL=${IMGTOOL:?}
cd "${1:?an empty folder}"
imgtool() { "$IMGTOOL" -m imgtool "$@"; }

"$IMGTOOL" - <<'PYTHON'
import numpy as np
from pathlib import Path
from PIL import Image

random = np.random.default_rng(0)
photos, faces = Path("data/photos"), Path("data/faces/img_align_celeba")
photos.mkdir(parents=True), faces.mkdir(parents=True)
rows = []
for number in range(12):
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    coarse.resize((72, 64), Image.Resampling.BICUBIC).save(photos / f"p{number:02d}.png")
    coarse.resize((22, 27), Image.Resampling.BICUBIC).save(faces / f"{number + 1:06d}.png")
    rows.append(f"{number + 1:06d}.png {1 if number % 2 else -1:2d}\n")
(faces.parent / "list_attr_celeba.txt").write_text(f"12\nSmiling\n{''.join(rows)}")
PYTHON

common=(--device cpu --threads 1 --num-workers 0 --log-every 1 --keep 1)
common+=(--val-every 2 --save-every 2 --sample-every 100 --num-samples 2)
imgtool train autoencoder --exp-dir autoencoder --data-root data/photos --crop 32 --heads rgb \
  --bottleneck vq --codebook-size 8 --latent-channels 4 --downsampling-steps 2 --base-channels 8 \
  --norm-groups 4 --batch-size 2 --lr 1e-3 --ema-decay 0.9 --schedule cosine --max-iter 4 "${common[@]}"
imgtool train genegan --exp-dir genegan --data-root data/faces --img-sizes 16 24 --img-size 24 \
  --base-channels 4 --norm-groups 4 --batch-size 2 --val-fraction 0.2 --critic-burst 2 --lr 1e-3 \
  --max-iter 4 "${common[@]}"
imgtool train hpcm --exp-dir hpcm --data-root data/photos --model-name HPCM_Tiny --crop 64 \
  --batch-size 1 --lr 1e-4 --optimizer sgd --max-iter 4 "${common[@]}"

# Half of every weight's bits are rounded off, or the archive would have 4 MB.
"$IMGTOOL" - <<'PYTHON'
import torch
from imgtool.experiment.layout import ExperimentDir
from imgtool.training import checkpoint

path = ExperimentDir("hpcm").latest_path.resolve()
read = checkpoint.read(path)
rounded = {
    name: value.bfloat16().float() if value.dtype == torch.float32 else value
    for name, value in read.tensors.items()
}
header = {key: value for key, value in read.header.items() if key not in ("format", "aliases")}
checkpoint.write(path, rounded, header)

# After four iterations every latent is 0: here is a model that has something to code.
model = {name.removeprefix("model.codec."): value for name, value in rounded.items()}
torch.manual_seed(0)
model["scales_hyper"].uniform_(0.5, 3)
model["means_hyper"].uniform_(-2, 2)
model["g_a.0.weight"].mul_(60)
for name in ("h_s.3.reduce", "context.coarse.after.1", "context.fine.after.1"):
    model[f"{name}.bias"][:48].uniform_(2, 8)
checkpoint.write(path.parents[2] / "wide.safetensors", rounded, header)
PYTHON

cat > small.yaml <<'YAML'
family: autoencoder
name: small
model: {latent_channels: 4, downsampling_steps: 2, base_channels: 8, norm_groups: 4, heads: [rgb]}
data: {root: data/photos, crop: 32, num_workers: 0}
train: {batch_size: 2, lr: 1.0e-3, max_iter: 2, val_every: 2, save_every: 2, sample_every: 100,
        log_every: 1, keep: 1, device: cpu, threads: 1}
output: {num_samples: 2}
YAML
cat > sweep.yaml <<'YAML'
sweep: two_rates
root: sweep
experiments: [small.yaml]
matrix: {train.lr: [1.0e-3, 2.0e-3]}
YAML
imgtool sweep sweep.yaml --slots 1

imgtool export wide.safetensors codec.safetensors
rm wide.safetensors
for number in 00 01; do
  imgtool compress data/photos/p$number.png --ckpt codec.safetensors -o p$number.hpcm --device cpu
  imgtool decompress p$number.hpcm --ckpt codec.safetensors -o p$number.png --device cpu
done

tar --sort=name --owner=0 --group=0 --numeric-owner -c -- * | xz -9e > "$OLDPWD/ea18613.tar.xz"
