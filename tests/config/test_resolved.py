"""The frozen config is read back to the same experiment, by us and by other YAML readers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from imgtool.config.bounds import Bound
from imgtool.config.load import Loaded, load, read_resolved, to_dict, to_yaml
from imgtool.config.schema import Experiment
from imgtool.errors import ConfigError
from imgtool.models.registry import FAMILIES, schema

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
INTERVAL = st.integers(1, 10**9) | st.integers(1, 999).map(lambda count: f"{count}ep")
NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/")).filter(
    lambda name: name.strip() and name not in (".", "..")
)
# Values that depend on each other, or that a text alone does not describe.
SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "image_size": st.none(),
    "crop": st.none() | st.integers(1, 9).map(lambda count: 64 * count),
    "val_fraction": st.floats(0, 0.5),
    "test_fraction": st.floats(0, 0.49),
    "save_every": INTERVAL,
    "sample_every": INTERVAL,
    "val_every": INTERVAL,
    "min_delta": st.floats(0, 1) | st.integers(0, 99).map(lambda percent: f"{percent}%"),
    "max_time": st.none() | st.sampled_from(["90", "1.5h", "1h30m", "2d"]),
    "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:1", "mps"]),
    "base_channels": st.integers(1, 9).map(lambda count: 16 * count),
    "norm_groups": st.just(8),
    "max_channels": st.none() | st.integers(18, 50).map(lambda count: 8 * count),
    "heads": st.sampled_from([("rgb",), ("classification", "rgb"), ("rgb", "segmentation")]),
    "mse": st.floats(0.001, 1e9),
    **dict.fromkeys(("exp_dir", "shared_dir", "log_dir"), st.none() | TEXT.filter(str.strip)),
}

OF_FAMILY: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "autoencoder": {
        "norm": st.just("group"),  # the other is for one architecture alone
        "block_out_channels": st.none(),
        "gan_start": INTERVAL,
        "gan_layers": st.integers(1, 3),  # more need a larger crop
        "gan_width": st.integers(1, 32).map(lambda count: 4 * count),
    },
    "genegan": {
        "crop": st.none(),
        "val_root": st.none(),
        "image_sizes": st.sampled_from([(64, 96, 128), (32,), (128, 64)]),
        "second_ratio": st.floats(0.1, 0.9),
        "obj_block_size": st.just(4),
        "bg_block_size": st.just(4),
        "multiscale_loss": st.just(False),
        "multiscale_critics": st.just(False),
        "vqvae": st.just(False),
        "init_vqvae_map": st.none(),
        "critic_norm": st.just("none"),  # with the others not every bound of the critics goes
        "critic_loss": st.just("logistic"),
        "critic_penalty": st.sampled_from(["none", "gp", "r1", "r1r2"]),
    },
    "hpcm": {
        "tau_init": st.floats(0, 0.3),
        "tau_final": st.floats(0.3, 1),
        "step_fractions": st.just((0.5, 0.9)),
        "step_factors": st.just((0.3, 0.1)),
        "test_root": st.none(),
    },
    "attributes": {
        **dict.fromkeys(("crop", "val_root"), st.none()),
        "image_size": st.integers(1, 512),
        "attributes": st.lists(st.sampled_from("abcdef"), unique=True).map(tuple),
        "width": st.integers(1, 9).map(lambda count: 8 * count),
        "stages": st.integers(1, 7),
    },
    "flow": {
        **dict.fromkeys(("crop", "val_root", "manifest"), st.none()),
        **dict.fromkeys(("val_fraction", "test_fraction"), st.just(0.0)),
        "width": st.integers(1, 9).map(lambda count: 24 * count),
        "heads": st.sampled_from([1, 2, 3, 6]),
        "guidance": st.just(1.0),
    },
}


def _finite(value: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return all(not isinstance(part, float) or math.isfinite(part) for part in parts)


def _values(annotation: Any) -> st.SearchStrategy[Any]:
    if annotation == str | None:
        return st.none() | TEXT
    return TEXT if annotation is str else st.from_type(_understood(annotation)).filter(_finite)


def _understood(annotation: Any) -> Any:
    """The same annotation with the bounds that hypothesis knows."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        known = {"ge": Ge, "gt": Gt, "le": Le, "lt": Lt}
        bounds = [known[b.key](b.value) if isinstance(b, Bound) else b for b in inside[1:]]
        return Annotated[_understood(inside[0]), *bounds]
    if origin is tuple:
        return tuple[tuple(map(_understood, inside))]
    if origin in (Union, UnionType):
        return reduce(or_, map(_understood, inside))
    return annotation


def _section(cls: type, family: str) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls, include_extras=True)
    special = SPECIAL | OF_FAMILY.get(family, {})
    values = {
        field.name: special.get(field.name, _values(hints[field.name])) for field in fields(cls)
    }
    return st.builds(cls, **values)


@cache
def experiments(family: str) -> st.SearchStrategy[Experiment]:
    sections = {name: _section(cls, family) for name, cls in schema(family).section_types().items()}
    return st.builds(
        Experiment, name=NAME, phase=st.none() | NAME, family=st.just(family), **sections
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resolved") / "config.yaml"


# Without shrinking: a config that its family refuses took five minutes to become a small one.
@settings(max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
@pytest.mark.parametrize("family", FAMILIES)
def test_a_resolved_config_is_read_back_equal(family: str, path: Path, data: st.DataObject) -> None:
    experiment = data.draw(experiments(family))
    keys = ["name", "phase", "family"]
    keys += [f"{s}.{key}" for s, part in to_dict(experiment).items() if isinstance(part, dict) for key in part]  # fmt: skip
    origin = data.draw(st.text(max_size=5))
    text = to_yaml(Loaded(experiment, dict.fromkeys(keys, f"{origin}x.yaml:7")))
    path.write_text(text, encoding="utf-8")
    again = read_resolved(path, schema)
    assert again.experiment == experiment
    assert repr(again.experiment) == repr(experiment)  # types too: 1 is not 1.0
    assert yaml.safe_load(text) == to_dict(experiment)


def test_it_says_where_each_value_came_from(write: Callable[..., str]) -> None:
    source = write("family: autoencoder\ntrain:\n  lr: 3e-05\n")
    text = to_yaml(load(source, family=None, schema_of=schema, sets=["train.seed=1"], tiny=True))
    lines = {line.partition(":")[0].strip(): line for line in text.splitlines()}
    assert lines["lr"].split("# ") == [lines["lr"].partition("#")[0], "--tiny"]
    assert lines["seed"].endswith("# --set")
    assert lines["family"].endswith("# x.yaml:1")
    assert lines["momentum"].endswith("# default")
    assert len({line.index("#") for line in lines.values() if "# default" in line}) == 1


def test_a_resolved_config_is_a_config(write: Callable[..., str], tmp_path: Path) -> None:
    text = 'family: autoencoder\nphase: "a  # b"\ntrain:\n  lr: 3e-05\nmodel: {heads: [rgb]}\n'
    source = write(text, "s.yaml")
    flags = {"train.clip_norm": "2"}
    first = load(source, family=None, schema_of=schema, sets=["loss.l1=1"], flags=flags, tiny=True)
    write(to_yaml(first), "config.yaml")
    second = load("config.yaml", family=None, schema_of=schema, sets=["train.seed=1"])
    assert second.experiment.name == "s"
    assert second.experiment.phase == "a  # b"
    origins = second.origins
    assert origins["train.seed"] == "--set"
    # What it says of its values is handed on, but for options, which are another command's.
    assert (origins["phase"], origins["model.heads"]) == ("s.yaml:2", "s.yaml:5")
    assert (origins["train.lr"], origins["loss.l1"]) == ("--tiny", "--set")
    assert origins["train.clip_norm"].startswith("config.yaml:")
    write(to_yaml(first).replace("lr: 0.001", "lr: x"), "config.yaml")
    with pytest.raises(ConfigError, match=r"^config\.yaml:\d+: train\.lr is 'x'"):
        load("config.yaml", family=None, schema_of=schema)
