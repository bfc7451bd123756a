"""The authors' numbers, to 1e-8 in float64, through the public way in: insert_adapters on transformers' own BLIP."""

import pytest
import torch
from torch.nn.functional import normalize
from transformers import BlipForImageTextRetrieval, BlipForQuestionAnswering

from uniadapter_edu.attention import frame_weights as cosine_weights
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.insertion import adapters_disabled, encode_video, frame_weights, insert_adapters

TOLERANCE = {"rtol": 0, "atol": 1e-8}


def part(golden, prefix):
    """The tensors whose names start with ``prefix.``, without it."""
    return {name.removeprefix(f"{prefix}."): t for name, t in golden.tensors.items() if name.startswith(f"{prefix}.")}


def load_backbone(model, golden):
    missing, _ = model.load_state_dict(part(golden, "backbone"), strict=False)
    # The file holds the weights of both models; tied and derived entries are not stored twice.
    assert all("decoder.weight" in name or "decoder.bias" in name or "itm_head" in name for name in missing), missing
    return model


def load_adapters(model, golden, prefixes):
    weights = {name: t for name, t in part(golden, "adapter").items() if name.startswith(prefixes)}
    missing, unexpected = model.uniadapter.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("heads.") for name in missing), (missing, unexpected)
    return model


@pytest.fixture
def adapted(make_blip, golden):
    """``adapted(kv_bottleneck=..., ...)``: the official preset with the golden weights, float64."""

    def make(**overrides):
        model = load_backbone(make_blip(BlipForImageTextRetrieval).double(), golden)
        insert_adapters(model, UniAdapterConfig.official(**{"bottleneck": 8, "kv_bottleneck": None} | overrides))
        return load_adapters(model, golden, ("layers.", "kv.") if "kv_bottleneck" in overrides else ("layers.",))

    return make


def see(model, golden):
    return model.vision_model(golden.tensors["input.image"])


def read(model, golden, image_tokens=None, image_mask=None):
    """The text encoder on the golden texts, looking at image tokens if there are any."""
    ids, mask = golden.tensors["input.input_ids"], golden.tensors["input.attention_mask"]
    return model.text_encoder(
        ids,
        mask,
        encoder_hidden_states=image_tokens,
        encoder_attention_mask=image_mask,
        output_hidden_states=True,
    )


def assert_golden(golden, **named):
    for name, found in named.items():
        torch.testing.assert_close(found, golden.tensors[f"out.{name.replace('__', '.')}"], **TOLERANCE)


def assert_layers(golden, case, output):
    assert_golden(golden, **{f"{case}__last_hidden_state": output.last_hidden_state})
    for i, state in enumerate(output.hidden_states[1:]):
        assert_golden(golden, **{f"{case}__layer__{i}": state})


@pytest.mark.parametrize("index", [0, 1])
def test_a_module_alone(adapted, golden, index):
    layer, x = adapted().uniadapter.layers[index], golden.tensors["input.x"]
    for branch in ("vision", "text", "cross"):
        assert_golden(golden, **{f"a__layers__{index}__{branch}": getattr(layer, branch)(x)})


def test_backbone_alone(adapted, golden):
    model = adapted()
    with adapters_disabled(model):
        tokens = see(model, golden).last_hidden_state
        assert_golden(
            golden,
            off__vision=tokens,
            off__text=read(model, golden).last_hidden_state,
            off__multimodal=read(model, golden, tokens).last_hidden_state,
        )


def test_b_vision(adapted, golden):
    model = adapted()
    output = model.vision_model(golden.tensors["input.image"], output_hidden_states=True)
    assert_layers(golden, "b", output)


def test_c_text(adapted, golden):
    assert_layers(golden, "c", read(adapted(), golden))


def test_d_multimodal(adapted, golden):
    model = adapted()
    assert_layers(golden, "d", read(model, golden, see(model, golden).last_hidden_state))


def test_d_without_the_query_residual(adapted, golden):
    model = adapted(query_residual=False)
    output = read(model, golden, see(model, golden).last_hidden_state)
    assert_golden(golden, d_noquery__last_hidden_state=output.last_hidden_state)


def test_e_key_value_adapters(adapted, golden):
    model = adapted(kv_bottleneck=4)
    assert_layers(golden, "e", read(model, golden, see(model, golden).last_hidden_state))


@pytest.mark.parametrize("kv", ["", "kv_"])
def test_f_video(adapted, golden, kv):
    model = adapted(kv_bottleneck=4) if kv else adapted()
    tokens, _ = encode_video(model, golden.tensors["input.video"])
    plain = read(model, golden, tokens).last_hidden_state
    with frame_weights(model, golden.tensors["input.frame_weight"]):
        aware = read(model, golden, tokens).last_hidden_state
    assert_golden(golden, f__vision=tokens, **{f"f__{kv}pfa_off": plain, f"f__{kv}pfa_on": aware})


@pytest.mark.parametrize("case", ["d", "d_detached", "e"])
def test_g_gradients(adapted, golden, case):
    model = adapted(kv_bottleneck=4) if case == "e" else adapted()
    tokens = see(model, golden).last_hidden_state
    output = read(model, golden, tokens.detach() if case == "d_detached" else tokens).last_hidden_state
    loss = (output * golden.tensors["input.grad_probe"]).sum()
    loss.backward()

    expected = part(golden, f"grad.{case}")
    torch.testing.assert_close(loss, expected.pop("loss"), **TOLERANCE)
    parameters = dict(model.uniadapter.named_parameters())
    assert expected.keys() == {name for name in parameters if not name.startswith("heads.")}
    for name, gradient in expected.items():
        found = parameters[name].grad
        found = torch.zeros_like(gradient) if found is None else found  # the file stores unused parameters as zeros
        torch.testing.assert_close(found, gradient, **TOLERANCE, msg=lambda m, name=name: f"{name}: {m}")


def test_h_frame_weights_of_the_retrieval_model(adapted, golden):
    model = adapted(kv_bottleneck=4)
    tokens, video = encode_video(model, golden.tensors["input.video"])
    cls = tokens.view(2, 4, 17, 32)[:, :, 0]
    frames = normalize(model.vision_proj(cls), dim=-1)
    text = normalize(model.text_proj(read(model, golden).last_hidden_state[:, 0]), dim=-1)
    w = cosine_weights(text, frames)
    with frame_weights(model, w):
        multimodal = read(model, golden, tokens).last_hidden_state
    assert_golden(golden, h__text_feat=text, h__video_feat=video, h__frame_feat=frames, h__sim_t2f=w)
    assert_golden(golden, h__multimodal=multimodal, h__itm_logits=model.itm_head(multimodal[:, 0]))


def test_x_encoder_mask(adapted, golden):
    model = adapted()
    output = read(model, golden, see(model, golden).last_hidden_state, golden.tensors["input.encoder_mask"])
    assert_golden(golden, x__last_hidden_state=output.last_hidden_state)


@pytest.mark.parametrize("kv", ["", "kv_"])
def test_y_answer_decoder(make_blip, golden, kv):
    model = make_blip(BlipForQuestionAnswering).double()
    weights = part(golden, "backbone")
    # The decoder of the golden model shares its layers with the encoder: only its head is stored apart.
    shared = {
        f"text_decoder.bert.{name.removeprefix('text_encoder.')}": t
        for name, t in weights.items()
        if name.startswith("text_encoder.")
    }
    model.load_state_dict(weights | shared, strict=False)
    model.tie_weights()
    config = UniAdapterConfig.official(bottleneck=8, kv_bottleneck=4 if kv else None)
    load_adapters(insert_adapters(model, config), golden, ("layers.", "kv") if kv else ("layers.",))

    question = read(model, golden, see(model, golden).last_hidden_state).last_hidden_state
    ids, mask = golden.tensors["input.answer_ids"], golden.tensors["input.answer_mask"]
    model.text_decoder.label_smoothing = golden.json["config"]["label_smoothing"]
    output = model.text_decoder(
        ids,
        mask,
        encoder_hidden_states=question,
        encoder_attention_mask=golden.tensors["input.attention_mask"],
        labels=ids.masked_fill(ids == 0, -100),
        reduction="none",
    )
    assert_golden(golden, **{f"y__{kv}logits": output.logits, f"y__{kv}loss": output.loss})
