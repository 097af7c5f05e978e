"""A folder of small presets in place of the package's, and a writer of configs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool.config import presets

PRESETS = {
    "phase1_1/base.yaml": "# What the latent sweep shares.\nfamily: autoencoder\nphase: phase1_1\n"
    "data:\n  dataset: layouts\ntrain:\n  lr: 2e-4\n  epochs: 10\n",
    "phase1_1/S2.yaml": "# S2: half the channels.\nbase: phase1_1/base\nmodel:\n  latent_channels: 8\n",
    "phase1_1/S10.yaml": "# S10: a quarter.\nbase: base.yaml\nmodel:\n  latent_channels: 4\n",
    "phase1_2/V1.yaml": "base: [../phase1_1/S2.yaml, common]\nloss:\n  kld: 1e-3\n",
    "common.yaml": "# Shared by all.\ntrain:\n  epochs: 50\n",
}


@pytest.fixture
def preset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Presets of the tests' own; also the only ones that exist."""
    root = tmp_path / "packaged"
    for name, text in PRESETS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(presets, "_root", lambda: root)
    return root


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a file below the current folder (a temporary one); gives its relative path."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def _write(text: str | bytes, name: str = "x.yaml") -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return _write
