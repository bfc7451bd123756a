"""UniAdapterConfig: every choice that the method leaves open, in one frozen dataclass, and its three presets."""

import math
from dataclasses import asdict, dataclass, fields

from .errors import UniAdapterError

MODALITIES = ("vision", "text", "cross")
SHARE = ("down", "none", "up", "all")
INIT = ("identity", "published")


@dataclass(frozen=True)
class UniAdapterConfig:
    """How adapters are built and where they sit (Lu et al., ICLR 2024, arXiv 2302.06605).

    ``UniAdapterConfig()`` is :meth:`paper`. Raises `UniAdapterError` naming the field if a value is out of range or
    contradicts another.

    The equations that the fields speak of, for a layer of width D with bottleneck r and scale s::

        z(h)        = ReLU( W_down · LN_in(h) + b_down )
        A_vision(h) = s · ( W_vision z(h) + b_vision )
        A_text(h)   = s · ( W_text   z(h) + b_text )
        A_cross(h)  = s · LN_x( W_cross z(h) + b_cross + W_text z(h) + b_text )
    """

    # r. The paper's middle choice: 4.8 M parameters at width 768, 2.14 % of BLIP-base's retrieval model.
    bottleneck: int = 128
    # s, any positive number, or "learned": one number a layer that starts at 0.1. 0.1 suits width 768; narrow models
    # want more, and the scale matters there as much as the learning rate does.
    scale: float | str = 0.1
    # Which of the three places get a branch. Without "text", A_text vanishes from every sum.
    modalities: tuple[str, ...] = MODALITIES
    # What the branches of a layer have in common: "down" (the paper's choice), "up", "all" (both), "none".
    share: str = "down"
    # Adds W_text z + b_text inside A_cross: the multimodal branch stands on what the text branch has learned.
    cross_reuses_text_up: bool = True
    # Adds A_text(a) in the multimodal layer too, with a taken before cross-attention.
    query_residual: bool = True
    # LN_x. Off, because it cannot start as the identity: see `_check_contradictions`.
    cross_norm: bool = False
    # "identity": all ups start at zero, and the adapted model starts as the frozen one, bit for bit.
    # "published": only the text up does, as in the authors' code.
    init: str = "identity"
    # Rank of the low-rank update of cross-attention's keys and values; None leaves it out.
    kv_bottleneck: int | None = None
    # Whether the tasks weigh a clip's frames by their similarity to the text (parameter-free frame-aware attention).
    frame_aware: bool = False
    # Whether copies of the model's small heads are trained beside the adapters: projections and matching head, or the
    # decoder's word head.
    train_heads: bool = True

    def __post_init__(self):
        self._check_sizes()
        self._check_choices()
        self._check_contradictions()

    @classmethod
    def paper(cls, **overrides) -> "UniAdapterConfig":
        """The method as the paper describes it, starting as the identity. ``overrides``: fields to change."""
        return cls(**overrides)

    @classmethod
    def official(cls, **overrides) -> "UniAdapterConfig":
        """What the authors published as code, number for number. ``overrides``: fields to change."""
        return cls(**{"bottleneck": 512, "cross_norm": True, "init": "published", "kv_bottleneck": 64} | overrides)

    @classmethod
    def per_modality(cls, **overrides) -> "UniAdapterConfig":
        """A plain adapter for each modality, the control that "unified" has to be compared with. ``overrides``: fields.

        Vision, text and cross have a down and an up of their own, and nothing of another branch enters a sum: no shared
        down, no reuse of the text up, no query residual. Places, scale, start and heads are those of :meth:`paper`. At
        the same bottleneck it has about 3/2 of the parameters: compare at the same number of them
        (`accounting.bottleneck_for`).

        LN_in stays one a layer, which ties nothing together: behind it stands a down of the branch's own, and what
        LN_in's weight and bias can do, that down can do as well. For LN_in(h) = g * n(h) + c, with n(h) the normalised h::

            W_down · LN_in(h) + b_down = (W_down · diag(g)) n(h) + (W_down · c + b_down)
        """
        uncoupled = {"share": "none", "cross_reuses_text_up": False, "query_residual": False}
        return cls(**uncoupled | overrides)

    def to_dict(self) -> dict:
        """The fields as plain values that JSON can hold."""
        return asdict(self) | {"modalities": list(self.modalities)}

    @classmethod
    def from_dict(cls, values: dict) -> "UniAdapterConfig":
        """The inverse of :meth:`to_dict`. Raises `UniAdapterError` for names that are no field."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise UniAdapterError(
                f"UniAdapterConfig has no field {', '.join(unknown)}.", f"Its fields are {', '.join(known)}."
            )
        return cls(**values)

    def _check_sizes(self):
        if not _is_count(self.bottleneck):
            _reject("bottleneck", self.bottleneck, "a whole number of at least 1", "Give the width r, such as 128.")
        if self.kv_bottleneck is not None and not _is_count(self.kv_bottleneck):
            _reject("kv_bottleneck", self.kv_bottleneck, "None or a whole number of at least 1", "None leaves it out.")
        if self.scale != "learned" and not _is_positive(self.scale):
            _reject("scale", self.scale, 'a positive number or "learned"', "The paper's value is 0.1 at width 768.")

    def _check_choices(self):
        for name, allowed in (("share", SHARE), ("init", INIT)):
            if getattr(self, name) not in allowed:
                _reject(name, getattr(self, name), f"one of {', '.join(allowed)}", "Choose one of these.")
        for name in ("cross_reuses_text_up", "query_residual", "cross_norm", "frame_aware", "train_heads"):
            if not isinstance(getattr(self, name), bool):
                _reject(name, getattr(self, name), "True or False", "Give one of the two.")

        given, known = self.modalities, f"some of {', '.join(MODALITIES)}"
        is_group = isinstance(given, (tuple, list, set, frozenset))
        if not is_group or not given or not all(name in MODALITIES for name in given):
            _reject("modalities", given, known, 'For example modalities=("vision", "text").')
        # Kept in one order, so that two configs that mean the same are equal.
        object.__setattr__(self, "modalities", tuple(name for name in MODALITIES if name in given))

    def _check_contradictions(self):
        one_up = self.share in ("up", "all")
        # LN_x divides by sqrt(var + eps). Behind zero ups it would see a constant, var = 0, and multiply every gradient
        # by 1/sqrt(eps) = 316: a model that starts as the identity and leaves it with a leap.
        if "cross" in self.modalities and self.cross_norm and self.init == "identity":
            raise UniAdapterError(
                'cross_norm=True contradicts init="identity": LN_x behind ups of zero would see a constant, and its '
                "gradient would be scaled by 1/sqrt(eps).",
                'Leave LN_x out with cross_norm=False, or start with init="published".',
            )
        if "cross" in self.modalities and self.cross_reuses_text_up and one_up:
            raise UniAdapterError(
                f'cross_reuses_text_up=True contradicts share="{self.share}": text and cross already have one up.',
                "Set cross_reuses_text_up=False.",
            )
        if one_up and self.init == "published":
            raise UniAdapterError(
                f'init="published" contradicts share="{self.share}": it starts the text up alone at zero, and here '
                "all branches have one up.",
                'Set init="identity" and cross_norm=False.',
            )


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def _reject(field: str, value, expected: str, cure: str):
    raise UniAdapterError(f"{field} is {value!r}, expected {expected}.", cure)
