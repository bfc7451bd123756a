"""Losses against their formulas; hard negatives against what they promise."""

import pytest
import torch
import torch.nn.functional as F

from uniadapter_edu.losses import contrastive_loss, hard_negatives, matching_loss


def features(batch, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = (torch.randn(batch, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return tuple(F.normalize(x, dim=-1) for x in draw)


def test_contrastive_loss_is_symmetric_infonce():
    images, texts = features(5)
    logits = images @ texts.T / 0.07
    target = torch.arange(5)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, 0.07), expected)
    torch.testing.assert_close(contrastive_loss(images, texts, 0.07), contrastive_loss(texts, images, 0.07))


def test_targets_are_spread_over_texts_that_fit():
    images, texts = features(3)
    same = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)  # text 1 also fits image 0
    logits = images @ texts.T
    rows, columns = -logits.log_softmax(1), -logits.log_softmax(0)
    image_to_text = (rows[0, 0] / 2 + rows[0, 1] / 2 + rows[1, 1] + rows[2, 2]) / 3
    text_to_image = (columns[0, 0] + columns[0, 1] / 2 + columns[1, 1] / 2 + columns[2, 2]) / 3
    torch.testing.assert_close(contrastive_loss(images, texts, 1.0, same), (image_to_text + text_to_image) / 2)


def test_half_precision_features_lose_no_more_than_their_own_rounding():
    images, texts = features(16)
    half = images.bfloat16(), texts.bfloat16()
    torch.testing.assert_close(contrastive_loss(*half, 0.01), contrastive_loss(*(x.float() for x in half), 0.01))
    with torch.autocast("cpu", torch.bfloat16):
        single = contrastive_loss(images.float(), texts.float(), 0.01)
    torch.testing.assert_close(single.double(), contrastive_loss(images, texts, 0.01), atol=1e-4, rtol=1e-4)


def test_temperature_gets_a_gradient():
    temperature = torch.tensor(0.07, requires_grad=True, dtype=torch.float64)
    contrastive_loss(*features(4), temperature).backward()
    assert temperature.grad.abs() > 0


def test_matching_loss_leaves_out_what_is_marked():
    logits = torch.randn(2, 3, 2, dtype=torch.float64)
    labels = torch.tensor([[1, 0, 0], [1, 0, -100]])
    log_p = logits.log_softmax(-1)
    expected = -(log_p[:, 0, 1].sum() + log_p[0, 1:, 0].sum() + log_p[1, 1, 0]) / 5
    torch.testing.assert_close(matching_loss(logits, labels), expected)


# ---- hard negatives


def draw(similarity, same=None, seed=0, **knobs):
    same = torch.eye(len(similarity), dtype=torch.bool) if same is None else same
    return hard_negatives(similarity, same, generator=torch.Generator().manual_seed(seed), **knobs)


@pytest.mark.parametrize("batch", [2, 3, 5, 64])
def test_negatives_never_fit_and_no_text_gets_two_hard_images(batch):
    generator = torch.Generator().manual_seed(batch)
    similarity = torch.randn(batch, batch, generator=generator) * 10
    same = torch.eye(batch, dtype=torch.bool) | (torch.rand(batch, batch, generator=generator) < 0.1)
    for seed in range(20):
        negatives, labels = draw(similarity, same, seed)
        for column in (0, 1):
            images = (labels[:, column] == 0).nonzero()[:, 0]
            assert not same[images, negatives[images, column]].any()
        texts = negatives[labels[:, 1] == 0, 1]
        assert len(texts.unique()) == len(texts)


def test_at_most_one_text_in_a_batch_goes_without_a_hard_image():
    missing = [int((draw(torch.zeros(8, 8), seed=seed)[1][:, 1] != 0).sum()) for seed in range(200)]
    assert max(missing) == 1 and 0 < sum(missing) < 200 * 0.3  # about 1 in 8


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_in_which_everything_fits_has_no_negatives(batch):
    negatives, labels = draw(torch.zeros(batch, batch), torch.ones(batch, batch, dtype=torch.bool))
    assert (labels == -100).all() and (negatives >= 0).all() and (negatives < batch).all()
    logits = torch.randn(batch, 3, 2)
    own = torch.ones(batch, 1, dtype=torch.long)
    assert matching_loss(logits, torch.cat([own, labels], 1)).isfinite()


def test_two_pairs_always_exchange_their_texts():
    negatives, labels = draw(torch.zeros(2, 2))
    assert negatives.tolist() == [[1, 1], [0, 0]] and (labels == 0).all()


@pytest.mark.parametrize("hardness", [0.0, 1.0, 2.0])
def test_draws_follow_the_softmax_and_hardness_bends_it(hardness):
    similarity = torch.tensor([0.0, 2.0, 1.0, 0.0]).repeat(32, 8)  # every image finds text 1, 5, 9, ... most similar
    same = torch.eye(32, dtype=torch.bool)
    expected = (hardness * similarity).masked_fill(same, float("-inf")).softmax(1).mean(0)  # of each text
    generator = torch.Generator().manual_seed(0)
    draws = torch.cat([hard_negatives(similarity, same, hardness, generator)[0][:, 0] for _ in range(100)])
    observed = draws.bincount(minlength=32) / len(draws)
    torch.testing.assert_close(observed, expected, atol=0.012, rtol=0)
    assert (draws % 4 == 1).float().mean() == pytest.approx({0.0: 0.25, 1.0: 0.61, 2.0: 0.86}[hardness], abs=0.03)


def test_hard_images_are_drawn_by_similarity_too():
    similarity = 50 * torch.eye(6).roll(1, 0)  # image i resembles text i-1 above all
    negatives, labels = draw(similarity)
    assert (labels == 0).all() and negatives.tolist() == [[(i - 1) % 6] * 2 for i in range(6)]


def test_draws_repeat_with_the_generator_and_carry_no_gradient():
    similarity = torch.randn(16, 16, requires_grad=True)
    (first, labels), (second, _), (other, _) = draw(similarity), draw(similarity), draw(similarity, seed=1)
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert not first.requires_grad and not labels.requires_grad
