"""Momentum encoders and queue: the average is the formula's, the queue wraps, and no gradient and no restart disturbs them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_world import WORDS

from uniadapter_edu import momentum
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import insert_adapters
from uniadapter_edu.losses import contrastive_loss
from uniadapter_edu.methods import full_fine_tuning, linear_probe, lora
from uniadapter_edu.momentum import (
    FeatureQueue,
    MomentumConfig,
    MomentumRetrievalTask,
    momentum_contrast,
    momentum_copy,
    own_parameters,
)
from uniadapter_edu.tasks.retrieval import RetrievalTask, encode_images, encode_texts, normalize
from uniadapter_edu.training import TrainConfig, train


@pytest.fixture(scope="module")
def dataset():
    """10 noise pictures of two captions each; rows 0 and 8, and 1 and 9, have their second caption in common."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    return [
        {"image": Image.fromarray(pixels[i]), "captions": [f"{WORDS[i]} {WORDS[11 - i]}", f"{WORDS[i % 8]} red"]}
        for i in range(10)
    ]


@pytest.fixture
def make_task(make_blip, processor, dataset):
    """make_task(decay=…, queue=…, alpha=…): adapters with random numbers, and the task, prepared and in training mode."""

    def make(seed=0, double=False, **settings):
        model = insert_adapters(make_blip(), UniAdapterConfig(bottleneck=4, scale=1.0))
        torch.manual_seed(seed)
        for p in model.uniadapter.parameters():
            p.data.add_(0.1 * torch.randn_like(p) if p.ndim else 0)
        model = model.double() if double else model
        task = MomentumRetrievalTask(model, processor, momentum=MomentumConfig(**{"queue": 7} | settings))
        task.prepare(dataset)
        return task.train()

    return make


def collated(task, dataset, rows, epoch=0):
    return task.collate([{**dataset[i], "index": i, "epoch": epoch} for i in rows])


def disturb(module, seed=0):
    """Move every weight that trains, as an optimizer would."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        if p.requires_grad and p.ndim:
            p.data.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


# ---- the copy


@pytest.mark.parametrize("way", [insert_adapters, linear_probe, lambda model: lora(model, 2), full_fine_tuning])
def test_the_copy_owns_what_trains_and_shares_the_rest(tiny_blip, way):
    model = way(tiny_blip)
    slow = momentum_copy(model)
    own, trained = own_parameters(slow, model), {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert own.keys() == trained.keys() and all(torch.equal(own[name], trained[name]) for name in own)
    assert not any(p.requires_grad for p in slow.parameters()) and all(p.requires_grad for p in trained.values())
    addresses = {p.data_ptr() for p in model.parameters()}
    extra = sum(p.nbytes for p in slow.parameters() if p.data_ptr() not in addresses)
    assert extra == sum(p.nbytes for p in trained.values())


@pytest.mark.parametrize("way", [insert_adapters, lambda model: lora(model, 2)])
def test_the_copy_answers_with_its_own_weights(tiny_blip, batch, way):
    model = way(tiny_blip)
    disturb(model)
    slow = momentum_copy(model)
    before = encode_images(model, batch["pixel_values"])[1].detach()
    assert torch.equal(encode_images(slow, batch["pixel_values"])[1], before)
    disturb(model, seed=1)
    assert not torch.allclose(encode_images(model, batch["pixel_values"])[1], before, atol=1e-3)
    assert torch.equal(encode_images(slow, batch["pixel_values"])[1], before)


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_the_average_is_the_formula_s_with_one_update_a_step(make_task, dataset, decay):
    task, visited = make_task(decay=decay, double=True), []
    own = own_parameters(task.slow, task.model)
    for step in range(4):
        visited.append({name: p.detach().clone() for name, p in task.trainable().items()})
        task(collated(task, dataset, [step, step + 1]))
        disturb(task.model, seed=step)
    # m_4 = μ⁴ θ_0 + (1 - μ) Σ μ^(3-j) θ_j: four updates, the first of which finds m = θ
    for name, m in own.items():
        theta = [weights[f"model.{name}"] for weights in visited]
        expected = decay**4 * theta[0] + (1 - decay) * sum(decay ** (3 - j) * theta[j] for j in range(4))
        torch.testing.assert_close(m.detach(), expected, rtol=1e-12, atol=1e-12)


def test_outside_training_nothing_moves(make_task, dataset):
    task = make_task()
    task(collated(task, dataset, [0, 1, 2]))
    disturb(task.model)
    before = {name: t.clone() for name, t in task.extra_state().items()}
    task.eval()
    task(collated(task, dataset, [3, 4]))
    assert before and all(torch.equal(before[name], t) for name, t in task.extra_state().items())


def test_the_copy_stays_in_eval_mode_and_out_of_what_trains(make_task):
    task = make_task()
    assert task.training and task.model.training
    assert not any(module.training for module in task.slow.modules())
    assert all(name.startswith("model.") for name in task.trainable())


# ---- the queue


def test_the_queue_holds_the_last_pairs_whatever_their_number():
    queue, pushed = FeatureQueue(5, 2), []
    for batch in range(6):
        numbers = [10 * batch + i for i in range(3)]
        images = torch.tensor([[n, -n] for n in numbers], dtype=torch.float32)
        queue.push(images, images + 0.5, torch.tensor(numbers), torch.tensor(numbers) + 1000)
        pushed = (pushed + numbers)[-5:]
        kept = list(zip(*(x.tolist() for x in queue.entries())))
        assert sorted(kept) == sorted(([n, -n], [n + 0.5, 0.5 - n], n, n + 1000) for n in pushed)
    assert len(queue) == 5 and queue.seen == 18


def test_a_queue_that_a_batch_does_not_fit_into_is_refused():
    with pytest.raises(UniAdapterError, match="queue of 2 cannot hold a batch of 3"):
        FeatureQueue(2, 4).push(*torch.zeros(2, 3, 4), *torch.zeros(2, 3, dtype=torch.long))


def test_an_image_s_old_entries_and_equal_captions_fit_it(make_task, dataset):
    task = make_task()
    numbers = torch.tensor([task.number[text] for row in dataset for text in row["captions"]])  # 20 texts
    fits = task.fits(torch.arange(10), numbers)
    expected = [
        [text in dataset[i]["captions"] or row == i for row in range(10) for text in dataset[row]["captions"]]
        for i in range(10)
    ]
    assert fits.tolist() == expected
    assert fits[0].nonzero()[:, 0].tolist() == [0, 1, 17]  # its own two, and row 8's second, which is the same
    # and the batch's own mask is by the same rule
    batch = collated(task, dataset, [8, 0, 3, 9, 1], epoch=1)
    assert torch.equal(task.fits(batch["rows"], batch["captions"]), batch["same"])


# ---- the loss


def reference(task, batch, queued):
    """The loss pair by pair, from the definition. ``queued``: (image, text, row, caption) of every old pair."""
    pixels, texts = normalize(task.processor, batch["pixels"]), (batch["input_ids"], batch["attention_mask"])
    image, text = encode_images(task.model, pixels)[1], encode_texts(task.model, *texts)
    slow_image, slow_text = encode_images(task.slow, pixels)[1], encode_texts(task.slow, *texts)
    rows, captions = batch["rows"].tolist(), batch["captions"].tolist()
    pairs = list(zip(slow_image, slow_text, rows, captions)) + queued
    tau, alpha = task.temperature, task.alpha(len(rows))
    own = [{task.number[t] for t in row["captions"]} for row in task.dataset]

    def one_direction(f, f_slow, keys, fits):
        s = torch.stack([f @ k for k in keys]) / tau
        soft = torch.stack([f_slow @ k for k in keys]).div(tau).softmax(0)
        y = torch.tensor([float(fit) for fit in fits], dtype=s.dtype)
        target = alpha * soft + (1 - alpha) * y / y.sum()
        return -(target * s.log_softmax(0)).sum()

    total = 0
    for i, row in enumerate(rows):
        fits = [caption in own[row] or other == row for *_, other, caption in pairs]
        total += one_direction(image[i], slow_image[i], [t for _, t, *_ in pairs], fits)
        fits = [captions[i] in own[other] or other == row for *_, other, _ in pairs]
        total += one_direction(text[i], slow_text[i], [v for v, *_ in pairs], fits)
    return total / (2 * len(rows))


def test_the_loss_is_the_slow_reference_s_while_the_queue_fills_and_wraps(make_task, dataset):
    task = make_task(double=True, decay=0.5, alpha=0.4)
    task.dataset, queued, fitting = dataset, [], 0
    for step, rows in enumerate([[0, 1, 2], [8, 9, 4], [5, 0, 6], [1, 8, 3]]):
        batch = collated(task, dataset, rows, epoch=step)
        outputs = task(batch)
        task.queue.seen -= 3  # the reference stands where the loss stood: before the push
        torch.testing.assert_close(outputs["itc"], reference(task, batch, queued), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(outputs["loss"], outputs["itc"] + outputs["itm"])
        assert outputs["alpha"] == pytest.approx(0.4 * min(1, step * 3 / 9))  # an epoch of ten rows: three batches
        task.queue.seen += 3
        fitting += int(task.fits(batch["rows"], torch.tensor([q[3] for q in queued]).long()).sum())
        with torch.no_grad():
            new = zip(*task.slow_features(batch), batch["rows"].tolist(), batch["captions"].tolist())
        queued = (queued + list(new))[-7:]
        disturb(task.model, seed=step)
    assert fitting >= 4  # the queue did hold old entries that fit


def test_without_queue_lag_and_softening_it_is_the_plain_loss(make_task, processor, dataset):
    task = make_task(decay=0.0, queue=0, alpha=0.0)
    disturb(task.model)
    batch = collated(task, dataset, [0, 8, 2, 3])
    torch.manual_seed(0)
    outputs = task(batch)
    torch.manual_seed(0)
    plain = RetrievalTask(task.model, processor)(batch)
    for name in ("itc", "itm", "loss", "temperature"):
        torch.testing.assert_close(outputs[name], plain[name])


def test_targets_of_certain_encoders_are_the_plain_ones():
    f = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=-1)
    k = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=-1)
    both = [momentum_contrast(a, a, b, torch.eye(3, dtype=torch.bool), 0.1, 0.0) for a, b in ((f, k), (k, f))]
    torch.testing.assert_close(sum(both) / 2, contrastive_loss(f, k, 0.1))


def test_no_gradient_flows_into_the_momentum_side(make_task, dataset):
    task = make_task(alpha=0.4)
    task(collated(task, dataset, [0, 1, 2]))
    disturb(task.model)
    task(collated(task, dataset, [3, 4, 5]))["itc"].backward()
    assert all(p.grad is None for p in task.slow.parameters())
    assert not any(t.requires_grad for t in task.queue.buffers())
    assert task.temperature.grad.abs() > 0

    # and in the loss itself: only the first argument and τ
    f, slow, keys = (torch.randn(2, 4, requires_grad=True) for _ in range(3))
    tau = torch.tensor(0.5, requires_grad=True)
    momentum_contrast(f, slow, keys, torch.eye(2, dtype=torch.bool), tau, 0.4).backward()
    assert f.grad.abs().sum() > 0 and tau.grad.abs() > 0 and slow.grad is None and keys.grad is None


def test_half_precision_features_are_compared_in_single():
    f, slow, keys = (F.normalize(torch.randn(4, 8), dim=-1).bfloat16() for _ in range(3))
    fits = torch.eye(4, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        half = momentum_contrast(f, slow, keys, fits, 0.01, 0.4)
    torch.testing.assert_close(half, momentum_contrast(f.float(), slow.float(), keys.float(), fits, 0.01, 0.4))


# ---- as a part of training

CONFIG = TrainConfig(steps=7, batch_size=3, learning_rate=1e-2, precision="fp32", checkpoint_every=2)


def fit(task, dataset, **options):
    return train(task.model, task, dataset, CONFIG, progress=False, **options)


def everything(task):
    return {name: t.detach().clone() for name, t in (task.trainable() | task.extra_state()).items()}


@pytest.mark.parametrize("stops", [[1], [3], [2, 5], [6]])
def test_a_resumed_run_ends_with_the_same_bits(make_task, dataset, tmp_path, stops):
    straight = make_task(decay=0.7)
    rows = fit(straight, dataset).rows
    for seed, stop in enumerate([*stops, None]):
        task = make_task(seed, decay=0.7)  # what trains, the copy and the queue come from the checkpoint
        history = fit(task, dataset, folder=tmp_path, resume=True, stop=lambda h, stop=stop: len(h.rows) == stop)
    assert [row["loss"] for row in history.rows] == [row["loss"] for row in rows]
    expected, found = everything(straight), everything(task)
    assert found.keys() == expected.keys() and {"queue.seen", "queue.images"} < found.keys()
    assert all(torch.equal(found[name], t) for name, t in expected.items())
    assert any(name.startswith("slow.uniadapter.layers.0.up.cross") for name in found)


def test_a_checkpoint_without_momentum_is_another_run_s(make_task, processor, dataset, tmp_path):
    task = make_task()
    plain = RetrievalTask(task.model, processor)
    fit(plain, dataset, folder=tmp_path, stop=lambda h: len(h.rows) == 2)
    with pytest.raises(UniAdapterError, match="belongs to another run"):
        fit(task, dataset, folder=tmp_path, resume=True)


def test_every_step_updates_once(make_task, dataset, monkeypatch):
    calls, follow = [], momentum.follow
    monkeypatch.setattr(momentum, "follow", lambda *args: calls.append(args[2]) or follow(*args))
    task = make_task(decay=0.8)
    fit(task, dataset, evaluate=lambda model: {}, evaluate_every=2)
    assert calls == [0.8] * 7 and task.queue.seen == 21


def test_what_cannot_be_is_said(make_task, dataset, make_blip, processor):
    for values in ({"decay": 1.5}, {"queue": -1}, {"queue": 2.5}, {"alpha": 2}):
        with pytest.raises(UniAdapterError, match=f"^{next(iter(values))} is"):
            MomentumConfig(**values)
    task = MomentumRetrievalTask(insert_adapters(make_blip()), processor)
    with pytest.raises(UniAdapterError, match="prepare"):
        task.collate(dataset[:2])
