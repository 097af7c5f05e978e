"""Edits of config files: what is asked for changes, and not a byte more."""

import io
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from imgtool.config.edit import plan
from imgtool.config.load import load
from imgtool.config.splice import DROP, apply
from imgtool.config.yaml_io import parse_document
from imgtool.errors import ConfigError
from imgtool.models.registry import schema

CASES = {
    "a comment behind it": (
        "model:\n  latent_channels: 16  # of S1\n  base_channels: 32\n",
        {"model.latent_channels": 4},
        "model:\n  latent_channels: 4  # of S1\n  base_channels: 32\n",
    ),
    "four blanks and CRLF": (
        "model:\r\n    latent_channels: 16\r\n",
        {"model.base_channels": 64},
        "model:\r\n    latent_channels: 16\r\n    base_channels: 64\r\n",
    ),
    "no line break at the end": ("loss:\n  mse: 1.0", {"loss.mse": 2e-5}, "loss:\n  mse: 2.0e-05"),
    "a new key before the next section's comment": (
        "loss:\n  mse: 1.0\n\n# limits\ntrain:\n  epochs: 1\n",
        {"loss.kld": 1e-4},
        "loss:\n  mse: 1.0\n  kld: 0.0001\n\n# limits\ntrain:\n  epochs: 1\n",
    ),
    "a new section": ("name: a\n", {"loss.kld": 0.5}, "name: a\n\nloss:\n  kld: 0.5\n"),
    "a new section after a comment of the last one": (
        "loss:\r\n  mse: 1.0\r\n  # kld: none\r\n# end\r\n",
        {"train.seed": 1},
        "loss:\r\n  mse: 1.0\r\n  # kld: none\r\n\r\ntrain:\r\n  seed: 1\r\n# end\r\n",
    ),
    "flow": (
        "model: {latent_channels: 16, base_channels: 32}  # both\n",
        {"model.base_channels": 64, "model.bottleneck": "kl"},
        "model: {latent_channels: 16, base_channels: 64, bottleneck: kl}  # both\n",
    ),
    "flow, one dropped": (
        "loss: { mse: 1.0, kld: 1e-4 }\n",
        {"loss.kld": DROP},
        "loss: { mse: 1.0 }\n",
    ),
    "an empty flow": ("loss: {}\n", {"loss.mse": 1}, "loss: {mse: 1}\n"),
    "quotes": (
        "name: 'a'\nphase: \"b\"\n",
        {"name": "c", "phase": "d"},
        "name: 'c'\nphase: \"d\"\n",
    ),
    "a value with an anchor": (
        "model:\n  latent_channels: &a 16\n",
        {"model.latent_channels": 8},
        "model:\n  latent_channels: &a 8\n",
    ),
    "an alias": (
        "model:\n  latent_channels: &a 16\n  base_channels: *a\n",
        {"model.base_channels": 32},
        "model:\n  latent_channels: &a 16\n  base_channels: 32\n",
    ),
    "a merged value": (
        "x: &m {mse: 1.0}\nloss:\n  <<: *m\n",
        {"loss.mse": 2.0},
        "x: &m {mse: 1.0}\nloss:\n  <<: *m\n  mse: 2.0\n",
    ),
    "an aliased section": (
        "x: &m {mse: 1.0}\nloss: *m  # shared\n",
        {"loss.mse": 2.0},
        "x: &m {mse: 1.0}\nloss:  # shared\n  <<: *m\n  mse: 2.0\n",
    ),
    "a block list": (
        "model:\n  heads:  # all\n    - rgb\n    - segmentation\n  base_channels: 32\n",
        {"model.heads": ["rgb"]},
        "model:\n  heads: [rgb]  # all\n  base_channels: 32\n",
    ),
    "a block list with a hash in a text": (
        'model:\n  heads:\n    - "#1"\n    - rgb\n  base_channels: 32\n',
        {"model.heads": ["rgb"]},
        "model:\n  heads: [rgb]\n  base_channels: 32\n",
    ),
    "a block list whose comments stay": (
        "model:\n  heads:  # all\n    # pictures\n    - rgb  # always\n    - depth\n"
        "    - segmentation # where there are masks\n  base_channels: 32\n",
        {"model.heads": ["rgb", "segmentation", "classification"]},
        "model:\n  heads:  # all\n    # pictures\n    - rgb  # always\n"
        "    - segmentation # where there are masks\n    - classification\n  base_channels: 32\n",
    ),
    "a block list at the left and the end": (
        "data:\n  image_sizes:\n  - 64\n  - 96 # middle",
        {"data.image_sizes": [128, 96]},
        "data:\n  image_sizes:\n  - 128\n  - 96 # middle",
    ),
    "dropped with its own comment": (
        "loss:\n  # the weight\n  mse: 1.0\n  kld: 1.0e-4  # goes\n\ntrain:\n  epochs: 2\n",
        {"loss.kld": DROP},
        "loss:\n  # the weight\n  mse: 1.0\n\ntrain:\n  epochs: 2\n",
    ),
    "the only key of a section dropped": (
        "name: a\nloss:\n  kld: 1.0e-4\ntrain:\n  epochs: 2\n",
        {"loss.kld": DROP},
        "name: a\ntrain:\n  epochs: 2\n",
    ),
    "an empty value": (
        "loss:\n  kld:\n  mse: 1\n",
        {"loss.kld": 0.5},
        "loss:\n  kld: 0.5\n  mse: 1\n",
    ),
    "an empty section": ("loss:\nname: a\n", {"loss.kld": 0.5}, "loss:\n  kld: 0.5\nname: a\n"),
    "a null section": ("loss: null\nname: a\n", {"loss.kld": 1}, "loss:\n  kld: 1\nname: a\n"),
    "a folded text": (
        "phase: >-\n  one\n  two\nname: a\n",
        {"phase": "b"},
        "phase: b\nname: a\n",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_by_hand(case):
    before, changes, after = CASES[case]
    assert apply(before, changes, "x.yaml") == after


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        ("- rgb  # always\n- depth", ["depth"]),
        ("- depth\n# pictures\n- rgb", ["depth"]),
        ("# pictures\n- rgb", []),
        ("- rgb\n- depth  # far", None),
        ("- rgb  # one\n- depth  # two", ["depth", "rgb"]),
        ("[rgb,  # one\n depth]", ["depth", "rgb"]),
    ],
)
def test_a_comment_is_not_lost_with_its_item(lines, value):
    text = f"model:\n  heads:\n{textwrap.indent(lines, '    ')}\n"
    with pytest.raises(ConfigError, match=r"x\.yaml:[34]: comments in the list heads") as caught:
        apply(text, {"model.heads": value}, "x.yaml")
    assert "by hand" in caught.value.hint


KEYS = st.sampled_from(["a", "b1", "long_key", "lr"])
VALUES = st.one_of(
    st.integers(-9, 10**6),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.text("ab: #'\"\\{}[],*&!-é\n", max_size=8),
    st.lists(st.integers(0, 9), max_size=3),
)


@st.composite
def documents(draw):
    """A config in some style, and its sections."""
    sections = draw(
        st.dictionaries(
            st.sampled_from(["model", "data", "loss"]),
            st.dictionaries(KEYS, VALUES, min_size=1),
            min_size=1,
        )
    )
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    step = draw(st.sampled_from(["  ", "    ", " "]))
    from imgtool.config.yaml_io import format_value

    lines = draw(st.sampled_from([[], ["# a config", ""]]))
    for name, keys in sections.items():
        note = draw(st.sampled_from(["", "  # note", " # x: y"]))
        if draw(st.booleans()):
            inner = ", ".join(f"{key}: {format_value(value)}" for key, value in keys.items())
            lines.append(f"{name}: {{{inner}}}{note}")
        else:
            lines.append(f"{name}:{note}")
            lines += [f"{step}{key}: {format_value(value)}{note}" for key, value in keys.items()]
        lines += draw(st.sampled_from([[], [""], ["# between"], ["", f"{step}# inside"]]))
    text = newline.join(lines)
    return text + draw(st.sampled_from(["", newline])), sections


@settings(max_examples=150)
@given(documents(), st.data())
def test_any_change_of_any_config(document, data):
    text, sections = document
    section = data.draw(st.sampled_from(["model", "data", "loss", "train"]))
    name = data.draw(KEYS)
    value = data.draw(st.one_of(VALUES, st.just(DROP)))
    key = f"{section}.{name}"
    changed = apply(text, {key: value}, "x")

    before = {k: e.value for k, e in parse_document(text, "x").items()}
    wanted = {k: v for k, v in before.items() if k != key}
    if value is not DROP:
        wanted[key] = value
    after = {k: e.value for k, e in parse_document(changed, "x").items()} if changed.strip() else {}
    assert {k: v for k, v in after.items() if v is not None} == {
        k: v for k, v in wanted.items() if v is not None
    }
    assert apply(changed, {key: value}, "x") == changed if changed.strip() else True
    # Of every other line not a byte has changed.
    own = {line.rstrip("\r\n") for line in text.splitlines(keepends=True)}
    kept = [line.rstrip("\r\n") for line in changed.splitlines() if name not in line and line]
    assert all(line in own or line.startswith(f"{section}:") for line in kept)
    if isinstance(value, float):  # a reader of YAML 1.1 sees a number too
        old = YAML(typ="safe", pure=True)
        old.version = (1, 1)
        assert old.load(io.StringIO(changed))[section][name] == value


def config(tmp_path, text, name="x.yaml"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def edited(path, changes, **options):
    return plan(path, changes, schema_of=schema, **options)


BASE = (
    "family: autoencoder\nmodel:\n  latent_channels: 8\n  variational: true\nloss:\n  kld: 1.0e-4\n"
)


def test_what_the_base_says_already_is_not_written_again(tmp_path):
    config(tmp_path, BASE, "base.yaml")
    path = config(tmp_path, "base: base.yaml\n")
    assert not edited(path, {"model.latent_channels": 8, "model.bottleneck": "kl"}).is_change
    edit = edited(path, {"model.latent_channels": 4})
    assert edit.after == b"base: base.yaml\n\nmodel:\n  latent_channels: 4\n"
    edit.write()
    assert not edited(path, {"model.latent_channels": 4}).is_change


def test_an_older_spelling_is_kept(tmp_path):
    path = config(tmp_path, BASE)
    edit = edited(path, {"model.bottleneck": "none", "loss.kld": DROP})
    assert edit.after.decode() == (
        "family: autoencoder\nmodel:\n  latent_channels: 8\n  variational: false\n"
    )


def test_a_rival_goes(tmp_path):
    start = "family: hpcm\nbase: hpcm/tiny\nloss:\n"
    path = config(tmp_path, start + "  truncation_epochs: 5\n  delta: 0.2\n")
    edit = edited(path, {"loss.truncation_iterations": 7})
    assert edit.after.decode() == start + "  delta: 0.2\n  truncation_iterations: 7\n"
    path = config(tmp_path, "family: hpcm\nbase: hpcm/tiny\n")  # its rival is in the base
    edited(path, {"loss.truncation_epochs": 7}).write()
    loss = load(str(path), family=None, schema_of=schema).experiment.loss
    assert (loss.truncation_epochs, loss.truncation_iterations) == (7, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.latent_chanels": 4}, "no key model.latent_chanels"),
        ({"family": "hpcm"}, "family is not to be changed"),
        ({"model.latent_channels": 0}, "latent_channels"),
        ({"model.latent_channels": "many"}, "latent_channels"),
    ],
)
def test_wrong_changes_are_refused(tmp_path, changes, words):
    path = config(tmp_path, BASE)
    with pytest.raises(ConfigError, match=words) as caught:
        edited(path, changes)
    assert caught.value.hint
    assert path.read_bytes() == BASE.encode()


def test_a_shared_anchor_is_not_changed_for_others(tmp_path):
    text = "family: autoencoder\ntrain:\n  lr: &x 0.001\n  min_delta: *x\n"
    path = config(tmp_path, text)
    with pytest.raises(ConfigError, match=r"train\.min_delta would become"):
        edited(path, {"train.lr": 0.5})


def test_another_family_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="autoencoder family"):
        edited(config(tmp_path, BASE), {"train.lr": 0.1}, family="genegan")


def test_the_mode_and_the_link_stay(tmp_path):
    path = config(tmp_path, BASE)
    path.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to("x.yaml")
    edited(link, {"model.latent_channels": 2}).write()
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert b"latent_channels: 2" in path.read_bytes()


def test_a_file_that_changed_meanwhile_is_left_alone(tmp_path):
    path = config(tmp_path, BASE)
    edit = edited(path, {"model.latent_channels": 2})
    path.write_text(BASE + "# mine\n")
    with pytest.raises(ConfigError, match="changed meanwhile"):
        edit.write()
    assert path.read_text().endswith("# mine\n")


def test_the_comment_is_one(tmp_path):
    path = config(tmp_path, BASE)
    edited(path, {"model.latent_channels": 2}, comment="S1").write()
    edited(path, {"model.latent_channels": 4}, comment="S2").write()
    assert path.read_text().count("# imgtool update-config: ") == 1
    assert path.read_text().endswith("# imgtool update-config: S2\n")
    assert not edited(path, {"model.latent_channels": 4}, comment="S2").is_change
