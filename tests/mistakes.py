"""A catalogue of mistakes: the ones that somebody who builds UniAdapter makes, each as a small change of the source.

`tests/test_mistakes.py` makes them one by one in a copy of the package and shows which test notices. The authors'
golden numbers notice most; where they cannot (a start, a count, a gradient that must not flow), other tests are named.
"""

from dataclasses import dataclass

GOLDEN = ("test_golden.py",)
ATTENTION = ("test_attention.py",)
ADAPTER = ("test_adapter.py",)


@dataclass(frozen=True)
class Mistake:
    """``old`` stands exactly once in the package's ``file``; ``new`` in its place is the mistake.

    caught_by: the tests that are run against it, as pytest names them, of which one has to fail.
    """

    name: str
    file: str
    old: str
    new: str
    caught_by: tuple[str, ...] = GOLDEN


def suite(module: str, name: str) -> tuple[str, ...]:
    return (f"test_{module}.py::{name}",)


# ------------------------------------------------------------------------------------------------- the bottleneck z(h)

Z = "return relu(down(self.norm_in(h)))"

BOTTLENECK = [
    Mistake("no LayerNorm before the down-projection", "adapter.py", Z, "return relu(down(h))"),
    Mistake(
        "LN_in without its weight and bias",
        "adapter.py",
        Z,
        "return relu(down(torch.nn.functional.layer_norm(h, h.shape[-1:])))",
    ),
    Mistake("no activation", "adapter.py", Z, "return down(self.norm_in(h))"),
    Mistake("GELU for ReLU", "adapter.py", Z, "return torch.nn.functional.gelu(down(self.norm_in(h)))"),
    Mistake("ReLU before the down-projection", "adapter.py", Z, "return down(relu(self.norm_in(h)))"),
    Mistake("the down-projection's bias dropped", "adapter.py", Z, "return relu(self.norm_in(h) @ down.weight.mT)"),
    Mistake(
        "each branch has a down-projection of its own",
        "adapter.py",
        "self.down = nn.Linear(D, r) if one_down else _linears(self.branches, D, r)",
        "self.down = _linears(self.branches, D, r)",
    ),
    Mistake(
        "vision and cross use a copy of the down-projection, which learns nothing from them",
        "adapter.py",
        Z,
        "W, b = (down.weight, down.bias) if branch == 'text' else (down.weight.detach(), down.bias.detach())\n"
        "        return relu(self.norm_in(h) @ W.mT + b)",
    ),
]

# -------------------------------------------------------------------------------------------------------- the branches

VISION = 'return self.scale * self._up("vision")(self.bottleneck(h, "vision"))'
TEXT = 'return self.scale * self._up("text")(self.bottleneck(h, "text"))'
REUSE = 'delta = delta + self._up("text")(z)'
SUM = """        delta = self._up("cross")(z)
        if self.config.cross_reuses_text_up:
            delta = delta + self._up("text")(z)
        if self.config.cross_norm:
"""
NORMED_TOO_EARLY = """        delta = self._up("cross")(z)
        if self.config.cross_norm:
            delta = self.norm_cross(delta)
        if self.config.cross_reuses_text_up:
            delta = delta + self._up("text")(z)
        return self.scale * delta"""
NORM = "            delta = self.norm_cross(delta)\n        return self.scale * delta"

BRANCHES = [
    Mistake("vision uses the text up-projection", "adapter.py", VISION, VISION.replace('up("vision")', 'up("text")')),
    Mistake("text uses the vision up-projection", "adapter.py", TEXT, TEXT.replace('up("text")', 'up("vision")')),
    Mistake("cross uses the vision up-projection", "adapter.py", 'self._up("cross")(z)', 'self._up("vision")(z)'),
    Mistake("no scale on vision", "adapter.py", VISION, VISION.replace("self.scale * ", "")),
    Mistake("the scale twice on text", "adapter.py", TEXT, TEXT.replace("self.scale", "self.scale**2")),
    Mistake("no scale on cross", "adapter.py", "return self.scale * delta", "return delta"),
    Mistake("a ReLU after the up-projection", "adapter.py", TEXT, TEXT.replace("self._up", "relu(self._up") + ")"),
    Mistake(
        "the up-projection's bias dropped",
        "adapter.py",
        VISION,
        'return self.scale * self.bottleneck(h, "vision") @ self._up("vision").weight.mT',
    ),
    Mistake("a residual inside the adapter", "adapter.py", TEXT, TEXT.replace("return ", "return h + ")),
    Mistake("cross does not reuse the text up-projection", "adapter.py", REUSE, "delta = delta + 0"),
    Mistake(
        "cross reuses the text up without its bias",
        "adapter.py",
        REUSE,
        'delta = delta + z @ self._up("text").weight.mT',
    ),
    Mistake(
        "cross reuses the text up, but does not train it",
        "adapter.py",
        REUSE,
        'delta = delta + z @ self._up("text").weight.detach().mT + self._up("text").bias.detach()',
    ),
    Mistake("cross reuses the text branch, scale and all", "adapter.py", REUSE, "delta = delta + self.text(h)"),
    Mistake("LN_x left out", "adapter.py", NORM, "            pass\n        return self.scale * delta"),
    Mistake(
        "the scale before LN_x",
        "adapter.py",
        NORM,
        "            return self.norm_cross(self.scale * delta)\n        return self.scale * delta",
    ),
    Mistake("LN_x before the text up is added", "adapter.py", SUM + NORM, NORMED_TOO_EARLY),
    Mistake(
        "LN_in used once more in the place of LN_x",
        "adapter.py",
        "delta = self.norm_cross(delta)",
        "delta = self.norm_in(delta)",
    ),
    Mistake(
        "LN_x frozen, as by the authors' accident",
        "adapter.py",
        "self.norm_cross = nn.LayerNorm(D)",
        "self.norm_cross = nn.LayerNorm(D).requires_grad_(False)",
    ),
]

# ------------------------------------------------------------------------------------------- where the adapters are put

ADD = """        if "text" in layer.branches and (not multimodal or layer.config.query_residual):
            f = f + layer.text(a)
        if "cross" in layer.branches and multimodal:
            f = f + layer.cross(inner)
        return f
"""
BEFORE_THE_NORM = "return output.LayerNorm(output.dense(args[0]) + inner + f - bare)\n"
VISION_ADD = "return output + layer.vision(u) if layer else None"


def in_add(old: str, new: str) -> dict[str, str]:
    """What a mistake in `_TextTap.add` replaces, and by what."""
    assert ADD.count(old) == 1
    return {"file": "insertion.py", "old": ADD, "new": ADD.replace(old, new)}


PLACES = [
    Mistake(
        "vision block: the text branch",
        "insertion.py",
        VISION_ADD,
        VISION_ADD.replace("layer.vision(u)", "layer.text(u)"),
    ),
    Mistake(
        "vision block: the adapter reads LN2 u, not u",
        "insertion.py",
        VISION_ADD,
        VISION_ADD.replace("(u)", "(args[0])"),
    ),
    Mistake(
        "vision block: the adapter in series with the MLP",
        "insertion.py",
        VISION_ADD,
        VISION_ADD.replace("(u)", "(output)"),
    ),
    Mistake(
        "vision block: the adapter reads x, from before attention",
        "insertion.py",
        "block.layer_norm2.register_forward_pre_hook(self.hold)",
        "block.layer_norm1.register_forward_pre_hook(self.hold)",
    ),
    Mistake(
        "vision block: the adapter in the place of the MLP",
        "insertion.py",
        VISION_ADD,
        VISION_ADD.replace("output + ", ""),
    ),
    Mistake("text layer: the vision branch", **in_add("layer.text(a)", "layer.vision(a)")),
    Mistake("text layer: the adapter in series with the feed-forward part", **in_add("layer.text(a)", "layer.text(f)")),
    Mistake(
        "text layer: added before the output LayerNorm",
        "insertion.py",
        ADD,
        "        bare = f\n" + ADD.replace("return f\n", BEFORE_THE_NORM),
    ),
    Mistake(
        "text layer: nothing in the text-only pass",
        **in_add("(not multimodal or layer.config.query_residual)", "multimodal and layer.config.query_residual"),
    ),
    Mistake("text layer: the cross branch in the text-only pass, too", **in_add(" and multimodal", "")),
    Mistake(
        "multimodal layer: no query residual",
        **in_add("(not multimodal or layer.config.query_residual)", "not multimodal"),
    ),
    Mistake(
        "multimodal layer: the query residual cannot be switched off",
        **in_add(" and (not multimodal or layer.config.query_residual)", ""),
    ),
    Mistake(
        "multimodal layer: the query residual from after cross-attention",
        "insertion.py",
        "a = self._next(inner.shape[1]) if multimodal else inner",
        "a = inner",
    ),
    Mistake(
        "multimodal layer: the query residual by the cross branch",
        **in_add("f = f + layer.text(a)", "f = f + (layer.cross(a) if multimodal else layer.text(a))"),
    ),
    Mistake(
        "multimodal layer: the cross branch by the text branch", **in_add("layer.cross(inner)", "layer.text(inner)")
    ),
    Mistake(
        "multimodal layer: the cross branch reads a, from before cross-attention",
        **in_add("layer.cross(inner)", "layer.cross(a)"),
    ),
    Mistake(
        "multimodal layer: the cross branch reads the layer's output", **in_add("layer.cross(inner)", "layer.cross(f)")
    ),
    Mistake(
        "every layer has the first layer's adapter",
        "insertion.py",
        "return self.adapter.layers[index] if",
        "return self.adapter.layers[0] if",
    ),
    Mistake("the image's padding is seen", "insertion.py", "if crossing.corrects:", "if False:"),
    Mistake("disabling leaves the adapters on", "insertion.py", "enabled=False", "enabled=True"),
]

# ------------------------------------------------------------------------------------------------- key/value adapters

UPDATE = "return self.scale * self.up(self.down(e))"
UPDATES = "return {} if updates is None or cached else {name: update(e) for name, update in updates.items()}"
BUILD_UPDATES = """    return nn.ModuleDict(
        {name: LowRankUpdate(hidden_size, config.kv_bottleneck, identity) for name in ("key", "value")}
    )
"""
WEIGHED_KEYS = """        keys = self.crossing.repeat(self._updated("key", output))
        m = self.crossing.multipliers
        return keys if m is None else scale_patch_keys(keys, m)
"""
PLAIN_VALUES = """        return self.crossing.repeat(self._updated("value", output))
"""
VALUES = """
    def values(self, linear, args, output):
        if self.crossing is None:
            return None
"""
KEY_VALUE = WEIGHED_KEYS + VALUES + PLAIN_VALUES
KEY_HOOK = "            attention.key.register_forward_hook(self.keys),\n"
QUERY_HOOK = """            attention.query.register_forward_hook(
                lambda query, args, q: (
                    q + kv["key"](args[0]) if (kv := getattr(self.wiring.adapter, self.update, None)) else q
                )
            ),
"""

KEY_VALUE_ADAPTERS = [
    Mistake("key/value adapters: the learnable scalars missing", "adapter.py", UPDATE, "return self.up(self.down(e))"),
    Mistake(
        "key/value adapters: one scalar for keys and values",
        "adapter.py",
        BUILD_UPDATES,
        BUILD_UPDATES.replace("return", "updates =")
        + '    updates["value"].scale = updates["key"].scale\n    return updates\n',
    ),
    Mistake(
        "key/value adapters: a ReLU between down and up",
        "adapter.py",
        UPDATE,
        UPDATE.replace("self.down(e)", "relu(self.down(e))"),
    ),
    Mistake(
        "key/value adapters: the scalar inside, so that the bias escapes it",
        "adapter.py",
        UPDATE,
        "return self.up(self.scale * self.down(e))",
    ),
    Mistake("key/value adapters: no update of the values", "insertion.py", 'self._updated("value", output)', "output"),
    Mistake(
        "key/value adapters: keys get the values' update",
        "insertion.py",
        'self._updated("key", output)',
        'self._updated("value", output)',
    ),
    Mistake("key/value adapters: no update of the keys", "insertion.py", 'self._updated("key", output)', "output"),
    Mistake("key/value adapters: on the queries, too", "insertion.py", KEY_HOOK, KEY_HOOK + QUERY_HOOK),
    Mistake(
        "key/value adapters: read the projected keys, not the image tokens",
        "insertion.py",
        "return output if delta is None else output + delta",
        "return output if delta is None else output + getattr(self.wiring.adapter, self.update)[name](output)",
    ),
    Mistake(
        "key/value adapters: read normalised image tokens",
        "insertion.py",
        UPDATES,
        UPDATES.replace("update(e)", "update(normalize(e, dim=-1))"),
    ),
    Mistake(
        "key/value adapters: no gradient to the image tokens",
        "insertion.py",
        UPDATES,
        UPDATES.replace("update(e)", "update(e.detach())"),
    ),
    Mistake("key/value adapters: replace the projection", "insertion.py", "else output + delta", "else delta"),
]

# ----------------------------------------------------------------------------------------- video, frame-aware attention

PLAIN_KEYS = PLAIN_VALUES.replace("value", "key")
WEIGHED_VALUES = WEIGHED_KEYS.replace("key", "value").replace("scale_patch_value", "scale_patch_key")
KEYS_WEIGHED_TOO_EARLY = """        m = self.crossing.multipliers
        keys = output if m is None else scale_patch_keys(output, m)
        return self._updated("key", keys)
"""
PATCHES = "return torch.cat([cls, m * patches], dim=2).reshape(B, N, D)"
FRAMES = "frames = keys.reshape(B, F, N // F, D)  # (B, F·n, D) -> (B, F, n, D)\n"
CLS = "cls, patches = frames[:, :, :1], frames[:, :, 1:]\n    "
SOFTMAX = "return w.shape[-1] * softmax(w.detach() / temperature, dim=-1)"
COSINE = "text_feature, frame_features).detach()"
FEATURE = "feature = normalize(model.vision_proj(cls.mean(dim=1)), dim=-1)"
TOKENS = "return tokens.reshape(B, F * n, D), feature"

VIDEO = [
    Mistake(
        "frame weights on the values, not the keys",
        "insertion.py",
        KEY_VALUE,
        KEY_VALUE.replace(WEIGHED_KEYS, PLAIN_KEYS).replace(PLAIN_VALUES, WEIGHED_VALUES),
    ),
    Mistake(
        "frame weights on keys and values", "insertion.py", KEY_VALUE, KEY_VALUE.replace(PLAIN_VALUES, WEIGHED_VALUES)
    ),
    Mistake("frame weights before the low-rank update", "insertion.py", WEIGHED_KEYS, KEYS_WEIGHED_TOO_EARLY),
    Mistake("frame weights on the CLS tokens, too", "attention.py", PATCHES, PATCHES.replace("[cls,", "[m * cls,")),
    Mistake(
        "frame weights on the CLS tokens alone",
        "attention.py",
        PATCHES,
        PATCHES.replace("[cls, m * patches]", "[m * cls, patches]"),
    ),
    Mistake("frame weights added to the keys", "attention.py", PATCHES, PATCHES.replace("m * patches", "m + patches")),
    Mistake("frame weights without the factor F", "attention.py", SOFTMAX, SOFTMAX.replace("w.shape[-1] * ", "")),
    Mistake(
        "frame weights: the factor is the number of clips",
        "attention.py",
        SOFTMAX,
        SOFTMAX.replace("w.shape[-1]", "w.shape[0]"),
    ),
    Mistake("frame weights: softmax over the clips", "attention.py", SOFTMAX, SOFTMAX.replace("dim=-1", "dim=0")),
    Mistake("frame weights: no softmax", "attention.py", SOFTMAX, "return w.detach() / temperature"),
    Mistake("frame weights: temperature 1", "attention.py", "TEMPERATURE = 4.0", "TEMPERATURE = 1.0"),
    Mistake("frame weights: times 4, not divided by 4", "attention.py", SOFTMAX, SOFTMAX.replace("/ temp", "* temp")),
    Mistake(
        "frame weights: a gradient through the softmax",
        "attention.py",
        SOFTMAX,
        SOFTMAX.replace(".detach()", ""),
        ATTENTION,
    ),
    Mistake(
        "frame weights: a gradient through the cosine",
        "attention.py",
        COSINE,
        COSINE.replace(".detach()", ""),
        ATTENTION,
    ),
    Mistake("frame weights: divided by the contrastive temperature", "attention.py", COSINE, COSINE + " / 0.07"),
    Mistake(
        "tokens read as token-major",
        "attention.py",
        FRAMES + "    " + CLS + PATCHES,
        "frames = keys.reshape(B, N // F, F, D).transpose(1, 2)\n    "
        + CLS
        + PATCHES.replace(".reshape", ".transpose(1, 2).reshape"),
    ),
    Mistake(
        "the last token of a frame taken for its CLS",
        "attention.py",
        CLS + PATCHES,
        CLS.replace(":1]", "-1:]").replace("1:]\n", ":-1]\n")
        + PATCHES.replace("[cls, m * patches]", "[m * patches, cls]"),
    ),
    Mistake(
        "clips: tokens made token-major",
        "insertion.py",
        TOKENS,
        TOKENS.replace("tokens.reshape", "tokens.unflatten(0, (B, F)).transpose(1, 2).reshape"),
    ),
    Mistake(
        "clips: frames of different clips mixed up",
        "insertion.py",
        "frames.flatten(0, 1)",
        "frames.transpose(0, 1).flatten(0, 1)",
    ),
    Mistake(
        "clips: the feature not normalised", "insertion.py", FEATURE, "feature = model.vision_proj(cls.mean(dim=1))"
    ),
    Mistake(
        "clips: frames projected and normalised before the mean",
        "insertion.py",
        FEATURE,
        "feature = normalize(model.vision_proj(cls), dim=-1).mean(dim=1)",
    ),
    Mistake(
        "clips: the same, and normalised again",
        "insertion.py",
        FEATURE,
        "feature = normalize(normalize(model.vision_proj(cls), dim=-1).mean(dim=1), dim=-1)",
    ),
    Mistake(
        "clips: normalised before it is projected",
        "insertion.py",
        FEATURE,
        "feature = model.vision_proj(normalize(cls.mean(dim=1), dim=-1))",
    ),
    Mistake(
        "clips: the mean of all tokens, not of the CLS",
        "insertion.py",
        "cls = tokens[:, 0].view(B, F, D)",
        "cls = tokens.mean(dim=1).view(B, F, D)",
    ),
    Mistake("clips: the first frame for all", "insertion.py", FEATURE, FEATURE.replace("cls.mean(dim=1)", "cls[:, 0]")),
]

# ------------------------------------------------------------------------------- how it starts, what trains, how much

FREEZE = "    freeze(model)\n    model.uniadapter = _build(model, config, name)"

HOOKS = """            block.layer_norm2.register_forward_pre_hook(self.hold),
            block.mlp.register_forward_hook(self.add),
"""

STARTS = [
    Mistake(
        "identity: only the text up starts at zero",
        "adapter.py",
        'if identity or branch == "text":',
        'if branch == "text":',
        ADAPTER,
    ),
    Mistake(
        "published: every up starts at zero", "adapter.py", 'if identity or branch == "text":', "if True:", ADAPTER
    ),
    Mistake(
        "published: the text up starts at random",
        "adapter.py",
        'if identity or branch == "text":',
        "if identity:",
        ADAPTER,
    ),
    Mistake("published: the downs keep random biases", "adapter.py", "nn.init.zeros_(down.bias)", "pass", ADAPTER),
    Mistake("zero weights, random biases", "adapter.py", "    nn.init.zeros_(linear.bias)\n", "", ADAPTER),
    Mistake("a learned scale starts at one", "adapter.py", "LEARNED_SCALE = 0.1", "LEARNED_SCALE = 1.0", ADAPTER),
    Mistake(
        "a learned scale that does not learn",
        "adapter.py",
        "nn.Parameter(torch.full((1,), LEARNED_SCALE))",
        "nn.Parameter(torch.full((1,), LEARNED_SCALE), requires_grad=False)",
        suite("insertion", "test_exactly_these_names_train"),
    ),
    Mistake(
        "the heads themselves are trained, not copies",
        "adapter.py",
        "else _copy(original))",
        "else original.requires_grad_(True))",
        ADAPTER,
    ),
    Mistake(
        "the backbone is not frozen",
        "insertion.py",
        FREEZE,
        FREEZE.replace("    freeze(model)\n", ""),
        suite("insertion", "test_exactly_these_names_train"),
    ),
    Mistake(
        "a copy of a model uses the original's adapters",
        "insertion.py",
        HOOKS,
        HOOKS.replace("self.hold", "lambda *given: self.hold(*given)").replace(
            "self.add", "lambda *given: self.add(*given)"
        ),
        suite("insertion", "test_a_deep_copy_has_adapters_of_its_own"),
    ),
    Mistake(
        "reentrant checkpointing is let through",
        "insertion.py",
        "if self.adapter and _is_reentrant(tower):",
        "if False:",
        suite("insertion", "test_reentrant_checkpointing_is_refused"),
    ),
    Mistake(
        "an image's texts are repeated in the wrong order",
        "insertion.py",
        "x.repeat_interleave(self.texts, dim=0) if",
        "torch.cat([x] * self.texts) if",
        suite("insertion", "test_folded_equals_pair_by_pair"),
    ),
    Mistake(
        "counts: LN_in without its bias",
        "accounting.py",
        'count["norm_in"] += 2 * D',
        'count["norm_in"] += D',
        suite("accounting", "test_official_at_blip_base"),
    ),
    Mistake(
        "counts: shared downs counted for each branch",
        "accounting.py",
        "* (1 if one_down else len(branches))",
        "* len(branches)",
        suite("accounting", "test_official_at_blip_base"),
    ),
    Mistake(
        "counts: key/value adapters without their scalars",
        "accounting.py",
        "(2 * D * rank + rank + D + 1)",
        "(2 * D * rank + rank + D)",
        suite("accounting", "test_unshared_and_key_value_adapters_at_blip_base"),
    ),
    Mistake(
        "counts: a tied weight counted twice",
        "accounting.py",
        "model.named_parameters():  # yields each object once",
        "model.named_parameters(remove_duplicate=False):",
        suite("accounting", "test_tied_weights_count_once"),
    ),
]

# ------------------------------------------------------------------------------------------------- answers and captions

OWN_LOSS = suite("language", "test_language_loss_is_transformers_own")
ONE_ANSWER = suite("language", "test_answering_loss_is_the_mean_negative_log_likelihood_one_answer_at_a_time")

LANGUAGE = [
    Mistake(
        "the token after the next one is trained",
        "losses.py",
        "following = input_ids[:, 1:]",
        "following = input_ids.roll(-1, 1)[:, 1:]",
        OWN_LOSS,
    ),
    Mistake(
        "padding is trained, too",
        "losses.py",
        "input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, IGNORED)",
        "input_ids[:, 1:]",
        OWN_LOSS,
    ),
    Mistake(
        "the decoder sees the padding of questions",
        "tasks/language.py",
        "with masks_obeyed(model):\n        return",
        "if True:\n        return",
        ONE_ANSWER,
    ),
    Mistake(
        "generation sees the padding of questions",
        "tasks/language.py",
        "encoder_attention_mask=states_mask,\n            eos",
        "eos",
        suite("language", "test_an_answer_does_not_depend_on_the_other_questions_of_its_batch"),
    ),
    Mistake(
        "answers are scored token by token, so that long ones count more",
        "tasks/answering.py",
        'return torch.tensor(len(batch["answer_ids"]), device=batch["answer_ids"].device)',
        'return batch["answer_mask"][:, 1:].sum()',
        ONE_ANSWER,
    ),
    Mistake(
        "the decoder starts with [CLS]",
        "tasks/language.py",
        "    input_ids[:, 0] = start_token(model)\n",
        "",
        suite("language", "test_what_is_said_starts_with_the_models_own_token"),
    ),
]

# ------------------------------------------------------------------------------------------------------- the fast ways

FRAME_AWARE = suite("speed", "test_fused_frame_aware_matching_equals_pair_by_pair")

SPEED = [
    Mistake(
        "fused: frame weights on the CLS tokens, too",
        "attention.py",
        "    m[..., :: tokens // multipliers.shape[-1]] = 1\n",
        "",
        FRAME_AWARE,
    ),
    Mistake(
        "fused: frame weights go to the texts of another clip",
        "insertion.py",
        "self.multipliers.unflatten(0, (self.images, self.texts))",
        "self.multipliers.unflatten(0, (self.texts, self.images)).transpose(0, 1)",
        FRAME_AWARE,
    ),
    Mistake(
        "fused: the image's padding is seen",
        "attention.py",
        "return scaled_dot_product_attention(q, k, v, attn_mask=mask)",
        "return scaled_dot_product_attention(q, k, v)",
        suite("speed", "test_padding_of_images_is_obeyed"),
    ),
    Mistake(
        "fused under checkpointing, whose recomputation is not",
        "insertion.py",
        "if not pays or _checkpoints(tower) or _drops(attention):",
        "if not pays or _drops(attention):",
        suite("speed", "test_checkpointed_towers_are_left_as_they_are"),
    ),
    Mistake(
        "evaluation: a pass gives the logits to the wrong pairs",
        "tasks/retrieval.py",
        "logits[pairs] = at_least_float32(yes)",
        "logits[pairs.flip(-1)] = at_least_float32(yes)",
        suite("speed", "test_searching_ranks_as_pair_by_pair"),
    ),
]

CATALOGUE = [*BOTTLENECK, *BRANCHES, *PLACES, *KEY_VALUE_ADAPTERS, *VIDEO, *STARTS, *LANGUAGE, *SPEED]
