"""~/.config/imgtool/cluster.yaml: what a site's jobs need, beside an experiment's `cluster:`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from imgtool.config.load import Loaded
from imgtool.config.schema import STRICT, Cluster, FamilySchema, PositiveInt, option
from imgtool.errors import ConfigError, UsageError, did_you_mean
from imgtool.schedulers import registry
from imgtool.schedulers.base import Scheduler
from imgtool.schedulers.words import memory_mb, memory_text
from imgtool.units import parse_duration

FILE_NAMES = ("imgtool/cluster.yaml", "imgtool/lsf.yaml")  # the second is read without the first
BY_PROFILE = "cluster"  # as --executor: the profile's scheduler


@dataclass(frozen=True, kw_only=True)
class Site:
    """The options of a site that no experiment has."""

    __pydantic_config__ = STRICT

    scheduler: str = option(
        registry.AUTO, "lsf, slurm, or auto: whose submission program is there."
    )
    submit: Literal["stdin", "file"] = option(
        "stdin", "How bsub gets the job file: `bsub < file`, or `bsub OPTIONS file`."
    )
    memory_means: Literal["core", "job"] | None = option(
        None, "What the scheduler takes an amount of memory for; as memory_per says when unset."
    )
    warn_min: PositiveInt = option(10, "Minutes before the run limit at which INT is sent.")
    margin: str = option("15m", "Run limit of a job beyond the sweep's duration.")
    then_queue: str | None = option(None, "Queue or partition of the job that --then submits.")
    program: tuple[str, ...] = option((), "Words that start imgtool in a job.")

    def __post_init__(self) -> None:
        try:
            parse_duration(self.margin)
        except UsageError as error:
            raise ValueError(f"margin: {error} ({error.hint})") from error
        if self.scheduler not in (known := [*registry.names(), registry.AUTO]):
            raise ValueError(f"scheduler is {self.scheduler!r}, expected one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A site.

    Attributes:
        site: its own options.
        cluster: values for keys of `cluster` that an experiment leaves at their defaults.
    """

    site: Site = field(default_factory=Site)
    cluster: Mapping[str, Any] = field(default_factory=dict)

    def resources(self, loaded: Loaded) -> Cluster:
        """What the experiment's job asks for: its own words first, then the site's."""
        given = {
            name: value
            for name, value in self.cluster.items()
            if loaded.origins.get(f"cluster.{name}", "default") == "default"
        }
        return replace(loaded.experiment.cluster, **given)

    def in_site_units(self, resources: Cluster) -> Cluster:
        """The same memory as the site counts it: a job's divided among its cores, or the sum."""
        means = self.site.memory_means
        if means is None or means == resources.memory_per:
            return resources
        amount, cores = memory_mb(resources.memory), resources.num_cores
        amount = -(-amount // cores) if means == "core" else amount * cores
        return replace(resources, memory=memory_text(amount), memory_per=means)

    def scheduler(self, executor: str) -> Scheduler:
        """What `--executor` means: a scheduler by name, or with `cluster` the site's.

        Raises:
            SchedulerError: it is not known, or none is here.
        """
        return registry.find(self.site.scheduler if executor == BY_PROFILE else executor)


class _ProfileSchema(FamilySchema):
    def section_types(self) -> dict[str, type]:
        return {"cluster": Cluster, "site": Site}


_SCHEMA = _ProfileSchema(name="profile", sections={}, tiny={})


def profile_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the profile lies: below $XDG_CONFIG_HOME, or ~/.config."""
    base = Path(environment.get("XDG_CONFIG_HOME") or "")
    if not base.is_absolute():  # the XDG rule: a relative one is ignored
        base = Path("~/.config").expanduser()
    today, former = (base / name for name in FILE_NAMES)
    return former if former.exists() and not today.exists() else today


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
    known["project"] = known["account"]
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
    given = [key.removeprefix("cluster.") for key in entries if key.startswith("cluster.")]
    return Profile(
        site=sections["site"], cluster={name: getattr(sections["cluster"], name) for name in given}
    )
