"""~/.config/imgtool/lsf.yaml: what one site's cluster jobs need, beside an experiment's `lsf:`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from imgtool.config.schema import STRICT, Cluster, FamilySchema, PositiveInt, option
from imgtool.errors import ConfigError, UsageError, did_you_mean
from imgtool.sweep.trial import Trial
from imgtool.units import parse_duration

FILE_NAME = "imgtool/lsf.yaml"


@dataclass(frozen=True, kw_only=True)
class Site:
    """The options of a site that no experiment has."""

    __pydantic_config__ = STRICT

    submit: Literal["stdin", "file"] = option(
        "stdin", "How bsub gets the script: `bsub < script`, or `bsub OPTIONS script`."
    )
    warn_min: PositiveInt = option(10, "Minutes before the run limit at which LSF sends INT.")
    margin: str = option("15m", "Run limit of a job beyond the sweep's duration.")
    then_queue: str | None = option(None, "Queue of the job that --then submits.")
    program: tuple[str, ...] = option((), "Words that start imgtool in a job.")
    extra: tuple[str, ...] = option((), "Further #BSUB directives, such as -B or -app ml.")

    def __post_init__(self) -> None:
        try:
            parse_duration(self.margin)
        except UsageError as error:
            raise ValueError(f"margin: {error} ({error.hint})") from error
        for words in self.extra:
            if not words.startswith("-") or not words.isprintable():
                raise ValueError(f"extra has {words!r}, which is no option of bsub")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A site.

    Attributes:
        site: its own options.
        lsf: values for keys of `lsf` that an experiment leaves at their defaults.
    """

    site: Site = field(default_factory=Site)
    lsf: Mapping[str, Any] = field(default_factory=dict)

    def resources(self, trial: Trial) -> Cluster:
        """What the trial's job asks for: the experiment's own words first, then the site's."""
        loaded = trial.loaded
        given = {
            name: value
            for name, value in self.lsf.items()
            if loaded.origins.get(f"lsf.{name}", "default") == "default"
        }
        return replace(loaded.experiment.lsf, **given)


class _ProfileSchema(FamilySchema):
    def section_types(self) -> dict[str, type]:
        return {"lsf": Cluster, "site": Site}


_SCHEMA = _ProfileSchema(name="profile", sections={}, tiny={})


def profile_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the profile lies: $XDG_CONFIG_HOME, or ~/.config."""
    base = Path(environment.get("XDG_CONFIG_HOME") or "")
    if not base.is_absolute():  # the XDG rule: a relative one is ignored
        base = Path("~/.config").expanduser()
    return base / FILE_NAME


def read_profile(path: Path | None = None) -> Profile:
    """The site's profile; defaults where there is none.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong (file:line).
    """
    from imgtool.config.chain import Source
    from imgtool.config.fields import keys_of
    from imgtool.config.validate import build_sections
    from imgtool.config.yaml_io import parse_document

    path = path or profile_path()
    if not path.exists():
        return Profile()
    text = Source(str(path), path.stem, path).read()
    if not any(line.partition("#")[0].strip() for line in text.splitlines()):
        return Profile()
    known = {key.name: dotted for dotted, key in keys_of(_SCHEMA).items()}
    entries = {}
    for key, entry in parse_document(text, str(path)).items():
        if key not in known:
            section, dot, name = key.partition(".")
            hint = did_you_mean(name or section, list(known))
            if dot and name in known:
                hint = f"write `{name}:` at the left margin, without `{section}:` above it"
            raise ConfigError(f"{entry.origin}: unknown key {key}", hint=hint)
        entries[known[key]] = entry
    sections = build_sections(_SCHEMA, entries, str(path))
    given = [key.removeprefix("lsf.") for key in entries if key.startswith("lsf.")]
    return Profile(
        site=sections["site"], lsf={name: getattr(sections["lsf"], name) for name in given}
    )
