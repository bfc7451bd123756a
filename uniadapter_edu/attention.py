"""Frame weights and frame-aware keys: parameter-free attention to the frames of a clip that a text is about.

Pure functions of tensors (Lu et al., arXiv 2302.06605). B clips, F frames, n tokens a frame of which the first is its CLS,
D hidden width, P the width of the contrastive features.
"""

import torch
from torch.nn.functional import softmax

from .errors import UniAdapterError

TEMPERATURE = 4.0  # over the frames: cosines lie close together, and 4 keeps the multipliers near 1


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
