"""The authors' numbers, to 1e-8 in float64, through the public way in: insert_adapters on transformers' own BLIP.

Each case computes tensors by the names that they have in the golden file; one test compares them, another makes sure
that no output and no gradient of the file was left out. `tests/test_mistakes.py` runs this file against packages with a
deliberate mistake, most of which it catches.
"""

import functools

import pytest
import torch
from torch.nn.functional import normalize
from transformers import BlipForImageTextRetrieval, BlipForQuestionAnswering

from uniadapter_edu.attention import frame_weights as cosine_weights
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.insertion import adapters_disabled, encode_video, frame_weights, insert_adapters
from uniadapter_edu.losses import language_loss
from uniadapter_edu.tasks.answering import encode_questions
from uniadapter_edu.tasks.language import decode

TOLERANCE = {"rtol": 0, "atol": 1e-8}

# These belong to the answer decoder, which the answering task trains.
DECODER = {"out.y.logits", "out.y.loss", "out.y.kv_logits", "out.y.kv_loss"}


class Golden:
    """The golden file, the models that are made of it, and a note of what was read."""

    def __init__(self, make_blip, golden):
        self.make_blip, self.tensors, self.json, self.read = make_blip, golden.tensors, golden.json, set()

    def __getitem__(self, name):
        self.read.add(name)
        return self.tensors[name]

    def part(self, prefix):
        """The tensors whose names start with ``prefix.``, without it."""
        names = [name for name in self.tensors if name.startswith(f"{prefix}.")]
        return {name.removeprefix(f"{prefix}."): self[name] for name in names}

    def adapted(self, kv=False, **overrides):
        """A retrieval model with the official preset and the golden weights, float64."""
        model = self.make_blip(BlipForImageTextRetrieval).double()
        missing, unexpected = model.load_state_dict(self.part("backbone"), strict=False)
        # The file holds the weights of both models.
        assert not missing and all(name.startswith("text_decoder.cls.") for name in unexpected), (missing, unexpected)
        return self.insert(model, ("layers", "kv") if kv else ("layers",), **overrides)

    def answering(self, kv=False):
        """The question-answering model. The golden decoder shares its layers with the encoder: only its head is apart."""
        model = self.make_blip(BlipForQuestionAnswering).double()
        weights = self.part("backbone")
        shared = {
            f"text_decoder.bert.{name.removeprefix('text_encoder.')}": t
            for name, t in weights.items()
            if name.startswith("text_encoder.")
        }
        missing, unexpected = model.load_state_dict(weights | shared, strict=False)
        tied = {f"text_decoder.cls.predictions.decoder.{end}" for end in ("weight", "bias")}
        assert set(missing) <= tied, missing
        assert all(name.split(".")[0] in ("vision_proj", "text_proj", "itm_head") for name in unexpected), unexpected
        model.tie_weights()
        return self.insert(model, ("layers", "kv", "kv_decoder") if kv else ("layers",))

    def insert(self, model, parts, **overrides):
        config = UniAdapterConfig.official(bottleneck=8, kv_bottleneck=4 if "kv" in parts else None, **overrides)
        insert_adapters(model, config)
        weights = {f"{part}.{name}": t for part in parts for name, t in self.part(f"adapter.{part}").items()}
        missing, unexpected = model.uniadapter.load_state_dict(weights, strict=False)
        assert not unexpected and all(name.startswith("heads.") for name in missing), (missing, unexpected)
        return model

    def see(self, model):
        return model.vision_model(self["input.image"], output_hidden_states=True)

    def text(self, model, image_tokens=None, image_mask=None):
        """The text encoder on the golden texts, looking at image tokens if there are any."""
        return model.text_encoder(
            self["input.input_ids"],
            self["input.attention_mask"],
            encoder_hidden_states=image_tokens,
            encoder_attention_mask=image_mask,
            output_hidden_states=True,
        )

    def multimodal(self, model):
        return self.text(model, self.see(model).last_hidden_state)


def states(case, output):
    """The states after each layer, and the last one."""
    layers = {f"out.{case}.layer.{i}": state for i, state in enumerate(output.hidden_states[1:])}
    return layers | {f"out.{case}.last_hidden_state": output.last_hidden_state}


def a_modules_alone(golden):
    layers, x = golden.adapted().uniadapter.layers, golden["input.x"]
    return {
        f"out.a.layers.{i}.{branch}": getattr(layer, branch)(x)
        for i, layer in enumerate(layers)
        for branch in ("vision", "text", "cross")
    }


def off_the_backbone_alone(golden):
    model = golden.adapted()
    with adapters_disabled(model):
        tokens = golden.see(model).last_hidden_state
        return {
            "out.off.vision": tokens,
            "out.off.text": golden.text(model).last_hidden_state,
            "out.off.multimodal": golden.text(model, tokens).last_hidden_state,
        }


def b_vision(golden):
    return states("b", golden.see(golden.adapted()))


def c_text(golden):
    return states("c", golden.text(golden.adapted()))


def d_multimodal(golden):
    return states("d", golden.multimodal(golden.adapted()))


def d_without_the_query_residual(golden):
    output = golden.multimodal(golden.adapted(query_residual=False))
    return {"out.d_noquery.last_hidden_state": output.last_hidden_state}


def e_key_value_adapters(golden):
    return states("e", golden.multimodal(golden.adapted(kv=True)))


def f_video(golden, kv=False):
    model, prefix = golden.adapted(kv=kv), "kv_" if kv else ""
    tokens, _ = encode_video(model, golden["input.video"])
    plain = golden.text(model, tokens).last_hidden_state
    with frame_weights(model, golden["input.frame_weight"]):
        aware = golden.text(model, tokens).last_hidden_state
    return {"out.f.vision": tokens, f"out.f.{prefix}pfa_off": plain, f"out.f.{prefix}pfa_on": aware}


def f_video_with_key_value_adapters(golden):
    return f_video(golden, kv=True)


def gradients(golden, case, kv=False, detached=False):
    model = golden.adapted(kv=kv)
    tokens = golden.see(model).last_hidden_state
    output = golden.text(model, tokens.detach() if detached else tokens).last_hidden_state
    loss = (output * golden["input.grad_probe"]).sum()
    loss.backward()
    parameters = {name: p for name, p in model.uniadapter.named_parameters() if not name.startswith("heads.")}
    # The file stores unused parameters as zeros.
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
    return {f"grad.{case}.loss": loss} | {f"grad.{case}.{name}": gradient for name, gradient in found.items()}


def g_gradients(golden):
    return gradients(golden, "d")


def g_gradients_of_text_alone(golden):
    return gradients(golden, "d_detached", detached=True)


def g_gradients_with_key_value_adapters(golden):
    return gradients(golden, "e", kv=True)


def h_frame_weights_of_the_retrieval_model(golden):
    model = golden.adapted(kv=True)
    tokens, video = encode_video(model, golden["input.video"])
    F = golden["input.video"].shape[1]
    cls = tokens.unflatten(1, (F, -1))[:, :, 0]  # (B, F·n, D) -> (B, F, n, D) -> (B, F, D)
    frames = normalize(model.vision_proj(cls), dim=-1)
    text = normalize(model.text_proj(golden.text(model).last_hidden_state[:, 0]), dim=-1)
    w = cosine_weights(text, frames)
    with frame_weights(model, w):
        multimodal = golden.text(model, tokens).last_hidden_state
    return {
        "out.h.text_feat": text,
        "out.h.video_feat": video,
        "out.h.frame_feat": frames,
        "out.h.sim_t2f": w,
        "out.h.multimodal": multimodal,
        "out.h.itm_logits": model.itm_head(multimodal[:, 0]),
    }


def x_encoder_mask(golden):
    model = golden.adapted()
    tokens = golden.see(model).last_hidden_state
    output = golden.text(model, tokens, golden["input.encoder_mask"])
    return {"out.x.last_hidden_state": output.last_hidden_state}


def y_answer_decoder(golden, kv=False):
    model, prefix = golden.answering(kv=kv), "kv_" if kv else ""
    ids = golden["input.answer_ids"]
    model.text_decoder.label_smoothing = golden.json["config"]["label_smoothing"]
    output = model.text_decoder(
        ids,
        golden["input.answer_mask"],
        encoder_hidden_states=golden.multimodal(model).last_hidden_state,
        encoder_attention_mask=golden["input.attention_mask"],
        labels=ids.masked_fill(ids == 0, -100),
        reduction="none",
    )
    return {f"out.y.{prefix}logits": output.logits, f"out.y.{prefix}loss": output.loss}


def y_answer_decoder_with_key_value_adapters(golden):
    return y_answer_decoder(golden, kv=True)


def y_answers_as_the_task_decodes_and_scores_them(golden, kv=False):
    model, prefix = golden.answering(kv=kv), "kv_" if kv else ""
    ids, mask = golden["input.answer_ids"], golden["input.answer_mask"]
    states = encode_questions(
        model, golden.see(model).last_hidden_state, golden["input.input_ids"], golden["input.attention_mask"]
    )
    logits = decode(model, states, golden["input.attention_mask"], ids, mask)
    losses = language_loss(logits, ids, mask, golden.json["config"]["label_smoothing"])
    return {f"out.y.{prefix}logits": logits, f"out.y.{prefix}loss": losses.sum(1)}


def y_answers_of_the_task_with_key_value_adapters(golden):
    return y_answers_as_the_task_decodes_and_scores_them(golden, kv=True)


# From a module by itself to a whole model, so that the first test to fail says most about a mistake.
CASES = [
    a_modules_alone,
    off_the_backbone_alone,
    b_vision,
    c_text,
    d_multimodal,
    d_without_the_query_residual,
    e_key_value_adapters,
    f_video,
    f_video_with_key_value_adapters,
    g_gradients,
    g_gradients_of_text_alone,
    g_gradients_with_key_value_adapters,
    h_frame_weights_of_the_retrieval_model,
    x_encoder_mask,
    y_answer_decoder,
    y_answer_decoder_with_key_value_adapters,
    y_answers_as_the_task_decodes_and_scores_them,
    y_answers_of_the_task_with_key_value_adapters,
]


@pytest.fixture(scope="module")
def found(make_blip, golden):
    """``found(case)``: what the package computes there, by name. Computed once. ``found.golden``: what it was given."""
    found = functools.cache(lambda case: {name: t.detach() for name, t in case(found.golden).items()})
    found.golden = Golden(make_blip, golden)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_numbers_are_the_authors(found, golden, case):
    for name, tensor in found(case).items():
        assert name in golden.tensors, f"The golden file has no {name}."
        torch.testing.assert_close(tensor, golden.tensors[name], **TOLERANCE, msg=lambda m, name=name: f"{name}: {m}")


def test_no_output_and_no_gradient_is_left_out(found, golden):
    promised = {name for name in golden.tensors if name.startswith(("out.", "grad."))}
    assert golden.json["keys"].keys() == golden.tensors.keys()
    assert len(promised - DECODER) == 119 and promised >= DECODER
    assert set().union(*map(found, CASES)) == promised


def test_every_input_and_every_weight_is_used(found, golden):
    for case in CASES:
        found(case)
    given = {name for name in golden.tensors if not name.startswith(("out.", "grad."))}
    assert found.golden.read == given
