"""Bases, precedence, origins, and one clear line for each thing that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgtool.config.fields import keys_of
from imgtool.config.flags import fields_of
from imgtool.config.load import Loaded, load, to_dict
from imgtool.config.yaml_io import format_value
from imgtool.errors import ConfigError
from imgtool.models.registry import FAMILIES, schema

Write = Callable[..., str]


def load_file(source: str | None, family: str | None = "autoencoder", **rest: Any) -> Loaded:
    return load(source, family=family, schema_of=schema, **rest)


def refused(source: str | None, **rest: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_file(source, **rest)
    assert "\n" not in str(caught.value)
    return caught.value


# --- merging ------------------------------------------------------------------------------


def test_without_a_file_all_is_default() -> None:
    loaded = load_file(None)
    assert loaded.experiment.name == "autoencoder"
    assert loaded.experiment.train.lr == 1e-4
    assert loaded.origins["train.lr"] == "default"
    assert loaded.origins["family"] == "command line"


def test_later_wins_and_says_so(write: Write) -> None:
    write(
        "model:\n  latent_channels: 8\ntrain:\n  seed: 1\n  lr: 3e-05\n  batch_size: 2\n", "b.yaml"
    )
    write("base: b.yaml\ntrain:\n  seed: 2\n  batch_size: 3\n  max_iter: 5\n", "dir/../x.yaml")
    loaded = load_file(
        "x.yaml",
        tiny=True,
        sets=["train.batch_size=5", "train.clip_norm=1", "train.lr=0.5"],
        flags={"train.lr": "1e-2", "train.compile": False},
    )
    train, origins = loaded.experiment.train, loaded.origins
    assert (loaded.experiment.model.latent_channels, origins["model.latent_channels"]) == (
        8,
        "b.yaml:2",
    )
    assert (train.seed, origins["train.seed"]) == (2, "x.yaml:3")
    assert (train.max_iter, origins["train.max_iter"]) == (100, "--tiny")
    assert (train.batch_size, origins["train.batch_size"]) == (5, "--set")
    assert (train.lr, origins["train.lr"]) == (0.01, "--lr")
    assert (train.compile, origins["train.compile"]) == (False, "--no-compile")
    assert type(train.clip_norm) is float


def a_value(family: str, key: str) -> Any:
    kind = keys_of(schema(family))[key].kind
    value = next(v for k, v in {"text": "x", "float": 0.25, "int": 64}.items() if k in kind.scalars)
    return [value] if kind.is_list else value


def as_config(values: dict[str, Any]) -> str:
    sections: dict[str, list[str]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, []).append(f"{name}: {format_value(value)}")
    return "".join(f"{name}: {{{', '.join(keys)}}}\n" for name, keys in sections.items())


@pytest.mark.parametrize(
    ("family", "key"), [(name, key) for name in FAMILIES for key in schema(name).rivals]
)
def test_of_rivals_the_later_wins_and_clears_the_others(
    family: str, key: str, write: Write
) -> None:
    cleared, value = schema(family).rivals[key], a_value(family, key)
    below = {rival: a_value(family, rival) for rival in cleared}
    source = write(as_config(below))
    flag = next(one for one in fields_of(schema(family)) if one.key == key).names[0]
    ways: list[tuple[str, dict[str, Any]]] = [
        ("--set", {"sets": [f"{key}={format_value(value)}"]}),
        (flag, {"flags": {key: str(value)}}),
        ("over.yaml:2", {"source": write("base: x.yaml\n" + as_config({key: value}), "over.yaml")}),
    ]
    for origin, words in ways:
        loaded = load_file(words.pop("source", source), family, **words)
        values = to_dict(loaded.experiment)
        for rival, none in cleared.items():
            section, _, name = rival.partition(".")
            assert values[section][name] == (list(none) if isinstance(none, tuple) else none)
            assert loaded.origins[rival] == loaded.origins[key] == origin
    error = refused(write(as_config({**below, key: value})), family=family)
    assert "exclude each other" in str(error)
    assert error.hint == "keep one of them"


def test_a_rival_that_is_not_there_clears_nothing() -> None:
    sets = ["loss.truncation_iterations=9", "loss.truncation_epochs=null"]
    assert load_file(None, "hpcm", sets=sets).experiment.loss.truncation_iterations == 9


def test_tiny_tables_lie_apart(write: Write) -> None:
    source = write("output: {shared_dir: outputs/p}\n")
    assert load_file(source, tiny=True).experiment.output.shared_dir == "outputs/p/tiny"
    asked = load_file(source, tiny=True, sets=["output.shared_dir=mine"])
    assert asked.experiment.output.shared_dir == "mine"


def test_lists_replace(write: Write) -> None:
    write("model: {heads: [rgb, segmentation]}\n", "b.yaml")
    source = write("base: b.yaml\nmodel: {heads: [classification]}\n")
    assert load_file(source).experiment.model.heads == ("classification",)


def test_bases_are_merged_depth_first(write: Write) -> None:
    write("train: {seed: 1, lr: 1, epochs: 1}\n", "deep/a.yaml")
    write("base: a.yaml\ntrain: {lr: 2}\n", "deep/b.yaml")
    write("train: {epochs: 3}\n", "c.yaml")
    source = write("base: [deep/b.yaml, c.yaml, deep/b.yaml]\n")
    train = load_file(source).experiment.train
    assert (train.seed, train.lr, train.epochs) == (1, 2.0, 1)  # the last base counts


def test_a_base_may_be_a_preset_and_a_path_comes_first(write: Write, preset_folder: Path) -> None:
    source = write("base: phase1_1/S2\n")
    loaded = load_file(source, family=None)
    assert loaded.experiment.model.latent_channels == 8
    assert loaded.origins["train.lr"] == "preset phase1_1/base:7"
    write("family: autoencoder\nmodel: {latent_channels: 99}\n", "phase1_1/S2")
    assert load_file(source, family=None).experiment.model.latent_channels == 99


@pytest.mark.parametrize("word", ["phase1_1/S10", "phase1_1/S10.yaml"])
def test_a_preset_is_a_source(word: str, write: Write, preset_folder: Path) -> None:
    loaded = load_file(word)
    assert (loaded.experiment.name, loaded.experiment.phase) == ("S10", "phase1_1")
    assert loaded.origins["model.latent_channels"] == "preset phase1_1/S10:4"
    assert loaded.origins["family"] == "preset phase1_1/base:2"


def test_presets_may_be_based_on_each_other_by_path(preset_folder: Path) -> None:
    loaded = load_file("phase1_2/V1")
    assert loaded.experiment.model.latent_channels == 8
    assert loaded.experiment.train.epochs == 50
    assert loaded.origins["train.epochs"] == "preset common:3"


def test_a_name_is_not_inherited(write: Write) -> None:
    write("name: first\nphase: p\n", "a.yaml")
    loaded = load_file(write("base: a.yaml\n", "second.yaml"))
    assert (loaded.experiment.name, loaded.origins["name"]) == ("second", "default")
    assert loaded.experiment.phase == "p"
    assert load_file("a.yaml").experiment.name == "first"


def test_older_spellings_are_rewritten_file_by_file(write: Write) -> None:
    write("model:\n  variational: true\n", "b.yaml")
    source = write("base: b.yaml\nmodel:\n  latent_channels: 8\n")
    loaded = load_file(source)
    assert (loaded.experiment.model.bottleneck, loaded.origins["model.bottleneck"]) == (
        "kl",
        "b.yaml:2",
    )
    assert loaded.origins["model.latent_channels"] == "x.yaml:3"
    assert (
        load_file(write("base: b.yaml\nmodel: {bottleneck: vq}\n")).experiment.model.bottleneck
        == "vq"
    )
    assert load_file(source, sets=["model.variational=false"]).experiment.model.bottleneck == "none"


def test_a_number_may_stand_for_a_text_that_is_a_choice(write: Write) -> None:
    assert load_file(write("train: {precision: 32}\n")).experiment.train.precision == "32"


def test_an_empty_section_is_none(write: Write) -> None:
    assert load_file(write("family: autoencoder\ntrain:\n  # lr: 1\n")).experiment.train.lr == 1e-4


def test_other_encodings_of_the_same_text(write: Write) -> None:
    text = "family: autoencoder\ntrain:\n  lr: 3e-05\n"
    for data in (b"\xef\xbb\xbf" + text.encode(), text.replace("\n", "\r\n").encode(), text[:-1]):
        loaded = load_file(write(data))
        assert (loaded.experiment.train.lr, loaded.origins["train.lr"]) == (3e-05, "x.yaml:3")


# --- overrides ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.lr", "1e-4", 1e-4),
        ("train.lr", "1", 1.0),
        ("train.seed", "7", 7),
        ("train.save_every", "5ep", "5ep"),
        ("train.save_every", "500", 500),
        ("train.betas", "0.5,0.9", (0.5, 0.9)),
        ("train.precision", "32", "32"),
        ("model.heads", "rgb,segmentation", ("rgb", "segmentation")),
        ("data.root", "123", "123"),
        ("data.root", "true", "true"),
        ("data.root", "./null", "./null"),
        ("data.root", "None", None),
        ("data.cache_dir", "null", "null"),
        ("data.crop", "none", None),
        ("data.flip", "none", "none"),
        ("train.max_time", "90", "90"),
    ],
)
def test_flags_are_read_by_their_type(key: str, text: str, value: object) -> None:
    section, _, name = key.partition(".")
    found = getattr(getattr(load_file(None, flags={key: text}).experiment, section), name)
    assert found == value
    assert type(found) is type(value)


def test_name_and_phase_are_flags_too() -> None:
    loaded = load_file(None, flags={"name": "12", "phase": "p"})
    assert (loaded.experiment.name, loaded.experiment.phase) == ("12", "p")
    assert loaded.origins["name"] == "--name"


@pytest.mark.parametrize(
    ("key", "text", "message", "hint"),
    [
        ("train.lr", "fast", "--lr: train.lr is 'fast', expected a number above 0", None),
        ("train.lr", "1e999", "--lr: 1e999 is not a finite number", None),
        ("train.max_iter", "1e3", "--max-iter: train.max_iter is 1000.0", "write 1000"),
        ("train.max_iter", "many", "--max-iter: train.max_iter is 'many'", None),
        (
            "model.heads",
            "rgb,seg",
            "--heads: model.heads is [rgb, seg]",
            "did you mean 'segmentation'?",
        ),
        ("model.heads", "", "--heads: model.heads is empty", None),
        ("data.dataset", "photo", "--dataset: data.dataset is 'photo'", "did you mean 'photos'?"),
        ("train.device", "gpu", "--device: train.device 'gpu' is not auto", None),
        ("train.max_time", "soon", "--max-time: train.max_time: 'soon' is not a duration", None),
        ("data.root", "\udc80", "--data-root: data.root is not UTF-8", None),
        ("name", "ü" * 101, "--name: name has 202 bytes, and may have 200", None),
        ("phase", "p" * 244, "--phase: phase has 244 bytes, and may have 200", None),
        ("name", "a/b", "--name: name is 'a/b', expected text without slashes", None),
    ],
)
def test_wrong_flags_are_named(key: str, text: str, message: str, hint: str | None) -> None:
    error = refused(None, flags={key: text})
    assert str(error).startswith(message)
    assert error.hint  # None in the table: some hint
    assert error.hint == hint or hint is None


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("train.lr", "--set: 'train.lr' is not key=value", "such as --set train.lr=1e-4"),
        ("=1", "--set: '=1' is not key=value", "such as --set train.lr=1e-4"),
        (
            "train.learning-rate=1",
            "--set: unknown key train.learning-rate",
            "did you mean 'train.lr'?",
        ),
        ("lr=1", "--set: unknown key lr", "did you mean 'train.lr'?"),
        ("train.lr=[1", "--set train.lr: expected ',' or ']'", None),
        ("train.lr=", "--set: train.lr is null, expected a number above 0", None),
        ("train=5", "--set: train is 5, expected keys below it", None),
        ("family=x", "--set: family can only be chosen in a file", None),
    ],
)
def test_wrong_overrides_are_named(text: str, message: str, hint: str | None) -> None:
    error = refused(None, sets=[text])
    assert str(error).startswith(message)
    assert error.hint  # None in the table: some hint
    assert error.hint == hint or hint is None


def test_a_section_may_be_set_at_once() -> None:
    assert load_file(None, sets=["train={lr: 3, seed: 1}"]).experiment.train.lr == 3.0


# --- what is wrong in a file --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("train:\n  learning_rte: 1", 2, "unknown key train.learning_rte", "did you mean 'train.lr'?"),
        ("train:\n  Batch-Size: 1", 2, "unknown key train.Batch-Size", "did you mean 'train.batch_size'?"),
        ("train:\n  latent_channels: 4", 2, "unknown key train.latent_channels", "did you mean 'model.latent_channels'?"),
        ("modle:\n  zzz: 1", 2, "unknown key modle.zzz", "did you mean 'model'?"),
        ("loss:\n  zzzzz: 1", 2, "unknown key loss.zzzzz", "keys of loss: mse, l1, kld, seg, cls, commitment, "
         "gradient, lpips, eq, gan, gan_start, gan_warmup, gan_weighing, gan_lr, gan_layers, "
         "gan_width, measure_lpips"),
        ("lr: 4", 1, "unknown key lr", "did you mean 'train.lr'?"),
        ("train: 5", 1, "train is 5, expected keys below it", None),
        ("name: {a: 1}", 1, "unknown key name.a", "did you mean 'name'?"),
        ('train:\n  lr: "1e-4"', 2, "train.lr is '1e-4', expected a number above 0", "write the number without quotes: 0.0001"),
        ("train:\n  lr: -1", 2, "train.lr is -1, expected a number above 0", None),
        ("train:\n  lr: true", 2, "train.lr is true, expected a number above 0", None),
        ("train:\n  lr: {a: 1}", 2, "train.lr is a mapping, expected a number above 0", None),
        ("train:\n  seed: true", 2, "train.seed is true, expected a whole number of at least 0", None),
        ("train:\n  max_iter: 1e3", 2, "train.max_iter is 1000.0, expected a whole number of at least 1 or null", "write 1000"),
        ("train:\n  max_iter: 100_000", 2, "train.max_iter is '100_000', expected a whole number of at least 1 or null", "write the number without quotes: 100000"),
        ("train:\n  compile: yes", 2, "train.compile is 'yes', expected true or false", "write true or false, without quotes"),
        ("train:\n  betas: [0.1]", 2, "train.betas is [0.1], expected a list of 2 values, each a number of at least 0 and below 1", None),
        ("train:\n  save_every: 0", 2, "train.save_every is 0, expected a whole number of at least 1 or epochs such as 5ep", None),
        ("train:\n  save_every: 0ep", 2, "train.save_every '0ep' is neither iterations", None),
        ("train:\n  save_every: 5 ep", 2, "train.save_every '5 ep' is neither iterations", None),
        ("train:\n  max_time: 3x", 2, "train.max_time: '3x' is not a duration", None),
        ("train:\n  device: cuda:x", 2, "train.device 'cuda:x' is not auto", None),
        ("data:\n  root: 12", 2, "data.root is 12, expected text or null", 'put it in quotes: "12"'),
        ("data:\n  dataset: photo", 2, "data.dataset is 'photo', expected one of photos, layouts", "did you mean 'photos'?"),
        ("data:\n  val_fraction: 1", 2, "data.val_fraction is 1, expected a number of at least 0 and below 1", None),
        ("model:\n  heads: rgb", 2, "model.heads is 'rgb', expected a list of rgb, segmentation, classification", "write [rgb]"),
        ("model:\n  heads: [rgb, segmentatoin]", 2, "model.heads is [rgb, segmentatoin], expected a list of", "did you mean 'segmentation'?"),
        ("data:\n  image_size: 64\n  crop: 128", 3, "data.crop 128 is larger than image_size 64", None),
        ("model:\n  base_channels: 8", 2, "model.base_channels 8 is no multiple of 2 * norm_groups", None),
        ("data:\n  crop: 100", 2, "data.crop 100 is no multiple of 16", None),
        ("model:\n  variational: 3", 2, "model.variational is true or false", None),
        ("name: 5", 1, "name is 5, expected text without slashes", 'put it in quotes: "5"'),
        ("phase: ../up", 1, "phase is '../up', expected text without slashes", None),
        ("family: genegann", 1, "family is genegann, but autoencoder was asked for", "ask for genegann, or choose another config"),
        ("base: 5", 1, "base is 5, expected a path or a preset's name", None),
        ("base: [x.yaml]", 1, "base 'x.yaml' leads back to a file that is based on it", None),
    ],
)  # fmt: skip
def test_each_mistake_has_its_line_and_its_words(
    text: str, line: int, message: str, hint: str | None, write: Write
) -> None:
    error = refused(write(text))
    assert str(error).startswith(f"x.yaml:{line}: {message}")
    assert error.hint  # None in the table: some hint
    assert error.hint == hint or hint is None


def test_one_problem_is_told_and_the_others_are_counted(write: Write) -> None:
    error = refused(write("train:\n  lr: -1\n  seed: a\nmodel:\n  latent_channels: 0\n"))
    assert str(error) == (
        "x.yaml:5: model.latent_channels is 0, expected a whole number of at least 1"
        " (and 2 more problems)"
    )
    error = refused(write("train:\n  lrr: -1\n  sed: 1\n"))
    assert str(error) == "x.yaml:2: unknown key train.lrr (and 1 more problem)"


def test_a_mistake_in_a_base_is_placed_there(write: Write, preset_folder: Path) -> None:
    write("train:\n  lr: -1\n", "dir/b.yaml")
    assert str(refused(write("base: ../dir/b.yaml", "own/x.yaml"))).startswith("dir/b.yaml:2: ")
    (preset_folder / "common.yaml").write_text("train:\n  lrr: 1\n")
    assert str(refused(write("base: common"))).startswith("preset common:2: unknown key train.lrr")


def test_a_check_that_names_no_key_is_placed_in_the_file(write: Write) -> None:
    error = refused(write("loss: {mse: 0, seg: 0, cls: 0}\n"))
    assert str(error) == "x.yaml: every head has loss weight 0: there is nothing to train"


def test_cycles_are_found(write: Write) -> None:
    write("base: y.yaml", "a.yaml")
    write("base: ../w/a.yaml", "y.yaml")
    (Path.cwd().parent / "w").symlink_to(Path.cwd())
    assert "leads back to" in str(refused("a.yaml"))


def test_bases_that_multiply_are_bounded(write: Write) -> None:
    write("train: {seed: 1}", "0.yaml")
    for number in range(1, 20):
        write(f"base: [{number - 1}.yaml, {number - 1}.yaml]", f"{number}.yaml")
    assert "based on more than 100 files" in str(refused("19.yaml"))


def test_what_does_not_exist(write: Write, preset_folder: Path) -> None:
    error = refused("phase1_1/S3")
    assert str(error) == "no config file or preset 'phase1_1/S3'"
    assert error.hint == "did you mean 'phase1_1/S2'?"
    assert refused("S10").hint == "did you mean 'phase1_1/S10'?"
    assert refused("../packaged/common").hint == "did you mean 'common'?"
    assert (
        str(refused(write("a: 1\nbase: nope")))
        == "x.yaml:2: no file or preset 'nope' to be based on"
    )
    Path("dir").mkdir()
    error = refused("dir")
    assert (str(error), error.hint) == (
        "dir is a folder, not a config",
        "name a file, such as dir/config.yaml",
    )


def test_files_that_cannot_be_read(write: Write) -> None:
    assert str(refused(write(b"a: 1\nb: \xff\n"))) == "x.yaml:2: not UTF-8 text"
    assert "larger than" in str(refused(write("#" * 1_000_001)))
    assert str(refused(write(""))) == "x.yaml: empty"


def test_the_family_comes_from_the_file_or_the_argument(write: Write) -> None:
    source = write("family: autoencoder\n")
    assert load_file(source, family=None).experiment.family == "autoencoder"
    assert str(refused(write("train: {}"), family=None)) == "x.yaml: no model family"
    assert str(refused(write("family: [a]"), family=None)).startswith("x.yaml:1: family is [a]")
    assert str(refused(write("family: nope"), family=None)) == "x.yaml:1: no model family 'nope'"
    assert str(refused(None, family="nope")) == "no model family 'nope'"


def test_defaults_stay_when_the_dataclass_is_built_by_hand() -> None:
    train = load_file(None).experiment.train
    with pytest.raises(ValueError, match="max_time"):
        replace(train, max_time="soon")
    with pytest.raises(ValueError, match="device"):
        replace(train, device="gpu")
    with pytest.raises(ValueError, match="val_every"):
        replace(train, val_every="ep")
