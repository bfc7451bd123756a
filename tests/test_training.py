"""The loop: it stops and goes on as if it had not, trains exactly what it should, and says what is wrong."""

import json
import os
import signal

import pytest
import torch
from torch import nn

from uniadapter_edu import resuming, training
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.training import History, TrainConfig, best_precision, learning_rate_at, train

CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=1e-2, precision="fp32", checkpoint_every=2)


class ToyTask(nn.Module):
    """Regression with dropout: random numbers are drawn in the forward pass, as in the real tasks."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.LayerNorm(8), nn.Linear(8, 1))
        self.model[0].weight.requires_grad_(False)  # the frozen part is the same for every seed
        torch.manual_seed(seed)
        self.model[3].reset_parameters()
        self.seen = []

    def trainable(self):
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def prepare(self, dataset):
        return dataset

    def collate(self, rows):
        self.seen.append([(row["epoch"], row["index"]) for row in rows])
        return {name: torch.tensor([row[name] for row in rows]) for name in ("x", "y")}

    def forward(self, batch):
        loss = (self.model(batch["x"])[:, 0] - batch["y"]).square().mean()
        return {"loss": loss, "twice": 2 * loss.detach()}


def toy_data(rows=18):
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    return [{"x": row.tolist(), "y": row.sum().item()} for row in x]  # 18 rows in fours: 4 steps an epoch, 2 rows left


def run(task, config=CONFIG, **options):
    return train(task.model, task, toy_data(), config, progress=False, **options)


def numbers(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]


# ---- what the loop does


def test_each_epoch_sees_whole_batches_of_other_rows():
    task = ToyTask()
    history = run(task)
    assert history.finished and len(history.rows) == 12 and history.column("epoch") == [0] * 4 + [1] * 4 + [2] * 4
    epochs = [[key for batch in task.seen[i : i + 4] for key in batch] for i in (0, 4, 8)]
    for number, keys in enumerate(epochs):
        assert {epoch for epoch, _ in keys} == {number}
        assert len({index for _, index in keys}) == 16
    assert len({tuple(index for _, index in keys) for keys in epochs}) == 3


def test_the_learning_rate_warms_up_and_follows_half_a_cosine():
    config = TrainConfig(learning_rate=2.0, warmup_fraction=0.2)
    rates = [learning_rate_at(step, 10, config) for step in range(10)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(1.0)  # half-way down
    assert 0 < rates[9] < 0.1 and rates[2:] == sorted(rates[2:], reverse=True)
    assert learning_rate_at(0, 10, TrainConfig(learning_rate=2.0, warmup_fraction=0)) == 2.0
    assert run(ToyTask()).column("lr") == [learning_rate_at(step, 12, CONFIG) for step in range(12)]


def test_only_matrices_decay():
    task = ToyTask()
    for p in task.parameters():
        p.data.fill_(1.0)
    data = [{"x": [0.0, 0.0, 0.0], "y": 0.0}] * 4
    task.forward = lambda batch: {"loss": sum(p.sum() for p in task.trainable().values()) * 0.0}  # gradients of zero
    train(task.model, task, data, TrainConfig(steps=3, batch_size=4, weight_decay=0.5), progress=False)
    decayed = {name for name, p in task.named_parameters() if (p < 1).all()}
    assert decayed == {"model.3.weight"}


def test_gradients_are_clipped_before_the_step(monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(ToyTask(), TrainConfig(steps=2, batch_size=4, clip_norm=1e-3))
    assert norms == pytest.approx([1e-3] * 2, rel=1e-3)


def test_evaluation_is_called_on_time_and_changes_nothing():
    calls = []

    def evaluate(model):
        calls.append(len(calls))
        model.eval()
        torch.rand(7)  # an evaluation may draw random numbers and leave the model in eval mode
        return {"score": len(calls)}

    evaluated, plain = ToyTask(), ToyTask()
    history = run(evaluated, evaluate=evaluate, evaluate_every=5)
    assert history.evaluations == [{"step": 5, "score": 1}, {"step": 10, "score": 2}, {"step": 12, "score": 3}]
    assert numbers(history) == numbers(run(plain))


def test_random_numbers_of_the_caller_and_the_mode_are_left_alone():
    task = ToyTask().eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(task)
    assert torch.equal(torch.rand(3), expected)
    assert not task.training


def test_two_runs_agree_and_seeds_differ():
    first, again, other = run(ToyTask()), run(ToyTask()), run(ToyTask(), TrainConfig(**{**vars(CONFIG), "seed": 1}))
    assert numbers(first) == numbers(again) != numbers(other)


def test_a_data_set_smaller_than_a_batch_is_one_batch():
    task = ToyTask()
    history = train(task.model, task, toy_data(3), TrainConfig(epochs=2, batch_size=64), progress=False)
    assert len(history.rows) == 2 and len(task.seen[0]) == 3


# ---- stop and go on


@pytest.mark.parametrize("stops", [[1], [2], [5], [4, 8], [3, 6, 11], [12]])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, stops):
    options = {"evaluate": lambda model: {"bias": model[3].bias.item()}, "evaluate_every": 4}
    straight = ToyTask()
    expected = run(straight, **options)
    for seed, stop in enumerate([*stops, None]):
        task = ToyTask(seed)  # what trains comes from the checkpoint, whatever it was before
        until = {"stop": lambda history, stop=stop: len(history.rows) == stop}
        history = run(task, folder=tmp_path, resume=True, **options, **until)
        assert len(history.rows) == (stop or 12) and history.finished == (len(history.rows) == 12)
    assert numbers(history) == numbers(expected) and history.evaluations == expected.evaluations
    for (name, p), q in zip(straight.named_parameters(), task.parameters()):
        assert torch.equal(p, q), name


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    class Killed(Exception):
        pass

    def die(history):
        if len(history.rows) == 7:
            raise Killed

    with pytest.raises(Killed):
        run(ToyTask(), folder=tmp_path, stop=die)
    reached = []
    history = run(ToyTask(), folder=tmp_path, resume=True, stop=lambda history: reached.append(len(history.rows)))
    assert reached == [7, 8, 9, 10, 11, 12]  # six steps were saved
    assert numbers(history) == numbers(run(ToyTask()))


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_control_c_finishes_the_step_saves_and_stops(tmp_path):
    def press(history):
        if len(history.rows) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    task = ToyTask()
    with pytest.raises(KeyboardInterrupt, match="after step 3 of 12"):
        run(task, folder=tmp_path, stop=press)
    assert signal.getsignal(signal.SIGINT) is before
    reached = []
    history = run(ToyTask(), folder=tmp_path, resume=True, stop=lambda history: reached.append(len(history.rows)))
    assert reached[0] == 4 and numbers(history) == numbers(run(ToyTask()))


def test_a_finished_run_is_read_and_not_repeated(tmp_path):
    expected = run(ToyTask(), folder=tmp_path)
    task = ToyTask()
    history = run(task, folder=tmp_path, resume=True)
    assert not task.seen and history == expected
    assert run(ToyTask(), folder=tmp_path).rows is not expected.rows  # without resume it starts over


def test_a_checkpoint_is_one_safetensors_file_of_what_trains(tmp_path):
    from safetensors.torch import load_file

    task = ToyTask()
    run(task, folder=tmp_path)
    path = tmp_path / "training-00000012.safetensors"
    names = {key.split(".", 1)[1] for key in load_file(path) if key.startswith("parameter")}
    assert names == set(task.trainable())


@pytest.mark.parametrize(
    "change, cause",
    [
        ({"learning_rate": 5e-3}, "learning_rate was 0.01 and is 0.005"),
        ({"epochs": 4, "seed": 3}, "epochs was 3 and is 4; seed was 0 and is 3"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, change, cause):
    run(ToyTask(), folder=tmp_path, stop=lambda history: True)
    with pytest.raises(UniAdapterError, match=cause):
        run(ToyTask(), TrainConfig(**{**vars(CONFIG), **change}), folder=tmp_path, resume=True)


def test_a_checkpoint_of_another_model_or_data_set_is_refused(tmp_path):
    run(ToyTask(), folder=tmp_path, stop=lambda history: True)
    task = ToyTask()
    task.model[0].weight.data[0, 0] += 1e-6
    with pytest.raises(UniAdapterError, match="frozen weights are others"):
        run(task, folder=tmp_path, resume=True)
    task = ToyTask()
    task.model[3].weight.requires_grad_(False)
    with pytest.raises(UniAdapterError, match="different parameters train"):
        run(task, folder=tmp_path, resume=True)
    task = ToyTask()
    with pytest.raises(UniAdapterError, match="had 18 rows and has 5"):
        train(task.model, task, toy_data(5), CONFIG, folder=tmp_path, resume=True, progress=False)


def test_intervals_of_saving_may_change(tmp_path):
    run(ToyTask(), folder=tmp_path, stop=lambda history: len(history.rows) == 5)
    config = TrainConfig(**{**vars(CONFIG), "checkpoint_every": 7})
    assert numbers(run(ToyTask(), config, folder=tmp_path, resume=True)) == numbers(run(ToyTask()))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run(ToyTask(), folder=tmp_path, stop=lambda history: True)
    path = tmp_path / "training-00000001.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UniAdapterError, match="not a readable checkpoint.*\ndelete it; then train from the start"):
        run(ToyTask(), folder=tmp_path, resume=True)


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    run(ToyTask(), folder=tmp_path, stop=lambda history: len(history.rows) == 3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resuming, "save_file", full)
    with pytest.raises(UniAdapterError, match="No space left.*the last good checkpoint is .*training-00000003"):
        run(ToyTask(), folder=tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UniAdapterError, match="could not be written"):
        run(ToyTask(), folder=tmp_path / "file" / "runs", stop=lambda history: True)


# ---- history


def test_history_survives_json(tmp_path):
    history = run(ToyTask(), evaluate=lambda model: {"score": 0.5})
    history.save(tmp_path / "history.json")
    assert History.load(tmp_path / "history.json") == history
    assert json.loads((tmp_path / "history.json").read_text())["rows"][0]["step"] == 1
    assert history.column("twice") == [2 * loss for loss in history.column("loss")]
    assert 0 < history.seconds_per_step < 60


# ---- errors


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_names_step_and_rows(bad):
    data, task = toy_data(), ToyTask()
    data[11]["y"] = bad
    with pytest.raises(UniAdapterError, match="step [1-4], with rows") as error:
        train(task.model, task, data, CONFIG, progress=False)
    step = int(str(error.value).split("at step ")[1].split(",")[0])
    rows = str([index for _, index in task.seen[step - 1]])
    assert rows in str(error.value) and "11" in rows
    assert all(p.isfinite().all() for p in task.parameters())


def test_nothing_to_train_is_an_error(tiny_blip):
    task = ToyTask().requires_grad_(False)
    with pytest.raises(UniAdapterError, match="nothing trains"):
        run(task)
    with pytest.raises(UniAdapterError, match="made for another model"):
        train(tiny_blip, ToyTask(), toy_data())


@pytest.mark.parametrize(
    "field, value",
    [
        ("epochs", 0),
        ("steps", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
        ("warmup_fraction", 1.0),
        ("clip_norm", 0.0),
        ("precision", "fp16"),
        ("checkpoint_every", 0),
        ("workers", -1),
        ("keep_checkpoints", 0),
        ("unreadable", "ignore"),
        ("explosion", 1.0),
    ],
)
def test_wrong_settings_are_named(field, value):
    with pytest.raises(UniAdapterError, match=f"^{field} is"):
        TrainConfig(**{field: value})


# ---- precision


def test_precision_is_measured_once_and_auto_uses_it(monkeypatch):
    assert best_precision("cpu") in ("fp32", "bf16")
    assert best_precision("cpu") is best_precision("cpu") and best_precision.cache_info().hits
    for found in ("fp32", "bf16"):
        monkeypatch.setattr(training, "best_precision", lambda device, found=found: found)
        assert run(ToyTask(), TrainConfig(steps=1, batch_size=4)).precision == found


def test_bf16_runs_the_forward_pass_in_bf16_and_keeps_weights_in_float32():
    seen, task = [], ToyTask()
    task.model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    history = run(task, TrainConfig(steps=2, batch_size=4, precision="bf16"))
    assert seen == [torch.bfloat16] * 2 and history.precision == "bf16"
    assert {p.dtype for p in task.parameters()} == {torch.float32}
