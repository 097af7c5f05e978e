"""What the report's page always says in the same way: its looks, its subjects, its definitions."""

from __future__ import annotations

# Figures are drawn on white: on a dark page their lightness is turned round, their hues are kept.
CSS = """
:root { color-scheme: light dark; --line: #8884; --soft: #6a6a6a; --accent: #D55E00;
  --paper: #fff; --ink: #1a1a1a; --link: #0057a3; }
@media (prefers-color-scheme: dark) {
  :root { --soft: #a0a0a0; --accent: #f08a4b; --paper: #131313; --ink: #e6e6e6; --link: #7db8f0; }
  .drawn { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem;
  background: var(--paper); color: var(--ink); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; }
.soft, figcaption, .legend { color: var(--soft); }
a { color: var(--link); }
.winner { border-left: 4px solid var(--accent); padding: .4rem 1rem; margin: 1rem 0; }
.winner b { font-size: 1.15rem; } .winner p { margin: .35rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .85rem; margin-bottom: .8rem; }
table.words { width: auto; }
th, td { text-align: left; padding: .25rem 0 .25rem .7rem; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { overflow-wrap: normal; vertical-align: bottom; font-weight: 600; }
td.number, th.number { text-align: right; overflow-wrap: normal; }
@media (min-width: 1100px) { td.number { white-space: nowrap; } }
td.rank, th.rank { padding-left: 0; text-align: right; width: 1.6rem; white-space: nowrap; }
td.name, th.name { min-width: 9.5rem; }
tbody tr:has(+ tr.why, + tr.more) td { border-bottom: 0; padding-bottom: 0; }
tr.more td { padding-top: 0; } tr.why td { padding-top: 0; color: var(--soft); } tr.why span { margin-right: .7rem; }
tr.why .yes, tr.why .no { white-space: nowrap; }
tbody.chosen td { font-weight: 600; } tbody.out td { color: var(--soft); }
.legend { padding-left: 0; list-style: none; font-size: .85rem; } .legend li { margin: .15rem 0; }
svg { vertical-align: -1px; margin-right: .35rem; }
figure { margin: 1rem 0; } figure img { display: block; max-width: 100%; border-radius: 4px; }
code { font-size: .88em; }
"""
GROUPS = {
    "Quality": (
        *("val_mse", "val_psnr", "val_highpass_psnr", "val_seg_boundary_miou", "val_rd_loss"),
        *("val_bpp", "val_lpips", "fid", "gfid", "gfid_floor"),
    ),
    "Cost": (
        *("latent_dims", "num_parameters", "macs_per_image", "images_per_sec"),
        *("iteration_sec", "peak_memory_bytes"),
    ),
    "Edits": (
        *("edit_success", "edit_success_Bu", "edit_success_A0", "edit_preservation", "edit_psnr"),
        *("edit_judge_accuracy", "edit_background_l1", "edit_identity", "edit_monotone"),
    ),
    "Latents": (
        *("midpoint_energy", "end_energy", "path_length", "active_units", "spectrum_slope"),
        *("high_frequency_share", "spectrum_kl", "flow_floor", "equivariance_error"),
    ),
}
DEFINITIONS = {
    "val_mse": "mean squared error on [0,1], over whole validation images",
    "val_psnr": "peak signal-to-noise ratio of each image on [0,1], averaged, dB",
    "val_highpass_psnr": "the same of the image's gradients, dB: spatial detail",
    "val_seg_boundary_miou": "IoU of the segmentation near contours (Cheng et al. 2021)",
    "edit_success": "share of edits that a classifier judges as meant (imgtool eval edit)",
    "edit_preservation": "share of the other attributes on which it decides alike of an edit and of "
    "its input",
    "edit_judge_accuracy": "its own accuracy on the real faces among them",
    "gfid": "FID of what a probe generates from the latents, decoded, against the images that were "
    "encoded; ± is from seed to seed of the probe",
    "gfid_floor": "FID of those latents decoded as they are: about what a perfect generator would have",
    "latent_dims": "elements of the latent of one image: channels times height times width",
    "macs_per_image": "multiply-accumulates of one image through the whole network",
    "mse_per_dim": "val_mse over latent_dims; told, never ranked: it always favours the largest",
    "stability": "spread of the relative changes of the last rows",
    "convergence_epochs": "epochs to nine tenths of the whole improvement",
    "midpoint_energy": "gradient energy of the decoded middle between two images over that of its "
    "ends: 1 is as sharp, 0.5 a cross-fade",
    "end_energy": "gradient energy of decoded images over their originals': below 1 is blur",
    "path_length": "perceptual path length in LPIPS (Karras et al. 2019); lower is smoother",
    "spectrum_slope": "of the latent's log power on log frequency: white noise 0, photographs "
    "about -2",
    "high_frequency_share": "of the latent's power above half its Nyquist frequency; white noise "
    "0.8",
    "spectrum_kl": "KL divergence of the latent's spectrum from the pictures' at its size, nats",
    "flow_floor": "least error of a rectified flow on Gaussian data of the latent's spectrum; white "
    "noise 1.57, lower is easier",
    "equivariance_error": "of latents of scaled and rotated images against scaled and rotated "
    "latents, squared, relative",
    "95 %": "confidence interval of the mean over seeds, by the noise of all experiments together",
    "chosen": "share of reruns of the whole phase in which the rule would choose it, by resampling",
    "active_units": "latent channels whose variance over the data exceeds 0.01",
    "kld": "KL divergence from the standard normal, nats an element",
}
