"""What the tests of the tasks share: words that their tokenizer knows, and models that are wide awake."""

import av
import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipImageProcessorPil, BlipProcessor

from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.insertion import insert_adapters
from uniadapter_edu.methods import lora
from uniadapter_edu.metrics import ranks_of_right
from uniadapter_edu.tasks import retrieval

WORDS = "cat dog owl fox bee ant cow pig red blue green pink left right big small".split()


def blip_config(vision_layers=2, text_layers=2, vision_width=32, text_width=32) -> BlipConfig:
    """A BLIP of toy size: 32 px in patches of 8 (17 tokens with CLS), 50 words, texts of up to 16 tokens."""
    # transformers' defaults would not do: vision weights of 1e-10, a LayerNorm eps that BLIP was not trained with.
    vision = {
        "hidden_size": vision_width,
        "intermediate_size": 64,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.02,
    }
    text = {
        "hidden_size": text_width,
        "encoder_hidden_size": vision_width,
        "intermediate_size": 64,
        "num_hidden_layers": text_layers,
        "num_attention_heads": 4,
        "vocab_size": 50,
        "max_position_embeddings": 16,
        "initializer_range": 0.02,
        "bos_token_id": 48,
        "sep_token_id": 3,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    return BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=16)


def tiny_processor() -> BlipProcessor:
    """A processor for such a BLIP: 32 px, and the words above."""
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = BertTokenizer(vocab=vocab, model_max_length=16)
    return BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer)


def noise_rows(n: int) -> list[dict]:
    """``n`` noise pictures, with one to three captions each, questions and answers, for every task of pictures."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        first = f"{WORDS[i % 8]} {WORDS[8 + i // 8 % 5]}"
        captions = [first, f"big {first}", f"small {first}"][: 1 + i % 3]
        rows.append({"image": image, "captions": captions, "question": f"left {first}", "answer": WORDS[i % 5]})
    return rows


def write_video(path, greys, size=(32, 16)):
    """A video file with one frame of each grey; returns its path."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for grey in greys:
            frame = av.VideoFrame.from_image(Image.new("RGB", size, (grey,) * 3))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


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
