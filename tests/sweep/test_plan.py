"""From a sweep's file to its trials."""

import json
import multiprocessing
from dataclasses import replace

import pytest

from imgtool.config import presets
from imgtool.config.fields import keys_of
from imgtool.errors import ConfigError, UsageError, UserError
from imgtool.models.registry import schema
from imgtool.sweep import jobs, manifest
from imgtool.sweep.plan import make_plan
from imgtool.sweep.spec import read_spec


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(word, **options):
    return make_plan(word, schema_of=schema, **options)


def names(found):
    return [trial.name for trial in found.trials]


def write(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return str(folder / name)


BASE = "family: autoencoder\nphase: p\n"


PHASES = [name for name in presets.sweeps() if read_spec(name).over is None]


@pytest.mark.parametrize("name", PHASES)
def test_shipped_sweeps_are_complete(name):
    found = plan(name)
    files = {n.partition("/")[2] for n in presets.names() if n.startswith(f"{name}/")}
    apart = {"base", "faces64", "vqvae", "delta_0.1", "small", "tiny"}
    trials = [trial for trial in found.trials if not trial.is_first]
    also = [name for trial in trials for name in trial.also]
    assert len({trial.source for trial in trials}) + len(also) == len(files - apart)
    assert found.phase == found.root.name == found.shared_dir.name
    assert set(found.decides) <= set(keys_of(schema(trials[0].family)))
    assert {t.loaded.experiment.output.shared_dir for t in trials} == {str(found.shared_dir)}


def test_later_phases_decide_what_the_earlier_ones_did():
    decided = [set(plan(f"phase1_{phase}").decides) for phase in ("1", "2", "3", "final")]
    assert decided[0] < decided[1] < decided[2] <= decided[3]


def test_queues_of_phase_1_1():
    found = plan("phase1_1")
    queues = {t.name.split("_")[3]: t.loaded.experiment.cluster.queue for t in found.trials}
    assert queues == {f"S{n}": "gpuv100" if n <= 10 else "gpul40s" for n in range(1, 13)}
    assert found.max_running == {"gpuv100": 4, "gpul40s": 2}


def test_a_trial_is_its_config_and_not_its_row(folder):
    one = plan("phase1_1")
    text = presets.text("phase1_1").replace("phase1_1/S1.yaml", "phase1_1/S2.yaml")
    other = plan(write(folder, "x.yaml", text))  # S2 twice, S1 not at all
    assert len(other.trials) == 11
    known = {trial.name: trial.identity for trial in one.trials}
    assert all(known[trial.name] == trial.identity for trial in other.trials)


def test_names_tell_what_is_another_experiment():
    plain = plan("phase1_1/S4").trials[0]
    run_fields = plan("phase1_1/S4", sets=["data.manifest=x.csv", "train.epochs=3"]).trials[0]
    assert (run_fields.name, run_fields.identity) == (plain.name, plain.identity)
    changed = plan("phase1_1/S4", sets=["train.lr=0.5"]).trials[0]
    assert changed.name == f"{plain.name}-{changed.identity[:8]}"
    assert changed.overrides == {"train.lr": 0.5}
    assert changed.loaded.experiment.name == changed.directory.path.name == changed.name


def test_trials_whose_hash_was_another_one_are_found(folder):
    """As versions leave them between which a key of theirs became a run field."""
    word = write(folder, "s.yaml", "sweep: s\nroot: r\nexperiments: [x.yaml]\n")
    write(folder, "x.yaml", BASE)
    rates = ["train.lr=1e-3,2e-3,3e-3"]
    today = plan(word, grid_words=rates)
    jobs.write_config(today.trials[0])  # submitted
    jobs.write_config(today.trials[1])  # at work
    moved = [folder / "r" / name for name in ("x-00000000", "x-11111111")]
    for trial, path in zip(today.trials, moved, strict=False):
        trial.directory.path.rename(path)
    (moved[1] / "trial.yaml").rename(moved[1] / "config.yaml")
    found = plan(word, grid_words=rates)
    assert names(found) == ["x-00000000", "x-11111111", names(today)[2]]
    assert found.trials[0].directory.path == moved[0]
    # A directory that holds something else is nobody's.
    assert names(plan(word, grid_words=["train.lr=5e-3"]))[0] not in names(found)


def test_values_of_before_find_the_config_that_had_them(folder):
    """What `--set` restores when a file has changed."""
    word = write(folder, "x.yaml", BASE + "train: {lr: 1.0e-3}\n")
    jobs.write_config(plan(word).trials[0])
    write(folder, "x.yaml", BASE + "train: {lr: 2.0e-3}\n")
    assert names(plan(word, sets=["train.lr=1e-3"])) == ["x"]


def test_experiments_that_are_one_are_trained_once_under_every_name(folder):
    found = plan("genegan")
    (several,) = [trial for trial in found.trials if trial.also]
    expected = ("EXP00_smiling_multires", "EXP03_smiling_all", "EXP06a_smiling_no_vqinit")
    assert several.names == expected
    for word in ("exp03_all", "EXP06a", "EXP00_smiling_multires"):
        assert [t.names for t in plan("genegan", only=[word]).trials if not t.is_first] == [
            expected
        ]
    (found.root / expected[1]).mkdir(parents=True)  # trained by a version that took it for another
    (again,) = [trial for trial in plan("genegan").trials if trial.also]
    assert again.names == (expected[1], expected[0], expected[2])
    manifest.write(plan("genegan"))
    listed = {trial["name"]: trial["also"] for trial in manifest.read_trials(found.manifest_path)}
    assert listed[expected[1]] == [expected[0], expected[2]]
    assert not set(listed) & {expected[0], expected[2]}


def test_another_length_is_another_training(folder):
    for name, epochs in (("a", 1), ("b", 2), ("c", 1)):
        write(folder, f"{name}.yaml", f"{BASE}train: {{epochs: {epochs}}}\n")
    found = plan(write(folder, "s.yaml", "experiments: [a.yaml, b.yaml, c.yaml]\n"))
    assert [trial.names for trial in found.trials] == [("a", "c"), ("b",)]


@pytest.mark.parametrize(
    ("grid", "key"),
    [
        ("model.max_channels=64,128", "model.max_channels="),
        ("train.lr=1e-3,1e-4", "train={lr: 1}"),
        ("train.seed=0,1", "train.seed=5"),
        ("model.bottleneck=none,kl", "model.variational=true"),
    ],
)
def test_what_the_sweep_varies_cannot_be_set(folder, grid, key):
    path = write(folder, "a.yaml", BASE)
    with pytest.raises(UsageError, match=f"the sweep varies {grid.partition('=')[0]}"):
        plan(path, grid_words=[grid], sets=[key])
    with pytest.raises(UsageError, match="the sweep varies train.lr"):
        spec = write(folder, "s.yaml", "base: a.yaml\nmatrix: {train.lr: [1, 2]}\n")
        plan(spec, sets=["train.lr=1"])


def test_a_rival_of_what_the_sweep_varies_cannot_be_set(folder):
    path = write(folder, "a.yaml", "family: hpcm\nloss: {spectral_reg: true}\n")
    with pytest.raises(UsageError, match="the sweep varies loss.truncation_epochs"):
        plan(
            path,
            grid_words=["loss.truncation_epochs=1,2"],
            sets=["loss.truncation_iterations=5"],
        )


def test_the_sign_of_nothing_is_none(folder):
    path = write(folder, "a.yaml", BASE)
    found = plan(path, grid_words=["loss.l1=-0.0,0,0.0", "train.betas=[-0.0, 0.9],[0, 0.9]"])
    assert len(found.trials) == 1


def test_tiny_trials_lie_apart():
    real, tiny = plan("phase1_1", only=["S4"]), plan("phase1_1", only=["S4"], tiny=True)
    assert tiny.root == real.root / "tiny"
    assert tiny.shared_dir == real.shared_dir / "tiny"
    assert names(tiny) == names(real)
    assert tiny.trials[0].identity != real.trials[0].identity


def test_grids_seeds_and_sets(folder):
    write(folder, "a.yaml", BASE + "name: a\n")
    spec = write(
        folder,
        "s.yaml",
        "base: a.yaml\nmatrix: {train.lr: [1e-3, 1e-4], model.latent_channels: [4, 8]}\n"
        "exclude: [{train.lr: 1e-3, model.latent_channels: 8}]\nseeds: [0, 1]\n"
        "set: {train.batch_size: 4}\n",
    )
    found = plan(spec, grid_words=["loss.mse=1,2"])
    assert len(found.trials) == 3 * 2 * 2 == len(set(names(found)))
    assert found.decides == ("train.lr", "model.latent_channels")
    assert {t.loaded.experiment.train.batch_size for t in found.trials} == {4}
    assert found.trials[0].overrides == {
        "train.lr": 1e-3,
        "model.latent_channels": 4,
        "train.seed": 0,
        "loss.mse": 1,
        "train.batch_size": 4,
    }


def test_globs_are_in_the_order_people_count(folder):
    for number in (10, 2, 1):
        write(folder, f"e/S{number}.yaml", f"{BASE}model: {{latent_channels: {number}}}\n")
    found = plan(write(folder, "s.yaml", "experiments: [e/S*.yaml]\n"))
    assert names(found) == ["S1", "S2", "S10"]
    assert found.root == folder / "experiments/p"


def test_resources_are_below_set(folder):
    write(folder, "a.yaml", BASE + "lsf: {queue: gpuv100, walltime: 1h}\n")
    spec = write(
        folder,
        "s.yaml",
        "experiments: [a.yaml]\nresources: {gpuv100: {walltime: 2h, num_cores: 3}}\n",
    )
    lsf = plan(spec).trials[0].loaded.experiment.cluster
    assert (lsf.walltime, lsf.num_cores) == ("2h", 3)
    assert plan(spec, sets=["lsf.walltime=9h"]).trials[0].loaded.experiment.cluster.walltime == "9h"


@pytest.mark.parametrize("word", ["S3", "phase1_1_AE_S3_ch4_ds3"])
def test_only(word):
    assert names(plan("phase1_1", only=[word])) == ["phase1_1_AE_S3_ch4_ds3"]


def test_only_something_else():
    with pytest.raises(ConfigError, match="no trial 'S13'"):
        plan("phase1_1", only=["S13"])


def test_a_file_s_own_name_may_be_too_long(folder):
    path = write(folder, f"{'x' * 244}.yaml", BASE)
    with pytest.raises(ConfigError, match=r"x\.yaml: name has 244 bytes, and may have 200"):
        plan(path)


def test_two_experiments_of_one_name_are_refused(folder):
    write(folder, "a/x.yaml", BASE)
    write(folder, "b/x.yaml", BASE + "train: {lr: 0.5}\n")
    with pytest.raises(UsageError, match="both named x"):
        plan(write(folder, "s.yaml", "experiments: [a/x.yaml, b/x.yaml]\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("experimets: [a.yaml]\nsweep: x\n", r"s\.yaml:1: unknown key experimets"),
        ("sweep: x\n", "names no experiments"),
        ("experiments: [b.yaml]\n", "no file or preset 'b.yaml'"),
        ("experiments: a.yaml\n", "expected a list"),
        ("base: a.yaml\nmatrix: {train.lr: 1e-3}\n", r"^[^:]*s\.yaml:2: matrix: .* list of values"),
        ("base: a.yaml\nmatrix: [1]\n", r"^[^:]*s\.yaml:2: matrix is"),
        ("base: a.yaml\nrandom: [1]\n", r"^[^:]*s\.yaml:2: random is"),
        ("base: a.yaml\nmatrix: {train.lr: []}\n", "has no values"),
        ("base: a.yaml\nmatrix: {train.lrr: [1]}\n", r"s\.yaml: unknown key train.lrr"),
        ("base: a.yaml\nmatrix: {train.lr: [x]}\n", r"s\.yaml: train.lr is 'x'"),
        ("experiments: [a.yaml]\nset: {train.lrr: 1}\n", r"s\.yaml: unknown key train.lrr"),
        (
            "base: a.yaml\nmatrix: {train.seed: [1]}\nexclude: [{train.seed: 1}]\n",
            "leaves no trial",
        ),
        ("experiments: [a.yaml]\ndecides: [train.lrr]\n", "decides: unknown key train.lrr"),
        (
            "base: a.yaml\nmatrix: {train.lr: [1e-3]}\nset: {train.lr: 1}\n",
            r"s\.yaml:3: set: train.lr is what the sweep varies",
        ),
        ("experiment: [a.yaml]\n", "neither a sweep nor a config"),
        ("base: a.yaml\nzip: {train.lr: [1], train.seed: [1, 2]}\n", "differ in length"),
        ("base: a.yaml\nrandom: {space: {train.lr: {uniform: [0, 1]}}}\n", "num_trials is None"),
        ("base: a.yaml\nseeds: [a]\n", "seeds is"),
        ("base: a.yaml\nzip: {a: [1]}\nmatrix: {a: [1]}\n", "exclude each other"),
        ("base: a.yaml\nexclude: [{a: 1}]\nsweep: s\n", "belongs to a matrix"),
        ("base: a.yaml\nduration: soon\nsweep: s\n", "duration"),
        ("experiments: [a.yaml]\nresources: {q: {wall: 1h}}\nset: {lsf.queue: q}\n", "key wall"),
        (f"sweep: {'x' * 201}\nexperiments: [a.yaml]\n", r"s\.yaml:1: its name has more than 200"),
        ("experiments: [a.yaml]\nresources: {q: {max_running: 0}}\n", "max_running is 0"),
        ("experiments: [a.yaml]\nresources: {then: {wall: 1h}}\n", "then: unknown key wall"),
        ("experiments: [a.yaml]\nresources: {then: {max_running: 2}}\n", "unknown key max_running"),
    ],
)
def test_what_is_wrong_is_said_with_a_hint(folder, text, words):
    write(folder, "a.yaml", BASE)
    with pytest.raises(ConfigError, match=words) as caught:
        plan(write(folder, "s.yaml", text))
    assert caught.value.hint


@pytest.mark.parametrize("text", ["sweep: s\nexperiments: [a.yaml]\n", BASE])
def test_whose_word_is_wrong_is_said(folder, text):
    write(folder, "a.yaml", BASE)
    path = write(folder, "s.yaml", text)
    with pytest.raises(ConfigError, match="^--grid: unknown key train.lrr"):
        plan(path, grid_words=["train.lrr=1,2"])
    with pytest.raises(ConfigError, match="^--set: unknown key train.lrr"):
        plan(path, grid_words=["train.seed=1,2"], sets=["train.lrr=1"])


# --- sweep.json ---------------------------------------------------------------------------


def write_part(number):
    found = plan("phase1_1", only=[f"S{number}"])
    manifest.write(found)


def test_two_that_write_at_once_lose_no_trial():
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_part, args=(n,)) for n in range(1, 9)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    whole = plan("phase1_1")
    kept = {trial["name"] for trial in manifest.read_trials(whole.manifest_path)}
    assert kept == set(names(whole)[:8])
    copy = json.loads((whole.shared_dir / "sweep.json").read_text())
    assert copy["decides"] == list(whole.decides)


def test_a_phase_shows_its_tiny_sweep_until_it_has_one_of_its_own(link_kind):
    tiny, real = (plan("phase1_1", only=["S4"], tiny=is_tiny) for is_tiny in (True, False))
    shown = real.shared_dir / "sweep.json"
    manifest.write(tiny)
    assert manifest.read_trials(shown) == manifest.read_trials(tiny.manifest_path)
    for first in (real, tiny):
        manifest.write(first)
        assert manifest.read_trials(shown) == manifest.read_trials(real.manifest_path)


def test_a_trial_that_changed_is_written_anew():
    first = plan("phase1_1/S4")
    manifest.write(first)
    manifest.write(replace(first, trials=(replace(first.trials[0], identity="other"),)))
    (kept,) = manifest.read_trials(first.manifest_path)
    assert kept["identity"] == "other"


@pytest.mark.parametrize("key", ["root", "shared_dir"])
def test_a_folder_in_a_file_s_way_names_the_key(folder, key):
    write(folder, "a.yaml", BASE)
    write(folder, "file", "")
    path = write(folder, "s.yaml", f"experiments: [a.yaml]\n{key}: file/x\n")
    with pytest.raises(UserError, match="a file is in the way") as caught:
        manifest.write(plan(path))
    assert f"`{key}:`" in caught.value.hint
