"""The modules by themselves: the equations, what is shared, how it starts, how much it weighs."""

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm, linear

from uniadapter_edu.adapter import AdapterSet, Heads, LowRankUpdate, UniAdapter
from uniadapter_edu.config import UniAdapterConfig

D, R = 12, 4
BRANCHES = ("vision", "text", "cross")


@pytest.fixture
def h():
    return torch.randn(2, 3, D, generator=torch.Generator().manual_seed(0))


def randomised(**fields) -> UniAdapter:
    """An adapter in which no weight is zero or one, so that a missing term shows."""
    torch.manual_seed(0)
    adapter = UniAdapter(D, UniAdapterConfig(**{"bottleneck": R} | fields))
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    return adapter


def test_the_equations(h):
    adapter = randomised(scale=0.3, cross_norm=True, init="published")
    p = dict(adapter.named_parameters())
    normed = layer_norm(h, (D,), p["norm_in.weight"], p["norm_in.bias"])
    z = linear(normed, p["down.weight"], p["down.bias"]).clamp(min=0)
    ups = {name: linear(z, p[f"up.{name}.weight"], p[f"up.{name}.bias"]) for name in BRANCHES}
    cross = layer_norm(ups["cross"] + ups["text"], (D,), p["norm_cross.weight"], p["norm_cross.bias"])

    torch.testing.assert_close(adapter.bottleneck(h, "vision"), z)
    torch.testing.assert_close(adapter.vision(h), 0.3 * ups["vision"])
    torch.testing.assert_close(adapter.text(h), 0.3 * ups["text"])
    torch.testing.assert_close(adapter.cross(h), 0.3 * cross)


def test_cross_may_stand_on_its_own(h):
    adapter = randomised(cross_reuses_text_up=False)
    torch.testing.assert_close(adapter.cross(h), 0.1 * adapter.up.cross(adapter.bottleneck(h, "cross")))


def test_the_branches_have_one_down():
    adapter, called = randomised(), []
    assert isinstance(adapter.down, nn.Linear)
    adapter.down.register_forward_hook(lambda module, args, output: called.append(module))
    for branch in BRANCHES:
        getattr(adapter, branch)(torch.zeros(1, 1, D))
    assert all(module is adapter.down for module in called) and len(called) == 3


def names(adapter) -> set[str]:
    return {name.removesuffix(".weight") for name, _ in adapter.named_parameters() if not name.endswith("bias")}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"norm_in", "down", "up.vision", "up.text", "up.cross"}),
        (
            {"cross_norm": True, "init": "published"},
            {"norm_in", "down", "up.vision", "up.text", "up.cross", "norm_cross"},
        ),
        (
            {"share": "none"},
            {"norm_in", "down.vision", "down.text", "down.cross", "up.vision", "up.text", "up.cross"},
        ),
        (
            {"share": "up", "cross_reuses_text_up": False},
            {"norm_in", "down.vision", "down.text", "down.cross", "up.shared"},
        ),
        ({"share": "all", "cross_reuses_text_up": False}, {"norm_in", "down", "up.shared"}),
        ({"scale": "learned"}, {"norm_in", "down", "up.vision", "up.text", "up.cross", "scale"}),
        ({"modalities": ("vision",)}, {"norm_in", "down", "up.vision"}),
        ({"modalities": ("vision", "cross")}, {"norm_in", "down", "up.vision", "up.text", "up.cross"}),
        (
            {"modalities": ("vision", "cross"), "cross_reuses_text_up": False},
            {"norm_in", "down", "up.vision", "up.cross"},
        ),
        ({"modalities": ("text",), "share": "none"}, {"norm_in", "down.text", "up.text"}),
        (
            {"modalities": ("vision", "text"), "cross_norm": True},
            {"norm_in", "down", "up.vision", "up.text"},
        ),
    ],
)
def test_what_exists_and_how_it_is_called_on_disk(fields, expected):
    adapter = randomised(**fields)
    assert names(adapter) == expected
    for branch in adapter.branches:
        assert getattr(adapter, branch)(torch.zeros(1, 1, D)).shape == (1, 1, D)


def test_a_learned_scale_starts_at_a_tenth_and_learns(h):
    torch.manual_seed(0)
    adapter = UniAdapter(D, UniAdapterConfig(bottleneck=R, scale="learned", init="published"))
    torch.testing.assert_close(adapter.scale.data, torch.tensor([0.1]))
    adapter.vision(h).sum().backward()
    assert adapter.scale.grad.abs() > 0


def test_identity_starts_at_exactly_zero_and_can_leave_it(h):
    adapter = UniAdapter(D, UniAdapterConfig(bottleneck=R))
    for branch in BRANCHES:
        assert torch.equal(getattr(adapter, branch)(h), torch.zeros(2, 3, D))
    adapter.cross(h).sum().backward()
    assert adapter.up.cross.weight.grad.abs().sum() > 0 and adapter.up.text.weight.grad.abs().sum() > 0


def test_published_starts_with_the_text_up_alone_at_zero(h):
    adapter = UniAdapter(D, UniAdapterConfig.official(bottleneck=R))
    assert torch.equal(adapter.text(h), torch.zeros(2, 3, D))
    assert adapter.vision(h).abs().min() > 0
    assert not adapter.down.bias.any() and adapter.up.cross.bias.any()
    # LN_x gives unit variance whatever reaches it: the cross branch starts at the scale itself.
    torch.testing.assert_close(adapter.cross(h).pow(2).mean(-1).sqrt(), torch.full((2, 3), 0.1), rtol=1e-2, atol=0)


def test_a_seed_gives_the_same_start():
    def start():
        torch.manual_seed(3)
        return UniAdapter(D, UniAdapterConfig.official(bottleneck=R)).state_dict()

    first, second = start(), start()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_low_rank_update_is_linear_and_scaled():
    torch.manual_seed(0)
    update, e = LowRankUpdate(D, 2), torch.randn(2, 5, D)
    torch.testing.assert_close(update(e), update.up(update.down(e)))
    torch.testing.assert_close(update(3 * e) - update(torch.zeros_like(e)), 3 * (update(e) - update(0 * e)))
    nn.init.constant_(update.scale, 0.5)
    torch.testing.assert_close(update(e), 0.5 * update.up(update.down(e)))
    assert torch.equal(LowRankUpdate(D, 2, identity=True)(e), torch.zeros_like(e))
    assert update(e).abs().min() > 0  # and by itself it does not start at zero


@pytest.mark.parametrize("r", [1, 64])
def test_parameters_of_a_layer(r):
    def count(**fields):
        layer = UniAdapter(768, UniAdapterConfig.official(bottleneck=r, **fields))
        return sum(p.numel() for p in layer.parameters())

    assert count() == 4 * 768 * r + r + 7 * 768
    assert count(share="none") == 6 * 768 * r + 3 * r + 7 * 768


def test_a_layer_carries_the_branches_of_the_towers_that_have_it():
    def branches(vision, text, **fields):
        adapters = AdapterSet(UniAdapterConfig(bottleneck=R, **fields), D, {"vision": vision, "text": text})
        return [layer.branches for layer in adapters.layers]

    assert branches(1, 2) == [BRANCHES, ("text", "cross")]
    assert branches(2, 1) == [BRANCHES, ("vision",)]
    assert branches(3, 1, modalities=("text",)) == [("text",)]
    assert branches(1, 3, modalities=("vision",)) == [("vision",)]


def test_heads_are_copies_and_the_temperature_is_kept():
    linears = {name: nn.Linear(4, 2).requires_grad_(False) for name in ("vision_proj", "text_proj", "itm_head")}
    heads = Heads(linears)
    assert all(p.requires_grad for p in heads.parameters())
    nn.init.zeros_(heads.itm_head.weight)
    assert linears["itm_head"].weight.abs().sum() > 0
    untrained = Heads(linears, trained=False)
    assert [name for name, _ in untrained.named_parameters()] == ["temperature"]
    assert not untrained.temperature.requires_grad and untrained.temperature.shape == ()
    assert not list(Heads({}).parameters())
