"""The presets that ship: every one is complete, and says what the study's tables say."""

from __future__ import annotations

import dataclasses
import re
from functools import cache

import pytest
from ruamel.yaml import YAML

from imgtool.config import presets
from imgtool.config.load import load
from imgtool.config.schema import Experiment, FamilySchema
from imgtool.models import registry

NAMES = presets.names()
TOP = {"name", "phase", "base", "family"}
# channels, halvings, side of the latent at 512 px, queue
SWEEP = {
    "S1": (16, 4, 32, "gpuv100"),
    "S2": (8, 3, 64, "gpuv100"),
    "S3": (4, 3, 64, "gpuv100"),
    "S4": (8, 4, 32, "gpuv100"),
    "S5": (16, 5, 16, "gpuv100"),
    "S6": (32, 4, 32, "gpuv100"),
    "S7": (4, 4, 32, "gpuv100"),
    "S8": (8, 5, 16, "gpuv100"),
    "S9": (16, 3, 64, "gpuv100"),
    "S10": (2, 3, 64, "gpuv100"),
    "S11": (8, 6, 8, "gpul40s"),
    "S12": (4, 2, 128, "gpul40s"),
}
BASES = {"phase1_1/base", "genegan/base"}  # never run as they are
STUDY = [name for name in NAMES if re.match(r"(phase|legacy)", name)]


@cache
def get(name: str, *, tiny: bool = False) -> Experiment:
    return load(name, family=None, schema_of=registry.schema, tiny=tiny).experiment


def parsed(name: str) -> dict:
    content: dict = YAML(typ="safe").load(presets.text(name))
    return content


def family_of(name: str) -> str:
    """The family, from the file or from its base."""
    content = parsed(name)
    if "family" in content:
        return str(content["family"])
    base = presets.base_of(name, content["base"])
    assert base is not None, f"{name}: no base {content['base']}"
    return family_of(base)


def schema_of(name: str) -> FamilySchema:
    return registry.schema(family_of(name))


def test_the_whole_study_is_there():
    expected = {f"phase1_1/{name}" for name in (*SWEEP, "base")}
    expected |= {"phase1_2/V1", "phase1_2/V2", "phase1_final/final"}
    expected |= {"photos/base", "photos/kl", "photos/quick"}
    expected |= {f"phase1_3/F{n}" for n in (1, 2, 3)} | {f"legacy_1_2/R{n}" for n in (1, 2, 3)}
    expected |= {f"legacy_1_1/L{n}" for n in range(1, 6)}
    assert expected <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_keys_exist_and_each_file_says_how_to_run_it(name):
    sections = schema_of(name).section_types()
    for key, values in parsed(name).items():
        if key in TOP:
            continue
        fields = {field.name for field in dataclasses.fields(sections[key])}
        assert set(values) <= fields
    title, command = presets.text(name).splitlines()[:2]
    assert title.startswith("# ")
    if name in BASES:
        assert command == f"# imgtool presets copy {name.partition('/')[0]} experiments"
    else:
        start = f"# imgtool train {family_of(name)} --config {name} "
        assert command.startswith(start)


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_loads(name, tiny):
    experiment = get(name, tiny=tiny)
    assert (experiment.train.max_iter == schema_of(name).tiny["train.max_iter"]) == tiny
    assert experiment.data.manifest is None
    assert experiment.data.root is None


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_has_a_name_of_its_own(name):
    if name in BASES:
        return
    assert parsed(name)["name"] == get(name).name
    assert [get(other).name for other in NAMES].count(get(name).name) == 1


@pytest.mark.parametrize("name", STUDY)
def test_the_study_shares_its_recipe(name):
    experiment = get(name)
    data, model, train = experiment.data, experiment.model, experiment.train
    assert (data.dataset, data.image_size, data.crop) == ("layouts", 512, None)
    assert (train.optimizer, train.lr, train.weight_decay) == ("adamw", 1e-4, 0.01)
    assert (train.batch_size, train.seed, data.split_seed) == (16, 42, 42)
    assert (train.val_every, train.save_every, train.sample_every) == ("1ep", "5ep", "5ep")
    assert (train.min_delta, train.precision, train.restore_best) == ("1%", "32", True)
    is_final = name.startswith("phase1_final")
    assert (train.epochs, train.patience) == ((50, 5) if is_final else (10, 3))
    assert set(model.heads) == {"rgb", "segmentation", "classification"}
    assert experiment.phase is not None
    assert experiment.output.shared_dir == f"outputs/{experiment.phase}"
    assert experiment.phase.startswith(name.partition("/")[0])
    assert (experiment.cluster.num_cores, experiment.cluster.num_gpus) == (8, 1)


def test_phases_do_not_share_a_folder():
    folders: dict[str, set[str]] = {}
    for name in STUDY:
        folders.setdefault(name.partition("/")[0], set()).add(str(get(name).output.shared_dir))
    assert all(len(found) == 1 for found in folders.values())
    assert len(set.union(*folders.values())) == len(folders)


@pytest.mark.parametrize("name", SWEEP)
def test_the_sweep_is_the_table(name):
    channels, steps, side, queue = SWEEP[name]
    experiment = get(f"phase1_1/{name}")
    model, loss = experiment.model, experiment.loss
    assert experiment.name == f"phase1_1_AE_{name}_ch{channels}_ds{steps}"
    assert (model.latent_channels, model.downsampling_steps) == (channels, steps)
    assert (model.base_channels, model.bottleneck) == (32, "none")
    assert (loss.mse, loss.l1, loss.seg, loss.cls) == (1.0, 0.0, 0.05, 0.01)
    assert experiment.cluster.queue == queue
    assert 512 // 2**steps == side
    shape = f"{name}: {channels} x {side} x {side} = {channels * side * side:,} dims"
    assert presets.description(f"phase1_1/{name}").startswith(shape)


def test_the_older_split_is_its_table():
    shapes = [
        (m.latent_channels, m.downsampling_steps, m.base_channels)
        for m in (get(f"legacy_1_1/L{n}").model for n in range(1, 6))
    ]
    assert shapes == [(4, 4, 32), (8, 4, 32), (16, 4, 32), (8, 4, 64), (4, 4, 64)]
    steps = [get(f"legacy_1_2/R{n}").model.downsampling_steps for n in (1, 2, 3)]
    assert steps == [3, 4, 5]


def test_vae_test_and_loss_tuning_differ_in_what_they_test():
    plain, variational = get("phase1_2/V1"), get("phase1_2/V2")
    assert (plain.model.bottleneck, variational.model.bottleneck) == ("none", "kl")
    assert dataclasses.replace(plain.model, bottleneck="kl") == variational.model
    assert variational.loss.kld == 1e-4
    losses = [get(f"phase1_3/F{n}").loss for n in (1, 2, 3)]
    assert [(loss.mse, loss.seg, loss.cls) for loss in losses] == [
        (1.0, 0.0, 0.0),
        (1.0, 0.05, 0.0),
        (1.0, 0.05, 0.01),
    ]
    assert len({str(get(f"phase1_3/F{n}").model) for n in (1, 2, 3)}) == 1


@pytest.mark.parametrize(
    "name", ["phase1_2/V1", "phase1_2/V2", "phase1_3/F2", "phase1_final/final"]
)
def test_what_earlier_phases_decide_stands_in_the_file_itself(name):
    """A later command writes the winners there, and nowhere else."""
    model = parsed(name)["model"]
    assert {"latent_channels", "downsampling_steps", "base_channels", "bottleneck"} <= set(model)
    values = [model[key] for key in ("latent_channels", "downsampling_steps", "base_channels")]
    assert values == [16, 4, 32]


@pytest.mark.parametrize("group", ["phase1", "legacy_1_1", "photos", "genegan", "hpcm"])
def test_copies_mean_the_same(tmp_path, group):
    copies = presets.plan_copy(group, tmp_path)
    presets.write_copies(copies)
    for copy in copies:
        if copy.name in presets.sweeps():  # its experiments lie beside it, as before
            assert copy.text == presets.text(copy.name)
            continue
        found = load(str(copy.path), family=None, schema_of=registry.schema).experiment
        assert found == get(copy.name)


QUEUE = {
    "exp00": {},
    "exp01": {"model.obj_blockconv": True, "model.obj_block_size": 4},
    "exp02": {"model.multiscale_loss": True, "model.multiscale_critics": False},
    "exp02_critics": {"model.multiscale_loss": True, "model.multiscale_critics": True},
    "exp03_all": {"loss.multi_res_mode": "all"},
    "exp03_random": {"loss.multi_res_mode": "random"},
    "exp04_group_norm": {"model.norm": "group_norm", "model.norm_groups": 32},
    "exp05_s2": {"loss.scale_weights": "s2"},
    "exp05_inv_s2": {"loss.scale_weights": "inv_s2"},
    "exp06a": {"model.init_vqvae_ckpt": None},
    "exp07_resize": {"model.upsampling": "resize"},
    "exp07_critic_group_norm": {"model.critic_norm": "group_norm"},
    "exp07_gp": {"model.critic_norm": "group_norm", "loss.critic_penalty": "gp"},
    **{
        f"exp07_{kind}": {
            "model.critic_norm": "group_norm",
            "loss.critic_penalty": kind,
            "loss.critic_loss": "logistic",
            "loss.critic_penalty_weight": 1.0,
        }
        for kind in ("r1", "r1r2")
    },
    "exp07_spectral_norm": {
        "model.critic_norm": "none",
        "model.critic_spectral_norm": True,
        "loss.critic_penalty": "none",
    },
}


@pytest.mark.parametrize("name", QUEUE)
def test_the_queue_differs_from_its_baseline_in_what_it_tests(name):
    experiment, baseline = get(f"genegan/{name}"), get("genegan/exp00")
    for key, value in QUEUE[name].items():
        section, field = key.split(".")
        assert getattr(getattr(experiment, section), field) == value
    changed = {
        f"{section}.{field.name}"
        for section in ("model", "data", "train", "loss")
        for field in dataclasses.fields(getattr(baseline, section))
        if getattr(getattr(experiment, section), field.name)
        != getattr(getattr(baseline, section), field.name)
    }
    assert changed <= set(QUEUE[name])


def test_the_queue_is_the_references():
    baseline = get("genegan/exp00")
    train, data = baseline.train, baseline.data
    assert (train.batch_size, train.lr, train.optimizer) == (64, 5e-5, "rmsprop")
    assert (train.rmsprop_alpha, train.momentum, train.weight_decay) == (0.8, 0, 0)
    assert (train.max_iter, train.save_every, train.sample_every) == (300_000, 20_000, 20_000)
    assert (data.image_sizes, data.image_size, data.attribute) == ((64, 96, 128), 128, "Smiling")
    assert get("genegan/exp06b").model.init_vqvae_ckpt
