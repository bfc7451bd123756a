"""Where adapters meet BLIP: freeze, insert, disable, remove; frames and folded texts. Only this file knows BLIP's parts.

Nothing of transformers is replaced or subclassed: adapters are added by hooks, all of them on modules INSIDE a layer, so
that activation checkpointing recomputes them with it. Hooks are bound methods of small objects that hold no module of
the backbone. That is why a `copy.deepcopy` of a model has adapters of its own. Inside `fused_attention`, and only there,
attentions have another `forward`.

What a forward pass depends on, in one object a model, is `_Wiring`; three kinds of taps read it, one each for a vision
block, a text layer, and a cross-attention.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from torch.nn.functional import normalize

from .adapter import AdapterSet, UniAdapter, WordBias
from .attention import attend, frame_multipliers, fusing_pays, scale_patch_keys
from .config import UniAdapterConfig
from .errors import UniAdapterError

HEADS = ("vision_proj", "text_proj", "itm_head")
# A decoder's word head: a linear layer, a LayerNorm, and a bias a word. Its matrix is that of the embeddings.
WORD_HEAD = {"word_transform": "transform.dense", "word_norm": "transform.LayerNorm", "word_bias": "decoder"}

# ------------------------------------------------------------------------------------------------ what a user calls


def freeze(model: nn.Module) -> nn.Module:
    """Set ``requires_grad`` of the whole backbone to False and return the model. Inserted adapters go on training."""
    own = set(model.uniadapter.parameters()) if hasattr(model, "uniadapter") else set()
    for parameter in model.parameters():
        if parameter not in own:
            parameter.requires_grad_(False)
    return model


def insert_adapters(model: nn.Module, config: UniAdapterConfig | None = None, name: str = "default") -> nn.Module:
    """Freeze ``model``, put adapters into it in place, and return it. ``model.uniadapter`` holds them.

    model: transformers' `BlipForImageTextRetrieval`, `BlipForQuestionAnswering` or `BlipForConditionalGeneration`.
    config: `UniAdapterConfig.paper()` if None. name: what `set_adapter` will call these adapters.
    The new modules have the model's device and dtype; their initial values depend on `torch.manual_seed` alone.

    Raises `UniAdapterError` if adapters are inserted already, if this is no BLIP, if its towers differ in width, if
    config is no `UniAdapterConfig`, or if it asks for frame-aware attention of a model without text features.
    """
    _check_config(config, model)
    if hasattr(model, "uniadapter"):
        raise UniAdapterError(
            "Adapters are inserted in this model already.",
            "Call remove_adapters(model) first, or load_adapters with another name to hold several.",
        )
    towers = _towers(model)
    if len(set(towers.widths.values())) > 1:
        widths = ", ".join(f"{tower} {width}" for tower, width in towers.widths.items())
        raise UniAdapterError(
            f"One adapter serves both towers of a layer, and here their widths differ: {widths}.",
            "Use a BLIP whose towers are equally wide, such as the base checkpoints.",
        )
    _wiring(model).trained_before = tuple(name for name, p in model.named_parameters() if p.requires_grad)
    freeze(model)
    model.uniadapter = _build(model, config, name)
    return set_adapter(model, name)


def remove_adapters(model: nn.Module) -> nn.Module:
    """Take every adapter and every hook out again and return the original model, bit for bit, trainable as it was."""
    wiring = _inserted(model)
    for handle in wiring.handles:
        handle.remove()
    del model.uniadapter, model._uniadapter_wiring
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wiring.trained_before)
    return model


@contextlib.contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, ``model`` is the frozen backbone, bit for bit: no adapters, and the original heads."""
    with _setting(_inserted(model), enabled=False):
        yield model


def add_adapter(model: nn.Module, config: UniAdapterConfig | None = None, name: str = "default") -> AdapterSet:
    """Build one more named adapter beside those that are inserted, and return it; `set_adapter` makes it the active one.

    Until then it takes no part in anything: not in the forward pass, nor in ``model.parameters()``, ``state_dict()`` or
    ``.to()`` (`set_adapter` moves it). Raises `UniAdapterError` if the name is taken, or as `insert_adapters` does.
    """
    _check_config(config, model)
    if name in _inserted(model).sets:
        raise UniAdapterError(f'An adapter is called "{name}" already.', "Choose another name.")
    return _build(model, config, name)


def set_adapter(model: nn.Module, name: str) -> nn.Module:
    """Make the adapter of that name the active one and return the model. ``model.uniadapter`` is another module then.

    Under activation checkpointing call `backward` before switching: the recomputation uses what is active by then.
    """
    wiring = _inserted(model)
    if name not in wiring.sets:
        raise UniAdapterError(f'No adapter is called "{name}".', f"There are: {', '.join(wiring.sets)}.")
    wiring.active = wiring.sets[name].to(device=model.device, dtype=model.dtype).train(model.training)
    model.uniadapter = wiring.active
    return model


def named_adapters(model: nn.Module) -> dict[str, AdapterSet]:
    """All adapters that ``model`` holds, by name, the inactive ones too. Empty if nothing is inserted."""
    return dict(_wiring(model).sets) if hasattr(model, "uniadapter") else {}


def active_config(model: nn.Module) -> UniAdapterConfig | None:
    """The config of the adapters at work in ``model``; None where none are inserted, and inside `adapters_disabled`."""
    adapter = _wiring(model).adapter if hasattr(model, "uniadapter") else None
    return adapter.config if adapter else None


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains of the active adapter, by the names it has on disk."""
    return {name: p for name, p in _inserted(model).active.named_parameters() if p.requires_grad}


def merge_adapters(model: nn.Module):
    """Not possible, unlike with LoRA: always raises `UniAdapterError`, which says why."""
    raise UniAdapterError(
        "Adapters cannot be merged into the backbone: no linear weight computes what a ReLU bottleneck does.",
        "Keep them inserted; save_adapters stores them apart from the backbone.",
    )


@contextlib.contextmanager
def frame_weights(model: nn.Module, w: torch.Tensor) -> Iterator[nn.Module]:
    """Inside, cross-attention to video tokens is frame-aware: the patch keys of frame f are multiplied by m_f.

    w: (B, F), see `attention.frame_weights`, for frame-major tokens (B, F·n, D) given as ``encoder_hidden_states``. Inside
    `folded_texts`, w may be (B, F), or (B·k, F) where each text has weights of its own. It holds no parameters, so it
    works without adapters, too. Raises `UniAdapterError` if w is no (B, F) of finite floating-point numbers, B and F at
    least 1, and later if the tokens do not fit it.
    """
    if not isinstance(w, torch.Tensor) or w.ndim != 2:
        raise UniAdapterError(
            f"Frame weights are {_shape(w)}, expected a tensor (B, F).", "Give one weight per clip and frame."
        )
    with _setting(_wiring(model), frames=frame_multipliers(w)):
        yield model


@contextlib.contextmanager
def masks_obeyed(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, cross-attention obeys ``encoder_attention_mask`` whatever is inserted, as it does with adapters at work.

    transformers drops that mask, so that an answer decoder sees the padding of its questions. Inside, every way to
    train is compared on the same task; a mask of ones changes nothing.
    """
    with _setting(_wiring(model), masks=True):
        yield model


@contextlib.contextmanager
def folded_texts(model: nn.Module, k: int) -> Iterator[nn.Module]:
    """Inside, B·k texts meet B images, k texts each, and every image's keys and values are projected once.

    Text states (B·k, T, D), image-major (image 0's k texts first), meet ``encoder_hidden_states`` (B, N, D), and an
    ``encoder_attention_mask`` of (B, N) if any. In each cross-attention an image's texts stand in one row of queries,
    (B·k, T, D) -> (B, k·T, D), which is exact: no query ever sees another query there. Results are (B·k, T, D) as ever.

    Texts with frame weights of their own (B·k, F) have different keys; these are projected once and then repeated.
    Works with adapters or without. Raises `UniAdapterError` if the numbers of texts and images do not fit.
    """
    if not isinstance(k, int) or k < 1:
        raise UniAdapterError(f"k is {k!r}, expected a whole number of at least 1.", "Give the texts per image.")
    with _setting(_wiring(model), texts=k):
        yield model


@contextlib.contextmanager
def fused_attention(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, attention to many tokens never holds all of its scores: faster, with less memory, equal to 1e-5 in float32.

    It replaces transformers' own attention in the vision blocks and where texts look at images, with adapters or
    without, folded or frame-aware; `attention.fusing_pays` says from how many tokens on. Texts with frame weights of
    their own have their keys made a few at a time. Its attention maps are None: ask for them outside.

    Left as they are: attention with dropout while it trains, with a cache, and in towers under activation
    checkpointing, whose `backward` computes layers again when this is left already.
    """
    wiring, towers = _wiring(model), _towers(unwrapped(model))
    with _setting(wiring, fused=True), contextlib.ExitStack() as stack:
        for block in towers.vision.layers:
            stack.enter_context(_forward(block.self_attn, partial(_fused_vision, towers.vision)))
        for text in towers.texts.values():
            for layer in text.layer:
                stack.enter_context(_forward(layer.crossattention.self, _fused_crossing))
        yield model


def encode_video(model: nn.Module, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Frames (B, F, 3, H, W) -> frame-major tokens (B, F·n, D), and the clip's feature (B, P), normalised.

    The tokens are ready to be ``encoder_hidden_states``. The feature is None for models without ``vision_proj``.
    Raises `UniAdapterError` if the frames have another shape, if there is no clip or no frame, or if they are whole numbers.
    """
    _check_frames(frames)
    B, F = frames.shape[:2]
    tokens = model.vision_model(pixel_values=frames.flatten(0, 1)).last_hidden_state  # (B·F, n, D)
    _, n, D = tokens.shape
    feature = None
    if hasattr(model, "vision_proj"):
        # normalise( vision_proj( mean over frames of CLS ) )
        cls = tokens[:, 0].view(B, F, D)
        feature = normalize(model.vision_proj(cls.mean(dim=1)), dim=-1)
    return tokens.reshape(B, F * n, D), feature  # (B·F, n, D) -> (B, F·n, D)


# -------------------------------------------------------------------------------------------------- how BLIP is built


@dataclass(frozen=True)
class _Towers:
    """The parts of a BLIP that adapters touch."""

    vision: nn.Module  # transformers' BlipEncoder
    texts: dict[str, nn.Module]  # its BlipTextEncoder, by the name of the key/value update it uses
    heads: dict[str, nn.Linear | nn.LayerNorm]
    widths: dict[str, int]
    tokens: int  # n, of an image: its CLS and its patches

    @property
    def depths(self) -> dict[str, int]:
        return {"vision": len(self.vision.layers), "text": max(len(text.layer) for text in self.texts.values())}


def _towers(model: nn.Module) -> _Towers:
    texts = {}
    if hasattr(model, "text_encoder"):
        texts["kv"] = model.text_encoder.encoder
    if hasattr(model, "text_decoder"):
        texts["kv_decoder"] = model.text_decoder.bert.encoder
    if not texts or not hasattr(model, "vision_model"):
        raise UniAdapterError(
            f"{type(model).__name__} is no BLIP model that adapters fit.",
            "Give BlipForImageTextRetrieval, BlipForQuestionAnswering or BlipForConditionalGeneration.",
        )
    vision = model.config.vision_config
    widths = {"vision": vision.hidden_size, "text": model.config.text_config.hidden_size}
    heads = {name: getattr(model, name) for name in HEADS if hasattr(model, name)}
    if hasattr(model, "text_decoder"):
        words = model.text_decoder.cls.predictions
        heads |= {name: words.get_submodule(path) for name, path in WORD_HEAD.items()}
    tokens = 1 + (vision.image_size // vision.patch_size) ** 2
    return _Towers(model.vision_model.encoder, texts, heads, widths, tokens)


# ---------------------------------------------------------------------------------------------- what a pass depends on


class _Wiring:
    """What forward passes of one model depend on: which adapter, how many texts an image, which frames matter.

    The model and all its taps refer to one wiring. It refers to no module of the backbone, so that copying a part of
    the model (a momentum encoder copies only the encoders) does not drag the rest along.
    """

    def __init__(self, tokens: int):
        self.tokens = tokens  # n of an image
        self.sets: dict[str, AdapterSet] = {}
        self.active: AdapterSet | None = None
        self.enabled = True
        self.texts = 1  # k, per image
        self.frames: torch.Tensor | None = None  # multipliers m (B, F)
        self.masks = False  # whether encoder masks are obeyed without adapters, too
        self.fused = False  # whether attention may be fused
        self.trained_before: tuple[str, ...] = ()
        self.handles = []

    @property
    def adapter(self) -> AdapterSet | None:
        return self.active if self.enabled else None

    def layer(self, index: int) -> UniAdapter | None:
        """The adapter of a layer, or None where there is nothing to add."""
        return self.adapter.layers[index] if self.adapter and index < len(self.adapter.layers) else None

    def check(self, tower: nn.Module, args):
        """Before a tower's first layer, which in every version of transformers is outside its activation checkpoint."""
        if self.adapter and _is_reentrant(tower):
            raise UniAdapterError(
                "Activation checkpointing with use_reentrant=True gives adapters wrong gradients.",
                'Call model.gradient_checkpointing_enable({"use_reentrant": False}), then '
                "model.disable_input_require_grads().",
            )


def _wiring(model: nn.Module) -> _Wiring:
    """The model's wiring, connected when it is first needed. Unless something is set, its hooks change nothing."""
    model = unwrapped(model)
    if not hasattr(model, "_uniadapter_wiring"):
        towers = _towers(model)
        model._uniadapter_wiring = _Wiring(towers.tokens)
        _connect(towers, model._uniadapter_wiring)
    return model._uniadapter_wiring


def unwrapped(model: nn.Module) -> nn.Module:
    """transformers' own model, out of peft's wrapper; what peft put into its layers stays at work."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _build(model: nn.Module, config: UniAdapterConfig | None, name: str) -> AdapterSet:
    """A new named adapter, known to the wiring but not active."""
    towers = _towers(model)
    width = towers.widths["vision"]
    # Built on the CPU in float32 and moved, so that a seed gives the same adapters on every device.
    adapter = AdapterSet(config or UniAdapterConfig(), width, towers.depths, tuple(towers.texts), towers.heads, name)
    _wiring(model).sets[name] = adapter.to(device=model.device, dtype=model.dtype)
    return adapter


def _inserted(model: nn.Module) -> _Wiring:
    if not hasattr(model, "uniadapter"):
        raise UniAdapterError("No adapters are inserted in this model.", "Call insert_adapters(model) first.")
    return _wiring(model)


@contextlib.contextmanager
def _setting(wiring: _Wiring, **values):
    """Set attributes of the wiring for a while."""
    before = {name: getattr(wiring, name) for name in values}
    vars(wiring).update(values)
    try:
        yield
    finally:
        vars(wiring).update(before)


def _connect(towers: _Towers, wiring: _Wiring):
    """Hook every place where something may be added. Handles are kept for `remove_adapters`."""
    for tower in (towers.vision, *towers.texts.values()):
        wiring.handles.append(tower.register_forward_pre_hook(wiring.check))
    for index, block in enumerate(towers.vision.layers):
        wiring.handles += _VisionTap(wiring, index).connect(block)
    for update, text in towers.texts.items():
        # In question answering the decoder looks at the question's states: only the encoder there faces images.
        crossing = _CrossTap(wiring, update, faces_images=update == next(iter(towers.texts)))
        wiring.handles.append(text.register_forward_pre_hook(crossing.begin, with_kwargs=True))
        for index, layer in enumerate(text.layer):
            wiring.handles += _TextTap(wiring, index).connect(layer)
            wiring.handles += crossing.connect(layer.crossattention.self)
    for name, head in towers.heads.items():
        wiring.handles.append(head.register_forward_hook(_HeadTap(wiring, name).answer))


# ---------------------------------------------------------------------------------------------------------- the taps


class _LayerTap:
    """Keeps one hidden state of a layer from where it arises to where its adapter's output is added."""

    branches: tuple[str, ...]

    def __init__(self, wiring: _Wiring, index: int):
        self.wiring, self.index, self.held = wiring, index, None

    def connect(self, layer: nn.Module) -> list:
        # always_call: also when the layer raises, so that no hidden state outlives its forward pass.
        return [layer.register_forward_hook(self.release, always_call=True)]

    def layer(self, *branches: str) -> UniAdapter | None:
        """The layer's adapter if it has one of these branches."""
        layer = self.wiring.layer(self.index)
        return layer if layer and set(branches) & set(layer.branches) else None

    def hold(self, module, args):
        if self.layer(*self.branches):
            self.held = args[0]

    def release(self, module, args, output=None):
        self.held = None


class _VisionTap(_LayerTap):
    """Vision block:   u = x + Attn(LN1 x)        x' = u + MLP(LN2 u) + A_vision(u)"""

    branches = ("vision",)

    def connect(self, block):
        return super().connect(block) + [
            block.layer_norm2.register_forward_pre_hook(self.hold),
            block.mlp.register_forward_hook(self.add),
        ]

    def add(self, mlp, args, output):
        u, self.held = self.held, None
        layer = self.layer("vision")
        return output + layer.vision(u) if layer else None


class _TextTap(_LayerTap):
    """Text layer:     a = LN(x + SelfAttn x)     x' = LN(a + FFN a) + A_text(a)
    multimodal:        c = LN(a + CrossAttn(a, e))     x' = LN(c + FFN c) + A_text(a) + A_cross(c)
    """

    branches = ("text", "cross")

    def connect(self, layer):
        return super().connect(layer) + [
            layer.attention.register_forward_pre_hook(self.release),
            layer.crossattention.register_forward_pre_hook(self.hold),
            layer.output.register_forward_hook(self.add),
        ]

    def add(self, output, args, f):
        layer, inner = self.layer("text", "cross"), args[1]  # inner: a, or c after cross-attention
        if layer is None:
            return None
        multimodal = self.held is not None
        a = self._next(inner.shape[1]) if multimodal else inner
        if "text" in layer.branches and (not multimodal or layer.config.query_residual):
            f = f + layer.text(a)
        if "cross" in layer.branches and multimodal:
            f = f + layer.cross(inner)
        return f

    def _next(self, length: int) -> torch.Tensor:
        """The held a; a slice of it where transformers feeds the feed-forward part in chunks of the sequence."""
        a, rest = self.held[:, :length], self.held[:, length:]
        self.held = rest if rest.shape[1] else None
        return a


@dataclass(frozen=True)
class _Crossing:
    """What the cross-attentions of ONE forward pass have in common.

    It travels through the layers in the place of the encoder mask. There it survives activation checkpointing: when
    `backward` recomputes a layer, after `folded_texts` or `frame_weights` was left, the layer still gets this object.
    """

    images: int  # B, the batch of e
    texts: int  # k, texts per image
    mask: torch.Tensor | None  # what may be added to the scores, (B, 1, T, N)
    corrects: bool  # whether it is; transformers drops it
    multipliers: torch.Tensor | None  # m (B, F), or (B·k, F); what keys are multiplied by
    deltas: dict[str, torch.Tensor]  # dK and dV (B, N, D), under "key" and "value"
    fused: bool = False  # whether its attention is `attention.attend`
    apart: torch.Tensor | None = None  # m (B, k, F), of which the fused attention makes each text's own keys

    def to_be_fused(self) -> "_Crossing":
        """The same for a fused attention. A mask that hides nothing would only make that slower."""
        mask = self.mask if self.mask is not None and self.mask.any() else None
        if not self.repeats:
            return replace(self, mask=mask, fused=True)
        apart = self.multipliers.unflatten(0, (self.images, self.texts))  # (B·k, F) -> (B, k, F)
        return replace(self, mask=mask, fused=True, multipliers=None, apart=apart)

    @property
    def repeats(self) -> bool:
        """Whether keys are repeated for an image's texts, because each text has frame weights of its own."""
        return self.texts > 1 and self.multipliers is not None and len(self.multipliers) > self.images

    @property
    def folds(self) -> bool:
        return self.texts > 1 and not self.repeats

    def repeat(self, x: torch.Tensor | None) -> torch.Tensor | None:
        """(B, ...) -> (B·k, ...), image-major, where keys are repeated."""
        return x.repeat_interleave(self.texts, dim=0) if self.repeats and x is not None else x

    def fold(self, h: torch.Tensor) -> torch.Tensor:
        """(B·k, T, D) -> (B, k·T, D)"""
        return h.reshape(self.images, -1, h.shape[-1]) if self.folds else h

    def fold_mask(self) -> torch.Tensor | None:
        """(B, 1, T, N) -> (B, 1, 1, N): all queries of an image see the same tokens of it."""
        return self.mask[:, :, :1] if self.folds and self.mask is not None else self.repeat(self.mask)

    def unfold(self, h: torch.Tensor) -> torch.Tensor:
        """(B, k·T, D) -> (B·k, T, D)"""
        return h.reshape(self.images * self.texts, -1, h.shape[-1]) if self.folds else h

    def unfold_attention(self, p: torch.Tensor | None) -> torch.Tensor | None:
        """(B, H, k·T, N) -> (B·k, H, T, N)"""
        if not self.folds or p is None:  # fused attention has none
            return p
        return p.unflatten(2, (self.texts, -1)).transpose(1, 2).flatten(0, 1)


class _CrossTap:
    """Cross-attention:     K = W_k e + b_k + dK,  the patch keys of frame f times m_f         V = W_v e + b_v + dV"""

    def __init__(self, wiring: _Wiring, update: str, faces_images: bool):
        self.wiring, self.update, self.faces_images, self.crossing = wiring, update, faces_images, None

    def connect(self, attention: nn.Module) -> list:
        return [
            attention.register_forward_pre_hook(self.enter, with_kwargs=True),
            # prepend: before transformers records the attention, if that was asked for earlier
            attention.register_forward_hook(self.leave, prepend=True),
            attention.register_forward_hook(self.release, always_call=True),
            attention.key.register_forward_pre_hook(self.once),
            attention.key.register_forward_hook(self.keys),
            attention.value.register_forward_pre_hook(self.once),
            attention.value.register_forward_hook(self.values),
        ]

    def begin(self, encoder, args, kwargs):
        """Before a tower's first layer: compute once what all its cross-attentions use."""
        e, cache = kwargs.get("encoder_hidden_states"), kwargs.get("past_key_values")
        if e is None:
            return None
        crossing = self._crossing(len(args[0]), e, kwargs.get("encoder_attention_mask"), cache)
        caches = cache is not None or kwargs.get("use_cache")
        if self.wiring.fused and not caches and _may_be_fused(encoder) and fusing_pays(e, e.shape[1]):
            crossing = crossing.to_be_fused()
        return args, kwargs | {"encoder_attention_mask": crossing}

    def enter(self, attention, args, kwargs):
        h, e, given = args[0], kwargs["encoder_hidden_states"], kwargs.get("attention_mask")
        # A layer that is called by itself, without its tower, has a mask here and not a crossing.
        crossing = given if isinstance(given, _Crossing) else self._crossing(len(h), e, given)
        self.crossing = crossing
        states = {"encoder_hidden_states": crossing.repeat(e), "attention_mask": crossing.fold_mask()}
        if crossing.corrects:
            # transformers' layer passes the encoder's mask on as attention_mask, which cross-attention does not read.
            states["encoder_attention_mask"] = states["attention_mask"]
        if crossing.fused:
            states["crossing"] = crossing
        return (crossing.fold(h), *args[1:]), kwargs | states

    def leave(self, attention, args, output):
        context, probabilities, *rest = output
        return self.crossing.unfold(context), self.crossing.unfold_attention(probabilities), *rest

    def release(self, attention, args, output):
        self.crossing = None

    def once(self, linear, args):
        """Undo the repetition: an image is projected once, whatever the number of its texts."""
        repeats = self.crossing is not None and self.crossing.repeats
        return (args[0][:: self.crossing.texts], *args[1:]) if repeats else None

    def keys(self, linear, args, output):
        if self.crossing is None:  # called by itself, outside of its attention: the frozen projection
            return None
        keys = self.crossing.repeat(self._updated("key", output))
        m = self.crossing.multipliers
        return keys if m is None else scale_patch_keys(keys, m)

    def values(self, linear, args, output):
        if self.crossing is None:
            return None
        return self.crossing.repeat(self._updated("value", output))

    def _updated(self, name: str, output: torch.Tensor) -> torch.Tensor:
        delta = self.crossing.deltas.get(name)
        return output if delta is None else output + delta

    def _crossing(self, texts: int, e: torch.Tensor, mask: torch.Tensor | None, cache=None) -> _Crossing:
        k = self.wiring.texts if self.faces_images else 1
        multipliers = self.wiring.frames if self.faces_images else None
        _check_crossing(texts, k, e, multipliers, self.wiring.tokens)
        corrects = self.wiring.adapter is not None or self.wiring.masks
        return _Crossing(len(e), k, mask, corrects, multipliers, self._deltas(e, cache))

    def _deltas(self, e: torch.Tensor, cache) -> dict[str, torch.Tensor]:
        updates = getattr(self.wiring.adapter, self.update, None)
        # While text is generated, the cache of the first step holds updated keys and values.
        cached = getattr(cache, "is_updated", {}).get(0, False)
        return {} if updates is None or cached else {name: update(e) for name, update in updates.items()}


class _HeadTap:
    """A head of the model answers with its trained copy."""

    def __init__(self, wiring: _Wiring, name: str):
        self.wiring, self.name = wiring, name

    def answer(self, head, args, output):
        heads = getattr(self.wiring.adapter, "heads", None)
        copy = getattr(heads, self.name, None)
        if copy is None:
            return None
        return copy(*args, head.weight) if isinstance(copy, WordBias) else copy(*args)


# -------------------------------------------------------------------------------------------------- attention, fused


@contextlib.contextmanager
def _forward(attention: nn.Module, fused: Callable) -> Iterator[None]:
    """Inside, ``attention`` computes ``fused(attention, eager, ...)``, where ``eager(...)`` is what it computed before."""
    before = attention.__dict__.get("forward")  # fused already, or None
    attention.forward = partial(fused, attention, attention.forward)
    try:
        yield
    finally:
        del attention.forward
        if before:
            attention.forward = before


def _fused_vision(tower: nn.Module, attention: nn.Module, eager: Callable, hidden_states: torch.Tensor, **options):
    """In the place of transformers' BlipAttention."""
    pays = fusing_pays(hidden_states, hidden_states.shape[1])
    if not pays or _checkpoints(tower) or _drops(attention):
        return eager(hidden_states=hidden_states, **options)
    qkv = attention.qkv(hidden_states).unflatten(-1, (3, attention.num_heads, -1))  # (B, N, 3, H, d)
    context = attend(*qkv.permute(2, 0, 3, 1, 4))  # (B, H, N, d)
    return attention.projection(context.transpose(1, 2).flatten(2)), None


def _fused_crossing(attention: nn.Module, eager: Callable, h: torch.Tensor, crossing: _Crossing | None = None, **given):
    """In the place of transformers' BlipTextSelfAttention, where that is cross-attention. h: (B, k·T, D)."""
    if crossing is None:
        return eager(h, **given)
    e, mask = given["encoder_hidden_states"], given.get("encoder_attention_mask")
    q, k, v = (
        linear(states).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)  # (B, H, ·, d)
        for linear, states in ((attention.query, h), (attention.key, e), (attention.value, e))
    )
    context = attend(q, k, v, mask, crossing.apart)  # (B, H, k·T, d)
    return context.transpose(1, 2).flatten(2), None


def _may_be_fused(text: nn.Module) -> bool:
    """Whether all cross-attentions of a text tower can be."""
    return not _checkpoints(text) and not any(_drops(layer.crossattention.self) for layer in text.layer)


def _drops(attention: nn.Module) -> bool:
    """Whether some of this attention's scores are dropped."""
    return attention.dropout.training and attention.dropout.p > 0


def _checkpoints(tower: nn.Module) -> bool:
    """Whether transformers is about to run this tower's layers in activation checkpoints."""
    return getattr(tower, "gradient_checkpointing", False) and tower.training and torch.is_grad_enabled()


# ---------------------------------------------------------------------------------------------------------- checks


def _is_reentrant(tower: nn.Module) -> bool:
    """Whether these checkpoints are reentrant."""
    # transformers keeps partial(checkpoint, use_reentrant=...); torch's default, if nothing is said, is True.
    options = getattr(tower._gradient_checkpointing_func, "keywords", None) if _checkpoints(tower) else None
    return options is not None and options.get("use_reentrant", True)


def _check_config(config: UniAdapterConfig | None, model: nn.Module):
    if not isinstance(config, UniAdapterConfig | None):
        raise UniAdapterError(
            f"config is {config!r}, expected a UniAdapterConfig.",
            "Give UniAdapterConfig(...); UniAdapterConfig.from_dict makes one of a dictionary.",
        )
    if config and config.frame_aware and not hasattr(model, "text_proj"):
        raise UniAdapterError(
            f"frame_aware=True weighs frames by their similarity to a text, and {type(model).__name__} gives texts no "
            "feature (it has no text_proj).",
            "Leave it out with frame_aware=False, or take a BlipForImageTextRetrieval.",
        )


def _shape(given) -> str:
    return f"of shape {tuple(given.shape)}" if isinstance(given, torch.Tensor) else f"a {type(given).__name__}"


def _check_frames(frames: torch.Tensor):
    """Raise `UniAdapterError` if these are no frames of clips."""
    if not isinstance(frames, torch.Tensor) or frames.ndim != 5 or frames.shape[2] != 3:
        raise UniAdapterError(
            f"Frames are {_shape(frames)}, expected a tensor (B, F, 3, H, W).",
            "Stack each clip's frames along a second dimension, colours before height and width.",
        )
    if not frames.numel():
        raise UniAdapterError(
            f"Frames of shape {tuple(frames.shape)} are empty, expected at least one clip of at least one frame.",
            "Leave out clips without frames.",
        )
    if not frames.is_floating_point():
        raise UniAdapterError(
            f"Frames have the dtype {frames.dtype}, expected floating-point pixels.",
            "Let the model's processor scale and normalise them.",
        )


def _check_crossing(texts: int, k: int, e: torch.Tensor, multipliers: torch.Tensor | None, n: int):
    """Raise `UniAdapterError` if texts, images and frame weights do not fit each other. n: tokens of an image."""
    B, N = e.shape[:2]
    if texts != k * B:
        raise UniAdapterError(
            f"{texts} texts meet {B} images inside folded_texts(model, {k}), expected {k * B} texts.",
            "Give the image tokens once per image, (B, N, D), and the texts image-major, (B·k, T).",
        )
    if multipliers is None:
        return
    F = multipliers.shape[1]
    # Tokens that are whole images tell F; of others, a part of each frame's, it is known only that F divides them.
    frames_fit = F == N // n if N % n == 0 else N % F == 0 and N > F
    if len(multipliers) not in (B, texts) or not frames_fit:
        frames = f"{N // n} frames of {n} tokens" if N % n == 0 else f"{N} tokens"
        raise UniAdapterError(
            f"Frame weights of shape {tuple(multipliers.shape)} do not fit {frames} of each of {B} clips.",
            "Give weights (B, F) and frame-major tokens (B, F·n, D), as encode_video returns them.",
        )
