"""What several test files share: tiny random BLIPs, a batch for them, the authors' golden numbers, and the wheel."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices: a second thread costs more than it gives

import pytest
import torch
from safetensors.torch import load_file
from small_world import blip_config, tiny_processor
from transformers import BlipForImageTextRetrieval

from uniadapter_edu.backbones import TASKS

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def make_blip():
    """``make_blip(cls=BlipForImageTextRetrieval, **sizes)``: a fresh random BLIP, float32, eval, always the same.

    ``task="captioning"`` names the class as `load_backbone` does, whose place it takes in some tests.
    """

    def make(cls=BlipForImageTextRetrieval, seed=0, task=None, **sizes):
        torch.manual_seed(seed)
        cls = TASKS[task] if task else cls
        return cls(blip_config(**sizes)).eval()

    return make


@pytest.fixture(scope="session")
def processor():
    """A processor for `make_blip`: 32 px, and the words of `small_world`."""
    return tiny_processor()


@pytest.fixture
def tiny_blip(make_blip):
    """A fresh random ``BlipForImageTextRetrieval``: width 32, 2 + 2 layers, image features of 16, float32, eval."""
    return make_blip()


@pytest.fixture
def batch():
    """Two images with a text each, the second text padded: the keyword arguments of BLIP's forward."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    return {
        "pixel_values": torch.randn(2, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(4, 48, (2, 7), generator=generator) * mask,
        "attention_mask": mask,
    }


@pytest.fixture(scope="session")
def golden():
    """The authors' numbers: ``.tensors`` (name -> tensor, floats as float64) and ``.json`` (what they mean)."""
    tensors = load_file(GOLDEN / "golden_public.safetensors")
    tensors = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    return SimpleNamespace(tensors=tensors, json=json.loads((GOLDEN / "golden_public.json").read_text()))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Built from a copy, so that no build folder is left in the checkout, and without a network."""
    root = Path(__file__).resolve().parents[1]
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    for name in ("uniadapter_edu", "data", "tests"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for leftover in (".pretraining/state.safetensors", "cache/page.json", "sprites/.draft/noto.parquet"):
        (source / "data" / leftover).parent.mkdir()
        (source / "data" / leftover).write_bytes(b"not to be shipped")
    _run(*"pip wheel . --no-deps --no-build-isolation -w".split(), dist, cwd=source)
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="session")
def installed_wheel(wheel, tmp_path_factory):
    """A folder to be put on PYTHONPATH, with the package as the wheel installs it."""
    place = tmp_path_factory.mktemp("site")
    _run(*"pip install --no-deps --no-index --quiet --target".split(), place, wheel)
    return place


def _run(*module_and_arguments, **options):
    command = [sys.executable, "-m", *map(str, module_and_arguments)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
