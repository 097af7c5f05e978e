"""A trained model for data of another kind than it was trained with."""

from dataclasses import replace
from pathlib import Path

import pytest

from imgtool.config.load import load
from imgtool.errors import ConfigError
from imgtool.models.base import DataInfo
from imgtool.models.registry import schema
from imgtool.training.opening import Trained


def test_a_size_that_a_network_does_not_take_is_refused():
    experiment = load("genegan/exp02", family=None, schema_of=schema, tiny=True).experiment
    trained = Trained(Path("latest.safetensors"), {}, None)  # type: ignore[arg-type]
    trained.__dict__["experiment"] = experiment
    other = replace(experiment, data=replace(experiment.data, image_size=32))
    info = DataInfo(targets=frozenset({"label"}), image_size=None, num_train_images=0)
    trained.build(experiment, info)
    with pytest.raises(ConfigError, match="takes in the largest size"):
        trained.build(other, info)
