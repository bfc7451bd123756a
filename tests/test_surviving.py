"""Training that survives: kills, full disks, lost and damaged pictures, and losses that go astray."""

import json
import math
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from safetensors.torch import load_file
from small_world import noise_rows
from test_training import CONFIG, ToyTask, numbers, run, toy_data

from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import insert_adapters
from uniadapter_edu.resuming import load_trained
from uniadapter_edu.tasks import retrieval
from uniadapter_edu.tasks.retrieval import RetrievalTask
from uniadapter_edu.training import TrainConfig, train


def config(**changes):
    return TrainConfig(**{**vars(CONFIG), **changes})


# ---- kills


@pytest.mark.skipif(os.name == "nt", reason="fork and SIGKILL")
def test_killed_25_times_at_random_moments_training_ends_with_the_same_bits(tmp_path):
    script = Path(__file__).with_name("killed_training.py")
    done = subprocess.run([sys.executable, script, tmp_path], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    reached = json.loads((tmp_path / "reached.json").read_text())
    assert len(reached) == 25 and reached == sorted(reached) and 0 < reached[-1] < 80  # killed on the way, every time
    alone, killed = load_file(tmp_path / "alone.safetensors"), load_file(tmp_path / "killed.safetensors")
    assert alone.keys() == killed.keys() and len(alone["losses"]) == 80
    assert all(torch.equal(alone[name], killed[name]) for name in alone)
    left = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert left == ["training-00000079.safetensors", "training-00000080.safetensors"]


def test_so_many_checkpoints_are_kept_and_those_of_an_earlier_run_go(tmp_path):
    run(ToyTask(), config(keep_checkpoints=3), folder=tmp_path)
    assert [path.name[9:17] for path in sorted(tmp_path.iterdir())] == ["00000008", "00000010", "00000012"]
    run(ToyTask(), config(seed=1, keep_checkpoints=3), folder=tmp_path, stop=lambda history: len(history.rows) == 3)
    assert [path.name[9:17] for path in sorted(tmp_path.iterdir())] == ["00000002", "00000003"]
    resumed = run(ToyTask(), config(seed=1, keep_checkpoints=1), folder=tmp_path, resume=True)
    assert [path.name[9:17] for path in tmp_path.iterdir()] == ["00000012"]
    assert numbers(resumed) == numbers(run(ToyTask(), config(seed=1)))


def test_when_the_newest_checkpoint_is_damaged_the_one_before_it_is_named_and_goes_on(tmp_path):
    run(ToyTask(), folder=tmp_path, stop=lambda history: len(history.rows) == 6)
    newest = tmp_path / "training-00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(UniAdapterError, match="delete it; then training goes on from training-00000004"):
        run(ToyTask(), folder=tmp_path, resume=True)
    newest.unlink()
    assert numbers(run(ToyTask(), folder=tmp_path, resume=True)) == numbers(run(ToyTask()))


# ---- a full disk


def test_a_disk_that_fills_up_stops_with_the_last_checkpoint_whole_and_space_lets_it_go_on(tmp_path):
    run(ToyTask(), folder=tmp_path, stop=lambda history: len(history.rows) == 5)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes a file: the operating system stops the write
    try:
        with pytest.raises(UniAdapterError, match="could not be written.*last good checkpoint is .*training-00000005"):
            run(ToyTask(), folder=tmp_path, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert numbers(run(ToyTask(), folder=tmp_path, resume=True)) == numbers(run(ToyTask()))


# ---- losses that go astray


class Astray(ToyTask):
    """From its ninth step on, something is wrong with the loss, or only with its gradient."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong, self.calls = wrong, 0

    def forward(self, batch):
        self.calls += 1
        outputs = super().forward(batch)
        if self.calls < 11:
            return outputs
        return outputs | {"loss": self.wrong(outputs["loss"])}


WRONG = {
    "the loss is nan at step 11,": lambda loss: loss * math.nan,
    "the loss is inf at step 11,": lambda loss: loss + math.inf,
    r"the loss is .* at step 11 \(stopped above": lambda loss: loss * 1e4,
    "the norm of the gradient is nan at step 11,": lambda loss: loss + 0 * (loss - loss.detach()).sqrt(),
}


@pytest.mark.parametrize("cause", WRONG)
def test_a_run_that_goes_astray_names_step_rows_and_the_last_good_checkpoint(tmp_path, cause):
    task = Astray(WRONG[cause])
    with pytest.raises(UniAdapterError, match=cause) as error:
        run(task, folder=tmp_path)
    assert f"rows {[row for _, row in task.seen[10]]} of the data set" in error.value.cause
    assert str(tmp_path / "training-00000010.safetensors") in error.value.cause
    assert all(p.isfinite().all() for p in task.parameters())
    # From there with other settings, as a new run.
    fresh = load_trained(ToyTask(seed=5), tmp_path / "training-00000010.safetensors")
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), task.parameters()))
    assert run(fresh, config(learning_rate=1e-3), folder=tmp_path / "slower").finished


def test_an_explosion_can_be_allowed_and_none_is_seen_before_ten_steps(tmp_path):
    wrong = WRONG[r"the loss is .* at step 11 \(stopped above"]
    assert run(Astray(wrong), config(explosion=math.inf)).finished
    data = toy_data()
    for row in data[:4]:
        row["y"] *= 1e4
    task = ToyTask()
    assert train(task.model, task, data, config(steps=9, epochs=1), progress=False).finished


def test_a_checkpoint_of_another_model_is_not_loaded(tmp_path):
    run(ToyTask(), folder=tmp_path)
    task = ToyTask()
    task.model[3].weight.requires_grad_(False)
    with pytest.raises(UniAdapterError, match="another model: different parameters train"):
        load_trained(task, tmp_path / "training-00000012.safetensors")
    with pytest.raises(UniAdapterError, match="not a readable checkpoint"):
        load_trained(ToyTask(), tmp_path / "nothing.safetensors")


# ---- pictures that cannot be read


@pytest.fixture
def on_disk(tmp_path):
    """A data set of 10 picture files, which are read when they are asked for: (data set, their paths)."""
    rows = noise_rows(10)
    paths = [tmp_path / "pictures" / f"{i}.png" for i in range(10)]
    paths[0].parent.mkdir()
    for row, path in zip(rows, paths):
        row["image"].save(path)
    features = Features({"image": Image(), "captions": List(Value("string"))})
    columns = {"image": [str(path) for path in paths], "captions": [row["captions"] for row in rows]}
    return Dataset.from_dict(columns, features=features), paths


def damaged(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def no_image(path):
    path.write_text("this is no picture")


@pytest.fixture
def trained(make_blip, processor):
    """``trained(dataset, **settings)``: the history and the task of a short run."""

    def start(dataset, folder=None, **settings):
        model = insert_adapters(make_blip(), UniAdapterConfig(bottleneck=4))
        task = RetrievalTask(model, processor)
        settings = TrainConfig(**{"steps": 6, "batch_size": 4, "precision": "fp32"} | settings)
        return train(model, task, dataset, settings, folder=folder, resume=True, progress=False), task

    return start


@pytest.mark.parametrize("kept_in_memory", [True, False])
@pytest.mark.parametrize("spoil", [Path.unlink, damaged, no_image])
def test_a_row_that_cannot_be_read_stops_training_and_is_named(on_disk, trained, monkeypatch, spoil, kept_in_memory):
    dataset, paths = on_disk
    monkeypatch.setattr(retrieval, "CACHE_BYTES", 10**9 if kept_in_memory else 0)
    spoil(paths[3])
    with pytest.raises(UniAdapterError, match="row 3 of the data set cannot be read: .*\n.*skip"):
        trained(dataset)


@pytest.mark.parametrize(("kept_in_memory", "workers"), [(True, 0), (False, 0), (False, 1)])
def test_or_is_skipped_and_counted_and_every_batch_is_whole(on_disk, trained, monkeypatch, kept_in_memory, workers):
    dataset, paths = on_disk
    monkeypatch.setattr(retrieval, "CACHE_BYTES", 10**9 if kept_in_memory else 0)
    for path, spoil in zip((paths[0], paths[3], paths[7]), (Path.unlink, damaged, no_image)):
        spoil(path)
    sizes, collate = [], RetrievalTask.collate

    def spy(self, rows):
        sizes.append(len({row["index"] for row in rows} - {0, 3, 7}))
        return collate(self, rows)

    monkeypatch.setattr(RetrievalTask, "collate", spy)
    with pytest.warns(UserWarning, match="3 rows could not be read and were skipped: 0, 3, 7"):
        history, _ = trained(dataset, unreadable="skip", workers=workers)
    assert history.finished and history.skipped == [0, 3, 7]
    assert workers or sizes == [4] * 6  # in a process that loads data, nobody listens


def test_a_file_lost_during_training_is_skipped_from_then_on_and_a_resumed_run_ends_the_same(
    on_disk, trained, monkeypatch, tmp_path
):
    dataset, paths = on_disk
    monkeypatch.setattr(retrieval, "CACHE_BYTES", 0)
    paths[3].unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        straight, task = trained(dataset, unreadable="skip")
        for last in (2, 4, 6):
            stop = {"checkpoint_every": 1}
            with monkeypatch.context() as patch:
                patch.setattr(RetrievalTask, "collate", dying_after(last, RetrievalTask.collate))
                try:
                    resumed, again = trained(dataset, tmp_path / "runs", unreadable="skip", **stop)
                except KeyboardInterrupt:
                    continue
    assert resumed.column("loss") == straight.column("loss") and resumed.skipped == straight.skipped == [3]
    assert all(torch.equal(p, q) for p, q in zip(task.trainable().values(), again.trainable().values()))


def dying_after(steps, collate):
    """A `collate` that is interrupted when it is called once more."""
    calls = iter(range(steps))

    def dies(self, rows):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return collate(self, rows)

    return dies


def test_a_data_set_of_which_nothing_can_be_read_is_an_error_even_when_skipping(on_disk, trained):
    dataset, paths = on_disk
    for path in paths:
        path.unlink()
    with pytest.raises(UniAdapterError, match="cannot be read|can be read"):
        trained(dataset, unreadable="skip")
