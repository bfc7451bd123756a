"""Video-text retrieval with BLIP: image retrieval in which a clip stands in an image's place (arXiv 2302.06605).

What is new is all in `Clips`. A clip's tokens are those of its frames in a row, its feature is that of the mean of their
CLS, and with frame-aware attention every text weighs the frames by their similarity to itself. Training and evaluation
are `retrieval`'s. The authors' evaluation left the frame weights out that their training had used; here both use them.

Data is a ``datasets.Dataset`` (or a list of dicts) with the columns ``frames`` (a list of PIL images, as many in every
clip) and ``captions`` (list of str), such as `worlds.clips.load_clips` makes.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from uniadapter_edu.attention import frame_weights
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import active_config, encode_video
from uniadapter_edu.losses import at_least_float32
from uniadapter_edu.metrics import RetrievalMetrics
from uniadapter_edu.tasks.retrieval import (
    Gallery,
    Images,
    RetrievalTask,
    blip_of,
    evaluate_retrieval,
    preprocess,
    search,
    unwrapped,
)


class Clips(Images):
    """Clips to be looked at. ``frame_aware``: whether texts weigh the frames; None follows the adapters' config.

    Without adapters, or inside ``adapters_disabled``, None means no. Weights have no parameters, so that True works for
    any model, the frozen backbone included.
    """

    column, content = "frames", "a list of PIL images"

    def __init__(self, frame_aware: bool | None = None):
        self.frame_aware = frame_aware

    def pixels(self, processor, rows: Sequence) -> Tensor:
        """B rows of a data set, or bare lists of images -> uint8 pixels (B, F, 3, H, W).

        Raises `UniAdapterError` if a clip is empty, or if the clips have different numbers of frames.
        """
        clips = [self.of(row) for row in rows]
        _check_clips(clips)
        pictures = preprocess(processor, [picture for clip in clips for picture in clip])  # (B·F, 3, H, W)
        return pictures.unflatten(0, (len(clips), -1))  # (B·F, 3, H, W) -> (B, F, 3, H, W)

    def encode(self, model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (B, F, 3, H, W) -> frame-major tokens (B, F·n, D), the clips' features (B, P), the frames' (B, F, P)."""
        model = blip_of(model)
        tokens, feature = encode_video(model, pixel_values)
        cls = tokens.unflatten(1, (pixel_values.shape[1], -1))[:, :, 0]  # (B, F·n, D) -> (B, F, n, D) -> (B, F, D)
        frames = F.normalize(at_least_float32(model.vision_proj(cls)), dim=-1)
        return tokens, F.normalize(at_least_float32(feature), dim=-1), frames

    def tokens(self, model: nn.Module, pixel_values: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) -> frame-major tokens (B, F·n, D) alone, by any of transformers' BLIPs."""
        return encode_video(unwrapped(model), pixel_values)[0]

    def weights(self, model: nn.Module, text_features: Tensor, frame_features: Tensor) -> Tensor | None:
        """K texts of each clip (B, K, P) and its frames (B, F, P) -> w (B, K, F), or None where frames count alike."""
        # w_f = < t, v_f >, for each text its own
        return frame_weights(text_features, frame_features[:, None]) if self.weighs_frames(model) else None

    def weighs_frames(self, model: nn.Module) -> bool:
        """Whether texts weigh the frames in this model as it is now."""
        config = active_config(model)
        return bool(config and config.frame_aware) if self.frame_aware is None else self.frame_aware


class VideoRetrievalTask(RetrievalTask):
    """Trains a BLIP on contrast + matching of clips and texts; the arguments are those of `RetrievalTask`.

    ``frame_aware``: whether each text weighs a clip's frames while it is matched, the drawn mismatches included; None
    follows the adapters' config. No gradient flows into the weights. Give the same to `evaluate_video_retrieval`.

    Raises `UniAdapterError` if the model has no text feature to weigh frames by, as those for answering and captioning.
    """

    def __init__(
        self, model: nn.Module, processor, hardness: float = 1.0, seed: int = 0, frame_aware: bool | None = None
    ):
        super().__init__(model, processor, hardness, seed)
        self.medium = Clips(frame_aware)


def evaluate_video_retrieval(
    model: nn.Module,
    processor,
    dataset,
    top_k: int = 16,
    batch_size: int = 16,
    progress: bool = True,
    frame_aware: bool | None = None,
) -> RetrievalMetrics:
    """Score retrieval among clips as `evaluate_retrieval` does among images, in two stages; ``images`` counts clips.

    Only the second stage, matching, looks at frames apart, and weighs them for each pair of a text and a clip by
    ``frame_aware``: True, False, or as the adapters' config says. ``batch_size``: clips, or texts, encoded at once.
    """
    return evaluate_retrieval(model, processor, dataset, top_k, batch_size, progress, Clips(frame_aware))


def search_clips(
    model: nn.Module,
    processor,
    gallery,
    queries: Sequence[str],
    top_k: int = 16,
    matching: bool = True,
    frame_aware: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``top_k`` clips for each query, best first: indices and scores, both (Q, top_k). As `search` among images.

    ``gallery`` is a data set of clips, a list of lists of PIL images, or an encoded gallery of clips,
    ``encode_gallery(model, processor, clips, medium=Clips())``. ``frame_aware`` as in `evaluate_video_retrieval`.
    """
    if isinstance(gallery, Gallery):
        if gallery.frames is None:
            raise UniAdapterError("the gallery holds images, expected clips", "use search(), or encode clips.")
        gallery = gallery if frame_aware is None else replace(gallery, medium=Clips(frame_aware))
    return search(model, processor, gallery, queries, top_k, matching, Clips(frame_aware))


def _check_clips(clips: Sequence[Sequence]) -> None:
    """Raise `UniAdapterError` unless all clips have the same number of frames, at least one."""
    for i, clip in enumerate(clips):
        if not isinstance(clip, (list, tuple)) or not clip:
            raise UniAdapterError(
                f"frames of clip {i} is {clip!r}, expected a list of at least one PIL image",
                "give every clip its frames as a list, and leave out clips without any.",
            )
    if len(counts := sorted({len(clip) for clip in clips})) > 1:
        raise UniAdapterError(
            f"the clips of a batch have {', '.join(map(str, counts))} frames, expected as many in each",
            "take the same number of frames from every clip, evenly spaced.",
        )
