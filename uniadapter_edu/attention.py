"""Frame weights and frame-aware keys: parameter-free attention to the frames of a clip that a text is about.

Pure functions of tensors (Lu et al., arXiv 2302.06605). B clips, F frames, n tokens a frame of which the first is its CLS,
D hidden width, P the width of the contrastive features.
"""

import torch
from torch.nn.functional import softmax

TEMPERATURE = 4.0  # over the frames: cosines lie close together, and 4 keeps the multipliers near 1


def frame_weights(text_feature: torch.Tensor, frame_features: torch.Tensor) -> torch.Tensor:
    """How much each frame looks like the text: text (B, P) and frames (B, F, P), both normalised -> w (B, F).

    The cosine is not divided by the contrastive temperature, and no gradient flows into it.
    """
    # w_f = < t, v_f >
    return torch.einsum("bp,bfp->bf", text_feature, frame_features).detach()


def frame_multipliers(w: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """Weights (B, F) -> multipliers m (B, F), whose mean over a clip's frames is 1. No gradient flows into ``w``."""
    # m_f = F · softmax_f( w_f / 4 )
    return w.shape[-1] * softmax(w.detach() / temperature, dim=-1)


def scale_patch_keys(keys: torch.Tensor, multipliers: torch.Tensor) -> torch.Tensor:
    """Multiply the keys of each frame's patches, not of its CLS, by the frame's m: (B, F·n, D), (B, F) -> (B, F·n, D).

    The tokens are frame-major: frame 0's n tokens first. Equivalent to multiplying those tokens' attention scores.
    """
    B, N, D = keys.shape
    F = multipliers.shape[1]
    m = multipliers.to(keys)[:, :, None, None]  # (B, F, 1, 1)
    frames = keys.reshape(B, F, N // F, D)  # (B, F·n, D) -> (B, F, n, D)
    cls, patches = frames[:, :, :1], frames[:, :, 1:]
    return torch.cat([cls, m * patches], dim=2).reshape(B, N, D)  # (B, F, n, D) -> (B, F·n, D)
