"""Frame weights and frame-aware keys, on numbers that can be checked by hand."""

import pytest
import torch

from uniadapter_edu.attention import frame_multipliers, frame_weights, scale_patch_keys
from uniadapter_edu.errors import UniAdapterError


def test_weights_are_cosines_without_gradient():
    text = torch.tensor([[1.0, 0.0]], requires_grad=True)
    frames = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]]], requires_grad=True)
    w = frame_weights(text, frames)
    torch.testing.assert_close(w, torch.tensor([[1.0, 0.6, -1.0]]))
    assert not w.requires_grad


def test_multipliers_by_hand():
    # w / 4 = ln 3 and 0: softmax gives 3/4 and 1/4, times F = 2
    w = torch.tensor([[4.0 * torch.log(torch.tensor(3.0)), 0.0]])
    torch.testing.assert_close(frame_multipliers(w), torch.tensor([[1.5, 0.5]]))


def test_equal_weights_change_nothing():
    assert torch.equal(frame_multipliers(torch.full((2, 4), 0.3)), torch.ones(2, 4))


def test_no_gradient_flows_into_the_weights():
    w = torch.rand(1, 3, requires_grad=True)
    assert not frame_multipliers(w).requires_grad


def test_patches_are_scaled_and_cls_is_not():
    keys = torch.ones(1, 6, 2)  # 2 frames of 3 tokens: CLS and two patches
    scaled = scale_patch_keys(keys, torch.tensor([[1.5, 0.5]]))
    torch.testing.assert_close(scaled[0, :, 0], torch.tensor([1.0, 1.5, 1.5, 1.0, 0.5, 0.5]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_keys_keep_their_dtype(dtype):
    assert scale_patch_keys(torch.ones(1, 4, 2, dtype=dtype), torch.ones(1, 2)).dtype == dtype


def test_scaling_keys_is_scaling_scores():
    torch.manual_seed(0)
    query, keys, m = torch.randn(1, 5, 8), torch.randn(1, 6, 8), torch.tensor([[1.2, 0.8]])
    per_token = torch.tensor([1.0, 1.2, 1.2, 1.0, 0.8, 0.8])
    scores = query @ scale_patch_keys(keys, m).mT
    torch.testing.assert_close(scores, (query @ keys.mT) * per_token)


@pytest.mark.parametrize(
    ("cause", "call"),
    [
        ("do not fit frame features", lambda: frame_weights(torch.ones(2, 4), torch.ones(2, 3, 5))),  # another width
        ("do not fit frame features", lambda: frame_weights(torch.ones(2, 4), torch.ones(3, 3, 4))),  # other clips
        ("do not fit frame features", lambda: frame_weights(torch.ones(2, 4), torch.ones(2, 4))),  # no frames
        ("are empty", lambda: frame_multipliers(torch.ones(2, 0))),
        ("are empty", lambda: frame_multipliers(torch.ones(0, 3))),
        ("dtype torch.int64", lambda: frame_multipliers(torch.ones(2, 3, dtype=torch.long))),
        ("dtype torch.bool", lambda: frame_multipliers(torch.ones(2, 3, dtype=torch.bool))),
        ("NaN or infinity", lambda: frame_multipliers(torch.tensor([[0.1, float("nan")]]))),
        ("NaN or infinity", lambda: frame_multipliers(torch.tensor([[0.1, float("inf")]]))),
        ("do not fit keys", lambda: scale_patch_keys(torch.ones(2, 6, 4), torch.ones(2, 4))),  # 6 tokens of 4 frames
        ("do not fit keys", lambda: scale_patch_keys(torch.ones(2, 6, 4), torch.ones(1, 2))),  # another clip's
        ("do not fit keys", lambda: scale_patch_keys(torch.ones(2, 6, 4), torch.ones(2, 1, 2))),
    ],
)
def test_what_does_not_fit_is_refused(cause, call):
    with pytest.raises(UniAdapterError, match=cause) as caught:
        call()
    assert caught.value.cure and "\n" not in caught.value.cause + caught.value.cure


def test_texts_of_a_clip_have_weights_of_their_own():
    texts, frames = torch.randn(2, 4, 5), torch.randn(2, 3, 5)
    w = frame_weights(texts, frames[:, None])
    assert w.shape == (2, 4, 3)
    torch.testing.assert_close(w[:, 1], frame_weights(texts[:, 1], frames))
