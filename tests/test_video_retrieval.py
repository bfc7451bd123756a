"""Video retrieval: clips instead of images, and frame-aware matching, against the plain way of doing each."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from small_world import WORDS, overhear_scores, random_adapters, variant, wide_awake
from transformers import BlipForQuestionAnswering

from uniadapter_edu import attention, load_adapters, save_adapters, set_adapter
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import adapters_disabled, add_adapter, encode_video, frame_weights, insert_adapters
from uniadapter_edu.losses import hard_negatives
from uniadapter_edu.methods import lora
from uniadapter_edu.tasks import retrieval
from uniadapter_edu.tasks.retrieval import encode_gallery, encode_texts, match, normalize, preprocess, search
from uniadapter_edu.tasks.video_retrieval import Clips, VideoRetrievalTask, evaluate_video_retrieval, search_clips
from uniadapter_edu.training import TrainConfig, train

VARIANTS = ["plain", "adapters", "kv adapters", "lora"]


def video_rows(clips=8, frames=3):
    """Clips of noise pictures; row i has 1 + i % 3 captions, all different."""
    rng, rows = np.random.default_rng(0), []
    for i in range(clips):
        pictures = [PILImage.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(frames)]
        first = f"{WORDS[i % 8]} {WORDS[8 + i // 8]}"
        more = [f"big {first}", f"{first} left of small {first}"]
        rows.append({"frames": pictures, "captions": [first, *more][: 1 + i % 3]})
    return rows


@pytest.fixture(scope="module")
def dataset():
    features = Features({"frames": List(Image()), "captions": List(Value("string"))})
    return Dataset.from_list(video_rows(), features=features)


def frame_aware_adapters(model, **options):
    return random_adapters(model, UniAdapterConfig(bottleneck=16, scale=1.0, frame_aware=True, **options))


@pytest.fixture
def louder(monkeypatch):
    """Multipliers far from 1, so that what frame weights do is not lost in rounding."""
    monkeypatch.setattr(attention.frame_multipliers, "__defaults__", (0.2,))


def pixel_values_of(processor, row):
    """(1, F, 3, H, W), by the processor's own call."""
    return processor(images=row["frames"], return_tensors="pt")["pixel_values"][None]


def pair_score(model, tokens, text, weighs):
    """One clip's tokens (1, F·n, D), with its frames' features where `weighs`, and one text, by transformers' own forward."""
    hidden = {"encoder_hidden_states": tokens}
    if weighs is None:
        return model.itm_head(model.text_encoder(**text, **hidden).last_hidden_state[:, 0])[0]
    alone = F.normalize(model.text_proj(model.text_encoder(**text).last_hidden_state[:, 0]), dim=-1)  # (1, P)
    w = torch.stack([alone[0] @ frame for frame in weighs])[None]  # (1, F)
    with frame_weights(model, w):
        return model.itm_head(model.text_encoder(**text, **hidden).last_hidden_state[:, 0])[0]


def frames_of(model, pixel_values):
    """Each frame's projected CLS, normalised, one picture at a time: a list of (P,)."""
    states = [model.vision_model(pixel_values=frame[None]).last_hidden_state for frame in pixel_values[0]]
    return [F.normalize(model.vision_proj(state[:, 0]), dim=-1)[0] for state in states]


# ---- what a clip is


@pytest.mark.parametrize("name", VARIANTS)
def test_a_clips_features_are_those_of_encode_video_and_of_its_frames(tiny_blip, processor, dataset, name):
    model, clips = variant(name, wide_awake(tiny_blip)), Clips()
    with torch.no_grad():
        pixels = clips.pixels(processor, [dataset[i] for i in range(4)])
        assert pixels.shape == (4, 3, 3, 32, 32) and pixels.dtype == torch.uint8
        tokens, features, frames = clips.encode(model, normalize(processor, pixels))
        for i in range(4):
            one = pixel_values_of(processor, dataset[i])
            expected_tokens, expected = encode_video(model, one)
            torch.testing.assert_close(tokens[i][None], expected_tokens, atol=1e-5, rtol=0)
            torch.testing.assert_close(features[i][None], expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(frames[i], torch.stack(frames_of(model, one)), atol=1e-5, rtol=0)
    assert tokens.shape == (4, 3 * 17, 32) and frames.std(0).max() > 1e-3


def test_a_clip_that_runs_backwards_is_the_same_clip(tiny_blip, processor, dataset):
    model = frame_aware_adapters(wide_awake(tiny_blip)).eval()
    rows = [dataset[0], dataset[0] | {"frames": dataset[0]["frames"][::-1]}]
    _, scores = search_clips(model, processor, rows, ["cat red", "big dog red"], top_k=2)
    torch.testing.assert_close(scores[:, 0], scores[:, 1], atol=1e-5, rtol=0)


# ---- frame-aware matching


@pytest.mark.parametrize("weighs", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_folded_matching_equals_pair_by_pair(tiny_blip, processor, dataset, louder, name, weighs):
    model, clips = variant(name, wide_awake(tiny_blip)), Clips(frame_aware=weighs)
    rows = [dataset[i] for i in range(3)]
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 8, (3, 4, 1), generator=generator)
    mask = (torch.arange(8) < lengths).long()
    ids = torch.randint(5, 21, (3, 4, 8), generator=generator) * mask
    with torch.no_grad():
        tokens, _, frames = clips.encode(model, normalize(processor, clips.pixels(processor, rows)))
        text_features = encode_texts(model, ids.flatten(0, 1), mask.flatten(0, 1)).unflatten(0, (3, 4))
        w = clips.weights(model, text_features, frames)
        folded = match(model, tokens, ids, mask, w)
        expected = torch.empty_like(folded)
        for b in range(3):
            pixel_values = pixel_values_of(processor, rows[b])
            one, apart = encode_video(model, pixel_values)[0], frames_of(model, pixel_values) if weighs else None
            for k in range(4):
                text = {"input_ids": ids[b, k][None], "attention_mask": mask[b, k][None]}
                expected[b, k] = pair_score(model, one, text, apart)
        torch.testing.assert_close(folded, expected, atol=1e-5, rtol=0)
        assert (w is not None) == weighs
        if weighs:
            assert w.shape == (3, 4, 3)
            assert (folded - match(model, tokens, ids, mask)).abs().max() > 1e-3  # the weights matter
            assert (
                folded - match(model, tokens, ids, mask, w[:, :1].expand_as(w))
            ).abs().max() > 1e-3  # each text's own


def test_frame_weights_follow_the_config_unless_told(make_blip):
    plain, told = make_blip(), insert_adapters(make_blip(), UniAdapterConfig(frame_aware=True))
    untold = insert_adapters(make_blip(), UniAdapterConfig())
    assert [Clips().weighs_frames(model) for model in (plain, untold, told)] == [False, False, True]
    for model in (plain, untold, told):
        assert Clips(True).weighs_frames(model) and not Clips(False).weighs_frames(model)
    with adapters_disabled(told):
        assert not Clips().weighs_frames(told)
    add_adapter(told, UniAdapterConfig(), name="other")
    set_adapter(told, "other")
    assert not Clips().weighs_frames(told)


# ---- training


@pytest.mark.parametrize("weighs", [None, False])
def test_loss_is_contrast_plus_frame_aware_matching_pair_by_pair(tiny_blip, processor, dataset, louder, weighs):
    model = frame_aware_adapters(wide_awake(tiny_blip))
    task = VideoRetrievalTask(model, processor, hardness=2.0, frame_aware=weighs)
    batch = task.collate([dataset[i] | {"index": i} for i in range(6)])
    torch.manual_seed(3)
    out = task.loss(batch)

    videos = [pixel_values_of(processor, dataset[i]) for i in range(6)]
    texts = [{name: batch[name][i][None] for name in ("input_ids", "attention_mask")} for i in range(6)]
    tokens, features = zip(*[encode_video(model, video) for video in videos])
    apart = [frames_of(model, video) if weighs is None else None for video in videos]
    alone = [F.normalize(model.text_proj(model.text_encoder(**text).last_hidden_state[:, 0]), dim=-1) for text in texts]
    cosine = torch.cat(features) @ torch.cat(alone).T  # (clips, texts)
    target = torch.arange(6)
    itc = (F.cross_entropy(cosine / 0.07, target) + F.cross_entropy(cosine.T / 0.07, target)) / 2
    torch.manual_seed(3)
    negatives, labels = hard_negatives(cosine / 0.07, batch["same"], 2.0)
    losses = []
    for i in range(6):
        for text, label in [(i, 1), *zip(negatives[i].tolist(), labels[i].tolist())]:
            score = pair_score(model, tokens[i], texts[text], apart[i])[None]
            losses += [] if label < 0 else [F.cross_entropy(score, torch.tensor([label]))]
    torch.testing.assert_close(out["itc"], itc, atol=1e-5, rtol=0)
    torch.testing.assert_close(out["itm"], torch.stack(losses).mean(), atol=1e-5, rtol=0)
    torch.testing.assert_close(out["loss"], out["itc"] + out["itm"])


def test_no_gradient_flows_into_the_weights(make_blip, processor, dataset, louder, monkeypatch):
    def gradients(fixed=None):
        model = frame_aware_adapters(wide_awake(make_blip()))
        task = VideoRetrievalTask(model, processor)
        used, plain = [], Clips.weights
        with monkeypatch.context() as patch:
            patch.setattr(Clips, "weights", lambda *args: used.append(plain(*args)) or (fixed or used)[0])
            torch.manual_seed(0)
            task.loss(task.collate([dataset[i] for i in range(5)]))["itm"].backward()
        return used, {name: p.grad for name, p in task.trainable().items()}

    (w,), expected = gradients()
    assert not w.requires_grad
    _, found = gradients(fixed=[w.clone()])  # as constants, the same weights give the same gradients
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    assert expected["model.uniadapter.heads.text_proj.weight"] is None  # in matching, only weights could reach it
    assert expected["model.uniadapter.heads.vision_proj.weight"] is None


@pytest.mark.parametrize("weighs", [True, False])
def test_a_step_encodes_each_frame_and_projects_each_clip_once(tiny_blip, processor, dataset, weighs):
    task = VideoRetrievalTask(insert_adapters(tiny_blip), processor, frame_aware=weighs)
    calls = {"patches": [], "keys": [], "texts": []}

    def count(name, size):
        return lambda module, args, output: calls[name].append(size(args))

    tiny_blip.vision_model.embeddings.patch_embedding.register_forward_hook(count("patches", lambda args: len(args[0])))
    key = tiny_blip.text_encoder.encoder.layer[0].crossattention.self.key
    key.register_forward_pre_hook(lambda module, args: calls["keys"].append(len(args[0])))
    tiny_blip.text_encoder.embeddings.word_embeddings.register_forward_hook(count("texts", lambda args: len(args[0])))
    task.loss(task.collate([dataset[i] for i in range(6)]))
    assert calls == {"patches": [18], "keys": [6], "texts": [6, 18]}


def test_cached_rows_give_the_same_batch(tiny_blip, processor, dataset, monkeypatch):
    task = VideoRetrievalTask(tiny_blip, processor)
    cached = task.prepare(dataset)
    assert cached[0]["pixels"].shape == (3, 3, 32, 32) and len(cached) == len(dataset)
    keys = [{"index": i, "epoch": 3} for i in (4, 0, 7)]
    one = task.collate([cached[key["index"]] | key for key in keys])
    two = task.collate([dataset[key["index"]] | key for key in keys])
    assert all(torch.equal(one[name], two[name]) for name in two)
    monkeypatch.setattr(retrieval, "CACHE_BYTES", 100)
    assert task.prepare(dataset) is dataset


def test_clips_that_share_a_frame_are_learned_by_heart(make_blip, processor):
    rows = [row | {"captions": row["captions"][:1]} for row in video_rows(6, frames=2)]
    for row in rows[1:]:
        row["frames"][1] = rows[0]["frames"][1]
    model = wide_awake(make_blip())
    before = evaluate_video_retrieval(model, processor, rows, top_k=6, progress=False)
    insert_adapters(model, UniAdapterConfig(bottleneck=16, scale=1.0, frame_aware=True))
    config = TrainConfig(steps=80, batch_size=6, learning_rate=5e-3, precision="fp32")
    history = train(model, VideoRetrievalTask(model, processor), rows, config, progress=False)
    after = evaluate_video_retrieval(model, processor, rows, top_k=6, progress=False)
    assert before.t2i_r1 < 0.5 < after.i2t_r1
    assert after.t2i_r1 == after.stage_one.t2i_r1 == 1.0
    itm = history.column("itm")
    assert sum(itm[-10:]) < 0.6 * sum(itm[:10])


@pytest.mark.parametrize("way", ["adapters", "lora"])
def test_training_in_bf16_follows_float32(make_blip, processor, dataset, louder, way):
    losses = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        model = insert_adapters(make_blip()) if way == "adapters" else lora(make_blip(), rank=2)
        task = VideoRetrievalTask(model, processor, frame_aware=True)
        history = train(model, task, dataset, TrainConfig(steps=2, batch_size=8, precision=precision), progress=False)
        losses[precision] = torch.tensor(history.column("loss"))
    assert not torch.equal(losses["fp32"], losses["bf16"])
    torch.testing.assert_close(losses["bf16"], losses["fp32"], atol=0.05, rtol=0)


# ---- evaluation


def plain_evaluation(model, processor, rows, top_k, weighs):
    """Two-stage evaluation over all pairs, one at a time. Returns s and t2i (M, N), i2t (N, M)."""
    captions = [text for row in rows for text in row["captions"]]
    sims, logits = torch.zeros(len(captions), len(rows)), torch.zeros(len(captions), len(rows))
    for n, row in enumerate(rows):
        pixel_values = pixel_values_of(processor, row)
        tokens, feature = encode_video(model, pixel_values)
        apart = frames_of(model, pixel_values) if weighs else None
        for m, caption in enumerate(captions):
            text = dict(processor(text=caption, return_tensors="pt"))
            text = {name: text[name] for name in ("input_ids", "attention_mask")}
            alone = F.normalize(model.text_proj(model.text_encoder(**text).last_hidden_state[:, 0]), dim=-1)
            sims[m, n] = (alone @ feature.T)[0, 0]
            logits[m, n] = pair_score(model, tokens, text, apart)[1]
    t2i, i2t = sims - 100, sims.T - 100
    for m in range(len(captions)):
        best = sims[m].topk(top_k).indices
        t2i[m, best] = sims[m, best] + logits[m, best]
    for n in range(len(rows)):
        best = sims[:, n].topk(top_k).indices
        i2t[n, best] = sims[best, n] + logits[best, n]
    return sims, t2i, i2t


@pytest.mark.parametrize("keep_tokens", [True, False])
@pytest.mark.parametrize("weighs", [True, False])
def test_evaluation_equals_the_plain_one(tiny_blip, processor, dataset, louder, monkeypatch, keep_tokens, weighs):
    model = frame_aware_adapters(wide_awake(tiny_blip)).eval()
    scored = overhear_scores(monkeypatch)
    monkeypatch.setattr(retrieval, "TEXTS_PER_PASS", 3)
    if not keep_tokens:
        plain = retrieval.encode_gallery
        monkeypatch.setattr(retrieval, "encode_gallery", lambda *args: plain(*args, keep_bytes=0))
    options = {} if weighs else {"frame_aware": False}  # the adapters' config says yes
    found = evaluate_video_retrieval(model, processor, dataset, top_k=3, batch_size=3, progress=False, **options)
    with torch.no_grad():
        sims, t2i, i2t = plain_evaluation(model, processor, dataset, 3, weighs)
    for observed, expected in zip(scored["one"] + scored["two"], (sims, sims.T, t2i, i2t), strict=True):
        torch.testing.assert_close(observed, expected, atol=2e-5, rtol=0)
    right = [i for i, row in enumerate(dataset) for _ in row["captions"]]
    assert scored["right"].nonzero().tolist() == [[m, i] for m, i in enumerate(right)]
    assert (found.images, found.captions) == (8, sum(len(row["captions"]) for row in dataset))


def test_frame_weights_reach_the_evaluation_and_leave_the_contrastive_ranking_alone(
    tiny_blip, processor, dataset, louder
):
    model = frame_aware_adapters(wide_awake(tiny_blip)).eval()
    queries = [text for row in dataset for text in row["captions"]]
    gallery = encode_gallery(model, processor, dataset, medium=Clips())
    told, untold, off = (
        search_clips(model, processor, gallery, queries, 8, frame_aware=w) for w in (True, None, False)
    )
    assert torch.equal(told[1], untold[1]) and (told[1] - off[1]).abs().max() > 1e-3
    # a gallery of clips knows that it is one, also where images are searched for
    torch.testing.assert_close(search(model, processor, gallery, queries, 8)[1], told[1])
    first = [search_clips(model, processor, dataset, queries, 8, False, w)[1] for w in (True, False)]
    assert torch.equal(*first)


def test_search_takes_bare_lists_of_pictures(tiny_blip, processor, dataset):
    model = frame_aware_adapters(tiny_blip).eval()
    expected = search_clips(model, processor, dataset, ["cat red"], top_k=4)
    found = search_clips(model, processor, [row["frames"] for row in dataset], "cat red", top_k=4)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert found[0].shape == (1, 4)


def test_saved_adapters_bring_their_frame_awareness_along(make_blip, processor, dataset, louder, tmp_path):
    model = frame_aware_adapters(wide_awake(make_blip())).eval()
    save_adapters(model, tmp_path / "adapters")
    again = load_adapters(wide_awake(make_blip()), tmp_path / "adapters").eval()
    expected = search_clips(model, processor, dataset, ["cat red"])
    found = search_clips(again, processor, dataset, ["cat red"])
    assert torch.equal(found[1], expected[1])
    with adapters_disabled(again):
        frozen = search_clips(again, processor, dataset, ["cat red"])
    plain = search_clips(wide_awake(make_blip()).eval(), processor, dataset, ["cat red"])
    assert torch.equal(frozen[1], plain[1])


# ---- bad input


def test_frame_counts_that_differ_are_refused(tiny_blip, processor):
    rows = video_rows(4, frames=3)
    rows[3]["frames"] = rows[3]["frames"][:2]
    task = VideoRetrievalTask(tiny_blip, processor)
    for call in (
        lambda: task.collate(rows),
        lambda: search_clips(tiny_blip, processor, rows, "cat"),
        lambda: evaluate_video_retrieval(tiny_blip, processor, rows, progress=False),
    ):
        with pytest.raises(UniAdapterError, match="clips of a batch have 2, 3 frames"):
            call()
    with pytest.raises(UniAdapterError, match=r"row 3 has .*\(2, 3, 32, 32\), others have \(3, 3, 32, 32\)"):
        task.prepare(rows)
    with pytest.raises(UniAdapterError, match=r"row 3 has .*\(2, 3, 32, 32\), others have \(3, 3, 32, 32\)"):
        evaluate_video_retrieval(tiny_blip, processor, rows, batch_size=3, progress=False)


@pytest.mark.parametrize("frames", [[], None, "clip.mp4"])
def test_a_clip_without_frames_is_refused(tiny_blip, processor, frames):
    rows = video_rows(3)
    rows[1]["frames"] = frames
    with pytest.raises(UniAdapterError, match="frames of clip 1 is .*expected a list of at least one"):
        VideoRetrievalTask(tiny_blip, processor).collate(rows)
    with pytest.raises(UniAdapterError, match="frames of clip 1 is"):
        search_clips(tiny_blip, processor, rows, "cat")


def test_frame_weights_of_the_wrong_shape_are_refused(tiny_blip):
    tokens, ids = torch.zeros(2, 34, 32), torch.full((2, 3, 5), 7)
    for w in (torch.ones(2, 2), torch.ones(3, 2, 2), torch.ones(6, 2), torch.ones(2, 3)):
        with pytest.raises(UniAdapterError, match=r"expected \(2, 3, F\)"):
            match(tiny_blip, tokens, ids, torch.ones_like(ids), w)
    with pytest.raises(UniAdapterError, match=r"shape \(6, 4\) do not fit"):
        match(tiny_blip, tokens, ids, torch.ones_like(ids), torch.ones(2, 3, 4))


def test_models_without_a_text_feature_are_refused(make_blip, processor, dataset):
    model = insert_adapters(make_blip(BlipForQuestionAnswering))
    for call in (
        lambda: VideoRetrievalTask(model, processor, frame_aware=True),
        lambda: evaluate_video_retrieval(model, processor, dataset, progress=False),
        lambda: search_clips(model, processor, dataset, "cat"),
    ):
        with pytest.raises(UniAdapterError, match="BlipForQuestionAnswering gives texts no feature"):
            call()


def test_images_are_not_taken_for_clips(tiny_blip, processor, dataset):
    images = [{"image": row["frames"][0], "captions": row["captions"]} for row in dataset]
    with pytest.raises(UniAdapterError, match="no column frames, only image, captions"):
        evaluate_video_retrieval(tiny_blip, processor, images)
    with pytest.raises(UniAdapterError, match="no column frames"):
        VideoRetrievalTask(tiny_blip, processor).prepare(images)
    with pytest.raises(UniAdapterError, match="a row has no frames, only image, captions"):
        search_clips(tiny_blip, processor, images, "cat")
    with pytest.raises(UniAdapterError, match="gallery holds images"):
        gallery = encode_gallery(tiny_blip, processor, images)
        search_clips(tiny_blip, processor, gallery, "cat", frame_aware=True)


def test_pixels_of_clips_are_those_of_their_pictures(processor, dataset):
    pixels = Clips().pixels(processor, [dataset[0], dataset[1]])
    for i in range(2):
        assert torch.equal(pixels[i], preprocess(processor, dataset[i]["frames"]))
