"""Adapters in BLIP: identity, reversal, exact names and counts, copies, checkpointing, masks, folded texts, frames."""

import contextlib
import copy
import functools
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import (
    adapter_parameters,
    adapters_disabled,
    add_adapter,
    encode_video,
    folded_texts,
    frame_weights,
    freeze,
    insert_adapters,
    merge_adapters,
    named_adapters,
    remove_adapters,
    set_adapter,
)

MODELS = [BlipForImageTextRetrieval, BlipForQuestionAnswering, BlipForConditionalGeneration]
EVERYTHING = UniAdapterConfig.official(bottleneck=4, kv_bottleneck=2, scale=1.0)


def outputs(model, batch) -> list[torch.Tensor]:
    """Everything that a model's forward passes give: scores, features, hidden states, attentions."""
    record = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        if isinstance(model, BlipForImageTextRetrieval):
            found = [model(**batch, **record), model(**batch, use_itm_head=False, **record)]
            tokens = found[0].last_hidden_state
            texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
            found.append(model.text_encoder(**texts, encoder_hidden_states=tokens, **record))
        elif isinstance(model, BlipForQuestionAnswering):
            found = [model(**batch, labels=batch["input_ids"], **record)]
        else:
            found = [model(**batch, **record)]
    return [
        t for output in found for value in output.values() for t in (value if isinstance(value, tuple) else [value])
    ]


def same(first, second) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second))


def train(model, batch, steps=3):
    """A few steps of SGD that move everything which may move."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        for use_itm_head in (True, False) if hasattr(model, "itm_head") else (None,):
            extra = {} if use_itm_head is None else {"use_itm_head": use_itm_head}
            if isinstance(model, BlipForImageTextRetrieval):
                loss = model(**batch, **extra).itm_score.pow(2).mean()
            else:
                loss = model(**batch, labels=batch["input_ids"]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def randomise(model, seed=5):
    """Give every adapter weight a random value, so that nothing is hidden by a zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(model).values():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.5
    return model


# ----------------------------------------------------------------------------------------- identity and the way back


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize("fields", [{}, {"kv_bottleneck": 2, "share": "none", "scale": "learned"}])
def test_paper_changes_no_bit_before_training(make_blip, batch, cls, fields):
    model = make_blip(cls)
    if cls is BlipForQuestionAnswering:  # a padded question is where adapters correct transformers
        batch = {name: x[:1] for name, x in batch.items()}
    before = outputs(model, batch)
    insert_adapters(model, UniAdapterConfig.paper(bottleneck=4, **fields))
    assert same(outputs(model, batch), before)


def test_official_changes_the_outputs_before_training(tiny_blip, batch):
    before = outputs(tiny_blip, batch)
    insert_adapters(tiny_blip, UniAdapterConfig.official(bottleneck=4))
    assert not same(outputs(tiny_blip, batch), before)


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize("config", [UniAdapterConfig.paper(bottleneck=4), EVERYTHING])
def test_disabling_and_removing_give_the_original_back_after_training(make_blip, batch, cls, config):
    model = make_blip(cls)
    original, before = copy.deepcopy(model.state_dict()), outputs(model, batch)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    insert_adapters(model, config)
    train(model, batch)
    adapted = outputs(model, batch)
    assert not same(adapted, before)

    with adapters_disabled(model):
        assert same(outputs(model, batch), before)
    assert same(outputs(model, batch), adapted)

    assert remove_adapters(model) is model
    assert same(outputs(model, batch), before)
    found = model.state_dict()
    assert found.keys() == original.keys() and all(torch.equal(found[name], original[name]) for name in original)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    insert_adapters(model, config)  # and once more from the start


def test_removing_leaves_no_hook_and_no_attribute(make_blip):
    def hooks(model):
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs")
        return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)

    model = make_blip()
    assert hooks(model) == 0
    attributes = set(vars(model))
    insert_adapters(model)
    assert hooks(model) > 0
    remove_adapters(model)
    assert hooks(model) == 0 and set(vars(model)) == attributes


def test_a_frozen_model_stays_frozen_after_removal(tiny_blip):
    freeze(tiny_blip)
    assert not any(p.requires_grad for p in tiny_blip.parameters())
    remove_adapters(insert_adapters(tiny_blip))
    assert not any(p.requires_grad for p in tiny_blip.parameters())


# -------------------------------------------------------------------------------------------- what trains, and how much


def linear(name):
    return {f"{name}.weight", f"{name}.bias"}


def expected_names(layers=2, extra=()) -> set[str]:
    parts = ["norm_in", "down", "up.vision", "up.text", "up.cross", *extra]
    adapters = set().union(*(linear(f"layers.{i}.{part}") for i in range(layers) for part in parts))
    heads = set().union(*(linear(f"heads.{head}") for head in ("vision_proj", "text_proj", "itm_head")))
    return adapters | heads | {"heads.temperature"}


def kv_names(update):
    ends = [f"{update}.{name}" for name in ("key", "value")]
    return set().union(*(linear(f"{end}.{part}") | {f"{end}.scale"} for end in ends for part in ("down", "up")))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (UniAdapterConfig.paper(bottleneck=4), expected_names()),
        (
            UniAdapterConfig.official(bottleneck=4, kv_bottleneck=2),
            expected_names(extra=["norm_cross"]) | kv_names("kv"),
        ),
        (
            UniAdapterConfig(bottleneck=4, scale="learned"),
            expected_names() | {"layers.0.scale", "layers.1.scale"},
        ),
        (
            UniAdapterConfig(bottleneck=4, train_heads=False),
            {name for name in expected_names() if not name.startswith("heads.")},
        ),
    ],
)
def test_exactly_these_names_train(tiny_blip, config, expected):
    insert_adapters(tiny_blip, config)
    trainable = {name for name, p in tiny_blip.named_parameters() if p.requires_grad}
    assert trainable == {f"uniadapter.{name}" for name in expected}
    assert adapter_parameters(tiny_blip).keys() == expected
    # On disk there is nothing more, save a temperature that is kept though it does not train.
    assert set(tiny_blip.uniadapter.state_dict()) == expected | {"heads.temperature"}


@pytest.mark.parametrize(
    ("cls", "updates"),
    [(BlipForQuestionAnswering, ["kv", "kv_decoder"]), (BlipForConditionalGeneration, ["kv_decoder"])],
)
def test_models_without_projections_have_a_word_head(make_blip, cls, updates):
    model = insert_adapters(make_blip(cls), UniAdapterConfig(bottleneck=4, kv_bottleneck=2))
    others = {name for name in expected_names() if name.startswith("heads.")}
    words = linear("heads.word_transform") | linear("heads.word_norm") | {"heads.word_bias.bias"}
    expected = (expected_names() - others | words).union(*map(kv_names, updates))
    assert adapter_parameters(model).keys() == expected
    alone = insert_adapters(make_blip(cls), UniAdapterConfig(bottleneck=4, kv_bottleneck=2, train_heads=False))
    assert adapter_parameters(alone).keys() == expected - words


def test_a_projection_that_is_called_by_itself_is_the_frozen_one(tiny_blip):
    attention = tiny_blip.text_encoder.encoder.layer[0].crossattention.self
    e = torch.randn(2, 5, attention.key.in_features)
    frozen = attention.key(e), attention.value(e)
    insert_adapters(tiny_blip, UniAdapterConfig(bottleneck=4, kv_bottleneck=2, init="published"))
    assert torch.equal(attention.key(e), frozen[0]) and torch.equal(attention.value(e), frozen[1])


def test_the_word_head_answers_with_its_copy(make_blip):
    model = insert_adapters(make_blip(BlipForConditionalGeneration), UniAdapterConfig(bottleneck=4))
    head, trained = model.text_decoder.cls.predictions, model.uniadapter.heads
    states = torch.randn(2, 3, head.transform.dense.in_features)
    with adapters_disabled(model):
        frozen = head(states)
    assert torch.equal(head(states), frozen)
    with torch.no_grad():
        trained.word_bias.bias += 1
        assert torch.allclose(head(states), frozen + 1, atol=1e-6)
        nn.init.zeros_(trained.word_norm.weight), nn.init.zeros_(trained.word_norm.bias)
        assert torch.allclose(head(states), trained.word_bias.bias.expand_as(frozen))
    head(states).sum().backward()
    assert trained.word_bias.bias.grad is not None and trained.word_norm.bias.grad.any()
    assert not any(p.grad is not None for p in head.parameters())
    with adapters_disabled(model):
        assert torch.equal(head(states), frozen)


def test_every_trainable_weight_gets_a_gradient(tiny_blip, batch):
    model = randomise(insert_adapters(tiny_blip, UniAdapterConfig.official(bottleneck=4, scale="learned")))
    features = model(**batch, use_itm_head=False).itm_score / model.uniadapter.heads.temperature
    (features.sum() + model(**batch).itm_score.sum()).backward()
    assert not [name for name, p in adapter_parameters(model).items() if p.grad is None or not p.grad.abs().sum()]
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("uniadapter."))


def test_freeze_leaves_adapters_training(tiny_blip):
    insert_adapters(tiny_blip)
    before = adapter_parameters(tiny_blip).keys()
    assert freeze(tiny_blip) is tiny_blip
    assert adapter_parameters(tiny_blip).keys() == before


@pytest.fixture(scope="module")
def blip_base():
    """BLIP-base at 384 px on the meta device: shapes without memory."""
    config = BlipConfig(
        vision_config={"hidden_size": 768, "num_hidden_layers": 12, "image_size": 384, "patch_size": 16},
        text_config={"hidden_size": 768, "num_attention_heads": 12, "vocab_size": 30524, "encoder_hidden_size": 768},
        image_text_hidden_size=256,
    )
    with torch.device("meta"):
        return BlipForImageTextRetrieval(config)


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("fields", "adapters"),
    [
        ({"bottleneck": 64}, 2_424_576),
        ({"bottleneck": 128}, 4_784_640),
        ({"bottleneck": 256}, 9_504_768),
        ({"bottleneck": 512}, 18_945_024),
        ({"bottleneck": 512, "share": "none"}, 28_394_496),
    ],
)
def test_parameters_at_blip_base(blip_base, fields, adapters):
    assert count(blip_base) == 223_744_258
    insert_adapters(blip_base, UniAdapterConfig.official(**fields))
    found = blip_base.uniadapter
    assert all(p.is_meta for p in found.parameters())
    assert (count(found.layers), count(found.kv)) == (adapters, 198_274)
    assert count(found.heads) - 1 == 395_266  # one more is the temperature
    remove_adapters(blip_base)


# --------------------------------------------------------------------------------------------- sharing and the variants


def test_the_three_places_of_a_layer_call_one_down(tiny_blip, batch):
    model = insert_adapters(tiny_blip, UniAdapterConfig(bottleneck=4))
    calls = {id(layer.down): 0 for layer in model.uniadapter.layers}
    for layer in model.uniadapter.layers:
        layer.down.register_forward_hook(lambda down, *_: calls.update({id(down): calls[id(down)] + 1}))
    model.vision_model(batch["pixel_values"])
    assert list(calls.values()) == [1, 1]
    model(**batch)  # vision, and the text layer twice: query residual and cross
    assert list(calls.values()) == [4, 4]


@pytest.mark.parametrize("share", ["none", "up", "all"])
@pytest.mark.parametrize("modalities", [("vision",), ("text",), ("cross",), ("vision", "cross")])
def test_variants_act_only_where_they_are(make_blip, batch, share, modalities):
    def three_places(model):
        texts = batch["input_ids"], batch["attention_mask"]
        tokens = torch.ones(2, 5, 32)
        return {
            "vision": model.vision_model(batch["pixel_values"]).last_hidden_state,
            "text": model.text_encoder(*texts).last_hidden_state,
            "cross": model.text_encoder(*texts, encoder_hidden_states=tokens).last_hidden_state,
        }

    model = make_blip()
    before = three_places(model)
    config = UniAdapterConfig(
        bottleneck=4, share=share, modalities=modalities, cross_reuses_text_up=False, query_residual=False
    )
    randomise(insert_adapters(model, config))
    after = three_places(model)
    assert {place for place in before if not torch.equal(before[place], after[place])} == set(modalities)


def test_text_acts_in_the_multimodal_layer_through_the_query_residual(make_blip, batch):
    def multimodal(query_residual):
        config = UniAdapterConfig(bottleneck=4, modalities=("text",), query_residual=query_residual)
        model = randomise(insert_adapters(make_blip(), config))
        return model(**batch).itm_score

    assert not torch.equal(multimodal(True), multimodal(False))


def test_the_scale_scales(make_blip, batch):
    def shift(scale):
        model = make_blip()
        before = model.vision_model(batch["pixel_values"], output_hidden_states=True).hidden_states[1]
        randomise(insert_adapters(model, UniAdapterConfig(bottleneck=4, scale=scale)))
        return model.vision_model(batch["pixel_values"], output_hidden_states=True).hidden_states[1] - before

    torch.testing.assert_close(shift(6.0), 10 * shift(0.6), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("vision", "text"), [(3, 1), (1, 3)])
def test_towers_of_different_depth(make_blip, batch, vision, text):
    model = make_blip(vision_layers=vision, text_layers=text)
    before = outputs(model, batch)
    insert_adapters(model, UniAdapterConfig(bottleneck=4))
    assert same(outputs(model, batch), before)
    alone = ("vision",) if vision > text else ("text", "cross")
    assert [layer.branches for layer in model.uniadapter.layers] == [("vision", "text", "cross"), alone, alone]
    (model(**batch).itm_score.sum() + model(**batch, use_itm_head=False).itm_score.sum()).backward()
    assert all(p.grad is not None for p in model.uniadapter.layers.parameters())


def test_towers_of_different_width_are_refused_with_both(make_blip):
    with pytest.raises(UniAdapterError, match="vision 64, text 32"):
        insert_adapters(make_blip(vision_width=64))


def test_feed_forward_in_chunks(make_blip, batch):
    model = randomise(insert_adapters(make_blip(), EVERYTHING))
    batch = {name: x[:, :6] if name != "pixel_values" else x for name, x in batch.items()}
    expected = outputs(model, batch)
    for layer in model.text_encoder.encoder.layer:
        layer.chunk_size_feed_forward = 2
    for found, whole in zip(outputs(model, batch), expected):
        torch.testing.assert_close(found, whole)


# ------------------------------------------------------------------------------------------------- several adapters, heads


def test_several_adapters_on_one_backbone(tiny_blip, batch):
    model = randomise(insert_adapters(tiny_blip, UniAdapterConfig(bottleneck=4)), seed=1)
    first, default = outputs(model, batch), model.uniadapter
    other = add_adapter(model, UniAdapterConfig(bottleneck=2, modalities=("vision",), train_heads=False), "questions")
    assert same(outputs(model, batch), first) and model.uniadapter.active == "default"
    assert set(named_adapters(model)) == {"default", "questions"}

    assert set_adapter(model, "questions") is model
    assert model.uniadapter is other and model.uniadapter.active == "questions"
    randomise(model, seed=2)
    second = outputs(model, batch)
    assert not same(second, first)
    assert not any(name.startswith("uniadapter.layers.0.up.text") for name in model.state_dict())

    model.to(torch.float64)
    set_adapter(model, "default")
    assert model.uniadapter is default and default.layers[0].down.weight.dtype == torch.float64
    model.to(torch.float32)
    assert same(outputs(model, batch), first)
    set_adapter(model, "questions")
    assert same(outputs(model, batch), second)


def test_heads_answer_with_their_copies(tiny_blip):
    x = torch.randn(3, 32)
    model = insert_adapters(tiny_blip, UniAdapterConfig(bottleneck=4))
    heads = model.uniadapter.heads
    assert heads.temperature.shape == () and heads.temperature.item() == pytest.approx(0.07)
    for name in ("vision_proj", "text_proj", "itm_head"):
        original, copied = getattr(model, name), getattr(heads, name)
        before = original(x)
        nn.init.constant_(copied.weight, 0.5)
        assert torch.equal(original(x), copied(x)) and not torch.equal(original(x), before)
        with adapters_disabled(model):
            assert torch.equal(original(x), before)


# ----------------------------------------------------------------------------------------- behaving like a PyTorch module


def test_new_modules_follow_the_backbone(make_blip, batch):
    model = insert_adapters(make_blip().double(), UniAdapterConfig.official(bottleneck=4))
    assert {p.dtype for p in model.uniadapter.parameters()} == {torch.float64}
    model.float()
    assert {p.dtype for p in model.uniadapter.parameters()} == {torch.float32}
    model(**batch)
    assert not model.uniadapter.training
    assert model.train().uniadapter.training


def test_a_seed_gives_the_same_adapters(make_blip):
    def weights():
        model = make_blip()
        torch.manual_seed(11)
        return insert_adapters(model, EVERYTHING).uniadapter.state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_state_dict_round_trip(make_blip, batch):
    model = randomise(insert_adapters(make_blip(), EVERYTHING))
    other = insert_adapters(make_blip(seed=9), EVERYTHING)
    other.load_state_dict(model.state_dict())
    assert same(outputs(other, batch), outputs(model, batch))


def test_a_deep_copy_has_adapters_of_its_own(tiny_blip, batch):
    model = randomise(insert_adapters(tiny_blip, EVERYTHING))
    clone = copy.deepcopy(model)
    expected = outputs(model, batch)
    assert same(outputs(clone, batch), expected)

    randomise(clone, seed=7)
    changed = outputs(clone, batch)
    assert same(outputs(model, batch), expected) and not same(changed, expected)
    randomise(model, seed=8)
    assert same(outputs(clone, batch), changed)
    with adapters_disabled(model):
        assert same(outputs(clone, batch), changed)

    remove_adapters(model)
    assert same(outputs(clone, batch), changed)
    remove_adapters(clone)
    assert same(outputs(clone, batch), outputs(model, batch))


def test_a_copied_encoder_keeps_its_adapters_and_nothing_else(tiny_blip, batch):
    model = randomise(insert_adapters(tiny_blip, EVERYTHING))
    momentum = copy.deepcopy(model.vision_model)
    expected = momentum(batch["pixel_values"]).last_hidden_state
    randomise(model, seed=7)
    assert torch.equal(momentum(batch["pixel_values"]).last_hidden_state, expected)
    assert not torch.equal(model.vision_model(batch["pixel_values"]).last_hidden_state, expected)


@contextlib.contextmanager
def watched_activations(batch):
    """Yields a function that says how many tensors which modules took or gave meanwhile are still alive."""
    seen, given = [], {id(x) for x in batch.values()}

    def watch(module, *tensors):
        flat = [x for t in tensors for x in (t if isinstance(t, tuple) else [t])]
        seen.extend(weakref.ref(x) for x in flat if isinstance(x, torch.Tensor) and id(x) not in given)

    def living() -> int:
        gc.collect()  # tracebacks are cycles
        assert seen
        return sum(ref() is not None for ref in seen)

    handles = [
        nn.modules.module.register_module_forward_pre_hook(watch),
        nn.modules.module.register_module_forward_hook(watch),
    ]
    try:
        yield living
    finally:
        for handle in handles:
            handle.remove()


def test_no_activation_outlives_a_forward_pass(tiny_blip, batch):
    model = insert_adapters(tiny_blip, EVERYTHING)
    with watched_activations(batch) as living:
        model(**batch)
        with folded_texts(model, 1), frame_weights(model, torch.ones(2, 1)):
            model(**batch).itm_score.sum().backward()
    assert living() == 0


@pytest.mark.parametrize("place", ["mlp", "crossattention.output", "crossattention.self.dropout", "intermediate"])
def test_an_exception_leaves_nothing_behind(tiny_blip, batch, place):
    model = randomise(insert_adapters(tiny_blip, EVERYTHING))
    expected, texts = outputs(model, batch), (batch["input_ids"], batch["attention_mask"])
    alone = model.text_encoder(*texts).last_hidden_state

    def fail(*_):
        raise RuntimeError("on purpose")

    layer = (model.vision_model.encoder.layers if place == "mlp" else model.text_encoder.encoder.layer)[1]
    handle = layer.get_submodule(place).register_forward_pre_hook(fail)
    with watched_activations(batch) as living, contextlib.suppress(RuntimeError):
        model(**batch)
    handle.remove()
    assert living() == 0
    assert torch.equal(model.text_encoder(*texts).last_hidden_state, alone)
    assert same(outputs(model, batch), expected)


def test_contexts_end_with_an_exception(tiny_blip, batch):
    model = randomise(insert_adapters(tiny_blip, EVERYTHING))
    expected = outputs(model, batch)
    contexts = adapters_disabled(model), folded_texts(model, 3), frame_weights(model, torch.ones(1, 2))
    with pytest.raises(RuntimeError), contexts[0], contexts[1], contexts[2]:
        raise RuntimeError
    assert same(outputs(model, batch), expected)


# ------------------------------------------------------------------------------------------------ activation checkpointing


def enable_checkpointing(model, **options):
    model._set_gradient_checkpointing(True, functools.partial(checkpoint, **options))
    return model.train()


def gradients(model, run) -> dict[str, torch.Tensor]:
    model.zero_grad()
    run(model).backward()
    return {name: p.grad.clone() for name, p in adapter_parameters(model).items() if p.grad is not None}


def plain(model, batch):
    return model(**batch).itm_score.pow(2).sum() + model(**batch, use_itm_head=False).itm_score.sum()


def folded_and_framed(model, batch, w=None):
    """Three texts an image; the contexts are left before backward, as in a training step."""
    tokens = model.vision_model(batch["pixel_values"]).last_hidden_state[:, :16]
    texts = {name: batch[name].repeat_interleave(3, dim=0) for name in ("input_ids", "attention_mask")}
    with folded_texts(model, 3), frame_weights(model, torch.tensor([[0.9, -0.5]] * 2) if w is None else w):
        states = model.text_encoder(**texts, encoder_hidden_states=tokens).last_hidden_state
    return states.pow(2).sum()


CONFIGS = {
    "paper": UniAdapterConfig(bottleneck=4, scale=1.0),
    "official": EVERYTHING,
    "learned scale": UniAdapterConfig(bottleneck=4, scale="learned"),
    "unshared": UniAdapterConfig(bottleneck=4, scale=1.0, share="none", kv_bottleneck=2),
    "one up": UniAdapterConfig(bottleneck=4, scale=1.0, share="up", cross_reuses_text_up=False),
}
# As a step of image retrieval runs, and as one of video retrieval does, with frame weights and folded texts.
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_run = pytest.mark.parametrize("run", [plain, folded_and_framed])


def assert_same_gradients(found, expected, **tolerance):
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


@every_run
@every_config
def test_checkpointing_gives_the_exact_gradients(make_blip, batch, config, run):
    model = randomise(insert_adapters(make_blip().double(), config))
    expected = gradients(model, lambda m: run(m, batch))
    recomputed = []
    for layer in model.uniadapter.layers:
        layer.norm_in.register_forward_hook(lambda *_: recomputed.append(1))
    gradients(model, lambda m: run(m, batch))
    computed = len(recomputed)
    enable_checkpointing(model, use_reentrant=False)
    recomputed.clear()
    found = gradients(model, lambda m: run(m, batch))
    assert len(recomputed) > computed  # the adapters are inside the checkpoint
    assert_same_gradients(found, expected, rtol=0, atol=1e-12)


@every_run
@every_config
def test_a_deep_copy_learns_by_itself(make_blip, batch, config, run):
    model = randomise(insert_adapters(make_blip(), config))
    expected = gradients(model, lambda m: run(m, batch))
    model.zero_grad()
    clone = copy.deepcopy(model)
    randomise(model, seed=8)  # what the original becomes is nothing to the copy
    assert_same_gradients(gradients(clone, lambda m: run(m, batch)), expected, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


@every_run
@every_config
def test_moved_to_another_dtype_it_is_as_if_inserted_there(make_blip, batch, config, run):
    moved = randomise(insert_adapters(make_blip(), config))
    there = insert_adapters(make_blip().double(), config)
    there.load_state_dict(moved.state_dict())
    expected = gradients(there, lambda m: run(m, batch))
    assert moved.to(torch.float64) is moved
    assert_same_gradients(gradients(moved, lambda m: run(m, batch)), expected, rtol=0, atol=0)
    assert {g.dtype for g in expected.values()} == {torch.float64}
    # and there is nothing that `.to` forgets, on any device
    assert all(x.is_meta for x in [*moved.to("meta").parameters(), *moved.buffers()])


def in_bf16(model):
    return model.to(torch.bfloat16), contextlib.nullcontext


def under_autocast(model):
    return model, functools.partial(torch.autocast, "cpu", torch.bfloat16)


@every_run
@every_config
@pytest.mark.parametrize("way", [in_bf16, under_autocast])
def test_gradients_in_bf16_are_the_plain_ones_within_rounding(make_blip, batch, config, run, way):
    model = randomise(insert_adapters(make_blip(), config))
    plain_ones = gradients(model, lambda m: run(m, batch))
    model, context = way(model)

    def rounded(m):
        with context():
            return run(m, batch).float()

    found = gradients(model, rounded)
    assert found.keys() == plain_ones.keys()
    assert {g.dtype for g in found.values()} == {torch.bfloat16 if way is in_bf16 else torch.float32}
    # bf16 keeps 8 bits: a rounding is off by up to 0.4 %, and a gradient has been through some dozens of them. The floor
    # is for the keys' biases, whose true gradient is zero where softmax does not see what all keys have in common.
    floor = 1e-4 * torch.stack([g.norm() for g in plain_ones.values()]).norm()
    for name, expected in plain_ones.items():
        assert (found[name].float() - expected).norm() < 0.1 * expected.norm() + floor, name
    # Recomputing rounds as computing did.
    enable_checkpointing(model, use_reentrant=False)
    assert_same_gradients(gradients(model, rounded), found, rtol=0, atol=0)


def test_a_recomputation_that_stops_early_leaves_nothing_for_the_next(make_blip, batch):
    """Nothing follows the last saved tensor of these multimodal layers: torch stops their recomputation before the
    adapter's turn. The text-only layers, recomputed after them, must not take that for a cross-attention."""

    def run(model):
        alone = model(**batch, use_itm_head=False).itm_score.sum()
        return alone + model(**batch).itm_score.sum()

    config = UniAdapterConfig(bottleneck=4, modalities=("text",), query_residual=False, kv_bottleneck=2)
    model = randomise(insert_adapters(make_blip(), config))
    expected = gradients(model, run)
    for name, gradient in gradients(enable_checkpointing(model, use_reentrant=False), run).items():
        torch.testing.assert_close(gradient, expected[name])


def test_transformers_own_switch_works(tiny_blip, batch):
    """It makes the embeddings' outputs require gradients, which BLIP then changes in place: undone, all is well."""
    model = randomise(insert_adapters(tiny_blip, EVERYTHING))
    expected = gradients(model, lambda m: plain(m, batch))
    with warnings.catch_warnings():  # the name that every tested version of transformers knows
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()
    model.train()
    for name, gradient in gradients(model, lambda m: plain(m, batch)).items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("options", [{"use_reentrant": True}, {}])
def test_reentrant_checkpointing_is_refused(tiny_blip, batch, options):
    model = enable_checkpointing(insert_adapters(tiny_blip, EVERYTHING), **options)
    with pytest.raises(UniAdapterError, match="use_reentrant=True"):
        model(**batch)
    with torch.no_grad():
        model(**batch)  # without gradients there is nothing to get wrong
    model.eval()(**batch)


# ---------------------------------------------------------------------------------------------------- the encoder's mask


@pytest.fixture
def look(batch):
    """``look(model, mask)``: multimodal text states over fixed tokens of which the last two may be masked."""
    tokens = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))

    def look(model, mask=None, tokens=tokens):
        texts = batch["input_ids"], batch["attention_mask"]
        return model.text_encoder(*texts, encoder_hidden_states=tokens, encoder_attention_mask=mask).last_hidden_state

    look.tokens, look.mask = tokens, torch.tensor([[1, 1, 1, 0, 0]] * 2)
    return look


def test_masked_tokens_are_not_seen(tiny_blip, look):
    model = randomise(insert_adapters(tiny_blip, EVERYTHING))
    noise = look.tokens.clone()
    noise[:, 3:] = 100.0
    assert not torch.allclose(look(model), look(model, tokens=noise))
    assert torch.equal(look(model, look.mask), look(model, look.mask, tokens=noise))
    torch.testing.assert_close(look(model, look.mask), look(model, tokens=look.tokens[:, :3]))


def test_the_correction_ends_with_the_adapters(tiny_blip, look):
    original = look(tiny_blip, look.mask)
    model = insert_adapters(tiny_blip, UniAdapterConfig(bottleneck=4))
    assert not torch.equal(look(model, look.mask), original)
    with adapters_disabled(model):
        assert torch.equal(look(model, look.mask), original)
    assert torch.equal(look(remove_adapters(model), look.mask), original)


def test_valid_tokens_need_no_correction(tiny_blip, look):
    original = look(tiny_blip, torch.ones(2, 5, dtype=torch.long))
    model = insert_adapters(tiny_blip, UniAdapterConfig(bottleneck=4, kv_bottleneck=2))
    assert torch.equal(look(model, torch.ones(2, 5, dtype=torch.long)), original)


@pytest.mark.parametrize("cls", [BlipForQuestionAnswering, BlipForConditionalGeneration])
def test_generated_text_does_not_depend_on_the_cache(make_blip, batch, cls):
    model = randomise(insert_adapters(make_blip(cls), EVERYTHING))
    batch = {name: x[:1] for name, x in batch.items()}
    options, updates = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}, []
    handle = model.uniadapter.kv_decoder.key.register_forward_hook(lambda *_: updates.append(1))
    found = model.generate(**batch, **options, use_cache=True)
    assert len(updates) == 1  # the later steps find updated keys in the cache
    handle.remove()
    assert torch.equal(found, model.generate(**batch, **options, use_cache=False))
    with adapters_disabled(model):
        assert found.tolist() != model.generate(**batch, **options).tolist()


# ------------------------------------------------------------------------------------------------------------ folded texts

K = 3


@pytest.fixture
def pairs():
    """2 images as 16 tokens (2 frames of 8), and 3 texts for each, of different lengths."""
    generator = torch.Generator().manual_seed(4)
    lengths = torch.tensor([7, 5, 2, 4, 7, 3])
    mask = (torch.arange(7) < lengths[:, None]).long()
    ids = torch.randint(4, 48, (2 * K, 7), generator=generator) * mask
    return torch.randn(2, 16, 32, generator=generator), ids, mask


def pair_by_pair(model, pairs, w=None, encoder_mask=None):
    tokens, ids, mask = pairs
    states = []
    for i in range(2 * K):
        own = torch.tensor([i // K])
        framed = contextlib.nullcontext() if w is None else frame_weights(model, w[i // K if len(w) == 2 else i][None])
        with framed:
            states.append(
                model.text_encoder(
                    ids[i : i + 1],
                    mask[i : i + 1],
                    encoder_hidden_states=tokens[own],
                    encoder_attention_mask=None if encoder_mask is None else encoder_mask[own],
                ).last_hidden_state
            )
    return torch.cat(states)


def folded(model, pairs, w=None, encoder_mask=None, **options):
    tokens, ids, mask = pairs
    framed = contextlib.nullcontext() if w is None else frame_weights(model, w)
    with folded_texts(model, K), framed:
        return model.text_encoder(
            ids, mask, encoder_hidden_states=tokens, encoder_attention_mask=encoder_mask, **options
        )


W_CLIP = torch.tensor([[3.0, -2.0], [-1.0, 4.0]])
W_TEXT = torch.tensor([[3.0, -2.0], [-1.0, 4.0], [0.0, 1.0], [2.0, 2.0], [5.0, 0.0], [-3.0, 3.0]])


@pytest.mark.parametrize("w", [None, W_CLIP, W_TEXT], ids=["no frames", "weights a clip", "weights a text"])
@pytest.mark.parametrize("state", ["plain", "paper", "official", "disabled"])
def test_folded_equals_pair_by_pair(tiny_blip, pairs, state, w):
    model = tiny_blip
    if state != "plain":
        config = UniAdapterConfig(bottleneck=4) if state == "paper" else EVERYTHING
        randomise(insert_adapters(model, config))
    with adapters_disabled(model) if state == "disabled" else contextlib.nullcontext():
        expected = pair_by_pair(model, pairs, w)
        torch.testing.assert_close(folded(model, pairs, w).last_hidden_state, expected, rtol=0, atol=1e-5)
    if w is not None:
        with adapters_disabled(model) if state == "disabled" else contextlib.nullcontext():
            assert (expected - pair_by_pair(model, pairs)).abs().max() > 1e-5


def test_folded_under_low_rank_adaptation(tiny_blip, pairs):
    """peft wraps the model and its linears; what is compared with adapters is matched the same way."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["query", "key", "value"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_blip, config).eval()
    expected = pair_by_pair(model, pairs)
    torch.testing.assert_close(folded(model, pairs).last_hidden_state, expected, rtol=0, atol=1e-5)
    with model.disable_adapter():
        assert not torch.allclose(folded(model, pairs).last_hidden_state, expected)


@pytest.mark.parametrize("w", [None, W_TEXT], ids=["no frames", "weights a text"])
def test_folded_with_an_encoder_mask(tiny_blip, pairs, w):
    model = randomise(insert_adapters(tiny_blip, EVERYTHING))
    mask = torch.tensor([[1] * 16, [1] * 11 + [0] * 5])
    found = folded(model, pairs, w, mask).last_hidden_state
    torch.testing.assert_close(found, pair_by_pair(model, pairs, w, mask), rtol=0, atol=1e-5)
    assert not torch.allclose(found, folded(model, pairs, w).last_hidden_state, atol=1e-4)


@pytest.mark.parametrize("w", [None, W_TEXT], ids=["no frames", "weights a text"])
def test_folded_gradients_equal_pair_by_pair(make_blip, pairs, w):
    model = randomise(insert_adapters(make_blip().double(), EVERYTHING))
    tokens, ids, mask = pairs
    tokens = tokens.double().requires_grad_()
    probe = torch.randn(2 * K, 7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def both(run):
        tokens.grad = None
        found = gradients(model, lambda m: (run(m) * probe).sum())
        return found | {"image tokens": tokens.grad}

    expected = both(lambda m: pair_by_pair(m, (tokens, ids, mask), w))
    found = both(lambda m: folded(m, (tokens, ids, mask), w).last_hidden_state)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("w", [None, W_CLIP, W_TEXT], ids=["no frames", "weights a clip", "weights a text"])
@pytest.mark.parametrize("adapted", [True, False])
def test_folded_projects_each_image_once(tiny_blip, pairs, adapted, w):
    model = insert_adapters(tiny_blip, EVERYTHING) if adapted else tiny_blip
    shapes = []
    for layer in model.text_encoder.encoder.layer:
        for projection in (layer.crossattention.self.key, layer.crossattention.self.value):
            projection.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape)))
    if adapted:
        model.uniadapter.kv.key.register_forward_hook(lambda module, args, output: shapes.append("update"))
    folded(model, pairs, w)
    assert [shape for shape in shapes if shape != "update"] == [(2, 16, 32)] * 4
    assert shapes.count("update") == adapted  # and the low-rank update is computed once for all layers


@pytest.mark.parametrize("asked_before", [True, False])
def test_folded_attentions_have_the_shapes_of_pairs(tiny_blip, batch, pairs, asked_before):
    if asked_before:
        outputs(tiny_blip, batch)  # transformers hooks its recorders in when attentions are first asked for
    model = insert_adapters(tiny_blip, UniAdapterConfig(bottleneck=4))
    attentions = folded(model, pairs, output_attentions=True).cross_attentions
    assert [tuple(a.shape) for a in attentions] == [(2 * K, 4, 7, 16)] * 2
    tokens, ids, mask = pairs
    one = model.text_encoder(ids[4:5], mask[4:5], encoder_hidden_states=tokens[1:], output_attentions=True)
    torch.testing.assert_close(attentions[1][4:5], one.cross_attentions[1])


def test_folded_leaves_the_text_alone_pass_alone(tiny_blip, batch):
    model = randomise(insert_adapters(tiny_blip, EVERYTHING))
    texts = batch["input_ids"], batch["attention_mask"]
    with folded_texts(model, 5):
        inside = model.text_encoder(*texts).last_hidden_state
    assert torch.equal(inside, model.text_encoder(*texts).last_hidden_state)


def test_folded_refuses_numbers_that_do_not_fit(tiny_blip, pairs):
    tokens, ids, mask = pairs
    with pytest.raises(UniAdapterError, match=r"6 texts meet 6 images inside folded_texts\(model, 3\)"):
        folded(tiny_blip, (tokens.repeat_interleave(K, dim=0), ids, mask))
    for k in (0, -1, 2.0):
        with pytest.raises(UniAdapterError, match="expected a whole number"), folded_texts(tiny_blip, k):
            pass


def test_a_plain_model_is_what_it_was_after_folding(make_blip, batch, pairs):
    model = make_blip()
    before = outputs(model, batch)
    folded(model, pairs)
    assert same(outputs(model, batch), before)
    assert model.state_dict().keys() == make_blip().state_dict().keys()
    assert not named_adapters(model)


def test_questions_are_folded_where_they_meet_the_image_only(make_blip, pairs):
    """The answer decoder looks at questions, one each: there is nothing to fold there."""
    model = randomise(insert_adapters(make_blip(BlipForQuestionAnswering), EVERYTHING))
    tokens, ids, mask = pairs
    with folded_texts(model, K):
        questions = model.text_encoder(ids, mask, encoder_hidden_states=tokens).last_hidden_state
        inside = model.text_decoder(ids, mask, encoder_hidden_states=questions, encoder_attention_mask=mask).logits
    torch.testing.assert_close(questions, pair_by_pair(model, pairs), rtol=0, atol=1e-5)
    after = model.text_decoder(ids, mask, encoder_hidden_states=questions, encoder_attention_mask=mask).logits
    assert torch.equal(inside, after)


# ------------------------------------------------------------------------------------------------------------------ video


def test_video_tokens_are_frame_major(tiny_blip):
    frames = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens, feature = encode_video(tiny_blip, frames)
    assert tokens.shape == (2, 3 * 17, 32) and feature.shape == (2, 16)
    one = tiny_blip.vision_model(frames[1, 2][None]).last_hidden_state[0]
    torch.testing.assert_close(tokens[1, 2 * 17 :], one)
    torch.testing.assert_close(feature.norm(dim=-1), torch.ones(2))


def test_a_video_of_one_frame_is_an_image(tiny_blip, batch):
    tokens, feature = encode_video(tiny_blip, batch["pixel_values"][:, None])
    expected = tiny_blip.vision_model(batch["pixel_values"]).last_hidden_state
    torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(feature, nn.functional.normalize(tiny_blip.vision_proj(expected[:, 0]), dim=-1))


def test_a_model_without_projection_gives_tokens_alone(make_blip):
    tokens, feature = encode_video(make_blip(BlipForConditionalGeneration), torch.zeros(1, 2, 3, 32, 32))
    assert tokens.shape == (1, 34, 32) and feature is None


@pytest.mark.parametrize("adapted", [True, False])
def test_equal_frame_weights_change_nothing(tiny_blip, pairs, adapted):
    if adapted:
        randomise(insert_adapters(tiny_blip, EVERYTHING))
    tokens, ids, mask = pairs[0], pairs[1][::K], pairs[2][::K]
    before = tiny_blip.text_encoder(ids, mask, encoder_hidden_states=tokens).last_hidden_state
    with frame_weights(tiny_blip, torch.full((2, 2), 0.4)):
        inside = tiny_blip.text_encoder(ids, mask, encoder_hidden_states=tokens).last_hidden_state
    torch.testing.assert_close(inside, before)


def refused(cause, call):
    with pytest.raises(UniAdapterError, match=cause) as caught:
        call()
    assert caught.value.cure and "\n" not in caught.value.cause + caught.value.cure


@pytest.mark.parametrize(
    ("w", "cause"),
    [
        (torch.ones(2), r"of shape \(2,\), expected a tensor \(B, F\)"),
        (torch.ones(2, 3, 1), r"of shape \(2, 3, 1\), expected a tensor \(B, F\)"),
        ([[0.1, 0.2]], "a list, expected a tensor"),
        (torch.ones(2, 0), "are empty"),
        (torch.ones(0, 2), "are empty"),
        (torch.ones(2, 2, dtype=torch.long), "dtype torch.int64"),
        (torch.tensor([[0.5, float("nan")]]), "NaN or infinity"),
    ],
    ids=str,
)
def test_what_is_no_frame_weight_is_refused_at_once(tiny_blip, w, cause):
    refused(cause, lambda: frame_weights(tiny_blip, w).__enter__())
    refused(cause, lambda: frame_weights(insert_adapters(tiny_blip), w).__enter__())


@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (2, 4), (2, 17), (1, 2), (3, 2)], ids=str)
@pytest.mark.parametrize("adapted", [True, False])
def test_frame_weights_that_do_not_fit_the_clips_are_refused(tiny_blip, batch, shape, adapted):
    """2 clips of 2 frames of 17 tokens: 1 and 17 frames divide these, too, and are wrong all the same."""
    if adapted:
        insert_adapters(tiny_blip, EVERYTHING)
    tokens, _ = encode_video(tiny_blip, torch.zeros(2, 2, 3, 32, 32))

    def match():
        return tiny_blip.text_encoder(batch["input_ids"], batch["attention_mask"], encoder_hidden_states=tokens)

    with frame_weights(tiny_blip, torch.ones(shape)):
        refused("do not fit 2 frames of 17 tokens of each of 2 clips", match)
    with frame_weights(tiny_blip, torch.ones(2, 2)):
        match()


def test_frame_weights_that_do_not_fit_parts_of_frames_are_refused(tiny_blip, pairs):
    tokens, ids, mask = pairs[0], pairs[1][::K], pairs[2][::K]  # 16 tokens are no whole frames of 17
    for w in (torch.ones(2, 3), torch.ones(3, 2), torch.ones(2, 16)):
        with frame_weights(tiny_blip, w):
            refused("do not fit 16 tokens", lambda: tiny_blip.text_encoder(ids, mask, encoder_hidden_states=tokens))


def test_folded_frame_weights_that_do_not_fit_are_refused(tiny_blip, pairs):
    refused("do not fit", lambda: folded(tiny_blip, pairs, torch.ones(3, 2)))  # neither 2 clips' nor 6 texts'


@pytest.mark.parametrize(
    ("frames", "cause"),
    [
        (torch.ones(2, 3, 32, 32), r"expected a tensor \(B, F, 3, H, W\)"),
        (torch.ones(1, 2, 32, 32, 3), r"expected a tensor \(B, F, 3, H, W\)"),
        ([torch.ones(2, 3, 32, 32)], "a list, expected a tensor"),
        (torch.ones(2, 0, 3, 32, 32), "are empty"),
        (torch.ones(0, 2, 3, 32, 32), "are empty"),
        (torch.ones(1, 2, 3, 32, 32, dtype=torch.uint8), "dtype torch.uint8"),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, torch.Tensor) else None,
)
@pytest.mark.parametrize("adapted", [True, False])
def test_what_is_no_clip_is_refused(tiny_blip, frames, cause, adapted):
    if adapted:
        insert_adapters(tiny_blip)
    refused(cause, lambda: encode_video(tiny_blip, frames))


# ----------------------------------------------------------------------------------------------------------------- errors


def test_mistakes_have_a_cause_and_a_cure(tiny_blip):
    mistakes = {
        "No adapters are inserted": [
            lambda: remove_adapters(tiny_blip),
            lambda: adapter_parameters(tiny_blip),
            lambda: set_adapter(tiny_blip, "default"),
            lambda: add_adapter(tiny_blip, name="other"),
            lambda: adapters_disabled(tiny_blip).__enter__(),
        ],
        "no BLIP model": [
            lambda: insert_adapters(nn.Linear(2, 2)),
            lambda: folded_texts(nn.Linear(2, 2), 2).__enter__(),
        ],
        "cannot be merged": [lambda: merge_adapters(tiny_blip)],
    }
    for cause, calls in mistakes.items():
        for call in calls:
            with pytest.raises(UniAdapterError, match=cause) as caught:
                call()
            assert caught.value.cure and "\n" not in caught.value.cause + caught.value.cure


@pytest.mark.parametrize("config", [{"bottleneck": 4}, 4, UniAdapterConfig], ids=str)
def test_what_is_no_config_is_refused_and_changes_nothing(tiny_blip, batch, config):
    before, attributes = outputs(tiny_blip, batch), set(vars(tiny_blip))
    refused("expected a UniAdapterConfig", lambda: insert_adapters(tiny_blip, config))
    assert all(p.requires_grad for p in tiny_blip.parameters()) and set(vars(tiny_blip)) == attributes
    assert same(outputs(tiny_blip, batch), before)
    model = insert_adapters(tiny_blip)
    refused("expected a UniAdapterConfig", lambda: add_adapter(model, config, "other"))
    assert set(named_adapters(model)) == {"default"}


def test_inserting_twice_is_refused(tiny_blip, batch):
    model = insert_adapters(tiny_blip)
    before = outputs(model, batch)
    with pytest.raises(UniAdapterError, match="already"):
        insert_adapters(model)
    with pytest.raises(UniAdapterError, match='"default" already'):
        add_adapter(model)
    with pytest.raises(UniAdapterError, match='No adapter is called "other"'):
        set_adapter(model, "other")
    assert same(outputs(model, batch), before)
