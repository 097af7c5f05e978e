"""Files of several lambdas: what is stored once, which codec is chosen, and nothing that was changed."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imgtool.errors import CheckpointError, NoAnswer, UsageError
from imgtool.evaluation.codec import export
from imgtool.evaluation.codec.codecs import Codecs
from imgtool.evaluation.codec.container import Container, StreamError
from imgtool.evaluation.codec.export import METADATA_KEY, open_codec, ordered, read, write
from imgtool.evaluation.codec.header import check_of, read_header
from imgtool.evaluation.codec.target import Measured, Target, search
from tests.evaluation.codec.making import make_image, make_model, write_checkpoint

LAMBDAS = (0.0035, 0.013, 0.0483)


def model_of(number):
    """Of the same network; the first and the last have h_s in common, the middle has its own."""
    model = make_model()
    with torch.no_grad():
        model.g_a[0].weight.mul_((0.3, 1, 3)[number])
        if number == 1:
            model.h_s[0].weight.mul_(1.5)
    return model


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """A folder with the checkpoints 0, 1 and 2 and their exports, ladder and portable.safetensors."""
    folder = tmp_path_factory.mktemp("ladder")
    for number, lmbda in enumerate(LAMBDAS):
        loss = {"lmbda": lmbda, "distortion": "mse"}
        write_checkpoint(folder / f"{number}/iter_000007.safetensors", model_of(number), loss=loss)
    found = [read(str(folder / f"{n}/iter_000007.safetensors")) for n in (1, 2, 0)]
    found = ordered(found)
    write(found, folder / "ladder.safetensors")
    for number, one in enumerate(found):
        write([one], folder / f"{number}.safetensors")
    images = [make_image(70, 130, seed=seed) for seed in range(2)]
    write([one.portable(images, {"n": 2}) for one in found], folder / "portable.safetensors")
    return folder


@pytest.fixture(scope="module")
def codecs(ladder):
    return Codecs(str(ladder / "ladder.safetensors"), device="cpu")


def all_points(path):
    codecs = Codecs(str(path), device="cpu")
    return [codecs.at(number) for number in range(len(codecs.points))]


def test_each_point_is_the_codec_of_its_checkpoint(ladder):
    for number, lmbda in enumerate(LAMBDAS):
        found = read(str(ladder / "ladder.safetensors"), lmbda)
        alone = read(str(ladder / f"{number}.safetensors"))
        assert (found.lmbda, found.model_hash, found.iteration) == (lmbda, alone.model_hash, 7)
        assert found.tensors.keys() == alone.tensors.keys()
        assert all(torch.equal(found.tensors[k], v) for k, v in alone.tensors.items())


def test_what_points_have_in_common_is_stored_once(ladder):
    stored = load_file(ladder / "ladder.safetensors")
    alone = load_file(ladder / "0.safetensors")
    assert [name for name in stored if name.endswith("codec.g_s.0.weight")] == [
        "0.codec.g_s.0.weight"
    ]
    assert sorted(name for name in stored if name.endswith("codec.h_s.0.weight")) == [
        "0.codec.h_s.0.weight", "1.codec.h_s.0.weight",
    ]  # fmt: skip
    assert sum(name.endswith("codec.g_a.0.weight") for name in stored) == 3
    assert len(stored) == len(alone) + 3
    assert "0.tables.counts" in stored
    assert "1.tables.counts" not in stored
    sizes = [(ladder / f"{name}.safetensors").stat().st_size for name in ("ladder", "0")]
    assert sizes[0] < 1.1 * sizes[1]


def test_a_stream_names_its_point(ladder, codecs):
    image = make_image(20, 33)
    for number, lmbda in enumerate(LAMBDAS):
        alone = open_codec(str(ladder / f"{number}.safetensors"), device="cpu")
        encoded = codecs.encode(image, lmbda=lmbda).encoded
        assert encoded.data == alone.encode(image).data
        container = Container.unpack(encoded.data)
        assert codecs.of(container).lmbda == lmbda
        assert torch.equal(codecs.of(container).decode(encoded.data), encoded.reconstruction)
        assert torch.equal(alone.decode(encoded.data), encoded.reconstruction)
    other = replace(container, model_hash=bytes(8))
    with pytest.raises(StreamError, match="compressed with the model 0000000000000000"):
        codecs.of(other)


def test_portable_points_read_version_1_as_well(ladder, codecs):
    portable = Codecs(str(ladder / "portable.safetensors"), device="cpu")
    image = make_image(20, 33)
    old = codecs.encode(image, lmbda=0.0483).encoded
    new = portable.encode(image, lmbda=0.0483).encoded
    for encoded, version in ((old, 1), (new, 2)):
        container = Container.unpack(encoded.data)
        assert container.version == version
        found = portable.of(container)
        assert found.lmbda == 0.0483
        assert torch.equal(found.decode(encoded.data), encoded.reconstruction)
    stored = load_file(ladder / "portable.safetensors")
    assert sum(name.endswith("integer.exponentials") for name in stored) == 1


def test_one_is_chosen_or_it_is_an_error(ladder, codecs):
    image = make_image(9, 9)
    with pytest.raises(UsageError, match="has 3 lambdas") as caught:
        codecs.encode(image)
    assert "0.0035, 0.013, 0.0483" in caught.value.hint
    with pytest.raises(UsageError, match="has no lambda 0.5") as caught:
        codecs.encode(image, lmbda=0.5)
    assert caught.value.hint == "it has 0.0035, 0.013, 0.0483"
    for opening in (read, open_codec):
        with pytest.raises(UsageError, match="several lambdas"):
            opening(str(ladder / "ladder.safetensors"))
    alone = Codecs(str(ladder / "1.safetensors"), device="cpu")
    assert alone.encode(image, lmbda=0.013).codec.lmbda == 0.013
    assert alone.encode(image).codec.lmbda == 0.013
    with pytest.raises(UsageError, match="has no lambda 0.5"):
        alone.encode(image, lmbda=0.5)


def test_checkpoints_that_are_no_ladder_are_refused(ladder, files):
    found = [read(str(ladder / f"{number}.safetensors")) for number in range(2)]
    for wrong, said in (
        ({"lmbda": 0.013}, "both have lambda 0.013"),
        ({"distortion": "ms-ssim"}, "for ms-ssim"),
        ({"build": replace(found[0].build, legacy_s2_hyper=True)}, "HPCM_Tiny"),
    ):
        with pytest.raises(UsageError, match=said):
            ordered([replace(found[0], **wrong), found[1]])
    many = [replace(found[0], lmbda=float(n)) for n in range(1, 66)]
    with pytest.raises(UsageError, match="65 checkpoints"):
        ordered(many)


# --- targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 2, 3, 6, 7])
def test_a_search_finds_the_nearest_on_its_side(num):
    rates = [0.1 * 1.7**n for n in range(num)]
    qualities = [25 + 2.5 * n for n in range(num)]
    between = [0.0, *((a + b) / 2 for a, b in zip(rates, rates[1:], strict=False)), 99.0]
    for kind, values, side in (("bpp", rates, max), ("psnr", qualities, min)):
        for value in [*values, *between, *(v + 1 for v in qualities)]:
            tried = []

            def measure(number, tried=tried):
                tried.append(number)
                return Measured(number + 1.0, rates[number], qualities[number])

            target = Target(kind, value)
            good = [n for n in range(num) if target.is_met(measure(n))]
            tried.clear()
            if good:
                assert search(measure, num, target) == side(good)
                assert len(tried) <= math.ceil(math.log2(num + 1))
            else:
                with pytest.raises(NoAnswer, match="out of reach") as caught:
                    search(measure, num, target)
                assert f"{values[0]:.4g}" in str(caught.value)
                assert f"{values[-1]:.4g}" in str(caught.value)


def test_what_does_not_rise_is_still_on_the_right_side():
    rates = [0.5, 0.9, 0.3]
    measure = lambda n: Measured(n + 1.0, rates[n], 30.0)  # noqa: E731
    for value in (0.3, 0.5, 0.6, 1.0):
        assert rates[search(measure, 3, Target("bpp", value))] <= value


def test_an_image_is_coded_at_what_comes_nearest(codecs):
    image = make_image(64, 80)
    at = [codecs.encode(image, lmbda=lmbda) for lmbda in LAMBDAS]
    rates = [Container.unpack(one.encoded.data).bpp for one in at]
    assert rates == sorted(rates)
    for value, wanted in ((rates[1], 1), (rates[2] - 1e-6, 1), (rates[0], 0), (1e9, 2)):
        found = codecs.encode(image, target=Target("bpp", value))
        assert found.codec.lmbda == LAMBDAS[wanted]
        assert found.encoded.data == at[wanted].encoded.data
        assert found.facts["target_bpp"] == value
        assert {"lmbda": LAMBDAS[wanted], "bpp": rates[wanted], "psnr": at[wanted].psnr} in (
            found.facts["measured"]
        )
    worst = min(one.psnr for one in at)
    assert codecs.encode(image, target=Target("psnr", worst)).psnr >= worst
    with pytest.raises(NoAnswer, match=r"--target-psnr 999 is out of reach: .* dB \(lambda 0.0035"):
        codecs.encode(image, target=Target("psnr", 999))
    with pytest.raises(NoAnswer, match=f"out of reach: {rates[0]:.4g} bpp"):
        codecs.encode(image, target=Target("bpp", rates[0] / 2))


# --- damage -----------------------------------------------------------------------------------


def metadata(path):
    with safe_open(path, framework="pt") as handle:
        return json.loads(handle.metadata()[METADATA_KEY])


def rewrite(source, target, change=lambda facts: None, *, tensors=None, fit=True):
    """With a checksum that fits, as a forger would."""
    facts = metadata(source)
    change(facts)
    if fit:
        facts["check"] = check_of(facts)
    found = load_file(source) if tensors is None else tensors
    save_file(found, target, metadata={METADATA_KEY: json.dumps(facts)})
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["points"].clear(),
        lambda facts: facts.update(points=facts["points"][:1]),
        lambda facts: facts.update(points=facts["points"][::-1]),
        lambda facts: facts.update(points=facts["points"] * 40),
        lambda facts: facts["points"][0].update(lmbda=-1),
        lambda facts: facts["points"][0].update(lmbda=None),
        lambda facts: facts["points"][0].pop("model_hash"),
        lambda facts: facts.update(points=3),
        lambda facts: facts.update(places=[]),
        lambda facts: facts["places"].update({"codec.g_s.0.weight": [0, 0]}),
        lambda facts: facts["places"].update({"codec.g_s.0.weight": [0, 0, 7]}),
        lambda facts: facts["places"].update({"codec.g_s.0.weight": [1, 0, 0]}),
        lambda facts: facts["places"].update({"codec.g_s.0.weight": [0, 0, True]}),
        lambda facts: facts["places"].update({"codec.g_s.0.weight": [0, 1, 0]}),
        lambda facts: facts["places"].pop("codec.g_s.0.weight"),
        lambda facts: facts["places"].update({"codec.more": [0, 0, 0]}),
    ],
)  # fmt: skip
def test_headers_that_make_no_sense(ladder, tmp_path, monkeypatch, change):
    path = rewrite(ladder / "ladder.safetensors", tmp_path / "c.safetensors", change)
    monkeypatch.delattr(export, "safe_open")  # nothing is read
    with pytest.raises(CheckpointError):
        Codecs(str(path), device="cpu")


def test_a_lambda_that_was_changed_is_noticed(ladder, tmp_path):
    """No hash of tensors covers it, and it chooses."""
    change = lambda facts: facts["points"][0].update(lmbda=0.0036)  # noqa: E731
    path = rewrite(ladder / "ladder.safetensors", tmp_path / "c.safetensors", change, fit=False)
    with pytest.raises(CheckpointError, match="header is not what was written"):
        read_header(path)


@pytest.mark.parametrize(
    "name", ["3.codec.g_s.0.weight", "0.codec.other", "codec.g_s.0.weight", "x"]
)
def test_tensors_that_no_point_has_are_refused(ladder, tmp_path, monkeypatch, name):
    found = {**load_file(ladder / "ladder.safetensors"), name: torch.zeros(3)}
    path = rewrite(ladder / "ladder.safetensors", tmp_path / "c.safetensors", tensors=found)
    monkeypatch.delattr(export, "safe_open")
    with pytest.raises(CheckpointError, match="its tensors are not those of HPCM_Tiny"):
        Codecs(str(path), device="cpu")


def test_a_point_that_was_changed_is_noticed_when_it_is_opened(ladder, tmp_path):
    found = load_file(ladder / "ladder.safetensors")
    found["1.codec.h_s.0.weight"] = found["1.codec.h_s.0.weight"] + 1
    path = rewrite(ladder / "ladder.safetensors", tmp_path / "c.safetensors", tensors=found)
    codecs = Codecs(str(path), device="cpu")
    assert codecs.at(0).lmbda == LAMBDAS[0]
    with pytest.raises(CheckpointError, match="not those that it was written with"):
        codecs.at(1)


def test_damaged_ladders(ladder, tmp_path):
    whole = (ladder / "ladder.safetensors").read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    path = tmp_path / "c.safetensors"
    source = random.Random(0)
    for kind in range(60):
        data = bytearray(whole)
        if kind % 3 == 0:
            del data[source.randrange(len(data)) :]
        else:
            limit = header if kind % 3 == 1 else len(data)
            data[source.randrange(limit)] ^= source.randrange(1, 256)
        path.write_bytes(data)
        with pytest.raises((CheckpointError, UsageError)):
            all_points(path)
