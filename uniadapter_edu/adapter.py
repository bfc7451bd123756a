"""The bottleneck: one down-projection, three up-projections, and the low-rank update for keys and values.

Nothing here knows of BLIP: these are the modules, `insertion` says where they sit.
"""

import torch
from torch import nn
from torch.nn.functional import relu

from .config import MODALITIES, UniAdapterConfig

TEMPERATURE = 0.07  # where BLIP starts its contrastive temperature
LEARNED_SCALE = 0.1  # where scale="learned" starts


class UniAdapter(nn.Module):
    """The adapter of ONE layer index (Lu et al., arXiv 2302.06605): the same module serves vision, text and cross.

    With ``share="down"`` the branches hold one object: ``adapter.down`` is what `vision`, `text` and `cross` all call.
    Each of the three takes hidden states (B, T, D) and returns what is added to the layer's output, (B, T, D).

    hidden_size: D. config: see `UniAdapterConfig`. branches: those of the config's modalities that this layer carries,
    all by default; where one tower is deeper than the other, its upper layers carry only their own.
    """

    def __init__(self, hidden_size: int, config: UniAdapterConfig, branches: tuple[str, ...] = MODALITIES):
        super().__init__()
        D, r = hidden_size, config.bottleneck
        self.config = config
        self.branches = tuple(name for name in config.modalities if name in branches)

        self.norm_in = nn.LayerNorm(D)
        one_down, one_up = config.share in ("down", "all"), config.share in ("up", "all")
        self.down = nn.Linear(D, r) if one_down else _linears(self.branches, D, r)
        self.up = _linears(("shared",) if one_up else self._ups(), r, D)
        if "cross" in self.branches and config.cross_norm:
            self.norm_cross = nn.LayerNorm(D)
        learned = config.scale == "learned"
        self.scale = nn.Parameter(torch.full((1,), LEARNED_SCALE)) if learned else config.scale
        self._start()

    def bottleneck(self, h: torch.Tensor, branch: str) -> torch.Tensor:
        """z, what the branches share: (B, T, D) -> (B, T, r). ``branch`` matters only where the downs are unshared."""
        down = self.down[branch] if isinstance(self.down, nn.ModuleDict) else self.down
        # z(h) = ReLU( W_down · LN_in(h) + b_down )
        return relu(down(self.norm_in(h)))

    def vision(self, h: torch.Tensor) -> torch.Tensor:
        """A_vision(h), for h the stream between attention and MLP of a vision block."""
        # A_vision(h) = s · ( W_vision z(h) + b_vision )
        return self.scale * self._up("vision")(self.bottleneck(h, "vision"))

    def text(self, h: torch.Tensor) -> torch.Tensor:
        """A_text(h), for h the output of a text layer's self-attention."""
        # A_text(h) = s · ( W_text z(h) + b_text )
        return self.scale * self._up("text")(self.bottleneck(h, "text"))

    def cross(self, h: torch.Tensor) -> torch.Tensor:
        """A_cross(h), for h the output of a multimodal layer's cross-attention."""
        z = self.bottleneck(h, "cross")
        # A_cross(h) = s · LN_x( W_cross z(h) + b_cross + W_text z(h) + b_text )
        delta = self._up("cross")(z)
        if self.config.cross_reuses_text_up:
            delta = delta + self._up("text")(z)
        if self.config.cross_norm:
            delta = self.norm_cross(delta)
        return self.scale * delta

    def extra_repr(self) -> str:
        return f"branches={self.branches}, scale={self.config.scale}"

    def _up(self, branch: str) -> nn.Linear:
        return self.up["shared"] if "shared" in self.up else self.up[branch]

    def _ups(self) -> tuple[str, ...]:
        """The branches with an up of their own; W_text is there too if only the cross branch has a use for it."""
        reused = "cross" in self.branches and self.config.cross_reuses_text_up
        return tuple(name for name in MODALITIES if name in self.branches or (name == "text" and reused))

    def _start(self):
        """Where training starts. Weights that are not zeroed keep `nn.Linear`'s uniform(-1/sqrt(fan_in), 1/sqrt(fan_in)).

        The authors zero the biases of the downs, and weight and bias of the text up.
        """
        for down in self.down.values() if isinstance(self.down, nn.ModuleDict) else [self.down]:
            nn.init.zeros_(down.bias)
        identity = self.config.init == "identity"
        for branch, up in self.up.items():
            if identity or branch == "text":
                _zero(up)


class LowRankUpdate(nn.Module):
    """A linear update of low rank with a learnable scale g: what keys, or values, gain from the image tokens.

    Maps e (B, N, D) to (B, N, D). There is no activation between down and up: it is low-rank adaptation, not a second
    bottleneck. The authors start it at random; ``identity`` starts it at zero.
    """

    def __init__(self, hidden_size: int, rank: int, identity: bool = False):
        super().__init__()
        self.down = nn.Linear(hidden_size, rank)
        self.up = nn.Linear(rank, hidden_size)
        self.scale = nn.Parameter(torch.ones(1))
        if identity:
            _zero(self.up)

    def forward(self, e: torch.Tensor) -> torch.Tensor:
        # g (U (D e + d) + u)
        return self.scale * self.up(self.down(e))


class Heads(nn.Module):
    """Trainable copies of a model's small heads, and the contrastive temperature, a scalar parameter.

    originals: the model's own heads by name, left untouched: linear layers and layer norms. Of ``word_bias``, which
    makes words of states, only the bias is copied (`WordBias`). trained: whether to copy and train them; if not, the
    temperature is still here, fixed, so that it is saved with the adapters. Models without the two projections have no
    contrastive loss, and no temperature either.
    """

    def __init__(self, originals: dict[str, nn.Linear | nn.LayerNorm], trained: bool = True):
        super().__init__()
        if trained:
            for name, original in originals.items():
                self.add_module(name, WordBias(original) if name == "word_bias" else _copy(original))
        if {"vision_proj", "text_proj"} <= originals.keys():
            self.temperature = nn.Parameter(torch.tensor(TEMPERATURE), requires_grad=trained)


class WordBias(nn.Module):
    """One trained number a word, in place of the bias of ``linear``, whose matrix is that of the embeddings and stays."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, h: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """States (B, T, D) and the frozen matrix (V, D) -> logits (B, T, V)."""
        return nn.functional.linear(h, words, self.bias)


class AdapterSet(nn.Module):
    """All that one named adapter of a model is made of. ``model.uniadapter`` is the active one.

    layers: one `UniAdapter` for each layer index. kv, kv_decoder: the low-rank updates ``key`` and ``value`` of the
    text encoder's and the text decoder's cross-attention, or None. heads: see `Heads`. config: how it was built.
    active: its name. Its ``state_dict()`` has the names that adapters have on disk.

    depths: layers of the "vision" and of the "text" tower. updates: which of ("kv", "kv_decoder") the model has a
    place for. heads: the model's own.
    """

    def __init__(
        self,
        config: UniAdapterConfig,
        hidden_size: int,
        depths: dict[str, int],
        updates: tuple[str, ...] = ("kv",),
        heads: dict[str, nn.Linear | nn.LayerNorm] | None = None,
        name: str = "default",
    ):
        super().__init__()
        self.config, self.active = config, name
        self.layers = nn.ModuleList(
            UniAdapter(hidden_size, config, branches) for branches in _branches(config.modalities, depths)
        )
        self.kv = self.kv_decoder = None
        for update in updates if config.kv_bottleneck else ():
            setattr(self, update, _key_value_updates(hidden_size, config))
        self.heads = Heads(heads or {}, config.train_heads)


def _branches(modalities: tuple[str, ...], depths: dict[str, int]) -> list[tuple[str, ...]]:
    """For each layer index the branches of the towers that are deep enough to have it; cross lives in the text tower."""
    depth = {name: depths["vision" if name == "vision" else "text"] for name in modalities}
    return [tuple(name for name in modalities if i < depth[name]) for i in range(max(depth.values()))]


def _key_value_updates(hidden_size: int, config: UniAdapterConfig) -> nn.ModuleDict:
    identity = config.init == "identity"
    return nn.ModuleDict(
        {name: LowRankUpdate(hidden_size, config.kv_bottleneck, identity) for name in ("key", "value")}
    )


def _copy(original: nn.Linear | nn.LayerNorm) -> nn.Linear | nn.LayerNorm:
    """The same weights in a module of its own. Not `deepcopy`, which would take the original's hooks along."""
    like = {"bias": original.bias is not None, "device": original.weight.device, "dtype": original.weight.dtype}
    if isinstance(original, nn.LayerNorm):
        copy = nn.LayerNorm(original.normalized_shape, original.eps, **like)
    else:
        copy = nn.Linear(original.in_features, original.out_features, **like)
    copy.load_state_dict(original.state_dict())
    return copy


def _linears(names: tuple[str, ...], fan_in: int, fan_out: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(fan_in, fan_out) for name in names})


def _zero(linear: nn.Linear):
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
