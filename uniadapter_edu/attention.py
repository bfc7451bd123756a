"""Frame weights and frame-aware keys: parameter-free attention to the frames of a clip that a text is about.

Pure functions of tensors (Lu et al., arXiv 2302.06605). B clips, F frames, n tokens a frame of which the first is its CLS,
D hidden width, P the width of the contrastive features. At the end, attention itself, with or without frame weights, that
never holds all of its scores: H heads of width d.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention, softmax

from .errors import UniAdapterError

TEMPERATURE = 4.0  # over the frames: cosines lie close together, and 4 keeps the multipliers near 1
FUSED_FROM = 256  # keys; with fewer, scores are small enough to be held, and fusing saves little or nothing
SCALED_BYTES = 64 * 2**20  # of frame-aware keys, where each text has its own, that are in memory at a time


def frame_weights(text_feature: torch.Tensor, frame_features: torch.Tensor) -> torch.Tensor:
    """How much each frame looks like the text: text (B, P) and frames (B, F, P), both normalised -> w (B, F).

    For K texts a clip, (B, K, P) and (B, 1, F, P) give (B, K, F). The cosine is not divided by the contrastive
    temperature, and no gradient flows into it. Raises `UniAdapterError` if texts and frames do not fit each other.
    """
    _check_features(text_feature, frame_features)
    # w_f = < t, v_f >
    return torch.einsum("...p,...fp->...f", text_feature, frame_features).detach()


def frame_multipliers(w: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """Weights (B, F) -> multipliers m (B, F), whose mean over a clip's frames is 1. No gradient flows into ``w``.

    Raises `UniAdapterError` if there is no clip or no frame, if ``w`` holds whole numbers, or anything that is not finite.
    """
    _check_weights(w)
    # m_f = F · softmax_f( w_f / 4 )
    return w.shape[-1] * softmax(w.detach() / temperature, dim=-1)


def scale_patch_keys(keys: torch.Tensor, multipliers: torch.Tensor) -> torch.Tensor:
    """Multiply the keys of each frame's patches, not of its CLS, by the frame's m: (B, F·n, D), (B, F) -> (B, F·n, D).

    The tokens are frame-major: frame 0's n tokens first. Equivalent to multiplying those tokens' attention scores.
    Raises `UniAdapterError` if the numbers of clips or of frames do not fit.
    """
    B, N, D = keys.shape
    F = multipliers.shape[-1]
    if multipliers.shape != (B, F) or N % F:
        raise UniAdapterError(
            f"Multipliers of shape {tuple(multipliers.shape)} do not fit keys (B, F·n, D) of shape {tuple(keys.shape)}.",
            "Give one multiplier per clip and frame, and as many tokens for every frame.",
        )
    m = multipliers.to(keys)[:, :, None, None]  # (B, F, 1, 1)
    frames = keys.reshape(B, F, N // F, D)  # (B, F·n, D) -> (B, F, n, D)
    cls, patches = frames[:, :, :1], frames[:, :, 1:]
    return torch.cat([cls, m * patches], dim=2).reshape(B, N, D)  # (B, F, n, D) -> (B, F·n, D)


def fusing_pays(states: torch.Tensor, keys: int) -> bool:
    """Whether `attend` is faster than making all scores at once, for these hidden states and this number of keys.

    In half precision on a CPU, PyTorch's backward pass of it takes twice the time of the plain one, and more.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    slow_backward = device == "cpu" and dtype in (torch.bfloat16, torch.float16) and torch.is_grad_enabled()
    return keys >= FUSED_FROM and not slow_backward


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    multipliers: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax( q kᵀ / √d + mask ) v, whose table of scores is never in memory as a whole: (B, H, T, d), as ``q``.

    q: (B, H, T, d). k, v: (B, H, N, d). mask: what is added to the scores, (B, 1, 1, N) or None. multipliers: (B, K, F)
    where T holds K texts, one after the other, that weigh the F frames of the N tokens each in its own way. Then every
    text has keys of its own, which are made for as many texts at a time as `SCALED_BYTES` allows.
    """
    if mask is not None:
        mask = mask.to(q.dtype).clamp_min(torch.finfo(q.dtype).min)  # a lower minimum would be -inf in half precision
    if multipliers is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)
    per_text = q.unflatten(2, (multipliers.shape[1], -1))  # (B, H, K·T, d) -> (B, H, K, T, d)
    at_once = max(1, SCALED_BYTES // k.nbytes)
    blocks = zip(per_text.split(at_once, dim=2), multipliers.split(at_once, dim=1), strict=True)
    return torch.cat([_text_by_text(q, k, v, mask, m) for q, m in blocks], dim=2).flatten(2, 3)


def _text_by_text(q, k, v, mask, multipliers) -> torch.Tensor:
    """Of some texts (B, H, K, T, d), each with multipliers (B, K, F) of its own: (B, H, K, T, d)."""
    B, H, K, _, d = q.shape
    N = k.shape[2]
    m = _of_tokens(multipliers, N).to(k)[:, :, None, :, None]  # (B, K, 1, N, 1)
    keys = (k[:, None] * m).flatten(0, 1)  # (B, K, H, N, d) -> (B·K, H, N, d)
    values = v[:, None].expand(B, K, H, N, d).flatten(0, 1)
    mask = mask if mask is None else mask.repeat_interleave(K, dim=0)
    context = scaled_dot_product_attention(q.transpose(1, 2).flatten(0, 1), keys, values, attn_mask=mask)
    return context.unflatten(0, (B, K)).transpose(1, 2)  # (B·K, H, T, d) -> (B, H, K, T, d)


def _of_tokens(multipliers: torch.Tensor, tokens: int) -> torch.Tensor:
    """(B, K, F) of frames -> (B, K, F·n) of their tokens, frame-major: 1 for each frame's CLS."""
    m = multipliers.repeat_interleave(tokens // multipliers.shape[-1], dim=-1)
    m[..., :: tokens // multipliers.shape[-1]] = 1
    return m


def _check_features(text: torch.Tensor, frames: torch.Tensor):
    """Raise `UniAdapterError` unless each text has one clip, or clips are spread over texts by dimensions of 1."""
    ranks_fit = frames.ndim == text.ndim + 1 and text.shape[-1] == frames.shape[-1]
    if not ranks_fit or any(a != b and 1 not in (a, b) for a, b in zip(text.shape[:-1], frames.shape[:-2])):
        raise UniAdapterError(
            f"Text features {tuple(text.shape)} do not fit frame features {tuple(frames.shape)}, expected (B, P) and "
            "(B, F, P).",
            "Give one text a clip and as many features, both projected and normalised.",
        )


def _check_weights(w: torch.Tensor):
    """Raise `UniAdapterError` for weights of which no multipliers can be made."""
    if not w.numel():
        raise UniAdapterError(
            f"Frame weights of shape {tuple(w.shape)} are empty, expected at least one clip of at least one frame.",
            "Leave out clips without frames.",
        )
    if not w.is_floating_point():
        raise UniAdapterError(
            f"Frame weights have the dtype {w.dtype}, expected floating-point cosines.",
            "Give attention.frame_weights(text, frames); whole numbers are not similarities.",
        )
    if not w.isfinite().all():
        raise UniAdapterError(
            "Frame weights hold NaN or infinity, expected cosines between -1 and 1.",
            "Look for features that overflow or are all zero before they are normalised.",
        )
