"""Frame weights and frame-aware keys, on numbers that can be checked by hand."""

import pytest
import torch

from uniadapter_edu.attention import frame_multipliers, frame_weights, scale_patch_keys


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
