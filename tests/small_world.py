"""What the tests of the tasks share: words that their tokenizer knows, and models that are wide awake."""

import torch

from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.insertion import insert_adapters
from uniadapter_edu.methods import lora
from uniadapter_edu.metrics import ranks_of_right
from uniadapter_edu.tasks import retrieval

WORDS = "cat dog owl fox bee ant cow pig red blue green pink left right big small".split()


def wide_awake(model):
    """Random weights of a size at which a width of 32 lets differences between inputs through (0.02 suits 768)."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                p.mul_(8)
    return model


def random_adapters(model, config=None):
    """Adapters as if trained: every number random, so that each branch matters."""
    insert_adapters(model, config or UniAdapterConfig(bottleneck=16, scale=1.0))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.uniadapter.named_parameters():
            if p.ndim:
                p.add_(0.3 * torch.randn_like(p))
    return model


def variant(name, model):
    """The same model in the states that retrieval must serve."""
    if name == "lora":
        model = lora(model, rank=2)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn_like(p))
    elif name != "plain":
        kv = {"kv_bottleneck": 3} if name == "kv adapters" else {}
        random_adapters(model, UniAdapterConfig(bottleneck=4, scale=1.0, **kv))
    return model.eval()


def overhear_scores(monkeypatch):
    """A dict in which evaluations leave what they score, made of its blocks: "one" and "two" (the stages) -> [t2i (M, N),
    i2t (N, M)], and "right" -> which answers are right, bool and shaped as t2i."""
    blocks, ranks = [], retrieval._Ranked.ranks
    scored = {"one": [], "two": []}

    def listen(scores, right):
        blocks.append((scores, right))
        return ranks_of_right(scores, right)

    def spy(ranked, others, candidates=None, logits=None):
        blocks.clear()
        found = ranks(ranked, others, candidates, logits)
        scores, right = (torch.cat(parts) for parts in zip(*blocks))
        scored["one" if candidates is None else "two"].append(scores)
        scored.setdefault("right", right)
        return found

    monkeypatch.setattr(retrieval, "ranks_of_right", listen)
    monkeypatch.setattr(retrieval._Ranked, "ranks", spy)
    return scored


def hooks_of(model) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def frozen_bits(model) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_untouched(model, bits, hooks):
    assert hooks_of(model) == hooks
    assert bits.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())
