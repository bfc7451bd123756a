"""Fast ways equal the plain ones: fused attention, passes of many pairs, evaluation block by block; and the benchmark runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_world import WORDS, random_adapters, variant, wide_awake
from tqdm.auto import tqdm

from uniadapter_edu import attention, benchmark, insertion, side_by_side
from uniadapter_edu.accounting import TensorMemory
from uniadapter_edu.attention import attend, frame_multipliers, scale_patch_keys
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.insertion import adapters_disabled, folded_texts, frame_weights, fused_attention, insert_adapters
from uniadapter_edu.plain import PlainRetrievalTask, match_plainly
from uniadapter_edu.tasks import retrieval
from uniadapter_edu.tasks.retrieval import IMAGES, RetrievalTask, encode_images, evaluate_retrieval, match, search
from uniadapter_edu.tasks.video_retrieval import Clips, VideoRetrievalTask, evaluate_video_retrieval

CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture
def fused(monkeypatch):
    """Attention is fused from one key on; the list counts how often it was."""
    calls = []
    monkeypatch.setattr(attention, "FUSED_FROM", 1)
    monkeypatch.setattr(insertion, "attend", lambda *args: calls.append(len(args[0])) or attend(*args))
    return calls


def texts(*shape, T=9):
    generator = torch.Generator().manual_seed(3)
    mask = (torch.arange(T) < torch.randint(2, T + 1, (*shape, 1), generator=generator)).long()
    return torch.randint(5, 21, (*shape, T), generator=generator) * mask, mask


def rows(number, frames=None):
    """Noise pictures, or clips, with one caption or two each."""
    rng = np.random.default_rng(0)

    def picture():
        return Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))

    captions = [[f"{WORDS[i % 8]} {WORDS[8 + i % 5]}", f"big {WORDS[i % 8]} left of small dog"] for i in range(number)]
    shown = [
        {"image": picture()} if frames is None else {"frames": [picture() for _ in range(frames)]} for _ in captions
    ]
    return [row | {"captions": own[: 1 + i % 2]} for i, (row, own) in enumerate(zip(shown, captions, strict=True))]


# What adapters can be: each is a way for scores, keys or values to go wrong.
CONFIGS = {
    "official": UniAdapterConfig.official(bottleneck=4, kv_bottleneck=3, scale=1.0),
    "unshared": UniAdapterConfig(bottleneck=4, share="none", scale="learned"),
    "one up": UniAdapterConfig(bottleneck=4, share="up", cross_reuses_text_up=False, scale=1.0),
    "frame-aware": UniAdapterConfig(bottleneck=4, frame_aware=True, kv_bottleneck=3, scale=1.0),
}
STATES = ["plain", "adapters", "kv adapters", "lora", *CONFIGS]


def state(name, model):
    """Wide awake: random weights at which every part of the model shows."""
    model = wide_awake(model)
    return random_adapters(model, CONFIGS[name]).eval() if name in CONFIGS else variant(name, model)


# ---- attention alone


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_what_it_says(masked):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 7, 7))
    mask = torch.zeros(2, 1, 1, 7).masked_fill(torch.rand(2, 1, 1, 7) < 0.4, torch.finfo(torch.float32).min)
    mask = mask if masked else None
    scores = q @ k.mT / 2 + (mask if masked else 0)
    torch.testing.assert_close(attend(q, k, v, mask), scores.softmax(-1) @ v)


@pytest.mark.parametrize("at_once", [1, 2, 99])
def test_attention_with_keys_of_each_text(monkeypatch, at_once):
    torch.manual_seed(0)
    B, H, K, T, F, n, d = 2, 3, 4, 5, 2, 6, 4
    q, k, v = (torch.randn(B, H, length, d, dtype=torch.float64) for length in (K * T, F * n, F * n))
    m = torch.rand(B, K, F, dtype=torch.float64) + 0.5
    monkeypatch.setattr(attention, "SCALED_BYTES", at_once * k.nbytes)
    found = attend(q, k, v, None, m).unflatten(2, (K, T))
    for text in range(K):
        keys = scale_patch_keys(k.transpose(1, 2).flatten(2), m[:, text]).unflatten(2, (H, d)).transpose(1, 2)
        expected = (q.unflatten(2, (K, T))[:, :, text] @ keys.mT / 2).softmax(-1) @ v
        torch.testing.assert_close(found[:, :, text], expected)


def test_a_mask_does_not_overflow_in_half_precision():
    q, k, v = (torch.randn(1, 1, 3, 4, dtype=torch.bfloat16) for _ in range(3))
    everything = torch.full((1, 1, 1, 3), torch.finfo(torch.float32).min)
    assert attend(q, k, v, everything).isfinite().all()


# ---- in the model


@pytest.mark.parametrize("name", STATES)
def test_fused_matching_equals_pair_by_pair(tiny_blip, fused, name):
    model, (ids, mask) = state(name, tiny_blip), texts(3, 4)
    with torch.no_grad():
        pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        tokens, features = encode_images(model, pixels)
        w = torch.rand(3, 4, 1, generator=torch.Generator().manual_seed(4))
        expected = match_plainly(model, tokens, ids, mask)
        assert not fused
        with fused_attention(model):
            for found, wanted in zip(encode_images(model, pixels), (tokens, features), strict=True):
                torch.testing.assert_close(found, wanted, **CLOSE)
            torch.testing.assert_close(match(model, tokens, ids, mask), expected, **CLOSE)
            assert len(fused) == 2 + 2  # vision's layers, and cross-attentions
            torch.testing.assert_close(match(model, tokens, ids, mask, w), expected, **CLOSE)  # a clip of one frame
    assert expected.flatten(0, 1).std(0).min() > 1e-3


@pytest.mark.parametrize("at_once", [1, 3, 99])
@pytest.mark.parametrize("name", ["plain", "official", "frame-aware", "lora"])
def test_fused_frame_aware_matching_equals_pair_by_pair(tiny_blip, fused, monkeypatch, name, at_once):
    model, (ids, mask), F = state(name, tiny_blip), texts(2, 5), 3
    monkeypatch.setattr(attention, "SCALED_BYTES", at_once * 2 * F * 17 * 32 * 4)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, F * 17, 32, generator=generator)
    w = 20 * torch.randn(2, 5, F, generator=generator)  # as loud as to be heard
    with torch.no_grad():
        expected = match_plainly(model, tokens, ids, mask, w)
        with fused_attention(model):
            found = match(model, tokens, ids, mask, w)
        alike = match_plainly(model, tokens, ids, mask, w[:, :1].expand(2, 5, F))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert len(fused) == 2 and (alike - expected).abs().max() > 1e-3


@pytest.mark.parametrize("w", [None, "a clip", "a text"])
def test_padding_of_images_is_obeyed(tiny_blip, fused, w):
    model, (ids, mask) = state("official", tiny_blip), texts(2, 3)
    tokens = torch.randn(2, 2 * 17, 32, generator=torch.Generator().manual_seed(2))
    seen = torch.ones(2, 34, dtype=torch.long)
    seen[1, 20:] = 0
    given = {"input_ids": ids.flatten(0, 1), "attention_mask": mask.flatten(0, 1), "encoder_hidden_states": tokens}
    weights = {None: None, "a clip": torch.tensor([[9.0, -9.0]] * 2), "a text": torch.randn(6, 2) * 9}[w]

    def look(**more):
        framed = frame_weights(model, weights) if w else torch.no_grad()
        with torch.no_grad(), folded_texts(model, 3), framed:
            return model.text_encoder(**given, **more).last_hidden_state

    expected = look(encoder_attention_mask=seen)
    with fused_attention(model):
        torch.testing.assert_close(look(encoder_attention_mask=seen), expected, **CLOSE)
        assert (look() - expected).abs().max() > 1e-3


def test_switched_off_it_is_the_frozen_backbone(make_blip, fused):
    plain, model, (ids, mask) = wide_awake(make_blip()), state("official", make_blip()), texts(2, 3)
    tokens = torch.randn(2, 17, 32)
    with torch.no_grad(), fused_attention(model), adapters_disabled(model):
        torch.testing.assert_close(match(model, tokens, ids, mask), match_plainly(plain, tokens, ids, mask), **CLOSE)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("task", [RetrievalTask, VideoRetrievalTask])
def test_a_step_has_the_gradients_of_the_plain_step(make_blip, processor, fused, task, checkpointing):
    plain = {RetrievalTask: PlainRetrievalTask, VideoRetrievalTask: type("Plain", (PlainRetrievalTask,), {})}[task]
    data = rows(5, frames=None if task is RetrievalTask else 2)
    gradients = []
    for kind in (plain, task):
        model = state("frame-aware", make_blip())
        trainer = kind(model, processor)
        trainer.medium = IMAGES if task is RetrievalTask else Clips()
        if checkpointing and kind is task:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.disable_input_require_grads()
        torch.manual_seed(0)
        trainer.train()(trainer.collate(data))["loss"].backward()
        gradients.append({name: p.grad for name, p in trainer.trainable().items()})
    expected, found = gradients
    assert bool(fused) is not checkpointing  # layers that are computed again are computed as before
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4 * gradient.abs().max().item() + 1e-6, rtol=1e-3)


def test_what_cannot_be_fused_is_left_as_it_is(make_blip, fused, batch):
    model, (ids, mask) = state("official", make_blip()), texts(2, 1)
    tokens = torch.randn(2, 17, 32)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    with fused_attention(model):
        model.train()
        match(model, encode_images(model, batch["pixel_values"])[0], ids, mask)
        assert not fused
        model.eval()
        text = {"input_ids": ids[:, 0], "attention_mask": mask[:, 0], "encoder_hidden_states": tokens}
        cached = model.text_encoder(**text, use_cache=True, is_decoder=True)
        assert not fused and cached.past_key_values is not None


def test_checkpointed_towers_are_left_as_they_are(tiny_blip, fused, batch):
    model = insert_adapters(tiny_blip).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for gradients, times in ((True, 0), (False, 2)):  # without gradients nothing is computed again
        with torch.set_grad_enabled(gradients), fused_attention(model):
            encode_images(model, batch["pixel_values"])
        assert len(fused) == times


def test_half_precision_on_a_cpu_trains_the_plain_way():
    states = torch.zeros(1, 600, 8)
    assert attention.fusing_pays(states, 600) and not attention.fusing_pays(states, 255)
    assert not attention.fusing_pays(states.bfloat16(), 600)
    with torch.autocast("cpu", torch.bfloat16):
        assert not attention.fusing_pays(states, 600)
        with torch.no_grad():
            assert attention.fusing_pays(states, 600)


def test_afterwards_it_is_as_before(tiny_blip, fused):
    model = insert_adapters(tiny_blip)
    tokens, (ids, mask) = torch.randn(2, 17, 32), texts(2, 3)
    with pytest.raises(ZeroDivisionError), fused_attention(model):
        with fused_attention(model):
            match(model, tokens, ids, mask)
        match(model, tokens, ids, mask)
        assert len(fused) == 4
        raise ZeroDivisionError
    match(model, tokens, ids, mask)
    assert len(fused) == 4 and not any("forward" in vars(module) for module in model.modules())


# ---- evaluation in blocks


@pytest.mark.parametrize("frames", [None, 2])
@pytest.mark.parametrize("name", ["plain", "kv adapters", "official", "unshared", "one up", "frame-aware", "lora"])
def test_searching_ranks_as_pair_by_pair(tiny_blip, processor, fused, monkeypatch, name, frames):
    if frames:  # cosines are close together: louder, or nothing would tell frames apart
        monkeypatch.setattr(insertion, "frame_multipliers", lambda w: frame_multipliers(w, 0.1))
    model, data, medium = state(name, tiny_blip), rows(7, frames), Clips() if frames else IMAGES
    queries = [text for row in data for text in row["captions"]]
    monkeypatch.setattr(retrieval, "TEXTS_PER_PASS", 8)
    gallery = retrieval.encode_gallery(model, processor, data, batch_size=3, medium=medium, keep_bytes=0)
    fused.clear()
    indices, scores = search(model, processor, gallery, queries, top_k=7)
    assert len(fused) > 2 * len(data)
    with torch.no_grad():
        pixels = retrieval.normalize(processor, medium.pixels(processor, data))
        tokens, features, apart = medium.encode(model, pixels)
        ids, mask = retrieval.tokenize(processor, queries)
        read = retrieval.encode_texts(model, ids, mask)
        every = torch.arange(len(queries)).expand(7, -1)  # (images, texts)
        w = medium.weights(model, read[every], apart)
        yes = match_plainly(model, tokens, ids[every], mask[every], w)[..., 1].T
        expected = read @ features.T + yes
    torch.testing.assert_close(scores, expected.gather(1, indices), **CLOSE)
    assert expected.sort(descending=True).values.diff().abs().min() > 2e-5  # no tie that rounding could decide
    assert torch.equal(indices, expected.argsort(descending=True))


@pytest.mark.parametrize("frames", [None, 2])
def test_memory_does_not_grow_with_the_gallery(tiny_blip, processor, fused, monkeypatch, frames):
    model, evaluate = state("frame-aware", tiny_blip), evaluate_video_retrieval if frames else evaluate_retrieval
    monkeypatch.setattr(retrieval, "SCORES_PER_BLOCK", 64)
    monkeypatch.setattr(retrieval, "TEXTS_PER_PASS", 8)
    encode = retrieval.encode_gallery
    monkeypatch.setattr(retrieval, "encode_gallery", lambda *args: encode(*args, keep_bytes=0))
    peaks, largest = [], []
    for images in (16, 32, 64):
        with TensorMemory() as memory:
            evaluate(model, processor, rows(images, frames), top_k=2, batch_size=4, progress=False)
        peaks.append(memory.peak_bytes)
        largest.append(memory.largest_bytes)
    assert largest[0] == largest[1] == largest[2]
    # Features, words and candidates of all are held, and grow with the gallery; a table of all pairs grows with its square.
    assert peaks[2] - peaks[1] < 2.1 * (peaks[1] - peaks[0]) < peaks[0]


def test_memory_does_not_grow_with_the_texts_of_a_clip(tiny_blip, fused, monkeypatch):
    model, tokens = state("frame-aware", tiny_blip), torch.randn(1, 4 * 17, 32)
    monkeypatch.setattr(attention, "SCALED_BYTES", 2 * 4 * 17 * 32 * 4)
    largest = []
    for K in (2, 4, 8):
        (ids, mask), w = texts(1, K, T=2), torch.randn(1, K, 4)
        with torch.no_grad(), TensorMemory() as memory, fused_attention(model):
            match(model, tokens, ids, mask, w)
        largest.append(memory.largest_bytes)
    assert largest == [2 * 4 * 17 * 32 * 4] * 3


def test_passes_hold_every_pair_once_and_are_bounded():
    counts = [1, 9, 1, 2, 40, 1, 8, 9, 25, 1]
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    passes = list(retrieval._passes(images, pairs_at_once=20, images_at_once=3))
    assert sorted(place for group in passes for place in set(group.flatten().tolist())) == list(range(len(images)))
    assert all(group.numel() <= 20 and len(group) <= 3 for group in passes)
    assert all((images[group] == images[group[:, :1]]).all() for group in passes)
    assert sum(group.numel() for group in passes) <= len(images) * 9 / 8
    assert len(passes) < len(counts) + 2  # and images with as many texts go together


def test_a_query_is_matched_with_its_images_in_one_pass(tiny_blip, processor, monkeypatch):
    passes, plain = [], retrieval.match
    monkeypatch.setattr(retrieval, "match", lambda *args: passes.append(args[2].shape[:2]) or plain(*args))
    search(tiny_blip, processor, rows(6), ["big cat"], top_k=6)
    assert passes == [(6, 1)]


# ---- what is counted, and the benchmark


def test_tensor_memory_counts_what_is_alive_once():
    weight = torch.ones(10, requires_grad=True)  # 40 bytes, there before
    with TensorMemory() as memory:
        a = weight * 2
        view = a.view(2, 5)
        a.detach().add_(1)
        assert memory.bytes == 40
        b = torch.cat([view, view])
        assert memory.bytes == memory.peak_bytes == 40 + 80
        del a, view
        b = b.sum()
        assert memory.bytes <= 40 + 4  # autograd keeps nothing of a product with a number
        b.backward()
    assert memory.largest_bytes == 80 and memory.peak_bytes >= 120 and weight.grad is not None


def test_the_benchmark_prints_every_table(capsys, tmp_path):
    path = tmp_path / "results" / "toy.json"
    assert benchmark.main(["--size", "toy", "--device", "cpu", "--repetitions", "1", "--json", str(path)]) == 0
    printed, results = capsys.readouterr().out, json.loads(path.read_text())
    assert "No GPU is used" in printed and "ANOTHER ranking" not in printed and "OTHER R@1" not in printed
    assert len(results["tables"]) == 1 + 2 + 1 + 5 and all(title in printed for title in results["tables"])
    step, *matching = (lines for title, lines in results["tables"].items() if "Growth" not in title)
    work = {line["name"]: line["multiply_adds"] for line in step}
    assert work["linear probe"] < work["UniAdapter"] < work["UniAdapter, the plain way"]
    assert work["UniAdapter"] < work["full fine-tuning"]
    memory = {line["name"]: line["peak_mb"] for line in step}
    assert memory["linear probe"] < memory["UniAdapter"] < memory["full fine-tuning"]
    for ours, plain in matching:
        assert (ours["time"], ours["memory"]) == (1, 1) and ours["multiply_adds"] < plain["multiply_adds"]


def test_multiply_adds_of_folding_are_the_arithmetics(make_blip):
    """What k texts of T tokens have to do with one image of N tokens, with and without folding."""
    model, machine = make_blip(), side_by_side.Machine("cpu", "", "fp32", 1, 1e9)
    size = replace(benchmark.SIZES["toy"], longest=9)
    D, M, L, N, T, k = 32, 64, 2, 17, 9, 4
    texts_ = {"input_ids": torch.ones(k, T, dtype=torch.long), "attention_mask": torch.ones(k, T, dtype=torch.long)}
    with pytest.MonkeyPatch.context() as patch, tqdm(disable=True) as bar:
        patch.setattr(benchmark, "texts", lambda *args: texts_)
        lines = side_by_side.side_by_side(benchmark.matching(model, size, machine, k), machine, 1, bar)
    words = k * T * (4 * D * D + 2 * T * D + 2 * D * D + 2 * N * D + 2 * D * M)
    keys = 2 * N * D * D
    assert lines[0].multiply_adds == L * (words + keys) + k * 2 * D
    assert lines[1].multiply_adds == L * (words + k * keys) + k * 2 * D


@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["--repetitions", "0"], ["--k", "16", "0"]])
def test_bad_input_is_said(capsys, monkeypatch, arguments):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(arguments) == 2
    assert "There is no GPU" in (said := capsys.readouterr().err) or "expected at least 1" in said
