"""The microscope's numbers, against hooks of these tests' own and against plain ways of computing the same."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from PIL import Image as PILImage
from small_world import assert_untouched, frozen_bits, hooks_of, random_adapters, wide_awake
from torch.utils.flop_counter import FlopCounterMode

import uniadapter_edu as ua
from uniadapter_edu import UniAdapterConfig, UniAdapterError, attention, microscope
from uniadapter_edu.accounting import trainable_parameters
from uniadapter_edu.insertion import adapters_disabled, insert_adapters, remove_adapters
from uniadapter_edu.methods import lora
from uniadapter_edu.microscope import Dials, activations, dialled, figures, similarity
from uniadapter_edu.microscope.costs import BACKBONES, SENTENCE, multiply_adds
from uniadapter_edu.microscope.specimens import SPECIMENS, load_specimen
from uniadapter_edu.tasks.retrieval import encode_images, encode_texts, evaluate_retrieval, match, search, tokenize
from uniadapter_edu.tasks.video_retrieval import Clips

TEXTS = ["cat red", "dog blue left fox", "owl", "bee pink right ant small"]
CONFIGS = {
    "paper": UniAdapterConfig(bottleneck=8, scale=2.0),
    "unshared": UniAdapterConfig(bottleneck=8, scale=2.0, share="none"),
    "per modality": UniAdapterConfig.per_modality(bottleneck=8),
    "all shared": UniAdapterConfig(bottleneck=8, share="all", cross_reuses_text_up=False),
    "official": UniAdapterConfig.official(bottleneck=8, kv_bottleneck=4),
    "learned scale": UniAdapterConfig(bottleneck=8, scale="learned"),
    "no vision": UniAdapterConfig(bottleneck=8, modalities=("text", "cross")),
    "cross alone": UniAdapterConfig(bottleneck=8, modalities=("cross",)),
}


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [PILImage.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in TEXTS]


@pytest.fixture
def adapted(make_blip):
    """``adapted(name)``: a tiny BLIP, deeper in vision, with random adapters."""
    return lambda name="paper": random_adapters(wide_awake(make_blip(vision_layers=3)), CONFIGS[name])


@pytest.fixture(scope="module")
def specimen():
    return load_specimen()


@pytest.fixture(scope="module")
def gallery():
    return ua.emoji.load_split("target", "test", 12)


# -------------------------------------------------------------------------------------------------------- activations


class Overheard:
    """Hooks beside the adapters' own: what a layer's last part gives before and after the adapters have added to it,
    what the adapters can have read, and what every down-projection gives."""

    def __init__(self, model):
        self.model, self.u, self.a, self.inner, self.before, self.after, self.downs = model, {}, {}, {}, {}, {}, {}
        for i, block in enumerate(model.vision_model.encoder.layers):
            self.hear(("vision", i), block.layer_norm2, block.mlp)
        for i, layer in enumerate(model.text_encoder.encoder.layer):
            self.hear(("text", i), layer.output, layer.output, reads=1)
            layer.crossattention.register_forward_pre_hook(self.note(self.a, i))
        for i, layer in enumerate(model.uniadapter.layers):
            downs = layer.down.values() if isinstance(layer.down, torch.nn.ModuleDict) else [layer.down]
            for down in downs:
                down.register_forward_hook(lambda m, args, out, i=i: self.downs.setdefault(i, []).append(out.relu()))

    def hear(self, key, reader, writer, reads=0):
        reader.register_forward_pre_hook(lambda m, args: self.inner.update({key: args[reads]}))
        writer.register_forward_hook(lambda m, args, out: self.before.update({key: out}), prepend=True)
        writer.register_forward_hook(lambda m, args, out: self.after.update({key: out}))

    def note(self, where, key):
        return lambda m, args: where.update({key: args[0]})

    def added(self, key):
        return self.after[key] - self.before[key]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_recorded_is_what_hooks_hear(name, adapted, processor, pictures):
    recording = microscope.record(adapted(name), processor, pictures, TEXTS)
    model = adapted(name)
    heard, config, layers = Overheard(model), model.uniadapter.config, model.uniadapter.layers
    inputs = processor(images=pictures, text=TEXTS, padding=True, return_tensors="pt")
    close = {"atol": 1e-5, "rtol": 1e-4}
    with torch.no_grad():
        tokens, _ = encode_images(model, inputs.pixel_values)
        assert recording.layers("vision") == ([0, 1, 2] if "vision" in config.modalities else [])
        for i in recording.layers("vision"):
            reading = recording.readings["vision", i]
            torch.testing.assert_close(reading.h, heard.inner["vision", i], **close)
            torch.testing.assert_close(reading.added, heard.added(("vision", i)), **close)
            torch.testing.assert_close(reading.z, heard.downs[i][-1], **close)
            share = heard.added(("vision", i)).norm(dim=-1) / heard.inner["vision", i].norm(dim=-1)
            torch.testing.assert_close(reading.share(), share, **close)

        encode_texts(model, inputs.input_ids, inputs.attention_mask)
        assert recording.layers("text") == ([0, 1] if "text" in config.modalities else [])
        for i in recording.layers("text"):
            torch.testing.assert_close(recording.readings["text", i].added, heard.added(("text", i)), **close)
            torch.testing.assert_close(recording.readings["text", i].z, heard.downs[i][-1], **close)

        heard.downs.clear()
        match(model, tokens, inputs.input_ids[:, None], inputs.attention_mask[:, None])
        residual = config.query_residual and "text" in config.modalities
        assert recording.layers("cross") == [0, 1]
        assert recording.layers("query residual") == ([0, 1] if residual else [])
        for i in (0, 1):
            cross, added = recording.readings["cross", i], heard.added(("text", i))
            torch.testing.assert_close(cross.h, heard.inner["text", i], **close)
            torch.testing.assert_close(cross.z, heard.downs[i][-1], **close)
            if residual:
                query = recording.readings["query residual", i]
                torch.testing.assert_close(query.h, heard.a[i], **close)
                torch.testing.assert_close(query.z, heard.downs[i][0], **close)
                added = added - layers[i].text(heard.a[i])
            torch.testing.assert_close(cross.added, added, **close)


def test_the_parts_of_the_cross_branch_are_what_each_up_gives(adapted, processor, pictures):
    model = adapted("paper")
    for i in (0, 1):
        cross, layer = (
            microscope.record(model, processor, pictures, TEXTS).readings["cross", i],
            model.uniadapter.layers[i],
        )
        for part, up in (("cross part", layer.up["cross"]), ("text part", layer.up["text"])):
            torch.testing.assert_close(cross.parts[part], 2.0 * (cross.z @ up.weight.T + up.bias))


def test_behind_a_norm_the_parts_still_sum_and_follow_their_own_up(adapted, processor, pictures):
    model = adapted("official")
    cross = microscope.record(model, processor, pictures, TEXTS).readings["cross", 0]
    torch.testing.assert_close(cross.added, model.uniadapter.layers[0].cross(cross.h))
    with torch.no_grad():  # without a text up, nothing is left of its part
        model.uniadapter.layers[0].up["text"].weight.zero_()
        model.uniadapter.layers[0].up["text"].bias.zero_()
    assert not microscope.record(model, processor, pictures, TEXTS).readings["cross", 0].parts["text part"].any()


def test_recording_leaves_the_model_as_it_was(adapted, processor, pictures):
    model = adapted().train()
    bits, hooks = frozen_bits(model), hooks_of(model)
    microscope.record(model, processor, pictures, TEXTS)
    assert_untouched(model, bits, hooks)
    assert model.training
    assert hooks_of(remove_adapters(model)) == 0


def test_recording_takes_its_listeners_away_after_an_error(adapted):
    model = adapted()
    hooks = hooks_of(model)
    with pytest.raises(RuntimeError), activations._listening(model):
        assert hooks_of(model) == hooks + 3
        raise RuntimeError
    assert hooks_of(model) == hooks


def test_what_cannot_be_recorded_is_refused(adapted, make_blip, processor, pictures):
    with pytest.raises(UniAdapterError, match="No adapters are at work"):
        microscope.record(make_blip(), processor, pictures, TEXTS)
    model = adapted()
    with pytest.raises(UniAdapterError, match="No adapters are at work"), adapters_disabled(model):
        microscope.record(model, processor, pictures, TEXTS)
    with pytest.raises(UniAdapterError, match="4 pictures and 3 sentences"):
        microscope.record(model, processor, pictures, TEXTS[:3])
    recording = microscope.record(adapted("no vision"), processor, pictures, TEXTS)
    with pytest.raises(UniAdapterError, match="Layer 0 has no vision branch"):
        activations.exciting_patches(recording, 0, 0)
    with pytest.raises(UniAdapterError, match="no unit 8"):
        activations.exciting_words(recording, 0, 8)


def test_units_are_counted_without_the_padding(adapted, processor, pictures):
    model = adapted()
    recording = microscope.record(model, processor, pictures, TEXTS)
    lengths = [2 + len(text.split()) for text in TEXTS]
    assert [len(tokens) for tokens in recording.tokens] == lengths
    z = recording.readings["text", 1].z
    fires = torch.cat([row[:n] > 0 for row, n in zip(z, lengths)])
    assert activations.sparsity(recording)["text"][1] == pytest.approx(fires.float().mean().item())
    with torch.no_grad():  # two units that can never fire
        model.uniadapter.layers[1].down.weight[:2] = 0
        model.uniadapter.layers[1].down.bias[:2] = -1
    silent = activations.silent_units(recording, 1)
    assert activations.silent_units(microscope.record(model, processor, pictures, TEXTS), 1) >= max(2, silent)


def test_what_excites_a_unit_is_found_by_looking_everywhere(adapted, processor, pictures):
    recording = microscope.record(adapted(), processor, pictures, TEXTS)
    z = recording.readings["vision", 2].z[:, 1:, 3]
    example, patch, strength = activations.exciting_patches(recording, 2, 3, n=1)[0]
    assert strength == pytest.approx(z.max().item()) and z[example, patch].item() == pytest.approx(strength)
    words = dict(activations.exciting_words(recording, 0, 3, n=99))
    assert set(words) == {word for text in TEXTS for word in text.split()}
    assert list(words.values()) == sorted(words.values(), reverse=True)
    assert words["owl"] == pytest.approx(recording.readings["text", 0].z[2, 1, 3].item())


# --------------------------------------------------------------------------------------------------------- similarity


def test_agreement_compares_each_picture_with_its_own_caption_and_with_others(adapted, processor, pictures):
    recording = microscope.record(adapted(), processor, pictures, TEXTS)
    found = microscope.agreement(recording)
    assert list(found) == [0, 1]  # layer 2 has no text branch
    vision = recording.readings["vision", 1].z.mean(1)
    text = torch.stack([z[: len(t)].mean(0) for z, t in zip(recording.readings["text", 1].z, recording.tokens)])
    vision, text = vision - vision.mean(0), text - text.mean(0)
    cosines = torch.nn.functional.cosine_similarity(vision[:, None], text[None], dim=-1)
    torch.testing.assert_close(found[1].matched, cosines.diagonal())
    assert found[1].mismatched.sum().item() == pytest.approx((cosines.sum() - cosines.trace()).item(), abs=1e-5)
    pairs = [(m > o) for m in cosines.diagonal() for o in found[1].mismatched]
    assert found[1].auc == pytest.approx(torch.stack(pairs).float().mean().item())


def test_the_same_units_agree_and_strangers_are_at_chance():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(60, 8, generator=generator) for _ in range(2))
    x, y = x - x.mean(0), y - y.mean(0)
    assert similarity._compare(x, x).auc > 0.99 and similarity._compare(-x, x).auc < 0.01
    assert 0.4 < similarity._compare(x, y).auc < 0.6
    turned = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    assert similarity.cka(x, 3 * x @ turned) == pytest.approx(1, abs=1e-5)  # it minds neither turning nor scaling
    assert similarity.cka(x, y) < 0.3


# -------------------------------------------------------------------------------------------------------------- dials


def answers(model, pictures, processor):
    """Features of pictures and texts, and the matching logits: all that retrieval uses."""
    inputs = processor(images=pictures, text=TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens, features = encode_images(model, inputs.pixel_values)
        texts = encode_texts(model, inputs.input_ids, inputs.attention_mask)
        return features, texts, match(model, tokens, inputs.input_ids[:, None], inputs.attention_mask[:, None])


def same(a, b) -> list[bool]:
    return [torch.equal(x, y) for x, y in zip(a, b)]


@pytest.mark.parametrize("name", ["paper", "unshared", "learned scale", "official"])
def test_dials_are_exact_and_undone(name, adapted, pictures, processor):
    model = adapted(name)
    bits, hooks, before = frozen_bits(model), hooks_of(model), answers(model, pictures, processor)
    settings = (
        [layer.branches for layer in model.uniadapter.layers],
        [layer.config for layer in model.uniadapter.layers],
    )
    for dials in (
        Dials(0.3),
        Dials(branches=("text",)),
        Dials(layers=(0, 2)),
        Dials(query_residual=False, heads=False),
    ):
        with dialled(model, dials):
            assert not all(same(before, answers(model, pictures, processor)))
        assert all(same(before, answers(model, pictures, processor)))
    assert settings == (
        [layer.branches for layer in model.uniadapter.layers],
        [layer.config for layer in model.uniadapter.layers],
    )
    assert_untouched(model, bits, hooks)


def test_scale_zero_and_no_heads_are_the_frozen_model(adapted, pictures, processor):
    model = adapted()
    with adapters_disabled(model):
        frozen = answers(model, pictures, processor)
    for dials in (Dials(scale=0, heads=False), Dials(branches=(), heads=False), Dials(layers=(), heads=False)):
        with dialled(model, dials):
            assert all(same(frozen, answers(model, pictures, processor))), dials


def test_a_dial_moves_what_it_names_and_nothing_else(adapted, pictures, processor):
    model = adapted()
    before = answers(model, pictures, processor)
    unchanged = {
        Dials(branches=("vision", "text")): [True, True, False],
        Dials(query_residual=False): [True, True, False],
        Dials(branches=("text", "cross")): [False, True, False],
        Dials(branches=("vision", "cross")): [True, False, False],
        Dials(layers=(0, 1)): [False, True, False],  # the third layer is vision's alone
    }
    for dials, expected in unchanged.items():
        with dialled(model, dials):
            assert same(before, answers(model, pictures, processor)) == expected, dials


def test_a_branch_off_is_a_branch_whose_up_is_zero(adapted, pictures, processor):
    model, other = adapted(), adapted()
    with torch.no_grad():
        for layer in other.uniadapter.layers:
            layer.up["vision"].weight.zero_()
            layer.up["vision"].bias.zero_()
    with dialled(model, Dials(branches=("text", "cross"))):
        assert all(same(answers(other, pictures, processor), answers(model, pictures, processor)))


def test_dials_that_say_nothing_are_refused(adapted, make_blip):
    for wrong, words in (({"scale": -1}, "scale is -1"), ({"branches": ("verbs",)}, "names verbs")):
        with pytest.raises(UniAdapterError, match=words):
            Dials(**wrong)
    with pytest.raises(UniAdapterError, match="no layer 7"), dialled(adapted(), Dials(layers=(7,))):
        pass
    with pytest.raises(UniAdapterError, match="No adapters"), dialled(make_blip(), Dials()):
        pass


# ----------------------------------------------------------------------------------------------------- the two models


def test_the_two_models_answer_as_search_and_evaluation_do(specimen, gallery):
    processor = ua.load_processor()
    bits, hooks = frozen_bits(specimen), hooks_of(specimen)
    models = microscope.TwoModels(specimen, processor, gallery, top_k=5)
    plain = remove_adapters(load_specimen())
    query, right = gallery[3]["captions"][1], 3
    for dials, model in ((Dials(), specimen), (microscope.FROZEN, plain)):
        answer = models.ask(query, right, dials)
        found, scores = search(model, processor, gallery, [query], top_k=5)
        assert answer.found == found[0].tolist()
        assert answer.scores == pytest.approx(scores[0].tolist(), abs=1e-4)
        inputs = processor(images=gallery[right]["image"], text=query, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs, use_itm_head=True).itm_score
        assert answer.probability == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-4)
        assert models.recall(dials) == evaluate_retrieval(model, processor, gallery, top_k=0, progress=False).t2i_r1
        (text, cosine), *_ = models.best_captions(right, 3, dials)
        with torch.no_grad():
            _, feature = encode_images(model, inputs.pixel_values)
            texts = encode_texts(model, *tokenize(processor, models.texts))
        assert text == (texts @ feature[0]).argmax().item()
        assert cosine == pytest.approx((texts @ feature[0]).max().item(), abs=1e-5)
    assert_untouched(specimen, bits, hooks)


def test_a_dial_encodes_anew_only_what_it_is_heard_in(specimen, gallery, monkeypatch):
    models, encoded = microscope.TwoModels(specimen, ua.load_processor(), gallery), []
    for name in ("encode_images", "encode_texts"):
        encode = getattr(microscope.gallery, name)
        monkeypatch.setattr(
            microscope.gallery, name, lambda *args, name=name, encode=encode: encoded.append(name) or encode(*args)
        )

    def heard_in(dials):
        encoded.clear()
        recall = models.recall(dials)
        heard = list(encoded)
        with dialled(specimen, dials):
            assert recall == evaluate_retrieval(specimen, models.processor, gallery, top_k=0, progress=False).t2i_r1
        return heard

    assert heard_in(Dials()) == ["encode_texts", "encode_images"]
    assert heard_in(Dials(query_residual=False)) == heard_in(Dials(branches=("vision", "text"))) == []
    assert heard_in(Dials(branches=("text", "cross"))) == ["encode_images"]
    assert heard_in(Dials(branches=("vision", "cross"))) == ["encode_texts"]
    assert heard_in(Dials(scale=0.5)) == heard_in(Dials(layers=(0,))) == ["encode_texts", "encode_images"]


def test_a_question_that_cannot_be_answered_is_refused(specimen, gallery):
    models = microscope.TwoModels(specimen, ua.load_processor(), gallery)
    with pytest.raises(UniAdapterError, match="query is empty"):
        models.ask("  ", 0)
    with pytest.raises(UniAdapterError, match="no picture 12"):
        models.ask("a fox", 12)
    with pytest.raises(UniAdapterError, match="No adapters"):
        microscope.TwoModels(ua.load_backbone(), ua.load_processor(), gallery)


# ------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("temperature", [4.0, 0.1])
def test_frames_are_weighed_as_video_retrieval_does(specimen, temperature):
    processor, row = ua.load_processor(), ua.clips.load_clips("target", "test", 2, frames=5, distractors=2)[1]
    report = microscope.look_at_frames(specimen, processor, row["frames"], row["captions"][0], temperature)
    clips, inputs = Clips(), processor(images=row["frames"], text=row["captions"][0], return_tensors="pt")
    with torch.no_grad():
        tokens, _, frames = clips.encode(specimen, inputs.pixel_values[None])
        text = encode_texts(specimen, inputs.input_ids, inputs.attention_mask)
        w = attention.frame_weights(text, frames)
        m = attention.frame_multipliers(w, temperature)
        torch.testing.assert_close(report.w, w[0])
        torch.testing.assert_close(report.multipliers, m[0])
        ids, mask = inputs.input_ids[None], inputs.attention_mask[None]
        plain = match(specimen, tokens, ids, mask).softmax(-1)[0, 0, 1].item()
        aware = match(specimen, tokens, ids, mask, (w * 4 / temperature)[None]).softmax(-1)[0, 0, 1].item()
    assert report.plain.probability == pytest.approx(plain, abs=1e-5)
    assert report.aware.probability == pytest.approx(aware, abs=1e-5)
    assert plain != aware
    for look in (report.plain, report.aware):
        torch.testing.assert_close(look.attention.sum(1), torch.ones(3))


def test_attention_to_frames_is_what_transformers_itself_gives(specimen):
    processor, row = ua.load_processor(), ua.clips.load_clips("target", "test", 1, frames=3)[0]
    bits, hooks = frozen_bits(specimen), hooks_of(specimen)
    report = microscope.look_at_frames(specimen, processor, row["frames"], "a fox", 0.5)
    assert_untouched(specimen, bits, hooks)
    model, inputs = load_specimen(), processor(images=row["frames"], text="a fox", return_tensors="pt")
    with torch.no_grad():
        tokens, _ = ua.encode_video(model, inputs.pixel_values[None])
        for look, w in ((report.plain, torch.zeros(1, 3)), (report.aware, report.w[None] * 8)):
            with ua.frame_weights(model, w):
                layers = model.text_encoder(
                    input_ids=inputs.input_ids, encoder_hidden_states=tokens, output_attentions=True
                ).cross_attentions
            by_hand = [[p[0, :, :, 37 * f : 37 * (f + 1)].sum(-1).mean().item() for f in range(3)] for p in layers]
            torch.testing.assert_close(look.attention, torch.tensor(by_hand))


def test_frames_cannot_be_weighed_by_nothing(specimen):
    frames = ua.clips.load_clips("target", "test", 1)[0]["frames"]
    for sentence, temperature, words in ((" ", 4.0, "sentence is empty"), ("a fox", 0, "temperature is 0")):
        with pytest.raises(UniAdapterError, match=words):
            microscope.look_at_frames(specimen, ua.load_processor(), frames, sentence, temperature)


# -------------------------------------------------------------------------------------------------------------- costs


def counted(model) -> int:
    """Multiply-adds of one picture and one sentence, each alone and together, as torch counts them."""
    blip = model.get_base_model() if hasattr(model, "get_base_model") else model
    size = blip.config.vision_config.image_size
    ids = torch.ones(1, SENTENCE, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tokens, _ = encode_images(model, torch.zeros(1, 3, size, size))
        encode_texts(model, ids, torch.ones_like(ids))
        match(model, tokens, ids[None], torch.ones_like(ids)[None])
    return counter.get_total_flops() // 2


COSTED = {
    "paper": UniAdapterConfig(bottleneck=8),
    "unshared": UniAdapterConfig(bottleneck=8, share="none"),
    "one up": UniAdapterConfig(bottleneck=8, share="all", cross_reuses_text_up=False),
    "text": UniAdapterConfig(bottleneck=8, modalities=("text",)),
    "no residual, no heads": UniAdapterConfig(bottleneck=8, query_residual=False, train_heads=False),
}


@pytest.mark.parametrize("name", COSTED)
def test_costs_are_those_of_models_that_are_built(name, make_blip):
    uniadapter, low_rank, full = microscope.costs(make_blip(vision_layers=3), COSTED[name])
    model = make_blip(vision_layers=3)
    assert full.trainable == trainable_parameters(model).trainable and full.multiply_adds == counted(model)
    adapted = insert_adapters(model, COSTED[name])
    ledger = trainable_parameters(adapted)
    assert (uniadapter.trainable, uniadapter.adam_bytes) == (ledger.trainable, ledger.adam_bytes)
    assert uniadapter.multiply_adds == counted(adapted)
    other = lora(make_blip(vision_layers=3), low_rank.rank)
    assert low_rank.trainable == trainable_parameters(other).trainable
    assert low_rank.multiply_adds == counted(other)


def test_bytes_on_disk_are_those_of_the_file_but_for_its_header(tmp_path, make_blip):
    model = insert_adapters(make_blip(), COSTED["paper"])
    weights = ua.save_adapters(model, tmp_path) / "adapter_model.safetensors"
    header = int.from_bytes(weights.read_bytes()[:8], "little") + 8
    assert microscope.costs(make_blip(), COSTED["paper"])[0].disk_bytes == weights.stat().st_size - header


def test_the_base_blueprint_is_blip_base():
    model = microscope.blueprint(BACKBONES[1])
    uniadapter, _, full = microscope.costs(model, UniAdapterConfig(bottleneck=128, train_heads=False))
    assert full.trainable == 223_744_258
    assert uniadapter.trainable == 12 * (4 * 768 * 128 + 128 + 5 * 768)
    assert multiply_adds(microscope.blueprint(BACKBONES[0])) == counted(ua.load_backbone())


def test_costs_that_cannot_be_counted_are_refused(make_blip):
    with pytest.raises(UniAdapterError, match="expected one width"):
        microscope.costs(make_blip(vision_width=48), COSTED["paper"])
    with pytest.raises(UniAdapterError, match="kv_bottleneck is 4"):
        microscope.costs(make_blip(), UniAdapterConfig(bottleneck=8, kv_bottleneck=4))
    with pytest.raises(UniAdapterError, match="no backbone 'large'"):
        microscope.blueprint("large")


# ---------------------------------------------------------------------------------------------------------- specimens


def test_the_shipped_adapters_reach_what_is_written_beside_them():
    scores = json.loads(ua.data_path("microscope", "scores.json").read_text())
    gallery = ua.emoji.load_split("target", "test", scores["settings"]["gallery"])
    for name in SPECIMENS:
        model, said = load_specimen(name), scores["scores"][name]
        assert model.uniadapter.config == SPECIMENS[name] and not model.training
        assert trainable_parameters(model).trainable == said["trainable"]
        found = evaluate_retrieval(model, ua.load_processor(), gallery, top_k=0, progress=False)
        assert found.t2i_r1 == pytest.approx(said["stage_one"]["t2i_r1"], abs=0.01)  # machines round differently


def test_an_untrained_specimen_is_the_frozen_model_and_always_the_same(gallery):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, other = load_specimen("unshared", trained=False), load_specimen("unshared", trained=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    processor, pictures = ua.load_processor(), gallery["image"][:4]
    assert all(same(answers(one, pictures, processor), answers(ua.load_backbone(), pictures, processor)))
    with pytest.raises(UniAdapterError, match="no specimen 'rare'"):
        load_specimen("rare")


# ------------------------------------------------------------------------------------------------------------ figures


@pytest.fixture(scope="module")
def recorded(specimen, gallery):
    return microscope.record(specimen, ua.load_processor(), gallery["image"], [c[0] for c in gallery["captions"]])


def test_the_activation_map_shows_the_shares_on_one_scale(recorded, gallery):
    figure = figures.activation_map(recorded, 2, gallery[2]["image"], 1)
    picture, _, alone, looking = figure.axes  # the second is the colours' scale
    drawn = picture.get_images()[1]
    assert np.allclose(drawn.get_array().ravel(), recorded.readings["vision", 1].share()[2, 1:])
    words = recorded.tokens[2]
    shares = recorded.readings["text", 1].share()[2, : len(words)]
    assert np.allclose([bar.get_width() for bar in alone.patches], shares)
    assert [label.get_text() for label in alone.get_yticklabels()] == words
    assert len(looking.patches) == 3 * len(words)
    parts = recorded.readings["cross", 1].share("text part")[2, : len(words)]
    assert np.allclose([bar.get_width() for bar in looking.containers[2]], parts)
    assert looking.containers[2].get_label() == "text part"
    assert drawn.get_clim()[1] == alone.get_xlim()[1] == looking.get_xlim()[1]
    other = figures.activation_map(recorded, 2, gallery[2]["image"], 3, "vision")
    assert other.axes[0].get_images()[1].get_clim() == drawn.get_clim()
    assert [axes.texts[0].get_text() for axes in other.axes[2:]] == [
        "no text branch\nin layer 3",
        "no cross branch\nin layer 3",
    ]


def test_unit_figures_show_the_units(recorded, gallery):
    vision, text = figures.unit_map(recorded, 1, 2, 7).axes
    assert np.allclose(vision.get_images()[0].get_array(), recorded.readings["vision", 2].z[1].T)
    assert np.allclose(text.get_images()[0].get_array(), recorded.readings["text", 2].z[1, : len(recorded.tokens[1])].T)
    assert vision.patches[0].get_y() == text.patches[0].get_y() == 6.5
    pictures, *words = figures.unit_favourites(recorded, gallery["image"], 0, 5).axes
    best = [f"{z:.2f}" for _, _, z in activations.exciting_patches(recorded, 0, 5)]
    assert [t.get_text() for t in pictures.texts] == best and len(words) == 1
    lines = {line.get_label(): line.get_ydata() for line in figures.sparsity_chart(recorded).axes[0].lines}
    assert np.allclose(lines["cross"], [100 * s for s in activations.sparsity(recorded)["cross"]])


def test_the_ranking_frames_the_right_picture(specimen, gallery):
    models = microscope.TwoModels(specimen, ua.load_processor(), gallery)
    query = gallery[4]["captions"][0]
    answer = models.ask(query, 4)
    (axes,) = figures.ranking(models, {"adapted": answer}, 4, query).axes
    green = [patch.get_edgecolor() == to_rgba(figures.COLOURS["right"]) for patch in axes.patches]
    assert green == [index == 4 for index in answer.found]
    strip = axes.get_images()[0].get_array()
    assert np.array_equal(strip[:, 104:200], np.asarray(models.images[answer.found[1]]))


def widths(axes) -> list[float]:
    return [bar.get_width() for bar in axes.patches]


def test_the_consoles_bars_are_its_numbers(specimen, gallery):
    models = microscope.TwoModels(specimen, ua.load_processor(), gallery)
    query = gallery[1]["captions"][0]
    found = {"frozen": models.ask(query, 1, microscope.FROZEN), "as dialled": models.ask(query, 1)}
    cosine, probability = figures.right_scores(found).axes
    assert widths(cosine) == pytest.approx([max(answer.cosine, 0) for answer in found.values()])
    assert widths(probability) == pytest.approx([100 * answer.probability for answer in found.values()])
    assert widths(figures.recall_bars({"frozen": 0.25, "as trained": 0.5}).axes[0]) == [25, 50]


def test_captions_are_the_closest_ones_green_where_own_and_fit_their_columns(specimen, gallery):
    models = microscope.TwoModels(specimen, ua.load_processor(), gallery)
    for picture in range(3):
        columns = {"frozen": models.best_captions(picture, 3, microscope.FROZEN)}
        columns |= {"adapted": models.best_captions(picture, 3)}
        figure = figures.caption_columns(models, picture, columns)
        frozen, adapted = figure.texts[1:4], figure.texts[5:]
        for line, (text, cosine) in zip(frozen + adapted, columns["frozen"] + columns["adapted"], strict=True):
            assert f"{cosine:.2f}  {models.texts[text]}".startswith(line.get_text().removesuffix(" …"))
            assert (line.get_color() == figures.COLOURS["right"]) == (models.image_of_text[text] == picture)
        FigureCanvasAgg(figure).draw()
        for column, edge in ((frozen, adapted[0].get_window_extent().x0), (adapted, figure.bbox.x1)):
            assert max(line.get_window_extent().x1 for line in column) < edge


def test_frames_are_drawn_with_their_weights_and_what_these_do(specimen):
    row = ua.clips.load_clips("target", "test", 1, frames=4, distractors=1)[0]
    report = microscope.look_at_frames(specimen, ua.load_processor(), row["frames"], "a fox", 0.5)
    bars = figures.clip_frames(row["frames"], report, row["distractors"], "a fox").axes[1]
    assert [bar.get_height() for bar in bars.patches] == pytest.approx(report.w.tolist())
    grey = [bar.get_facecolor() == to_rgba(figures.COLOURS["frozen"]) for bar in bars.patches]
    assert [i for i, is_grey in enumerate(grey) if is_grey] == row["distractors"]
    keys, attended, answer = figures.frame_effects(report, row["distractors"], 0.5).axes
    assert [bar.get_height() for bar in keys.patches] == pytest.approx(report.multipliers.tolist())
    heights = [bar.get_height() for bar in attended.patches]
    expected = [*report.plain.attention.mean(0), *report.aware.attention.mean(0)]
    assert heights == pytest.approx([100 * share.item() for share in expected], rel=1e-5)
    assert widths(answer) == pytest.approx([100 * report.plain.probability, 100 * report.aware.probability])


def test_agreement_and_costs_are_drawn_as_they_are(recorded):
    found = {("shared", "trained"): microscope.agreement(recorded)}
    (line,) = [line for line in figures.agreement_chart(found).axes[0].lines if line.get_label() == "shared, trained"]
    layers = found["shared", "trained"]
    assert list(line.get_xdata()) == list(layers)
    assert line.get_ydata() == pytest.approx([100 * agreement.auc for agreement in layers.values()])
    pairs, moved = figures.agreement_chart(found, measure="CKA").axes[0].lines
    assert pairs.get_ydata() == pytest.approx([agreement.cka for agreement in layers.values()])
    assert moved.get_ydata() == pytest.approx([agreement.cka_mismatched for agreement in layers.values()])
    means = [line.get_xdata()[0] for line in figures.pairs_histogram(layers[0], "t").axes[0].lines]
    assert means == pytest.approx([layers[0].mismatched.mean().item(), layers[0].matched.mean().item()])
    costs = microscope.costs(microscope.blueprint("embedded"), UniAdapterConfig(bottleneck=16))
    panels = figures.cost_bars(costs, "embedded").axes
    assert widths(panels[0]) == [cost.trainable for cost in costs]
    assert widths(panels[3]) == [cost.multiply_adds for cost in costs]


def test_the_profile_has_the_mean_share_of_each_branch(recorded):
    lines = {line.get_label(): line.get_ydata() for line in figures.share_profile(recorded).axes[0].lines}
    reading = recorded.readings["text", 1]
    assert lines["text"][1] == pytest.approx(reading.share()[recorded.mask.bool()].mean().item())
    own = {line.get_label(): line.get_ydata() for line in figures.share_profile(recorded, 3, 0).axes[0].lines}
    assert own["text"][1] == pytest.approx(reading.share()[3, : len(recorded.tokens[3])].mean().item())


def test_numbers_and_figures_know_of_no_widget():
    for path in Path(microscope.__file__).parent.glob("*.py"):
        imports = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, (ast.Import, ast.ImportFrom))]
        names = {getattr(n, "module", None) or a.name for n in imports for a in n.names} | {
            a.name for n in imports for a in n.names
        }
        assert not any("widgets" in name for name in names), path.name


def test_dials_are_values():
    assert Dials(0.5) == replace(Dials(), scale=0.5) and len({Dials(), Dials(1.0)}) == 1
