"""Config and weights of architecture kl as diffusers' AutoencoderKL has them, and back.

Neither diffusers nor a network connection is needed. A folder of diffusers holds `config.json` and
`diffusion_pytorch_model.safetensors`; encoder, latent and rgb head travel, other heads stay here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from imgtool.errors import CheckpointError, ConfigError
from imgtool.models.autoencoder.schema import Model

CLASS_NAME = "AutoencoderKL"
VERSION = "0.42.1"  # of diffusers, whose keys these are
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
SURE = -30.0  # the log variance of a latent without one: a deviation of 3e-7

DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_OF_PIPELINES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu"}
_MOST = 2**16  # channels, groups or blocks; more is no model

# Where ours lie in a network, and theirs; the first prefix that fits counts.
_PLACES = (
    ("bottleneck.to_moments.conv_out.", "encoder.conv_out."),
    ("bottleneck.to_moments.quant_conv.", "quant_conv."),
    ("bottleneck.to_latent.conv_out.", "encoder.conv_out."),
    ("bottleneck.to_latent.quant_conv.", "quant_conv."),
    ("decoder.heads.rgb.conv_norm_out.", "decoder.conv_norm_out."),
    ("decoder.heads.rgb.conv_out.", "decoder.conv_out."),
    ("decoder.trunk.post_quant_conv.", "post_quant_conv."),
    ("decoder.trunk.", "decoder."),
    ("encoder.", "encoder."),
)
# Earlier names of an attention's layers: diffusers' until 0.16, and latent diffusion's own.
_FORMER = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    "norm": "group_norm",
}


def config_of(
    model: Model,
    *,
    sample_size: int = 256,
    scaling_factor: float = 1.0,
    shift_factor: float | None = None,
    latents_mean: Sequence[float] | None = None,
    latents_std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """What config.json says of a model.

    Args:
        sample_size: pixels of a training image's side.
        scaling_factor, shift_factor: pipelines generate (z - shift_factor) * scaling_factor.
        latents_mean, latents_std: of each channel, for pipelines that read them.

    Raises:
        ConfigError: AutoencoderKL has no such model; says what of it.
    """
    _see_it_can_be_held(model)
    widths = model.levels
    down, up = ["DownEncoderBlock2D"] * len(widths), ["UpDecoderBlock2D"] * len(widths)
    if model.coarsest_attention:
        down[-1], up[0] = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
    return {
        "_class_name": CLASS_NAME,
        "_diffusers_version": VERSION,
        **DEFAULTS,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": list(widths),
        "layers_per_block": model.layers_per_block,
        "act_fn": model.activation,
        "latent_channels": model.latent_channels,
        "norm_num_groups": model.norm_groups,
        "sample_size": sample_size,
        "scaling_factor": scaling_factor,
        "shift_factor": shift_factor,
        "latents_mean": None if latents_mean is None else list(latents_mean),
        "latents_std": None if latents_std is None else list(latents_std),
        "use_quant_conv": model.quant_convs,
        "use_post_quant_conv": model.quant_convs,
        "mid_block_add_attention": model.mid_block_attention,
    }


def _see_it_can_be_held(model: Model) -> None:
    lacks = {
        f"architecture {model.architecture}": model.architecture != "kl",
        f"bottleneck {model.bottleneck}": model.bottleneck == "vq",
        f"activation {model.activation}": model.activation not in _ACTIVATIONS,
        f"heads without rgb ({', '.join(model.heads)})": "rgb" not in model.heads,
    }
    for words, is_so in lacks.items():
        if is_so:
            raise ConfigError(
                f"diffusers' {CLASS_NAME} has no {words}",
                hint="it holds architecture kl with bottleneck kl or none, activation silu, relu "
                "or gelu, and the rgb head",
            )


def model_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of our `model` section that make the network of a config.json.

    Raises:
        CheckpointError: it is not of an AutoencoderKL, or of one that we have not; says what.
    """
    if config.get("_class_name") != CLASS_NAME:
        raise _not_ours(f"it is of {config.get('_class_name')!r}, not of {CLASS_NAME}")
    unknown = [key for key in config if key not in DEFAULTS and not key.startswith("_")]
    if unknown:
        raise _not_ours(f"it has a key that {CLASS_NAME} has not: {unknown[0]}")
    values = {**DEFAULTS, **config}
    widths = values["block_out_channels"]
    numbers = [values[k] for k in ("layers_per_block", "latent_channels", "norm_num_groups")]
    if not isinstance(widths, list) or not all(_is_size(n) for n in [*widths, *numbers]):
        raise _not_ours("widths, blocks, channels and groups are whole numbers above 0")
    for key in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        if type(values[key]) is not bool:
            raise _not_ours(f"{key} is neither true nor false")
    if not 3 <= len(widths) <= 7:
        raise _not_ours(f"it has {len(widths)} levels; ours have 3 to 7")
    if values["layers_per_block"] > 16:
        raise _not_ours("it has more than 16 blocks a level")
    for key in ("in_channels", "out_channels"):
        if values[key] != 3:
            raise _not_ours(f"{key} is {values[key]}; ours is 3")
    if str(values["act_fn"]).lower() not in _ACTIVATIONS:
        raise _not_ours(f"act_fn is {values['act_fn']!r}; known are {', '.join(_ACTIVATIONS)}")
    if values["use_quant_conv"] != values["use_post_quant_conv"]:
        raise _not_ours("use_quant_conv and use_post_quant_conv differ; ours are both or neither")
    return {
        "architecture": "kl",
        "latent_channels": values["latent_channels"],
        "downsampling_steps": len(widths) - 1,
        "block_out_channels": list(widths),
        "layers_per_block": values["layers_per_block"],
        "mid_block_attention": values["mid_block_add_attention"],
        "coarsest_attention": _coarsest_attention(values, len(widths)),
        "quant_convs": values["use_quant_conv"],
        "norm": "group",
        "norm_groups": values["norm_num_groups"],
        "activation": _ACTIVATIONS[str(values["act_fn"]).lower()],
        "bottleneck": "kl",
        "heads": ["rgb"],
    }


def _is_size(number: Any) -> bool:
    return type(number) is int and 1 <= number <= _MOST


def _coarsest_attention(values: Mapping[str, Any], count: int) -> bool:
    plain = (["DownEncoderBlock2D"] * count, ["UpDecoderBlock2D"] * count)
    attends = (
        [*plain[0][:-1], "AttnDownEncoderBlock2D"],
        ["AttnUpDecoderBlock2D", *plain[1][1:]],
    )
    found = (values["down_block_types"], values["up_block_types"])
    if found not in (plain, attends):
        raise _not_ours(
            f"its block types are others than {count} of DownEncoderBlock2D and of "
            "UpDecoderBlock2D, or those with attention in the coarsest level"
        )
    return found == attends


def notes_of(config: Mapping[str, Any]) -> list[str]:
    """What a config.json says that no experiment of ours keeps, for people."""
    said = {key: config[key] for key in _OF_PIPELINES if config.get(key) is not None}
    if not said:
        return []
    words = ", ".join(f"{key} {json.dumps(value)}" for key, value in said.items())
    return [f"pipelines scaled its latents ({words}); `imgtool encode` measures them anew"]


def to_diffusers(model: Model, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors by diffusers' names; of bottleneck none with a log variance of -30.

    Args:
        model: the section that the network was made of.
        state: its state dict, of the network itself; other heads than rgb are left out.

    Raises:
        ConfigError: as `config_of`.
    """
    _see_it_can_be_held(model)
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for ours, place in _PLACES:
            if name.startswith(ours):
                theirs[place + name.removeprefix(ours)] = tensor.detach()
                break
    if model.bottleneck == "none":
        _add_log_variance(theirs)
    return theirs


def _add_log_variance(tensors: dict[str, Tensor]) -> None:
    weight, bias = tensors["encoder.conv_out.weight"], tensors["encoder.conv_out.bias"]
    has_quant_conv = "quant_conv.weight" in tensors
    sure = torch.full_like(bias, SURE)
    tensors["encoder.conv_out.weight"] = torch.cat([weight, torch.zeros_like(weight)])
    last = torch.zeros_like(bias) if has_quant_conv else sure
    tensors["encoder.conv_out.bias"] = torch.cat([bias, last])
    if has_quant_conv:
        mixing = tensors["quant_conv.weight"]
        channels = len(mixing)
        both = mixing.new_zeros(2 * channels, 2 * channels, 1, 1)
        both[:channels, :channels] = mixing
        tensors["quant_conv.weight"] = both
        tensors["quant_conv.bias"] = torch.cat([tensors["quant_conv.bias"], sure])


def from_diffusers(model: Model, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' tensors by the names of a network of ours: encoder, latent, trunk and rgb head.

    Attention layers may have their earlier names, and be 1x1 convolutions as in latent diffusion.

    Args:
        model: the section of a network of architecture kl; bottlenecks other than kl get the mean.
        tensors: what a file holds.

    Raises:
        CheckpointError: the model is of another architecture.
    """
    if model.architecture != "kl":
        raise CheckpointError(
            f"weights of {CLASS_NAME} are no weights of architecture {model.architecture}",
            hint="leave model.architecture to the file, or set it to kl",
        )
    theirs = _today(tensors)
    if model.bottleneck != "kl":
        _leave_log_variance(theirs, model)
    projection = "to_moments" if model.bottleneck == "kl" else "to_latent"
    places = [(ours, place) for ours, place in _PLACES if f".{_other(projection)}." not in ours]
    ours_of: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        for ours, place in places:
            if name.startswith(place):
                ours_of[ours + name.removeprefix(place)] = tensor
                break
        else:
            ours_of[name] = tensor  # whoever loads it says that it is one too many
    return ours_of


def _other(projection: str) -> str:
    return "to_latent" if projection == "to_moments" else "to_moments"


def _today(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        if ".attentions." in name:
            head, layer, kind = _attention_layer(name)
            name = f"{head}{_FORMER.get(layer, layer)}.{kind}"
            if kind == "weight" and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
                tensor = tensor[:, :, 0, 0]
        found[name] = tensor
    return found


def _attention_layer(name: str) -> tuple[str, str, str]:
    """`…attentions.0.`, the layer's name, `weight` or `bias`."""
    before, _, rest = name.partition(".attentions.")
    number, _, layer = rest.partition(".")
    layer, _, kind = layer.rpartition(".")
    return f"{before}.attentions.{number}.", layer, kind


def _leave_log_variance(tensors: dict[str, Tensor], model: Model) -> None:
    """Make the projection give the mean alone."""
    channels = model.latent_channels
    names = ("encoder.conv_out.weight", "encoder.conv_out.bias")
    mixing_names = ("quant_conv.weight", "quant_conv.bias")
    if not all(n in tensors for n in (*names, *(mixing_names if model.quant_convs else ()))):
        return  # whoever loads them says what is missing
    weight, bias = (tensors[name] for name in names)
    if model.quant_convs:
        mixing, offset = (tensors[name] for name in mixing_names)
        if mixing[:channels, channels:].any():  # the mean is of both halves: into one convolution
            rows = mixing[:channels, :, 0, 0].double()
            weight = torch.einsum("oi,ifhw->ofhw", rows, weight.double()).to(weight.dtype)
            bias = (rows @ bias.double() + offset[:channels]).to(bias.dtype)
            mixing = torch.eye(channels, dtype=mixing.dtype)[:, :, None, None]
            offset = torch.zeros_like(offset)
        tensors["quant_conv.weight"] = mixing[:channels, :channels]
        tensors["quant_conv.bias"] = offset[:channels]
    tensors["encoder.conv_out.weight"] = weight[:channels]
    tensors["encoder.conv_out.bias"] = bias[:channels]


def see_it_fits(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Hold a file's tensors against its config before anything of that size is made.

    Raises:
        CheckpointError: names or shapes are others; says which.
    """
    from imgtool.models.autoencoder.network import Autoencoder

    settings = model_of(config)
    tuples: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()
    }
    try:
        model = Model(**tuples)
    except ValueError as error:
        raise _not_ours(str(error)) from error
    with torch.device("meta"):
        expected = Autoencoder(model).state_dict()
    found = from_diffusers(model, tensors)
    wrong = [
        *(f"lacks {name}" for name in expected if name not in found),
        *(f"has {name}, which its config does not" for name in found if name not in expected),
        *(
            f"has {name} as {tuple(found[name].shape)}, its config as {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ),
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{WEIGHTS_NAME} {wrong[0]}{more}", hint=f"{CONFIG_NAME} is another model's"
        )


def _not_ours(why: str) -> CheckpointError:
    return CheckpointError(
        f"{CONFIG_NAME} cannot be taken over: {why}",
        hint=f"known are folders of diffusers' {CLASS_NAME}",
    )
