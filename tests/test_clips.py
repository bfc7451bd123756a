"""Clips of the emoji world: what a split promises, what a caption says, what the frames show, where the distractors are."""

import re

import numpy as np
import pytest

from uniadapter_edu import viz
from uniadapter_edu.backbones import load_processor
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.worlds import clips, emoji
from uniadapter_edu.worlds.clips import Clip, captions, load_clips, render

EVENTS = [Clip(kind, ("fox",), "blue") for kind in clips.DIRECTIONS]
EVENTS += [Clip(kind, ("fox", "violin"), "blue") for kind in ("appears", "replaced")]


def pixels(pictures):
    """(F, H, W, 3), signed so that differences are right."""
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


def drawn(frame, clip):
    """(H, W) bool: where something stands before the background."""
    return (frame != emoji.COLOURS[clip.colour]).any(-1)


def centre(mask):
    """(x, y) of what is drawn."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()])


# ---- data sets


def test_a_data_set_is_reproducible_and_a_seed_changes_it():
    first, again, other = (load_clips(size=12, frames=5, distractors=2, seed=seed) for seed in (1, 1, 2))
    assert first["clip"] == again["clip"] != other["clip"]
    assert first["distractors"] == again["distractors"]
    for one, two in zip(first, again):
        assert np.array_equal(pixels(one["frames"]), pixels(two["frames"]))


def test_no_clip_is_in_two_splits_whatever_the_seed():
    keys = {
        split: {c.key for seed in range(3) for c in clips.sample_clips(100, split, emoji.target_concepts(), seed)}
        for split in emoji.SPLITS
    }
    assert not (keys["train"] & keys["test"] or keys["train"] & keys["val"] or keys["val"] & keys["test"])
    assert all(len(found) > 200 for found in keys.values())


def test_a_clip_and_its_like_run_backwards_have_one_key_and_no_other_two_clips_do():
    one, back = (Clip("replaced", pair, "red") for pair in (("fox", "violin"), ("violin", "fox")))
    assert one.key == back.key and one.split == back.split
    assert np.array_equal(pixels(render(one, "noto")), pixels(render(back, "noto"))[::-1])
    # only there are the frames the same in another order
    names, found = ("fox", "violin", "owl"), {}
    for kind in clips.KINDS:
        for a in names:
            for b in names:
                if a != b:
                    clip = Clip(kind, (a,) if kind in clips.DIRECTIONS else (a, b), "red")
                    found.setdefault(clip.key, set()).add(clip)
    assert {frozenset(c.kind for c in same) for same in found.values() if len(same) > 1} == {frozenset(["replaced"])}


@pytest.mark.parametrize("world", ["source", "target"])
def test_a_row_says_what_it_shows(world):
    data = load_clips(world, "test", size=60, frames=3)
    styles = emoji.SOURCE_STYLES if world == "source" else emoji.TARGET_STYLES[:1]
    names = emoji.known_concepts() if world == "source" else emoji.target_concepts()
    for row in data:
        clip = Clip(row["kind"], tuple(row["concepts"]), row["colour"])
        assert row["clip"] == clip.key and clip.split == "test"
        assert row["captions"] == captions(clip, world)
        assert row["style"] in styles and row["licence"] == emoji.sprite_table(row["style"])[0]["licence"]
        assert set(row["concepts"]) <= set(names)
        assert [frame.size for frame in row["frames"]] == [(emoji.CANVAS, emoji.CANVAS)] * 3
        assert np.array_equal(pixels(row["frames"]), pixels(render(clip, row["style"], 3)))
    assert {"appears", "replaced"} < set(data["kind"]) <= set(clips.KINDS)


# ---- captions


@pytest.mark.parametrize("world", ["source", "target"])
def test_a_gallery_has_distinct_captions(world):
    told = [text for row in load_clips(world, "test", 200, frames=2)["captions"] for text in row]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("wording", ["source", "target"])
def test_every_caption_says_what_happens_to_what_on_which_colour(wording):
    for clip in EVENTS:
        for text in captions(clip, wording):
            assert all(name in text for name in clip.concepts)
            assert ("blue" in text) and "{" not in text
            assert (clip.kind in text) == (clip.kind in clips.DIRECTIONS)
    texts = [text for clip in EVENTS for text in captions(clip, wording)]
    assert len(set(texts)) == len(texts) >= 3 * len(EVENTS)


def test_the_target_wording_has_words_of_its_own():
    def words(wording):
        return {word for clip in EVENTS for text in captions(clip, wording) for word in re.findall(r"\w+", text)}

    assert {"glide", "canvas", "incoming", "upward"} <= words("target") - words("source")


def test_the_shipped_tokenizer_knows_every_word_and_cuts_no_caption():
    tokenizer = load_processor().tokenizer
    for wording in ("source", "target"):
        templates, new_words = clips.WORDINGS[wording]
        texts = [*new_words.values(), *(text for texts in templates.values() for text in texts)]
        words = {word for text in texts for word in re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", text))}
        assert words <= set(tokenizer.get_vocab())
    names = sorted(emoji.concepts(), key=lambda name: len(tokenizer.tokenize(name)))[-2:]
    for clip in EVENTS:
        longest = Clip(clip.kind, tuple(names[: len(clip.concepts)]), "purple")
        for wording in ("source", "target"):
            assert max(len(ids) for ids in tokenizer(captions(longest, wording))["input_ids"]) <= 35


# ---- what the frames show


@pytest.mark.parametrize("kind", clips.DIRECTIONS)
@pytest.mark.parametrize("frames", [2, 5])
def test_what_moves_starts_in_the_middle_and_goes_where_the_caption_says(kind, frames):
    clip, way = Clip(kind, ("strawberry",), "white"), np.array(clips.DIRECTIONS[kind])
    for seed in range(3):
        video = pixels(render(clip, "twemoji", frames, seed))
        masks = [drawn(frame, clip) for frame in video]
        path = np.stack([centre(mask) for mask in masks])  # (F, 2)
        steps = (np.diff(path, axis=0) @ way, np.diff(path, axis=0) @ way[::-1])
        assert (steps[0] > 24 / (frames - 1) - 1).all() and np.allclose(steps[1], 0)
        assert abs((path[0] - 47.5) @ way) < 6 < (path[-1] - 47.5) @ way
        # the thing itself does not change
        assert len({mask.sum() for mask in masks}) == 1


def test_what_appears_joins_what_was_there():
    clip = EVENTS[-2]
    video = pixels(render(clip, "twemoji", 4))
    assert (video[0] == video[1]).all() and (video[2] == video[3]).all()
    before, after = drawn(video[1], clip), drawn(video[2], clip)
    assert (video[1] == video[2])[before].all()  # the first thing stays where it is
    joined = after & ~before
    assert joined.sum() > 200
    left = centre(before)[0] < 48
    assert (centre(joined)[0] > 48) == left  # on the free side
    assert (joined[:, :48] if left else joined[:, 48:]).sum() == 0


def test_what_is_replaced_leaves_its_place_to_the_other():
    clip = EVENTS[-1]
    video = pixels(render(clip, "twemoji", 4))
    assert (video[0] == video[1]).all() and (video[2] == video[3]).all()
    fox, violin = drawn(video[0], clip), drawn(video[3], clip)
    assert (video[0] != video[3]).any(-1).sum() > 200
    assert np.abs(centre(fox) - centre(violin)).max() < 6
    # alone, each has as many pixels as where it stands beside the other
    pair = drawn(pixels(render(EVENTS[-2], "twemoji", 2))[1], clip)
    assert fox.sum() + violin.sum() == pair.sum()


@pytest.mark.parametrize("clip", EVENTS, ids=lambda clip: clip.kind)
def test_two_frames_are_enough_to_show_each_event(clip):
    first, last = pixels(render(clip, "fluent-line", 2))
    assert (first != last).any(-1).sum() > 200
    # and its beginning and its end are those of a longer clip
    longer = pixels(render(clip, "fluent-line", 7))
    assert np.array_equal(longer[[0, -1]], np.stack([first, last]))


# ---- distractors


def test_distractors_are_where_the_column_says_and_nowhere_else():
    plain, mixed = load_clips(size=30, frames=4), load_clips(size=30, frames=6, distractors=2)
    assert plain["clip"] == mixed["clip"] and set(map(len, plain["distractors"])) == {0}
    for clean, row in zip(plain, mixed):
        assert len(row["frames"]) == 6 and len(set(row["distractors"])) == 2
        video = pixels(row["frames"])
        event = [place for place in range(6) if place not in row["distractors"]]
        assert np.array_equal(video[event], pixels(clean["frames"]))
        for place in row["distractors"]:  # on another background, hence visible in any corner that nothing covers
            shown = (video[place] == emoji.COLOURS[row["colour"]]).all(-1).mean()
            assert shown < 0.05
    places = {place for row in mixed["distractors"] for place in row}
    assert places == set(range(6))


def test_a_distractor_shows_none_of_the_clips_concepts(monkeypatch):
    scenes, plain = [], emoji.render
    monkeypatch.setattr(emoji, "render", lambda scene, *args: scenes.append(scene) or plain(scene, *args))
    data = load_clips(split="val", size=40, frames=4, distractors=2)
    assert len(scenes) == 80
    for i, scene in enumerate(scenes):
        assert not set(scene.concepts) & set(data[i // 2]["concepts"])
        assert scene.colour != data[i // 2]["colour"]


# ---- the sheet


def test_a_sheet_shows_every_frame_and_marks_the_distractors():
    data = load_clips(split="test", size=3, frames=4, distractors=1)
    panels = viz.clip_sheet(data, n=2, caption=1).axes
    assert len(panels) == 2 * 4
    for i, panel in enumerate(panels):
        row = data[i // 4]
        assert np.array_equal(panel.get_images()[0].get_array(), np.asarray(row["frames"][i % 4]))
        texts = [text.get_text() for text in panel.texts]
        assert ("distractor" in texts) == (i % 4 in row["distractors"])
        assert (row["captions"][1] in texts) == (i % 4 == 0)


def test_a_sheet_needs_no_column_of_distractors():
    data = load_clips(split="test", size=2, frames=2).remove_columns("distractors")
    assert len(viz.clip_sheet(data, caption=None).axes) == 4


# ---- bad requests


@pytest.mark.parametrize(
    "request_, cause",
    [
        ({"frames": 4, "distractors": 4}, "4 distractors among 4 frames leave 0"),
        ({"frames": 4, "distractors": 3}, "leave 1 to show the event, expected at least 2"),
        ({"frames": 2, "distractors": 5}, "leave 0"),
        ({"frames": 1}, "0 distractors among 1 frames leave 1"),
        ({"distractors": -1}, "distractors is -1"),
        ({"frames": 2.5}, "frames is 2.5"),
        ({"world": "moon"}, "world is 'moon'"),
        ({"split": "dev"}, "split is 'dev'"),
        ({"style": "cubist"}, "style is 'cubist'"),
    ],
)
def test_bad_requests_are_refused(request_, cause):
    with pytest.raises(UniAdapterError, match=cause + r"(.|\n)*\n.+"):
        load_clips(size=2, **request_)


def test_more_clips_than_there_are_is_refused():
    with pytest.raises(UniAdapterError, match="40 different test descriptions .* gave only"):
        clips.sample_clips(40, "test", ("fox", "owl"), 0)
