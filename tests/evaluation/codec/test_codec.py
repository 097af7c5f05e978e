"""The codec: what is decoded is what was encoded, to the last pixel, or it is an error."""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import replace

import pytest
import torch
from PIL import Image

from imgtool.errors import DataError
from imgtool.evaluation.codec import exact, plan
from imgtool.evaluation.codec.batch import compress
from imgtool.evaluation.codec.codec import MAX_PIXELS, Codec
from imgtool.evaluation.codec.codecs import Choice
from imgtool.evaluation.codec.container import OVERHEAD_BYTES, Container, StreamError
from imgtool.evaluation.codec.export import open_codec
from imgtool.evaluation.rate_distortion.coders import Streams
from imgtool.models.hpcm.network import HPCM
from imgtool.models.hpcm.tables import Tables
from imgtool.nn.convolution import POINTWISE
from imgtool.nn.kernels import KERNELS
from tests.evaluation.codec.making import make_image, make_model

SIZES = [(1, 1), (17, 31), (255, 257)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
def test_decoding_gives_what_encoding_saw(either, size, grey):
    image = make_image(*size, grey=grey)
    encoded = either.encode(image)
    decoded = either.decode(encoded.data)
    assert decoded.shape == image.shape
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded, encoded.reconstruction)
    container = Container.unpack(encoded.data)
    assert (container.height, container.width, container.grey) == (*size, grey)
    assert bool(torch.equal(decoded[0], decoded[1])) == grey
    excess = len(encoded.data) - encoded.estimate_bits / 8
    some = OVERHEAD_BYTES[container.version] + 19
    assert 0 < excess <= max(some, 0.005 * encoded.estimate_bits / 8)


def test_the_streams_hold_what_the_network_makes(codec):
    """The reconstruction is that of the network in evaluation, and so is the rate."""
    image = make_image(40, 70)
    encoded = codec.encode(image)
    with torch.no_grad():
        out = codec._model(image[None].float() / 255)
    shown = (out.x_hat[0] * 255).round().clamp(0, 255)
    assert (shown - encoded.reconstruction).abs().max() <= 1
    bits = sum(-likelihood.log2().sum() for likelihood in (out.likelihood_y, out.likelihood_z))
    assert encoded.estimate_bits == pytest.approx(float(bits), rel=0.02)


def test_latents_far_beyond_their_tables(codec):
    model = make_model()
    with torch.no_grad():
        model.g_a[-1].bias.mul_(1e4)
        model.h_a[-1].bias.mul_(1e4)
    wild = Codec(model, Tables.of(model), codec.facts, codec.device)
    encoded = wild.encode(make_image(30, 80))
    assert torch.equal(wild.decode(encoded.data), encoded.reconstruction)
    assert len(encoded.data) <= 1.005 * encoded.estimate_bits / 8 + 64


def test_a_range_is_never_guessed(codec):
    with pytest.raises(TypeError, match="uint8"):
        codec.encode(make_image(4, 4).float() / 255)


def test_strides_of_the_image_do_not_matter(either):
    image = make_image(30, 50)
    upside = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert either.encode(upside).data == either.encode(image).data


def test_threads_do_not_matter(either):
    """Sums are split among threads: the decoder takes as many as the encoder had."""
    image = make_image(70, 130)
    torch.set_num_threads(1)
    one = either.encode(image)
    torch.set_num_threads(2)
    two = either.encode(image)
    assert torch.equal(either.decode(one.data), one.reconstruction)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert torch.equal(either.decode(two.data), two.reconstruction)
    assert [Container.unpack(made.data).threads for made in (one, two)] == [1, 2]


def test_arithmetic_is_exact_in_both_directions(codec, monkeypatch):
    """TF32, autotuned or atomic kernels would make other bits of the same numbers."""
    seen = []

    def recorded(name):
        inner = getattr(HPCM, name)

        def outer(self, *args):
            seen.append((name, arithmetic()))
            return inner(self, *args)

        return outer

    for name in ("analyse", "walk", "synthesise"):
        monkeypatch.setattr(HPCM, name, recorded(name))
    cudnn = torch.backends.cudnn
    before = arithmetic()
    monkeypatch.setattr(cudnn, "benchmark", True)
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            codec.decode(codec.encode(make_image(9, 9)).data)
        assert (cudnn.benchmark, cudnn.allow_tf32) == (True, True)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert [name for name, _ in seen] == ["analyse", "walk", "synthesise", "walk", "synthesise"]
    for _, found in seen:
        assert found == {
            "precision": "highest",
            "deterministic": True,
            "warn_only": False,
            "cudnn.enabled": True,
            "cudnn.deterministic": True,
            "cudnn.benchmark": False,
            "cudnn.allow_tf32": False,
            "autocast": False,
            "grad": False,
        }
    monkeypatch.undo()
    assert arithmetic() == before


def arithmetic():
    cudnn = torch.backends.cudnn
    return {
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn.enabled": cudnn.enabled,
        "cudnn.deterministic": cudnn.deterministic,
        "cudnn.benchmark": cudnn.benchmark,
        "cudnn.allow_tf32": cudnn.allow_tf32,
        "autocast": torch.is_autocast_enabled("cpu"),
        "grad": torch.is_grad_enabled(),
    }


def test_settings_of_torch_are_put_back(either):
    torch.set_float32_matmul_precision("medium")
    try:
        data = either.encode(make_image(9, 9)).data
        with pytest.raises(StreamError):
            either.decode(with_fresh_crc(data[:50] + b"\1" + data[51:]))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.is_grad_enabled()


def test_another_environment_is_named(codec, monkeypatch):
    data = codec.encode(make_image(20, 20)).data
    container = Container.unpack(data)
    elsewhere = replace(container, environment=container.environment ^ 1)
    with pytest.raises(StreamError, match="another torch, processor or GPU"):
        codec.decode(elsewhere.pack())  # its pixels' CRC covers the header
    monkeypatch.setattr(torch, "__version__", "1.0")
    assert exact.environment(codec.device, "convolution") != container.environment
    assert codec.decode(data).shape == (3, 20, 20)  # the same pixels are no error


@pytest.mark.parametrize("part", ["g_s", "h_s"])
def test_other_arithmetic_is_not_called_damage(codec, part):
    """Weights that differ in a bit stand for a processor that rounds otherwise."""
    model = make_model()
    with torch.no_grad():
        for parameter in getattr(model, part).parameters():
            parameter.mul_(1.01)
    elsewhere = Codec(model, Tables.of(make_model()), codec.facts, codec.device)
    encoded = codec.encode(make_image(20, 20))
    with pytest.raises(
        StreamError, match="cannot be decoded exactly here: its bytes are"
    ) as caught:
        elsewhere.decode(encoded.data)
    assert "damaged" not in str(caught.value)
    assert "decompress it where it was compressed" in caught.value.hint
    assert "forged" in caught.value.hint


def test_the_environment_has_the_processor(codec, monkeypatch):
    here = exact.environment(codec.device, "convolution")
    assert exact.processor() == exact.processor()
    monkeypatch.setattr(exact, "processor", lambda: "another one")
    assert exact.environment(codec.device, "convolution") != here


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_decoder_takes_the_encoders_kernel(codec, kernel):
    other = next(name for name in KERNELS if name != kernel)
    with POINTWISE.using(kernel, codec.device):
        encoded = codec.encode(make_image(70, 90))
    with POINTWISE.using(other, codec.device):
        assert torch.equal(codec.decode(encoded.data), encoded.reconstruction)
    assert exact.kernel_of(Container.unpack(encoded.data).environment, codec.device) == kernel


def test_another_model_is_refused(codec):
    model = make_model(seed=2)
    facts = replace(codec.facts, model_hash="00" * 8)
    other = Codec(model, Tables.of(model), facts, codec.device)
    data = codec.encode(make_image(8, 8)).data
    with pytest.raises(StreamError, match=codec.model_hash):
        other.decode(data)
    forged = replace(Container.unpack(data), model_hash=bytes(8)).pack()
    with pytest.raises(StreamError):
        other.decode(forged)


def test_too_large_images_are_refused_before_the_work(either):
    data = either.encode(make_image(8, 8)).data
    with pytest.raises(StreamError, match="8x8 is more than 63 pixels"):
        either.decode(data, max_pixels=63)
    vast = replace(Container.unpack(data), height=1 << 24, width=1 << 24).pack()
    with pytest.raises(StreamError, match=f"more than {MAX_PIXELS} pixels"):
        either.decode(vast)
    flat = replace(Container.unpack(data), height=1, width=1 << 24).pack()
    with pytest.raises(
        StreamError, match="padded to 1073741824 pixels, is more than 80000000"
    ) as e:
        either.decode(flat)
    enough = int(e.value.hint.split()[-1])
    assert e.value.hint.endswith(f"--max-pixels {enough}")
    for max_pixels in (enough, None):  # z's stream refuses it then, after it was let in
        with pytest.raises(StreamError, match="does not end"):
            either.decode(flat, max_pixels=max_pixels)
    with pytest.raises(StreamError, match="is more than"):
        either.decode(flat, max_pixels=enough - 1)
    large = replace(Container.unpack(data), height=6000, width=6000).pack()
    with pytest.raises(StreamError, match="does not end"):  # z's stream says so, not the network
        either.decode(large)


class Flat:
    """A codec of images that are vast when padded, less the work."""

    def __init__(self, codec):
        self.facts, self._codec = codec.facts, codec
        self._image = make_image(4, 4)

    def encode(self, image):
        encoded = self._codec.encode(self._image)
        data = replace(Container.unpack(encoded.data), height=1, width=1_300_000).pack()
        return replace(encoded, data=data, reconstruction=image)

    def decode(self, data, *, max_pixels=MAX_PIXELS):
        self._codec._refuse_large(Container.unpack(data), max_pixels)
        return self._image


def test_what_was_encoded_just_now_is_never_too_large(codec, tmp_path, monkeypatch):
    flat = Flat(codec)
    job = plan.Job(tmp_path / "a.png", tmp_path / "a.hpcm")
    image = flat._image
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(job.source)

    class File:
        path = "flat"

        def begin(self, image, **choice):
            return lambda: Choice(flat, flat.encode(image), 0.0, 0.0, {})

    assert compress(File(), job, verify=True)()["verified"]
    monkeypatch.setattr(Streams, "__init__", lambda self, codec: setattr(self, "_codec", codec))
    assert torch.equal(Streams(flat)(image).decoded, image)


@pytest.mark.parametrize("value", [float("nan"), 1e20])
def test_latents_that_cannot_be_coded_are_refused(codec, value):
    model = make_model()
    with torch.no_grad():
        model.g_a[-1].bias[0] = value
    broken = Codec(model.eval(), Tables.of(model), codec.facts, codec.device)
    with pytest.raises(DataError, match="too large or not finite"):
        broken.encode(make_image(8, 8))


def with_fresh_crc(data):
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def mutate(data, source):
    """One to four changes: bits, bytes, and now and then bytes lost or doubled."""
    changed = bytearray(data)
    for _ in range(source.choice([1, 1, 2, 4])):
        at = source.randrange(len(changed))
        kind = source.random()
        if kind < 0.5:
            changed[at] ^= 1 << source.randrange(8)
        elif kind < 0.8:
            changed[at] ^= source.randrange(1, 256)
        elif kind < 0.9:
            del changed[at : at + source.randrange(1, 9)]
        else:
            changed[at:at] = source.randbytes(source.randrange(1, 9))
        if not changed:
            break
    return bytes(changed)


def test_every_truncation_and_ten_thousand_mutations(either):
    data = either.encode(make_image(5, 9)).data
    for length in range(len(data)):
        with pytest.raises(StreamError):
            either.decode(data[:length])
    source = random.Random(11)
    num_mutations = 0
    while num_mutations < 10_000:
        changed = mutate(data, source)
        if changed == data:
            continue
        num_mutations += 1
        with pytest.raises(StreamError):
            either.decode(changed)


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_mutations_that_pass_the_first_crc(either, count):
    data = either.encode(make_image(17, 31)).data
    source = random.Random(2)
    done = 0
    while done < count:
        changed = with_fresh_crc(mutate(data[:-4], source) + bytes(4))
        if changed == data:
            continue
        done += 1
        with pytest.raises(StreamError) as caught:
            either.decode(changed, max_pixels=1 << 20)
        assert caught.value.hint


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_decodes_what_it_encoded(files):
    codec = open_codec(str(files / "codec.safetensors"), device="cuda")
    for size in SIZES:
        encoded = codec.encode(make_image(*size))
        assert Container.unpack(encoded.data).threads == 0
        assert torch.equal(codec.decode(encoded.data), encoded.reconstruction)


def test_a_stream_of_a_gpu_is_never_a_wrong_picture_here(codec):
    """Its CRC is that of other pixels: arithmetic differs in the last bits."""
    container = replace(Container.unpack(codec.encode(make_image(30, 30)).data), threads=0)
    with pytest.raises(StreamError, match="another torch, processor or GPU"):
        codec.decode(container.pack())
