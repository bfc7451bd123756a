"""The ways to train: exactly what should train does, and what cannot be combined is refused."""

import pytest
import torch

from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import HEADS, insert_adapters, remove_adapters
from uniadapter_edu.methods import full_fine_tuning, linear_probe, lora, lora_rank_for


def trainable_names(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


HEAD_NAMES = {f"{head}.{kind}" for head in HEADS for kind in ("weight", "bias")}


def test_a_linear_probe_trains_the_three_heads_only(tiny_blip):
    assert trainable_names(linear_probe(tiny_blip)) == HEAD_NAMES


def test_full_fine_tuning_trains_everything(tiny_blip):
    tiny_blip.requires_grad_(False)
    assert trainable_names(full_fine_tuning(tiny_blip)) == {name for name, _ in tiny_blip.named_parameters()}


def test_lora_trains_queries_values_and_heads(tiny_blip):
    model = lora(tiny_blip, rank=2)
    layers = [f"vision_model.encoder.layers.{i}.self_attn.qkv" for i in (0, 1)]
    for i in (0, 1):
        for attention in ("attention", "crossattention"):
            layers += [f"text_encoder.encoder.layer.{i}.{attention}.self.{part}" for part in ("query", "value")]
    expected = {f"base_model.model.{layer}.lora_{matrix}.default.weight" for layer in layers for matrix in "AB"}
    for head in HEAD_NAMES:
        name, kind = head.split(".")
        expected.add(f"base_model.model.{name}.modules_to_save.default.{kind}")
    assert trainable_names(model) == expected


def test_every_way_trains_heads_of_the_same_size_from_the_same_start(make_blip):
    plain = make_blip()
    for way in (linear_probe, full_fine_tuning, lambda model: lora(model, 2), insert_adapters):
        model = way(make_blip())
        for head in HEADS:
            trained = {
                tuple(p.shape): p for name, p in model.named_parameters() if head in name.split(".") and p.requires_grad
            }
            original = dict(getattr(plain, head).named_parameters())
            assert len(trained) == 2
            for p in original.values():
                assert torch.equal(trained[tuple(p.shape)], p)


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_the_rank_for_a_budget_is_the_one_that_spends_it(make_blip, rank):
    model = lora(make_blip(), rank)
    spent = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert lora_rank_for(make_blip(), spent) == rank
    per_rank = (spent - sum(p.numel() for head in HEADS for p in getattr(make_blip(), head).parameters())) / rank
    assert lora_rank_for(make_blip(), int(spent + 0.4 * per_rank)) == rank
    assert lora_rank_for(make_blip(), int(spent + 0.6 * per_rank)) == rank + 1
    assert lora_rank_for(make_blip(), 0) == 1


def test_a_probe_builds_no_graph_below_the_heads(tiny_blip, batch):
    linear_probe(tiny_blip)
    assert not tiny_blip.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state.requires_grad
    assert not tiny_blip.text_encoder(input_ids=batch["input_ids"]).last_hidden_state.requires_grad


@pytest.mark.parametrize("way", [linear_probe, full_fine_tuning, lambda model: lora(model, 2)])
def test_models_with_adapters_are_refused_until_these_are_removed(tiny_blip, way):
    insert_adapters(tiny_blip)
    with pytest.raises(UniAdapterError, match="already has adapters"):
        way(tiny_blip)
    way(remove_adapters(tiny_blip))


def test_lora_is_refused_twice_and_with_rank_zero(tiny_blip):
    with pytest.raises(UniAdapterError, match="rank is 0"):
        lora(tiny_blip, 0)
    model = lora(tiny_blip, 1)
    with pytest.raises(UniAdapterError, match="already has adapters"):
        lora(model, 1)
