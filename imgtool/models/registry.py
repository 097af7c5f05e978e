"""The families by name. Nothing heavy is imported before a family is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from imgtool.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from imgtool.config.schema import FamilySchema
    from imgtool.models.base import Family

FAMILIES = {
    "attributes": "imgtool.models.attributes.task:AttributesFamily",
    "autoencoder": "imgtool.models.autoencoder.task:AutoencoderFamily",
    "genegan": "imgtool.models.genegan.task:GeneganFamily",
    "hpcm": "imgtool.models.hpcm.task:HpcmFamily",
    "flow": "imgtool.models.flow.task:FlowFamily",
}


def _target(name: str) -> tuple[str, str]:
    if name not in FAMILIES:
        raise ConfigError(f"no model family {name!r}", hint=did_you_mean(name, list(FAMILIES)))
    module, _, attribute = FAMILIES[name].partition(":")
    return module, attribute


def schema(name: str) -> FamilySchema:
    """The family's torch-free schema.

    Raises:
        ConfigError: no family of that name.
    """
    module, _ = _target(name)
    found: FamilySchema = import_module(module.rpartition(".")[0] + ".schema").SCHEMA
    return found


def family(name: str) -> Family:
    """The family itself; imports torch.

    Raises:
        ConfigError: no family of that name.
    """
    module, attribute = _target(name)
    found: Family = getattr(import_module(module), attribute)()
    return found
