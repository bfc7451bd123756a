"""Counts against the design's numbers and against real modules; bytes against real files and optimizers."""

import itertools
import mmap
import platform
from dataclasses import replace

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering

from uniadapter_edu.accounting import (
    PeakMemory,
    StepTimer,
    adapter_parts,
    bottleneck_for,
    count_adapter_parameters,
    optimizer_bytes,
    size_on_disk,
    trainable_parameters,
)
from uniadapter_edu.adapter import AdapterSet
from uniadapter_edu.config import MODALITIES, SHARE, UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import freeze, insert_adapters, remove_adapters

BLIP_BASE = (768, 12, 12)


@pytest.fixture
def blip_base():
    """BLIP-base for retrieval at 384 px, without memory."""
    config = BlipConfig(
        text_config={"num_attention_heads": 12}, vision_config={"image_size": 384}, image_text_hidden_size=256
    )
    with torch.device("meta"):
        return BlipForImageTextRetrieval(config)


def of_group(ledger, group):
    return sum(row.total for row in ledger.rows if row.group == group)


# --------------------------------------------------------------------------------------------------- BLIP-base, exact


def test_parts_of_blip_base(blip_base):
    ledger = trainable_parameters(blip_base)
    assert {row.part: row.total for row in ledger.rows} == {
        "vision encoder": 86_090_496,
        "text encoder": 137_258_496 - 28_366_848,
        "text encoder: cross-attention": 28_366_848,
        "projections": 2 * 196_864,
        "matching head": 1_538,
    }
    assert ledger.backbone == ledger.total == ledger.trainable == 223_744_258


@pytest.mark.parametrize("r, expected", [(64, 2_424_576), (128, 4_784_640), (256, 9_504_768), (512, 18_945_024)])
def test_official_at_blip_base(blip_base, r, expected):
    config = UniAdapterConfig.official(bottleneck=r, kv_bottleneck=None)
    assert count_adapter_parameters(config, *BLIP_BASE) == expected
    with torch.device("meta"):
        ledger = trainable_parameters(insert_adapters(blip_base, config))
    assert ledger.trainable == expected + ledger["head copies"].trainable + 1
    assert ledger["head copies"].trainable == 395_266 and ledger["temperature"].trainable == 1
    assert ledger.backbone == 223_744_258
    assert sum(row.trainable for row in ledger.rows if row.group == "backbone") == 0


def test_percent_is_of_the_backbone(blip_base):
    with torch.device("meta"):
        insert_adapters(blip_base, UniAdapterConfig.official(bottleneck=128, kv_bottleneck=None, train_heads=False))
    assert round(trainable_parameters(blip_base).percent, 2) == 2.14


def test_unshared_and_key_value_adapters_at_blip_base():
    unshared = UniAdapterConfig.official(share="none", kv_bottleneck=None)
    assert count_adapter_parameters(unshared, *BLIP_BASE) == 28_394_496
    assert adapter_parts(UniAdapterConfig.official(), *BLIP_BASE)["kv"] == 198_274


# ------------------------------------------------------------------------------------ the closed form, against modules


def every_config():
    some = [m for n in (1, 2, 3) for m in itertools.combinations(MODALITIES, n)]
    for modalities, share, reuse, norm in itertools.product(some, SHARE, (True, False), (True, False)):
        kind = {"init": "published", "cross_norm": True} if norm else {}
        try:
            yield UniAdapterConfig(
                bottleneck=5, modalities=modalities, share=share, cross_reuses_text_up=reuse, kv_bottleneck=3, **kind
            )
        except UniAdapterError:
            pass  # a contradiction


@pytest.mark.parametrize("vision_layers, text_layers", [(2, 2), (3, 1), (1, 2)])
def test_closed_form_equals_the_modules(vision_layers, text_layers):
    configs = list(every_config())
    assert len(configs) > 70
    for config in configs:
        adapter = AdapterSet(config, 8, {"vision": vision_layers, "text": text_layers})
        real = sum(p.numel() for name, p in adapter.named_parameters() if not name.startswith("heads."))
        assert count_adapter_parameters(config, 8, vision_layers, text_layers) == real, config


def test_closed_form_of_a_learned_scale_and_two_text_towers(make_blip):
    config = UniAdapterConfig(bottleneck=5, scale="learned", kv_bottleneck=3, train_heads=False)
    ledger = trainable_parameters(insert_adapters(make_blip(BlipForQuestionAnswering), config))
    assert count_adapter_parameters(config, 32, 2, 2, updates=2) == of_group(ledger, "UniAdapter")
    assert ledger["scale"].total == 2 and ledger["kv"].total == ledger["kv_decoder"].total


# ------------------------------------------------------------------------------------------------- a budget to be met


def trained(model, config):
    """How many numbers really train, counted in the modules."""
    ledger = trainable_parameters(insert_adapters(model, config))
    remove_adapters(model)
    return ledger.trainable


@pytest.mark.parametrize("sizes", [{}, {"vision_layers": 3, "text_layers": 1}])
def test_the_bottleneck_for_a_budget_is_the_closest_there_is(make_blip, sizes):
    model, budget = make_blip(**sizes), 20_000
    for config in list(every_config())[::3]:
        config = replace(config, bottleneck=bottleneck_for(model, budget, config), scale="learned")
        best = abs(trained(model, config) - budget)
        neighbours = [replace(config, bottleneck=config.bottleneck + step) for step in (-1, 1)]
        assert all(best <= abs(trained(model, other) - budget) for other in neighbours), config


@pytest.mark.parametrize("r", [1, 8, 300])
@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("model_class", [BlipForImageTextRetrieval, BlipForQuestionAnswering])
def test_the_bottleneck_for_its_own_count_is_itself(make_blip, model_class, heads, r):
    config = UniAdapterConfig(bottleneck=r, kv_bottleneck=3, train_heads=heads)
    model = make_blip(model_class)
    assert bottleneck_for(model, trained(model, config), config) == r


def test_a_budget_below_the_heads_gives_the_smallest_bottleneck_and_adapters_do_not_disturb_the_count(tiny_blip):
    assert bottleneck_for(tiny_blip, 10) == 1
    before = bottleneck_for(tiny_blip, 20_000)
    assert bottleneck_for(insert_adapters(tiny_blip), 20_000) == before


def test_only_a_blip_has_a_budget():
    with pytest.raises(UniAdapterError, match="Linear is no BLIP"):
        bottleneck_for(nn.Linear(2, 2), 100)


# ------------------------------------------------------------------------------------------------------- other methods


def test_the_three_states_of_a_model(tiny_blip):
    plain = trainable_parameters(tiny_blip)
    assert plain.trainable == plain.total == sum(p.numel() for p in tiny_blip.parameters())
    assert trainable_parameters(freeze(tiny_blip)).trainable == 0
    inserted = trainable_parameters(insert_adapters(tiny_blip, UniAdapterConfig(bottleneck=4)))
    assert inserted.backbone == plain.total and 0 < inserted.trainable < plain.total
    assert inserted.trainable == sum(p.numel() for p in tiny_blip.parameters() if p.requires_grad)
    assert trainable_parameters(remove_adapters(tiny_blip)).total == plain.total


def test_the_three_branches_count_one_down_projection(tiny_blip):
    shared = trainable_parameters(insert_adapters(tiny_blip, UniAdapterConfig(bottleneck=4)))
    assert shared["down"].total == 2 * (32 * 4 + 4)


def test_a_linear_probe_trains_heads_only(tiny_blip):
    freeze(tiny_blip).itm_head.requires_grad_(True)
    ledger = trainable_parameters(tiny_blip)
    assert ledger.trainable == ledger["matching head"].trainable == 32 * 2 + 2


def test_lora_is_counted_apart_from_the_backbone(tiny_blip):
    plain = trainable_parameters(tiny_blip)
    wrapped = get_peft_model(tiny_blip, LoraConfig(r=2, target_modules=["query"], modules_to_save=["itm_head"]))
    ledger = trainable_parameters(wrapped)
    assert ledger.backbone == plain.total
    assert ledger["low-rank updates"].trainable == 2 * 2 * 2 * (32 + 32)  # layers, attentions, rank, in + out
    assert ledger["head copies"].trainable == 32 * 2 + 2
    assert ledger.trainable == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)


@pytest.mark.parametrize("cls", [BlipForQuestionAnswering, BlipForConditionalGeneration], ids=lambda c: c.__name__)
def test_tied_weights_count_once(make_blip, cls):
    model = make_blip(cls)
    ledger = trainable_parameters(model)
    assert ledger.total == sum({id(p): p.numel() for p in model.parameters()}.values())
    assert {"text decoder", "text decoder: cross-attention"} <= {row.part for row in ledger.rows}


def test_the_ledger_is_an_aligned_table_that_says_what_its_percentages_are_of(tiny_blip):
    ledger = trainable_parameters(insert_adapters(tiny_blip, UniAdapterConfig(bottleneck=4)))
    lines = str(ledger).splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert f"{ledger.backbone:,}" in lines[-1] and "backbone" in lines[-1]
    assert f"{ledger.trainable:,}" in lines[-2] and f"{ledger.total:,}" in lines[-2]
    assert ledger._repr_html_().count("<tr>") == len(ledger.rows) + 2
    with pytest.raises(KeyError):
        ledger["momentum"]


# --------------------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_holds_two_moments_of_what_trains(tiny_blip, batch, dtype):
    model = insert_adapters(tiny_blip.to(dtype), UniAdapterConfig(bottleneck=4))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    assert optimizer_bytes(optimizer) == 0
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    ledger = trainable_parameters(model)
    assert ledger.gradient_bytes == sum(p.grad.nbytes for p in trained)
    assert optimizer_bytes(optimizer) == ledger.adam_bytes + 4 * len(trained)  # and a float32 that counts the steps


def test_size_on_disk(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "one").write_bytes(b"12345")
    (tmp_path / "below" / "two").write_bytes(b"123")
    assert size_on_disk(tmp_path) == 8 and size_on_disk(tmp_path / "one") == 5
    with pytest.raises(UniAdapterError, match="nowhere"):
        size_on_disk(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------------- memory and time


def take(megabytes):
    """Fresh pages from the operating system, touched, so that they are resident."""
    block = mmap.mmap(-1, megabytes * 10**6)
    for start in range(0, len(block), mmap.PAGESIZE):
        block[start] = 1
    return block


def test_peak_memory_sees_what_was_given_back_before_the_end():
    with PeakMemory() as memory:
        take(200).close()
    assert memory.peak_mb > memory.before_mb + 190


def test_peak_memory_of_a_later_block_is_not_that_of_an_earlier_one():
    with PeakMemory() as first:
        take(200).close()
    with PeakMemory() as second:
        pass
    assert second.peak_mb < first.peak_mb - 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory and can give it back")
def test_peak_memory_does_not_stand_on_what_earlier_work_freed():
    blocks = [torch.ones(5_000) for _ in range(10_000)]  # 200 MB in pieces that malloc keeps below its last one
    full = psutil.Process().memory_info().rss / 1e6
    blocks = blocks[-1:]
    with PeakMemory() as memory:
        pass
    assert len(blocks) == 1 and memory.peak_mb < full - 150


def test_peak_memory_survives_an_error():
    with pytest.raises(KeyError), PeakMemory() as memory:
        raise KeyError
    assert memory.peak_mb > 0 and not memory._thread.is_alive()


def test_step_timer_takes_the_median(monkeypatch):
    clock = iter([0, 9, 10, 11, 20, 22])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timer = StepTimer()
    with pytest.raises(UniAdapterError):
        _ = timer.median
    for _ in range(3):
        with timer:
            pass
    assert timer.seconds == [9, 1, 2] and timer.median == 2


def test_models_that_are_no_blip_are_counted_by_their_children():
    ledger = trainable_parameters(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    assert {row.part: row.total for row in ledger.rows} == {"0": 9, "1": 4}
