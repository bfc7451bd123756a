"""Answers and captions: losses, likelihoods and generated words against the plain way of doing each, on five counts."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from small_world import WORDS, random_adapters, variant, wide_awake
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering

from uniadapter_edu.backbones import load_backbone
from uniadapter_edu.checkpoint import load_adapters, save_adapters
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import add_adapter, encode_video, insert_adapters, named_adapters
from uniadapter_edu.losses import language_loss
from uniadapter_edu.methods import full_fine_tuning, linear_probe
from uniadapter_edu.tasks import language
from uniadapter_edu.tasks.answering import (
    AnsweringMetrics,
    AnsweringTask,
    answer,
    encode_questions,
    evaluate_answering,
    rank_answers,
)
from uniadapter_edu.tasks.captioning import CaptioningMetrics, CaptioningTask, bleu, caption, evaluate_captioning
from uniadapter_edu.tasks.retrieval import IMAGES, CachedRows, normalize, preprocess
from uniadapter_edu.tasks.video_retrieval import Clips
from uniadapter_edu.training import TrainConfig, train

VARIANTS = ["plain", "adapters", "kv adapters", "lora"]
CLASSES = {"answering": BlipForQuestionAnswering, "captioning": BlipForConditionalGeneration}
ANSWERS = ["red", "blue", "left cat", "big dog", "small", "owl"]


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    return [PILImage.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]


def question_rows(n=6):
    """Questions and answers of one to five words about noise pictures; kinds take turns."""
    return [
        {
            "image": picture,
            "question": " ".join(WORDS[i % 8 : i % 8 + 1 + i % 5]),
            "answer": ANSWERS[i % len(ANSWERS)],
            "kind": ("what", "where")[i % 2],
        }
        for i, picture in enumerate(pictures(n))
    ]


def caption_rows(n=6):
    return [
        {"image": picture, "captions": [f"{WORDS[i]} left of {WORDS[8 + i % 4]}", f"big {WORDS[i]}"][: 1 + i % 2]}
        for i, picture in enumerate(pictures(n))
    ]


@pytest.fixture
def awake(make_blip):
    """``awake(task, variant)``: a model for the task, wide awake, in one of the states that tasks must serve."""
    return lambda task, name="plain": variant(name, wide_awake(make_blip(CLASSES[task])))


def encoded(processor, text, start=None):
    """The ids (1, T) of one text, without padding; its first token replaced by ``start`` if there is one."""
    ids = processor.tokenizer(text, return_tensors="pt").input_ids
    if start is not None:
        ids[:, 0] = start
    return ids


def plain_log_p(model, processor, states, text):
    """log p(text) of one text, token by token: each next one from the logits at the last place before it."""
    decoder = language.unwrapped(model).text_decoder
    ids = encoded(processor, text, decoder.config.bos_token_id)
    total = 0.0
    for t in range(1, ids.shape[1]):
        logits = decoder(ids[:, :t], encoder_hidden_states=states).logits[0, -1]
        total = total + logits.log_softmax(-1)[ids[0, t]]
    return total


def states_of(model, processor, row):
    """The image tokens of one row, or the states of its question if it has one: no padding anywhere."""
    blip = language.unwrapped(model)
    pixels = processor(images=row["image"], return_tensors="pt")["pixel_values"]
    tokens = blip.vision_model(pixel_values=pixels).last_hidden_state
    if "question" not in row:
        return tokens
    return blip.text_encoder(encoded(processor, row["question"]), encoder_hidden_states=tokens).last_hidden_state


# ---- losses and likelihoods


@pytest.mark.parametrize("name", VARIANTS)
def test_answering_loss_is_the_mean_negative_log_likelihood_one_answer_at_a_time(awake, processor, name):
    model, rows = awake("answering", name), question_rows()
    task = AnsweringTask(model, processor)
    with torch.no_grad():
        loss = task.loss(task.collate(rows))["loss"]
        alone = [plain_log_p(model, processor, states_of(model, processor, row), row["answer"]) for row in rows]
    torch.testing.assert_close(loss, -torch.stack(alone).mean(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_captioning_loss_is_the_mean_over_tokens(awake, processor, name):
    model, rows = awake("captioning", name), caption_rows()
    task = CaptioningTask(model, processor)
    examples = [row | {"index": i, "epoch": 1} for i, row in enumerate(rows)]
    texts = task.draw_captions(examples)
    with torch.no_grad():
        loss = task.loss(task.collate(examples))["loss"]
        alone = [plain_log_p(model, processor, states_of(model, processor, r), t) for r, t in zip(rows, texts)]
    tokens = sum(encoded(processor, text).shape[1] - 1 for text in texts)
    torch.testing.assert_close(loss, -torch.stack(alone).sum() / tokens, atol=1e-4, rtol=1e-5)


def test_language_loss_is_transformers_own(awake, processor):
    decoder = awake("captioning").text_decoder
    ids, mask = language.to_say(decoder_model := awake("captioning"), processor, ["cat", "big dog left of owl"])
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(mask == 0, -100)
    for smoothing in (0.0, 0.1):
        decoder.label_smoothing = smoothing
        expected = decoder(ids, mask, encoder_hidden_states=states, labels=labels, reduction="none")
        found = language_loss(language.decode(decoder_model, states, None, ids, mask), ids, mask, smoothing)
        torch.testing.assert_close(found.sum(1), expected.loss, atol=1e-4, rtol=1e-5)
    assert found.shape == (2, ids.shape[1] - 1) and not found[0, 2:].any() and found[1].all()


def test_smoothing_is_what_the_models_config_says(awake, processor):
    model, rows = awake("answering"), question_rows()
    task = AnsweringTask(model, processor)
    plain = task.loss(task.collate(rows))["loss"]
    model.text_decoder.label_smoothing = 0.1
    assert task.loss(task.collate(rows))["loss"] != plain


@pytest.mark.parametrize("task", CLASSES)
def test_what_is_said_starts_with_the_models_own_token(awake, processor, task):
    ids, mask = language.to_say(awake(task), processor, ["cat", "big dog"])
    assert ids[:, 0].tolist() == [48, 48] and ids[1, -1] == processor.tokenizer.sep_token_id
    assert mask.sum(1).tolist() == [3, 4]


# ---- padding


@pytest.mark.parametrize("name", VARIANTS)
def test_an_answer_does_not_depend_on_the_other_questions_of_its_batch(awake, processor, name):
    model, rows = awake("answering", name), question_rows()
    images, questions = [row["image"] for row in rows], [row["question"] for row in rows]
    alone = [answer(model, processor, image, text)[0] for image, text in zip(images, questions)]
    assert answer(model, processor, images, questions) == alone and len(set(alone)) > 1
    _, together = rank_answers(model, processor, images, questions, ANSWERS)
    apart = [rank_answers(model, processor, image, text, ANSWERS)[1] for image, text in zip(images, questions)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-4, rtol=1e-5)


def test_transformers_itself_sees_the_padding(awake, processor):
    """The fact that `masks_obeyed` is there for; if this ever fails, transformers has repaired it."""
    model = awake("answering")
    states = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    ids, mask = language.to_say(model, processor, ["cat"])
    masks = torch.tensor([[1, 1, 1, 0, 0]])
    with torch.no_grad():
        theirs = [model.text_decoder(ids, mask, encoder_hidden_states=s).logits for s in (states, states[:, :3])]
        unmasked = model.text_decoder(ids, mask, encoder_hidden_states=states, encoder_attention_mask=masks).logits
        ours = language.decode(model, states, masks, ids, mask)
    assert torch.equal(unmasked, theirs[0]) and not torch.allclose(unmasked, theirs[1])
    torch.testing.assert_close(ours, theirs[1])


# ---- ranking


@pytest.mark.parametrize("name", ["plain", "adapters"])
def test_ranking_is_by_the_likelihood_of_whole_answers(awake, processor, name):
    model, rows = awake("answering", name), question_rows(4)
    with torch.no_grad():
        expected = torch.stack(
            [
                torch.stack([plain_log_p(model, processor, states_of(model, processor, row), a) for a in ANSWERS])
                for row in rows
            ]
        )
    images, questions = [row["image"] for row in rows], [row["question"] for row in rows]
    indices, scores = rank_answers(model, processor, images, questions, ANSWERS, top_k=None, batch_size=3)
    ordered = expected.sort(dim=1, descending=True)
    assert torch.equal(indices, ordered.indices)
    torch.testing.assert_close(scores, ordered.values, atol=1e-4, rtol=1e-5)


def test_two_stages_keep_the_candidates_whose_first_word_is_likely(awake, processor):
    model, row = awake("answering"), question_rows(1)[0]
    full, _ = rank_answers(model, processor, row["image"], row["question"], ANSWERS, top_k=None)
    few, scores = rank_answers(model, processor, row["image"], row["question"], ANSWERS, top_k=2)
    with torch.no_grad():
        start = torch.tensor([[48]])
        first = model.text_decoder(start, encoder_hidden_states=states_of(model, processor, row)).logits[0, 0]
    best = first[torch.tensor([encoded(processor, text)[0, 1] for text in ANSWERS])].topk(2).indices.tolist()
    assert sorted(few[0].tolist()) == sorted(best) and scores[0, 0] >= scores[0, 1]
    assert few[0].tolist() == [i for i in full[0].tolist() if i in best]


# ---- what is generated


def trained(task, model, processor, rows, steps=30):
    """Adapters after some steps of training: no random numbers, and of no particular size."""
    insert_adapters(model, UniAdapterConfig(bottleneck=8, scale=1.0, kv_bottleneck=2))
    kind = {"answering": AnsweringTask, "captioning": CaptioningTask}[task]
    config = TrainConfig(steps=steps, batch_size=len(rows), learning_rate=5e-3, precision="fp32")
    train(model, kind(model, processor), rows, config, progress=False)
    return model


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("task", CLASSES)
def test_the_cache_changes_no_word(make_blip, processor, task, beams):
    rows = {"answering": question_rows, "captioning": caption_rows}[task]()
    model = trained(task, wide_awake(make_blip(CLASSES[task])), processor, rows)
    pixels = normalize(processor, preprocess(processor, [row["image"] for row in rows]))
    with torch.no_grad():
        states, mask = model.vision_model(pixel_values=pixels).last_hidden_state, None
        if task == "answering":
            texts = processor.tokenizer([row["question"] for row in rows], padding=True, return_tensors="pt")
            states, mask = encode_questions(model, states, texts.input_ids, texts.attention_mask), texts.attention_mask
        said = [language.say(model, processor, states, mask, beams, 8, use_cache=cache) for cache in (True, False)]
    assert said[0] == said[1] and len(set(said[0])) > 2


def test_captions_are_transformers_own(awake, processor):
    model, rows = awake("captioning", "kv adapters"), caption_rows(3)
    pixels = processor(images=[row["image"] for row in rows], return_tensors="pt")
    for beams in (1, 3):
        ids = model.generate(**pixels, max_new_tokens=9, num_beams=beams, do_sample=False)
        expected = processor.tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)
        assert caption(model, processor, rows, beams=beams, longest=9, batch_size=2) == expected


def test_one_picture_for_many_questions_and_one_question_for_many_pictures(awake, processor):
    model, images = awake("answering"), pictures(3)
    many = answer(model, processor, images[0], ["cat", "big dog"])
    assert many == [answer(model, processor, images[0], text)[0] for text in ("cat", "big dog")]
    assert answer(model, processor, images, "cat") == [answer(model, processor, i, "cat")[0] for i in images]
    assert answer(model, processor, [{"image": image} for image in images], "cat")[0] == many[0]


# ---- clips


def clip_rows(n=4, frames=3):
    clips = [pictures(frames, seed=i) for i in range(n)]
    return [
        {"frames": clip, "question": WORDS[i], "answer": ANSWERS[i], "captions": [f"big {WORDS[i]}"]}
        for i, clip in enumerate(clips)
    ]


@pytest.mark.parametrize("task", CLASSES)
def test_a_clip_is_looked_at_as_all_tokens_of_its_frames(awake, processor, task):
    model, rows, medium = awake(task, "adapters"), clip_rows(), Clips()
    kind = {"answering": AnsweringTask, "captioning": CaptioningTask}[task](model, processor, medium=medium)
    batch = kind.collate(rows)
    assert batch["pixels"].shape == (4, 3, 3, 32, 32)
    with torch.no_grad():
        tokens, _ = encode_video(model, normalize(processor, batch["pixels"]))
        assert torch.equal(medium.tokens(model, normalize(processor, batch["pixels"])), tokens)
        states, mask = tokens, None
        if task == "answering":
            mask = batch["attention_mask"]
            states = encode_questions(model, tokens, batch["input_ids"], mask)
        loss = kind.loss(batch)["loss"]
        said = language.say(model, processor, states, mask, longest=12)
    assert loss.isfinite()
    if task == "answering":
        assert answer(model, processor, rows, [row["question"] for row in rows], medium=medium) == said
    else:
        assert caption(model, processor, rows, longest=12, medium=medium) == said


# ---- scores


def test_answering_metrics_count_by_kind(awake, processor, monkeypatch):
    rows = question_rows()
    said = ["RED", "nothing", "left  cat!", "dog", "small", "owl"]
    monkeypatch.setattr("uniadapter_edu.tasks.answering.answer", lambda *args: said)
    metrics = evaluate_answering(awake("answering"), processor, rows, ANSWERS, progress=False)
    assert metrics.accuracy == 4 / 6 and metrics.by_kind == {"what": 1.0, "where": 1 / 3} and metrics.questions == 6
    images, questions = [row["image"] for row in rows], [row["question"] for row in rows]
    best = rank_answers(awake("answering"), processor, images, questions, ANSWERS)[0][:, 0].tolist()
    right = [ANSWERS[i] == row["answer"] for i, row in zip(best, rows)]
    assert metrics.ranked == sum(right) / 6 and metrics.ranked_by_kind["what"] == sum(right[::2]) / 3
    assert AnsweringMetrics.from_dict(metrics.to_dict()) == metrics and "66.7" in str(metrics)
    without = evaluate_answering(awake("answering"), processor, [row | {"kind": "x"} for row in rows])
    assert without.ranked is None and without.ranked_by_kind is None and set(without.by_kind) == {"x"}


def test_captioning_metrics(awake, processor, monkeypatch):
    rows, said = caption_rows(2), ["Cat left of red.", "dog and a half"]
    monkeypatch.setattr("uniadapter_edu.tasks.captioning.caption", lambda *args, **options: said)

    def judge(text, row):
        assert set(row) == {"captions"}  # no picture is decoded for it
        return {"long": len(text) > 5} | ({"dogs": "dog" in text} if "dog" in row["captions"][0] else {})

    metrics = evaluate_captioning(awake("captioning"), processor, rows, judge)
    assert metrics.exact == 0.5 and metrics.facts == {"long": 1.0, "dogs": 1.0} and metrics.pictures == 2
    assert CaptioningMetrics.from_dict(metrics.to_dict()) == metrics and "exact match" in str(metrics)


def test_bleu_by_hand():
    assert bleu(["a b c d e"], [["x", "A, b c d e!"]]) == pytest.approx(1)
    # precisions 4/5, 3/4, 2/3, 1/2 and as many words as the reference
    assert bleu(["a b c d x"], [["a b c d e"]]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    two = bleu(["a b c d", "e f g h"], [["a b c d"], ["x", "y", "e f g h"]])
    assert two == pytest.approx(1)  # texts may have different numbers of references


# ---- training


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("way", ["probe", "full"])
def test_what_trains_without_adapters(make_blip, task, way):
    model = {"probe": linear_probe, "full": full_fine_tuning}[way](make_blip(CLASSES[task]))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if way == "full":
        assert trained == {name for name, _ in model.named_parameters()}
        return
    head = "text_decoder.cls.predictions."
    parts = ["transform.dense.weight", "transform.dense.bias", "transform.LayerNorm.weight", "transform.LayerNorm.bias"]
    assert trained == {head + part for part in [*parts, "bias"]}


def test_rows_are_kept_with_what_the_task_needs_of_them(awake, processor):
    model, rows = awake("answering"), question_rows()
    kept = AnsweringTask(model, processor).prepare(rows)
    assert isinstance(kept, CachedRows) and len(kept) == len(rows)
    assert set(kept[2]) == {"pixels", "question", "answer"} and kept[2]["answer"] == rows[2]["answer"]
    task = AnsweringTask(model, processor)
    assert torch.equal(task.collate([kept[i] for i in range(6)])["pixels"], task.collate(rows)["pixels"])


@pytest.mark.parametrize("task", CLASSES)
def test_from_a_checkpoints_folder_to_adapters_and_back(make_blip, processor, tmp_path, task):
    """The whole way of a real checkpoint, small: transformers' own folder, checkpointed activations, bf16."""
    wide_awake(make_blip(CLASSES[task])).save_pretrained(tmp_path / "blip")
    rows = {"answering": question_rows, "captioning": caption_rows}[task]()
    model = insert_adapters(load_backbone(tmp_path / "blip", task=task), UniAdapterConfig(bottleneck=8, scale=1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5.23 has a newer name for it, older ones have not
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()
    kind = {"answering": AnsweringTask, "captioning": CaptioningTask}[task]
    config = TrainConfig(steps=25, batch_size=6, learning_rate=5e-3, precision="bf16")
    history = train(model, kind(model, processor), rows, config, progress=False)
    assert history.rows[-1]["loss"] < 0.7 * history.rows[0]["loss"]
    save_adapters(model, tmp_path / "adapters")
    again = load_adapters(load_backbone(tmp_path / "blip", task=task), tmp_path / "adapters")

    def words(model):
        if task == "captioning":
            return caption(model, processor, rows)
        return answer(model, processor, rows, [row["question"] for row in rows])

    assert words(again) == words(model)


# ---- bad input


def refused(match, call):
    with pytest.raises(UniAdapterError, match=match) as caught:
        call()
    assert caught.value.cure


def test_a_model_of_another_kind_is_named(make_blip, processor):
    retrieval, captioner = make_blip(BlipForImageTextRetrieval), make_blip(BlipForConditionalGeneration)
    refused(
        "a BlipForImageTextRetrieval, expected a BlipForQuestionAnswering", lambda: AnsweringTask(retrieval, processor)
    )
    refused("expected a BlipForConditionalGeneration", lambda: CaptioningTask(retrieval, processor))
    refused("expected a BlipForQuestionAnswering", lambda: answer(captioner, processor, pictures(1), "cat"))
    refused("expected a BlipForConditionalGeneration", lambda: caption(make_blip(CLASSES["answering"]), processor, []))


def test_a_list_without_the_answer(awake, processor):
    rows, model = question_rows(), awake("answering")
    refused(
        "the 4 candidates lack 2 of the right answers, such as 'big dog'",
        lambda: evaluate_answering(model, processor, rows, [a for a in ANSWERS if a not in ("owl", "big dog")]),
    )
    refused("candidates is 'red', expected a list", lambda: evaluate_answering(model, processor, rows, "red"))
    refused("no candidates to rank", lambda: rank_answers(model, processor, pictures(1), "cat", []))


@pytest.mark.parametrize("cls", CLASSES.values())
def test_frame_aware_attention_without_a_text_feature(make_blip, cls):
    aware, model = UniAdapterConfig(bottleneck=4, frame_aware=True), make_blip(cls)
    refused("frame_aware=True .* has no text_proj", lambda: insert_adapters(model, aware))
    assert all(p.requires_grad for p in model.parameters())
    insert_adapters(model, replace(aware, frame_aware=False))
    refused("frame_aware=True", lambda: add_adapter(model, aware, "other"))
    assert set(named_adapters(model)) == {"default"}


def test_towers_of_different_width_are_named(make_blip):
    for cls in CLASSES.values():
        refused("vision 32, text 48", lambda cls=cls: insert_adapters(make_blip(cls, text_width=48)))


def test_adapters_of_another_task_are_named(make_blip, tmp_path):
    folder = save_adapters(random_adapters(make_blip(CLASSES["captioning"])), tmp_path / "captions")
    model = make_blip(CLASSES["answering"])
    refused("class BlipForConditionalGeneration, here BlipForQuestionAnswering", lambda: load_adapters(model, folder))
    assert not hasattr(model, "uniadapter")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"question": ""}, "question of row 2 is ''"),
        ({"answer": "?!"}, "answer of row 2 is"),
        ({"answer": None}, "answer of row 2 is None"),
        ({"answer": ["red"]}, "answer of row 2 is"),
    ],
)
def test_rows_that_ask_or_answer_nothing(awake, processor, change, cause):
    rows = question_rows()
    rows[2] = rows[2] | change
    refused(cause, lambda: AnsweringTask(awake("answering"), processor).prepare(rows))
    refused(cause, lambda: evaluate_answering(awake("answering"), processor, rows))


def test_data_sets_of_another_task_and_pictures_without_questions(awake, processor):
    model = awake("answering")
    refused("no column question and no column answer", lambda: AnsweringTask(model, processor).prepare(caption_rows()))
    refused("no column captions", lambda: CaptioningTask(awake("captioning"), processor).prepare(question_rows()))
    refused("the data set is empty", lambda: evaluate_answering(model, processor, []))
    refused("3 questions were asked about 2 pictures", lambda: answer(model, processor, pictures(2), ["cat"] * 3))
    refused("a row has no image", lambda: answer(model, processor, [{"picture": 1}], "cat"))
    refused(
        "expected a list of at least one PIL image",
        lambda: answer(model, processor, pictures(1), "cat", medium=Clips()),
    )
    assert AnsweringTask(model, processor).medium is IMAGES
