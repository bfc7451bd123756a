"""The emoji world: what a split promises, what a caption says, what a picture shows."""

import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.worlds import emoji
from uniadapter_edu.worlds.own import own_pictures


def test_the_world_is_as_large_as_its_data_card_says():
    assert len(emoji.concepts()) == 814
    assert len(emoji.known_concepts()) + len(emoji.held_out_concepts()) == 814
    for style in emoji.TARGET_STYLES:
        assert set(emoji.sprites(style)) == set(emoji.concepts())
    drawn = Counter(c for style in emoji.SOURCE_STYLES for c in emoji.sprites(style))
    assert min(drawn[c] for c in emoji.concepts()) >= 2, (
        "a concept needs two source styles, else its drawing is learnt by heart"
    )


def test_every_sprite_row_carries_its_licence():
    for style in emoji.SOURCE_STYLES + emoji.TARGET_STYLES:
        assert set(emoji.sprite_table(style)["licence"]) <= {"Apache-2.0", "CC-BY-4.0", "MIT"}


def test_target_concepts_are_partly_new_and_the_source_world_never_shows_a_held_out_one():
    new = set(emoji.target_concepts()) & set(emoji.held_out_concepts())
    assert (len(emoji.target_concepts()), len(new)) == (150, 30)
    shown = {c for row in emoji.load_split("source", "train", 200)["concepts"] for c in row}
    assert not shown & set(emoji.held_out_concepts())


def test_no_scene_is_in_two_splits_whatever_the_seed():
    keys = {
        s: {x.key for seed in range(3) for x in emoji.sample_scenes(150, s, emoji.target_concepts(), seed)}
        for s in emoji.SPLITS
    }
    assert not (keys["train"] & keys["test"] or keys["train"] & keys["val"] or keys["val"] & keys["test"])


@pytest.mark.parametrize("world", ["source", "target"])
def test_a_gallery_has_distinct_captions(world):
    told = [c for row in emoji.load_split(world, "test", 300)["captions"] for c in row]
    assert len(set(told)) == len(told)


def test_a_split_is_reproducible_and_a_seed_changes_it():
    first, again, other = (emoji.load_split("target", "test", 20, seed=seed) for seed in (1, 1, 2))
    assert first["scene"] == again["scene"] != other["scene"]
    assert all(np.array_equal(a, b) for a, b in zip(map(np.asarray, first["image"]), map(np.asarray, again["image"])))


def test_both_tellings_of_a_relation_agree():
    told = emoji.captions(emoji.Scene("left", ("fox", "violin"), "red"))
    assert "a fox left of a violin on a red background" in told
    assert "a violin right of a fox on a red background" in told
    assert "left fox right violin, crimson" in emoji.captions(emoji.Scene("left", ("fox", "violin"), "red"), "target")


def test_target_wording_has_words_that_the_source_wording_lacks():
    def words(wording):
        scenes = emoji.sample_scenes(200, "train", emoji.known_concepts()[:40], 0)
        return {w for s in scenes for c in emoji.captions(s, wording) for w in c.replace(",", "").split()}

    assert {"crimson", "huge", "leftmost", "canvas"} <= words("target") - words("source")


def test_a_relation_is_where_the_picture_has_it():
    """The scene's left half, drawn alone, is the left object: swapping the objects swaps the halves' colours."""
    scene = emoji.Scene("left", ("strawberry", "cucumber"), "white")
    swapped = emoji.Scene("left", ("cucumber", "strawberry"), "white")
    redness = []
    for s in (scene, swapped):
        pixels = np.asarray(emoji.render(s, "twemoji"), dtype=float)
        left, right = pixels[:, :48], pixels[:, 48:]
        redness.append((left[..., 0] - left[..., 1]).mean() - (right[..., 0] - right[..., 1]).mean())
    assert redness[0] > 5 > -5 > redness[1]


def test_sprites_are_never_enlarged_and_pictures_have_the_canvas_size():
    assert max(*emoji.SIZES.values(), emoji.PAIR_SIZE, emoji.COUNT_SIZE) <= 64
    assert emoji.render(emoji.Scene("single", ("fox",), "blue", size="big"), "noto").size == (
        emoji.CANVAS,
        emoji.CANVAS,
    )


def test_a_twin_keeps_the_objects_and_changes_what_is_said():
    draw = random.Random(0)
    for scene in emoji.sample_scenes(100, "train", emoji.target_concepts(), 0):
        other = emoji.twin(draw, scene)
        assert sorted(other.concepts) == sorted(scene.concepts) and other.key != scene.key


@pytest.mark.parametrize(
    "call",
    [
        lambda: emoji.load_split("moon"),
        lambda: emoji.load_split("target", "dev"),
        lambda: emoji.load_split("target", style="cubist"),
        lambda: emoji.sample_scenes(10_000, "test", emoji.concepts()[:2], 0),
    ],
)
def test_bad_requests_name_cause_and_cure(call):
    with pytest.raises(UniAdapterError, match=".+\n.+"):
        call()


def test_own_pictures_become_the_same_kind_of_data(tmp_path):
    Image.new("L", (30, 50)).save(tmp_path / "grey.png")
    data = own_pictures(
        [tmp_path / "grey.png", Image.new("RGBA", (9, 9))], ["a grey wall", ["a hole", "nothing at all"]]
    )
    assert data[0]["image"].mode == "RGB" and data["captions"] == [["a grey wall"], ["a hole", "nothing at all"]]
    for bad in (
        ([], []),
        ([tmp_path / "grey.png"], [[]]),
        ([tmp_path / "no.png"], ["x"]),
        ([tmp_path / "grey.png"], ["a", "b"]),
    ):
        with pytest.raises(UniAdapterError):
            own_pictures(*bad)


def test_a_style_that_does_not_draw_a_concept_says_so():
    assert "fox" not in emoji.sprites("fxemoji")
    with pytest.raises(UniAdapterError, match="fxemoji does not draw 'fox'"):
        emoji.render(emoji.Scene("single", ("fox",), "red", size="big"), "fxemoji")
