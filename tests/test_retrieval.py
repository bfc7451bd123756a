"""Retrieval: three passes, one step of training, and two-stage evaluation against the plain way of doing each."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from small_world import WORDS, overhear_scores, random_adapters, variant, wide_awake

from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import adapters_disabled, insert_adapters
from uniadapter_edu.losses import hard_negatives
from uniadapter_edu.methods import lora
from uniadapter_edu.tasks import retrieval
from uniadapter_edu.tasks.retrieval import (
    RetrievalTask,
    encode_gallery,
    encode_images,
    encode_texts,
    evaluate_retrieval,
    match,
    normalize,
    preprocess,
    search,
    tokenize,
)
from uniadapter_edu.training import TrainConfig, train


@pytest.fixture(scope="module")
def dataset():
    """12 noise pictures of several sizes; row i has 1 + i % 3 captions, all different."""
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (40, 24), (16, 48)]
    rows = []
    for i in range(12):
        pixels = rng.integers(0, 256, (*sizes[i % 3], 3), dtype=np.uint8)
        first = f"{WORDS[i % 8]} {WORDS[8 + i // 8]}"
        more = [f"big {first}", f"{first} left of small {first}"]
        rows.append({"image": PILImage.fromarray(pixels), "captions": [first, *more][: 1 + i % 3]})
    return Dataset.from_list(rows, features=Features({"image": Image(), "captions": List(Value("string"))}))


def texts_for(images, K, T=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, T + 1, (images, K, 1), generator=generator)
    mask = (torch.arange(T) < lengths).long()
    return torch.randint(5, 21, (images, K, T), generator=generator) * mask, mask


# ---- the passes


@pytest.mark.parametrize("name", ["plain", "adapters", "kv adapters", "lora"])
@pytest.mark.parametrize("K", [1, 3])
def test_folded_matching_equals_pair_by_pair(tiny_blip, name, K):
    model = variant(name, tiny_blip)
    tokens = torch.randn(4, 17, 32, generator=torch.Generator().manual_seed(2))
    input_ids, mask = texts_for(4, K)
    with torch.no_grad():
        folded = match(model, tokens, input_ids, mask)
        for b in range(4):
            for k in range(K):
                hidden = model.text_encoder(
                    input_ids=input_ids[b, k][None],
                    attention_mask=mask[b, k][None],
                    encoder_hidden_states=tokens[b][None],
                ).last_hidden_state
                torch.testing.assert_close(folded[b, k], model.itm_head(hidden[:, 0])[0], atol=1e-5, rtol=0)
    assert folded.std() > 1e-4  # of different pairs


def test_passes_are_those_of_transformers_own_forward(tiny_blip, batch):
    tokens, image_features = encode_images(tiny_blip, batch["pixel_values"])
    text_features = encode_texts(tiny_blip, batch["input_ids"], batch["attention_mask"])
    contrast = tiny_blip(**batch, use_itm_head=False).itm_score
    torch.testing.assert_close(image_features @ text_features.T, contrast)
    matching = match(tiny_blip, tokens, batch["input_ids"][:, None], batch["attention_mask"][:, None])
    torch.testing.assert_close(matching[:, 0], tiny_blip(**batch).itm_score)


def test_pixels_kept_as_bytes_become_what_the_processor_gives(processor, dataset):
    images = [row["image"] for row in dataset]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    pixels = preprocess(processor, images)
    assert pixels.dtype == torch.uint8
    torch.testing.assert_close(normalize(processor, pixels), expected, atol=1e-5, rtol=0)


def test_long_captions_are_cut_to_what_the_model_can_read(processor):
    input_ids, mask = tokenize(processor, ["cat " * 100, "dog"])
    assert input_ids.shape == mask.shape == (2, 16) and mask[1].sum() == 3


# ---- batches and losses


def test_captions_are_drawn_anew_each_epoch_and_the_same_for_a_seed(tiny_blip, processor, dataset):
    task = RetrievalTask(tiny_blip, processor)
    rows = [dataset[2] | {"index": 2, "epoch": epoch} for epoch in range(12)]  # a row with three captions
    drawn = task.collate(rows)["input_ids"]
    assert torch.equal(drawn, task.collate(rows)["input_ids"])
    assert len(drawn.unique(dim=0)) == 3
    other = RetrievalTask(tiny_blip, processor, seed=1).collate(rows)["input_ids"]
    assert drawn.shape != other.shape or not torch.equal(drawn, other)


def test_pairs_that_belong_together_are_marked(tiny_blip, processor, dataset):
    image = dataset[0]["image"]
    rows = [
        {"image": image, "captions": ["red cat"], "index": 5},
        {"image": image, "captions": ["blue dog"], "index": 7},
        {"image": image, "captions": ["red cat"], "index": 9},  # the same words for another image
        {"image": image, "captions": ["big owl"], "index": 7},  # the same row again
    ]
    same = RetrievalTask(tiny_blip, processor).collate(rows)["same"]
    assert same.long().tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]


def test_cached_rows_give_the_same_batch(tiny_blip, processor, dataset, monkeypatch):
    task = RetrievalTask(tiny_blip, processor)
    cached = task.prepare(dataset)
    assert "pixels" in cached[0] and len(cached) == len(dataset)
    keys = [{"index": i, "epoch": 3} for i in (4, 0, 11)]
    one = task.collate([cached[key["index"]] | key for key in keys])
    two = task.collate([dataset[key["index"]] | key for key in keys])
    assert all(torch.equal(one[name], two[name]) for name in two)
    monkeypatch.setattr(retrieval, "CACHE_BYTES", 100)
    assert task.prepare(dataset) is dataset


def test_loss_is_contrast_plus_matching_pair_by_pair(tiny_blip, processor, dataset):
    model = random_adapters(wide_awake(tiny_blip))
    task = RetrievalTask(model, processor, hardness=2.0)
    batch = task.collate([dataset[i] | {"index": i} for i in range(6)])
    torch.manual_seed(3)
    out = task.loss(batch)

    pixel_values = normalize(processor, batch["pixels"])
    texts = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    cosine = model(pixel_values=pixel_values, use_itm_head=False, **texts).itm_score
    target = torch.arange(6)
    itc = (F.cross_entropy(cosine / 0.07, target) + F.cross_entropy(cosine.T / 0.07, target)) / 2
    torch.manual_seed(3)
    negatives, labels = hard_negatives(cosine / 0.07, batch["same"], 2.0)
    losses = []
    for i in range(6):
        for text, label in [(i, 1), *zip(negatives[i].tolist(), labels[i].tolist())]:
            one = {name: x[text][None] for name, x in texts.items()}
            score = model(pixel_values=pixel_values[i][None], **one).itm_score
            losses += [] if label < 0 else [F.cross_entropy(score, torch.tensor([label]))]
    torch.testing.assert_close(out["itc"], itc, atol=1e-5, rtol=0)
    torch.testing.assert_close(out["itm"], torch.stack(losses).mean(), atol=1e-5, rtol=0)
    torch.testing.assert_close(out["loss"], out["itc"] + out["itm"])


def test_a_step_projects_each_image_once(tiny_blip, processor, dataset):
    task = RetrievalTask(insert_adapters(tiny_blip), processor)
    calls = {"patches": [], "keys": [], "texts": []}

    def count(name):
        return lambda module, args, output: calls[name].append(len(output))

    tiny_blip.vision_model.embeddings.patch_embedding.register_forward_hook(count("patches"))
    tiny_blip.text_encoder.encoder.layer[0].crossattention.self.key.register_forward_hook(count("keys"))
    tiny_blip.text_encoder.embeddings.word_embeddings.register_forward_hook(count("texts"))
    task.loss(task.collate([dataset[i] for i in range(6)]))
    assert calls == {"patches": [6], "keys": [6], "texts": [6, 18]}


def test_gradients_reach_all_that_trains_and_nothing_else(tiny_blip, processor, dataset):
    model = random_adapters(tiny_blip)
    task = RetrievalTask(model, processor)
    task.loss(task.collate([dataset[i] for i in range(6)]))["loss"].backward()
    with_gradient = {name for name, p in task.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    # The last vision layer is no exception: all of its tokens are read by cross-attention.
    assert with_gradient == set(task.trainable())
    assert set(task.trainable()) == {f"model.uniadapter.{name}" for name, _ in model.uniadapter.named_parameters()}


def test_temperature_is_the_adapters_or_the_tasks_and_stays_in_bounds(make_blip, processor, dataset):
    plain = RetrievalTask(make_blip(), processor)
    adapted = RetrievalTask(insert_adapters(make_blip()), processor)
    assert "own_temperature" in plain.trainable()
    assert adapted.temperature is adapted.model.uniadapter.heads.temperature
    for task in (plain, adapted):
        assert task.temperature.item() == pytest.approx(0.07)
        batch = task.collate([dataset[i] for i in range(3)])
        for wild, bound in ((-1.0, 0.001), (9.0, 0.5)):
            task.temperature.data.fill_(wild)
            assert task.loss(batch)["temperature"].item() == pytest.approx(bound) == task.temperature.item()


# ---- evaluation


def plain_evaluation(model, processor, dataset, top_k):
    """BLIP's published evaluation by transformers' forward, all pairs. Returns s and t2i (M, N), i2t (N, M)."""
    captions = [text for row in dataset for text in row["captions"]]
    pixel_values = processor(images=[row["image"] for row in dataset], return_tensors="pt")["pixel_values"]
    sims, logits = torch.zeros(len(captions), len(dataset)), torch.zeros(len(captions), len(dataset))
    for m, text in enumerate(captions):
        inputs = {"pixel_values": pixel_values, **processor(text=[text] * len(dataset), return_tensors="pt")}
        sims[m] = model(**inputs, use_itm_head=False).itm_score[:, 0]
        logits[m] = model(**inputs).itm_score[:, 1]
    t2i, i2t = sims - 100, sims.T - 100
    for m in range(len(captions)):
        best = sims[m].topk(top_k).indices
        t2i[m, best] = sims[m, best] + logits[m, best]
    for n in range(len(dataset)):
        best = sims[:, n].topk(top_k).indices
        i2t[n, best] = sims[best, n] + logits[best, n]
    return sims, t2i, i2t


@pytest.mark.parametrize("keep_tokens", [True, False])
def test_evaluation_equals_the_published_one(tiny_blip, processor, dataset, monkeypatch, keep_tokens):
    model = random_adapters(wide_awake(tiny_blip)).eval()
    scored = overhear_scores(monkeypatch)
    monkeypatch.setattr(retrieval, "TEXTS_PER_PASS", 3)
    if not keep_tokens:
        plain = retrieval.encode_gallery
        monkeypatch.setattr(retrieval, "encode_gallery", lambda *args: plain(*args, keep_bytes=0))
    evaluate_retrieval(model, processor, dataset, top_k=4, batch_size=5, progress=False)
    with torch.no_grad():
        sims, t2i, i2t = plain_evaluation(model, processor, dataset, top_k=4)
    for observed, expected in zip(scored["one"] + scored["two"], (sims, sims.T, t2i, i2t), strict=True):
        torch.testing.assert_close(observed, expected, atol=2e-5, rtol=0)  # -100 + s keeps five decimals
    right = [i for i, row in enumerate(dataset) for _ in row["captions"]]
    assert scored["right"].nonzero().tolist() == [[m, i] for m, i in enumerate(right)]


def test_a_pair_wanted_by_both_directions_is_matched_once(tiny_blip, processor, dataset, monkeypatch):
    counted = []
    plain = retrieval.match
    monkeypatch.setattr(retrieval, "match", lambda *args: counted.append(args[2].shape[:2]) or plain(*args))
    evaluate_retrieval(tiny_blip, processor, dataset, top_k=100, progress=False)
    captions = sum(len(row["captions"]) for row in dataset)
    assert sum(images * texts for images, texts in counted) == captions * len(dataset)
    assert all(images * texts <= retrieval.TEXTS_PER_PASS for images, texts in counted)


def test_without_matching_only_the_contrastive_ranking_is_scored(tiny_blip, processor, dataset):
    both = evaluate_retrieval(tiny_blip, processor, dataset, progress=False)
    assert evaluate_retrieval(tiny_blip, processor, dataset, top_k=0, progress=False) == both.stage_one


def test_search_finds_what_evaluation_ranks_first(tiny_blip, processor, dataset):
    model = random_adapters(tiny_blip).eval()
    queries = ["cat red", "big dog red"]
    indices, scores = search(model, processor, dataset, queries, top_k=5)
    assert indices.shape == scores.shape == (2, 5) and (scores.diff() <= 0).all()
    gallery = encode_gallery(model, processor, [row["image"] for row in dataset], batch_size=7)
    again = search(model, processor, gallery, queries, top_k=5)
    assert torch.equal(indices, again[0])
    torch.testing.assert_close(scores, again[1])
    first, _ = search(model, processor, gallery, queries, top_k=5, matching=False)
    assert [set(row) for row in first.tolist()] == [set(row) for row in indices.tolist()]
    everything, _ = search(model, processor, gallery, "cat red", top_k=99)
    assert everything.shape == (1, len(dataset))


def test_disabled_adapters_search_like_the_backbone(make_blip, processor, dataset):
    plain, adapted = make_blip().eval(), random_adapters(make_blip()).eval()
    expected = search(plain, processor, dataset, ["owl blue"])
    with adapters_disabled(adapted):
        observed = search(adapted, processor, dataset, ["owl blue"])
    assert torch.equal(observed[0], expected[0]) and torch.equal(observed[1], expected[1])
    assert not torch.equal(search(adapted, processor, dataset, ["owl blue"])[1], expected[1])


def test_evaluation_leaves_the_mode_as_it_was(tiny_blip, processor, dataset):
    for training in (True, False):
        tiny_blip.train(training)
        evaluate_retrieval(tiny_blip, processor, dataset, top_k=2, progress=False)
        assert tiny_blip.training is training


@pytest.mark.parametrize("way", ["adapters", "full fine-tuning"])
def test_eight_pairs_are_learned_by_heart(make_blip, processor, dataset, way):
    pairs = [row | {"captions": row["captions"][:1]} for row in dataset.select(range(8))]
    model = wide_awake(make_blip())
    before = evaluate_retrieval(model, processor, pairs, top_k=8, progress=False)
    model = insert_adapters(model, UniAdapterConfig(bottleneck=16, scale=1.0)) if way == "adapters" else model
    config = TrainConfig(steps=100, batch_size=8, learning_rate=4e-3, precision="fp32")
    history = train(model, RetrievalTask(model, processor), pairs, config, progress=False)
    after = evaluate_retrieval(model, processor, pairs, top_k=8, progress=False)
    assert before.t2i_r1 < 0.5
    assert after.t2i_r1 == after.i2t_r1 == after.stage_one.t2i_r1 == after.stage_one.i2t_r1 == 1.0
    assert history.column("itm")[-1] < 0.2 < history.column("itm")[0]


@pytest.mark.parametrize("way", ["adapters", "lora"])
def test_training_in_bf16_follows_float32(make_blip, processor, dataset, way):
    losses = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        model = insert_adapters(make_blip()) if way == "adapters" else lora(make_blip(), rank=2)
        config = TrainConfig(steps=3, batch_size=12, precision=precision)
        history = train(model, RetrievalTask(model, processor), dataset, config, progress=False)
        losses[precision] = torch.tensor(history.column("loss"))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not torch.equal(losses["fp32"], losses["bf16"])
    torch.testing.assert_close(losses["bf16"], losses["fp32"], atol=0.05, rtol=0)


def test_training_resumes_with_the_same_bits(make_blip, processor, dataset, tmp_path):
    def run(**options):
        torch.manual_seed(0)
        model = insert_adapters(make_blip(), UniAdapterConfig(bottleneck=4))
        config = TrainConfig(epochs=3, batch_size=5, precision="fp32")  # two steps an epoch
        return model, train(model, RetrievalTask(model, processor), dataset, config, progress=False, **options)

    straight, expected = run()
    run(folder=tmp_path, stop=lambda history: len(history.rows) == 3)
    resumed, history = run(folder=tmp_path, resume=True)
    assert [row["loss"] for row in history.rows] == [row["loss"] for row in expected.rows]
    assert {"itc", "itm", "temperature"} <= set(history.rows[0])
    for name, p in straight.state_dict().items():
        assert torch.equal(p, resumed.state_dict()[name]), name
    for name, p in make_blip().state_dict().items():  # the backbone did not move
        assert torch.equal(p, resumed.state_dict()[name]), name


# ---- bad data


@pytest.mark.parametrize(
    "rows, cause",
    [
        ([], "data set is empty"),
        ([{"picture": 1, "captions": ["cat"]}], "no column image"),
        ([{"image": 1, "captions": "cat"}], "captions of row 0 is 'cat'"),
        ([{"image": 1, "captions": ["cat"]}, {"image": 1, "captions": []}], "captions of row 1"),
    ],
)
def test_data_that_does_not_fit_is_refused(tiny_blip, processor, rows, cause):
    with pytest.raises(UniAdapterError, match=cause):
        evaluate_retrieval(tiny_blip, processor, rows)
    with pytest.raises(UniAdapterError, match=cause):
        RetrievalTask(tiny_blip, processor).prepare(rows)


def test_an_empty_gallery_is_refused(tiny_blip, processor):
    with pytest.raises(UniAdapterError, match="gallery is empty"):
        search(tiny_blip, processor, [], ["cat"])
