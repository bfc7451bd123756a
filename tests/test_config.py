"""UniAdapterConfig: the presets are the design's table, and contradictions are refused by name."""

import dataclasses
import json
import zlib

import pytest
import torch

from uniadapter_edu.config import MODALITIES, UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import insert_adapters


def test_presets_are_the_table():
    same = {
        "scale": 0.1,
        "modalities": ["vision", "text", "cross"],
        "share": "down",
        "cross_reuses_text_up": True,
        "query_residual": True,
        "frame_aware": False,
        "train_heads": True,
    }
    paper = {"bottleneck": 128, "cross_norm": False, "init": "identity", "kv_bottleneck": None}
    official = {"bottleneck": 512, "cross_norm": True, "init": "published", "kv_bottleneck": 64}
    assert UniAdapterConfig.paper().to_dict() == same | paper
    assert UniAdapterConfig.official().to_dict() == same | official
    assert UniAdapterConfig() == UniAdapterConfig.paper()
    uncoupled = {"share": "none", "cross_reuses_text_up": False, "query_residual": False}
    assert UniAdapterConfig.per_modality().to_dict() == same | paper | uncoupled


def test_presets_take_overrides():
    assert UniAdapterConfig.paper(bottleneck=8) == dataclasses.replace(UniAdapterConfig(), bottleneck=8)
    assert UniAdapterConfig.official(kv_bottleneck=None).kv_bottleneck is None
    assert UniAdapterConfig.per_modality(query_residual=True, bottleneck=8).query_residual


@pytest.fixture
def scored(make_blip, batch):
    """scored(config): a model with random adapters of it, and what it answers: the contrast and the match."""

    def build(config):
        model = insert_adapters(make_blip(), config)
        for name, p in model.uniadapter.layers.named_parameters():  # equal names get equal numbers, whatever the config
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            p.data.copy_(0.3 * torch.randn(p.shape, generator=generator))
        return model, [model(**batch, use_itm_head=itm).itm_score for itm in (False, True)]

    return build


@pytest.mark.parametrize(
    "choice",
    [
        {"share": "none"},
        {"share": "up", "cross_reuses_text_up": False},
        {"share": "all", "cross_reuses_text_up": False},
        {"modalities": ("text", "cross")},
        {"modalities": ("vision", "cross")},
        {"modalities": ("vision", "text")},
        {"query_residual": False},
        {"cross_reuses_text_up": False},
        {"init": "published", "cross_norm": True},
        {"init": "published", "kv_bottleneck": 3},
        {"bottleneck": 5},
        {"scale": 2.0},
        {"scale": "learned"},
    ],
    ids=str,
)
def test_every_choice_is_a_switch_that_is_connected(scored, choice):
    plain = {"bottleneck": 4, "scale": 1.0}
    (_, answers), (_, others) = scored(UniAdapterConfig(**plain)), scored(UniAdapterConfig(**plain | choice))
    assert any(not torch.allclose(a, b, atol=1e-6) for a, b in zip(answers, others))


def test_with_an_adapter_per_modality_no_weight_serves_two_places(scored, batch):
    """A loss of the contrast leaves the cross branch without a gradient, and one of the match through the multimodal
    layers alone leaves the text branch without one: nothing but LN_in is common."""
    model, (contrast, _) = scored(UniAdapterConfig.per_modality(bottleneck=4, scale=1.0))
    contrast.sum().backward()
    assert {name for name, p in _branches(model) if p.grad is None} == {"cross"}
    model.zero_grad()
    tokens = model.vision_model(batch["pixel_values"]).last_hidden_state.detach()
    states = model.text_encoder(batch["input_ids"], batch["attention_mask"], encoder_hidden_states=tokens)
    states.last_hidden_state.square().sum().backward()
    assert {name for name, p in _branches(model) if p.grad is not None} == {"cross"}


def _branches(model):
    named = model.uniadapter.layers.named_parameters()
    return [(branch, p) for name, p in named for branch in MODALITIES if branch in name.split(".")]


def test_survives_json_and_is_frozen():
    config = UniAdapterConfig.official(scale="learned", modalities=("cross", "text"))
    assert UniAdapterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.modalities == ("text", "cross")  # one order, so that equal means equal
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.bottleneck = 1


@pytest.mark.parametrize("scale", [4, 0.01, 10.0, "learned"])
def test_scale_is_any_positive_number_or_learned(scale):
    assert UniAdapterConfig(scale=scale).scale == scale


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bottleneck", 0),
        ("bottleneck", -4),
        ("bottleneck", 8.0),
        ("bottleneck", True),
        ("bottleneck", None),
        ("scale", 0),
        ("scale", -0.1),
        ("scale", float("nan")),
        ("scale", float("inf")),
        ("scale", "large"),
        ("modalities", ()),
        ("modalities", ("vision", "audio")),
        ("modalities", "vision"),
        ("modalities", None),
        ("share", "both"),
        ("share", None),
        ("init", "zero"),
        ("kv_bottleneck", 0),
        ("kv_bottleneck", False),
        ("kv_bottleneck", "64"),
        ("cross_norm", "no"),
        ("train_heads", 1),
        ("query_residual", None),
    ],
)
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(UniAdapterError) as caught:
        UniAdapterConfig(**{field: value})
    assert caught.value.cause.startswith(f"{field} is {value!r}")
    assert caught.value.cure and "\n" not in caught.value.cause + caught.value.cure


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("cross_norm", {"cross_norm": True}),
        ("cross_norm", {"cross_norm": True, "init": "identity", "modalities": ("cross",)}),
        ("cross_reuses_text_up", {"share": "up"}),
        ("cross_reuses_text_up", {"share": "all"}),
        ("init", {"share": "all", "init": "published", "cross_reuses_text_up": False}),
    ],
)
def test_contradictions_are_refused_by_name(field, values):
    with pytest.raises(UniAdapterError, match=f"^{field}="):
        UniAdapterConfig(**values)


def test_the_reason_against_a_norm_behind_zeros_is_said():
    with pytest.raises(UniAdapterError, match="1/sqrt"):
        UniAdapterConfig.official(init="identity")


@pytest.mark.parametrize(
    "values",
    [
        {"modalities": ("vision", "text"), "cross_norm": True},  # no cross branch: nothing for LN_x to do
        {"modalities": ("vision", "cross")},  # W_text stays, because cross reuses it
        {"modalities": ("vision",), "share": "all"},
        {"share": "all", "cross_reuses_text_up": False},
        {"share": "none", "init": "published", "cross_norm": True},
    ],
)
def test_what_only_looks_like_a_contradiction_is_allowed(values):
    UniAdapterConfig(**values)


def test_unknown_fields_are_named():
    with pytest.raises(UniAdapterError, match="rank"):
        UniAdapterConfig.from_dict({"rank": 8})
