"""Several processes, and several pieces, train as one: the same losses and the same weights, but for rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import ToyTask, run
from trained_together import RUNS, STEPS

from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.tasks.retrieval import _same
from uniadapter_edu.training import TrainConfig

SCRIPT = Path(__file__).with_name("trained_together.py")
LAUNCH = "-m torch.distributed.run --standalone --nproc_per_node 2"


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """``ends[processes, name, rank]``: the losses and the weights of a run."""
    found = {}
    for processes, launcher in ((1, []), (2, LAUNCH.split())):
        folder = tmp_path_factory.mktemp(f"of_{processes}")
        command = [sys.executable, *launcher, str(SCRIPT), str(folder)]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1200, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        for name in RUNS:
            assert [path.name for path in (folder / name).iterdir()] == [f"training-{STEPS:08d}.safetensors"]
            for rank in range(processes):
                found[processes, name, rank] = load_file(folder / f"{name} {rank}.safetensors")
    return found


def assert_equal(one, other):
    assert one.keys() == other.keys() and one["losses"].shape[1] == STEPS
    for key in one:
        torch.testing.assert_close(
            one[key], other[key], atol=2e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one_with_the_same_batch(ends, name):
    assert_equal(ends[1, name, 0], ends[2, name, 0])
    first, second = (ends[2, name, rank] for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)  # and each other, to the bit
    losses = first["losses"]
    assert (losses[:, 0] - losses[:, -1]).abs().max() > 1e-2  # something was learned


@pytest.mark.parametrize("name", [name for name in RUNS if " " in name and name != "answers in pieces"])
def test_pieces_and_layers_computed_again_equal_the_whole(ends, name):
    assert_equal(ends[1, name.split()[0], 0], ends[1, name, 0])


def test_same_is_known_by_numbers():
    """Row 1 has the text that row 0 drew among its own; rows 2 and 3 are one."""
    texts = torch.tensor([[5, 6], [7, 5], [8, 0], [9, 0]])
    same = _same(row=torch.tensor([0, 1, 2, 2]), text=torch.tensor([5, 7, 8, 9]), texts=texts)
    assert same.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, True],
        [False, False, True, True],
    ]


def test_what_cannot_be_is_refused():
    with pytest.raises(UniAdapterError, match="ToyTask cannot take a batch in 2 pieces"):
        run(ToyTask(), TrainConfig(steps=1, batch_size=4, accumulate=2))
    with pytest.raises(UniAdapterError, match="Sequential cannot compute its layers again"):
        run(ToyTask(), TrainConfig(steps=1, batch_size=4, gradient_checkpointing=True))
    with pytest.raises(UniAdapterError, match="^accumulate is 5, expected from 1 to batch_size"):
        TrainConfig(batch_size=4, accumulate=5)
