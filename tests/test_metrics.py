"""COCO's protocol against examples small enough to rank by hand."""

import json
import math

import pytest
import torch

from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.metrics import (
    RetrievalMetrics,
    cider,
    image_to_text_ranks,
    median_rank,
    recall_at_k,
    text_to_image_ranks,
    vqa_accuracy,
)

# 3 images, 5 captions: image 0 has captions 0 and 1, image 1 has 2, image 2 has 3 and 4.
IMAGE_OF_CAPTION = torch.tensor([0, 0, 1, 2, 2])
SCORES = torch.tensor(  # (captions, images)
    [
        [0.9, 0.1, 0.2],  # caption 0: its image 0 is first
        [0.3, 0.8, 0.5],  # caption 1: image 0 is third
        [0.7, 0.6, 0.1],  # caption 2: image 1 is second
        [0.2, 0.3, 0.4],  # caption 3: image 2 is first
        [0.5, 0.9, 0.6],  # caption 4: image 2 is second
    ]
)


def test_each_caption_is_a_query():
    assert text_to_image_ranks(SCORES, IMAGE_OF_CAPTION).tolist() == [1, 3, 2, 1, 2]


def test_the_best_placed_of_an_images_captions_counts():
    # image 0: caption 0 (0.9) leads. image 1: its caption 2 (0.6) is behind 4 (0.9) and 1 (0.8).
    # image 2: its caption 4 (0.6) leads, its other caption is no rival.
    assert image_to_text_ranks(SCORES.T, IMAGE_OF_CAPTION).tolist() == [1, 3, 1]


def test_own_captions_are_not_rivals_of_each_other():
    scores = torch.tensor([[0.5, 0.5, 0.4], [0.1, 0.2, 0.9]])  # (images, captions)
    assert image_to_text_ranks(scores, torch.tensor([0, 0, 1])).tolist() == [1, 1]


def test_metrics_of_the_example():
    metrics = RetrievalMetrics.from_scores(SCORES, SCORES.T, IMAGE_OF_CAPTION)
    assert metrics.t2i_r1 == pytest.approx(2 / 5) and metrics.i2t_r1 == pytest.approx(2 / 3)
    assert metrics.t2i_r5 == metrics.t2i_r10 == metrics.i2t_r5 == 1.0
    assert metrics.t2i_median_rank == 2.0 and metrics.i2t_median_rank == 1.0
    assert (metrics.images, metrics.captions) == (3, 5)


def test_each_direction_uses_its_own_scores():
    perfect = torch.eye(4)
    metrics = RetrievalMetrics.from_scores(perfect, -perfect, torch.arange(4))
    assert metrics.t2i_r1 == 1.0 and metrics.i2t_r1 == 0.0 and metrics.i2t_median_rank == 4.0


def test_equal_scores_are_no_success():
    constant = RetrievalMetrics.from_scores(torch.zeros(20, 20), torch.zeros(20, 20), torch.arange(20))
    assert constant.t2i_r1 == constant.i2t_r1 == constant.t2i_r10 == 0.0
    assert constant.t2i_median_rank == constant.i2t_median_rank == 20.0


def test_one_tie_costs_one_rank():
    assert text_to_image_ranks(torch.tensor([[0.5, 0.5, 0.1]]), torch.tensor([0])).tolist() == [2]


def test_nan_ranks_last():
    scores = torch.full((2, 2), float("nan"))
    assert text_to_image_ranks(scores, torch.arange(2)).tolist() == [2, 2]
    assert image_to_text_ranks(scores, torch.arange(2)).tolist() == [2, 2]


def test_equal_captions_of_two_images_stay_two_answers():
    scores = torch.tensor([[0.9, 0.8], [0.9, 0.8]])  # captions 0 and 1 are the same words, so their rows are equal
    assert text_to_image_ranks(scores, torch.arange(2)).tolist() == [1, 2]
    assert image_to_text_ranks(scores.T, torch.arange(2)).tolist() == [2, 2]


def test_recall_counts_from_rank_one_and_median_lies_between():
    ranks = torch.tensor([1, 2, 5, 6])
    assert [recall_at_k(ranks, k) for k in (1, 5, 10)] == [0.25, 0.75, 1.0]
    assert median_rank(ranks) == 3.5 and median_rank(ranks[:3]) == 2.0


def test_metrics_survive_json_with_their_first_stage():
    first = RetrievalMetrics.from_scores(SCORES, SCORES.T, IMAGE_OF_CAPTION)
    both = RetrievalMetrics.from_scores(SCORES, SCORES.T, IMAGE_OF_CAPTION, stage_one=first)
    assert RetrievalMetrics.from_dict(json.loads(json.dumps(both.to_dict()))) == both


def test_the_table_shows_percent_and_both_stages():
    first = RetrievalMetrics.from_scores(SCORES, SCORES.T, IMAGE_OF_CAPTION)
    both = RetrievalMetrics.from_scores(SCORES, SCORES.T, IMAGE_OF_CAPTION, stage_one=first)
    assert "40.0" in str(first) and len(str(first).splitlines()) == 3
    lines = str(both).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1  # aligned


@pytest.mark.parametrize("image_of_caption", [torch.arange(4), torch.tensor([0, 0, 1, 2, 3])])
def test_answers_that_do_not_fit_the_scores_are_refused(image_of_caption):
    with pytest.raises(UniAdapterError, match="5 captions and 3 images"):
        text_to_image_ranks(SCORES, image_of_caption)


def test_an_image_without_a_caption_is_named():
    with pytest.raises(UniAdapterError, match="image 1 has no caption"):
        image_to_text_ranks(SCORES.T, torch.tensor([0, 0, 2, 2, 2]))


# ---- answers and captions that people gave


@pytest.mark.parametrize(
    ("said", "answers", "expected"),
    [
        ("red", ["red"] * 10, 1.0),
        ("red", ["red"] * 4 + ["blue"] * 6, 1.0),
        (
            "red",
            ["red"] * 3 + ["blue"] * 7,
            0.9,
        ),  # asked without one of the three who say so, it is 2 / 3: 3 of 10 times
        ("red", ["red"] * 2 + ["blue"] * 8, 0.6),
        ("red", ["red"] + ["blue"] * 9, 0.3),
        ("green", ["red"] * 10, 0.0),
        ("The two Dogs!", ["2 dogs"] * 10, 1.0),
        ("don't know", ["dont know"] * 10, 1.0),
        ("red", ["red"], 1.0),
    ],
)
def test_vqa_accuracy(said, answers, expected):
    assert vqa_accuracy(said, answers) == pytest.approx(expected)


def test_cider_by_hand():
    """Two pictures; of the caption "a cat", both words and the pair are the first picture's own: tf-idf log 2 each."""
    references = [["a cat"], ["two dogs"]]
    same = cider(["a cat", "two dogs"], references)
    assert same == pytest.approx(10 * 2 / 4)  # 1 for n = 1 and 2, nothing for n = 3 and 4, which nobody says
    half = cider(["cat", "two dogs"], references)
    # <min(h, r), r> / |h| |r| = 1 / sqrt 2 for n = 1, nothing for n = 2; one word shorter
    expected = math.exp(-1 / 72) / math.sqrt(2)
    assert half == pytest.approx(10 / 4 * (expected + 2) / 2)
    assert cider(["a a a a cat", "two dogs"], references) < same  # counts are cut to the reference's
    assert cider(["two dogs", "a cat"], references) == 0.0
    assert cider(["", ""], references) == 0.0
    assert cider(["a cat"], [["a cat"]]) == 0.0  # of a single picture nothing is rare


def test_cider_is_the_mean_over_references():
    references = [["a cat", "one bird"], ["two dogs"]]
    assert cider(["a cat", "two dogs"], references) == pytest.approx((10 * 2 / 4 / 2 + 10 * 2 / 4) / 2)
