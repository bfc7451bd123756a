"""Questions of the emoji world, answered by what is drawn; and captions read back, fact by fact."""

import random
from collections import Counter

import pytest

from uniadapter_edu.backbones import load_processor
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.metrics import plain
from uniadapter_edu.worlds import clips, emoji, facts, questions
from uniadapter_edu.worlds.clips import Clip
from uniadapter_edu.worlds.emoji import Scene
from uniadapter_edu.worlds.questions import Question, load_clip_questions, load_questions, phrase, reply

NAMES = ("cat", "dog", "fox", "owl")
PAIR = Scene("left", ("cat", "dog"), "red")


def asked(describe, thing, seeds=200):
    """Every question about a thing that some draw asks, by kind."""
    found = {}
    for seed in range(seeds):
        for question in describe(thing, random.Random(seed), NAMES):
            found.setdefault(question.kind, set()).add((question.form, question.gaps, question.answer))
    return found


def test_questions_about_a_pair():
    found = asked(questions.of_scene, PAIR)
    assert found["colour"] == {("colour", (), "red")} and found["number"] == {("number", (), "two")}
    assert found["where"] == {("where", (("a", "cat"),), "left"), ("where", (("a", "dog"),), "right")}
    assert found["relation"] == {
        ("relation", (("place", "left"), ("b", "dog")), "cat"),
        ("relation", (("place", "right"), ("b", "cat")), "dog"),
    }
    arrangements = {claim for claim in found["yes/no"] if claim[0] == "arrangement"}
    gaps = {place: (("a", "cat"), ("place", place), ("b", "dog")) for place in ("left", "right")}
    assert arrangements == {("arrangement", gaps["left"], "yes"), ("arrangement", gaps["right"], "no")}
    assert not {"what", "size"} & found.keys()  # there are two things, of one size


@pytest.mark.parametrize(
    ("thing", "kind", "answer"),
    [
        (Scene("single", ("cat",), "red", size="big"), "size", "big"),
        (Scene("single", ("cat",), "red", size="big"), "what", "cat"),
        (Scene("single", ("cat",), "red", size="big"), "number", "one"),
        (Scene("count", ("cat",), "red", number=3), "number", "three"),
        (Clip("up", ("cat",), "blue"), "where", "up"),
        (Clip("up", ("cat",), "blue"), "what", "cat"),
        (Clip("appears", ("cat", "dog"), "blue"), "what", "dog"),
        (Clip("replaced", ("cat", "dog"), "blue"), "number", "two"),
    ],
)
def test_answers_follow_from_the_description(thing, kind, answer):
    describe = questions.of_scene if isinstance(thing, Scene) else questions.of_clip
    assert {a for _, _, a in asked(describe, thing)[kind]} == {answer}


def test_what_takes_a_place_can_be_told_from_a_clip_that_runs_backwards():
    found = asked(questions.of_clip, Clip("replaced", ("cat", "dog"), "blue"))["what"]
    assert found == {("takes its place", (("a", "cat"),), "dog")}  # the one that is not asked about


def test_yes_and_no_are_both_frequent_and_true():
    for describe, thing in [(questions.of_scene, PAIR), (questions.of_clip, Clip("up", ("cat",), "red"))]:
        replies = Counter()
        for seed in range(400):
            (claim,) = (q for q in describe(thing, random.Random(seed), NAMES) if q.kind == "yes/no")
            gaps, yes = dict(claim.gaps), claim.answer == "yes"
            replies[yes] += 1
            if claim.form == "thing":
                assert yes == (gaps["a"] in thing.concepts)
            elif claim.form == "ground":
                assert yes == (gaps["colour"] == "red")
            else:
                assert yes == (gaps["place"] == thing.kind)
        assert abs(replies[True] - replies[False]) < 80


def test_two_wordings_ask_the_same():
    where = Question("where", "where", "left", (("a", "cat"),))
    relation = Question("relation", "relation", "cat", (("place", "left"), ("b", "dog")))
    assert phrase(where) == ["where is the cat", "where in the picture is the cat"] and reply(where) == "left"
    assert phrase(where, "target")[0] == "cat where?" and reply(where, "target") == "leftmost"
    assert phrase(relation)[0] == "which object is left of the dog"
    assert phrase(relation, "target")[0] == "leftmost of dog?"
    assert questions.SOURCE_WORDING.keys() == questions.TARGET_WORDING.keys()


@pytest.mark.parametrize("wording", ["source", "target"])
def test_the_backbone_reads_every_word_whole(wording):
    tokenizer = load_processor().tokenizer
    templates, _ = questions.WORDINGS[wording]
    words = {word for forms in templates.values() for form in forms for word in plain(form).split()}
    words |= {word for answer in questions.answers((), wording) for word in answer.split()}
    assert not [word for word in words if len(tokenizer.tokenize(word)) > 1]


@pytest.mark.parametrize(
    ("load", "scenes", "key", "kinds"),
    [
        (load_questions, emoji.load_split, "scene", questions.KINDS),
        (load_clip_questions, clips.load_clips, "clip", questions.CLIP_KINDS),
    ],
)
def test_data_sets_ask_about_the_scenes_of_their_split(load, scenes, key, kinds):
    data, shown = load("target", "test", 60, seed=3), scenes("target", "test", 60, seed=3)
    column = "image" if key == "scene" else "frames"
    assert data.column_names == [column, "kind", "style", "licence", key, "question", "answer"]
    assert set(data[key]) == set(shown[key]) and all(emoji.split_of(k) == "test" for k in data[key])
    per_scene = {}
    for row in data.remove_columns(column):
        per_scene.setdefault(row[key], []).append(row["kind"])
    assert all(len(own) == len(set(own)) == 3 for own in per_scene.values())
    assert set(data["kind"]) == set(kinds)
    vocabulary = questions.answers(emoji.target_concepts(), "target")
    assert set(data["answer"]) <= set(vocabulary) and vocabulary == sorted(set(vocabulary))
    assert data[4][column] == shown[1][column]  # three questions a picture, in its order
    again = load("target", "test", 60, seed=3)
    assert again["question"] == data["question"] != load("target", "test", 60, seed=4)["question"]


def test_no_question_gives_its_answer_away():
    data = load_questions("target", "train", 300)
    by_question = {}
    for question, answer in zip(data["question"], data["answer"]):
        by_question.setdefault(question, Counter())[answer] += 1
    frequent = [answers for answers in by_question.values() if answers.total() >= 10]
    assert len(frequent) >= 6 and all(max(own.values()) < 0.7 * own.total() for own in frequent)


def test_a_scene_is_asked_at_least_once():
    with pytest.raises(UniAdapterError, match="each is 0"):
        load_questions(size=1, each=0)
    assert len(load_questions(size=4, each=99)) > 4 * 3  # all there is to ask


# ---- captions read back


def rows(load, column, wording):
    return load(wording, "test", 60).remove_columns(column)


@pytest.mark.parametrize("wording", ["source", "target"])
@pytest.mark.parametrize(("load", "column"), [(emoji.load_split, "image"), (clips.load_clips, "frames")])
def test_a_caption_of_the_world_is_right_in_everything(load, column, wording):
    tokenizer = load_processor().tokenizer
    for row in rows(load, column, wording):
        for caption in row["captions"]:
            told = tokenizer.decode(tokenizer(caption).input_ids, skip_special_tokens=True)  # as a decoder says it
            assert all(facts.right(told, row, wording).values()), (caption, facts.read(told, wording))


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("left fox right violin, crimson", set()),
        ("leftmost fox, rightmost violin, crimson", set()),
        ("left violin right fox, crimson", {"relations"}),
        ("top fox bottom violin, crimson", {"relations"}),
        ("left fox right violin, blue", {"colours"}),
        ("left fox right violin, crimson blue", {"colours"}),  # one too many
        ("left fox right owl, crimson", {"objects"}),  # the fox stands where it should
        ("left owl right fox, crimson", {"objects", "relations"}),
        ("fox violin", {"colours", "relations"}),
        ("left fox right hot dog, crimson", {"objects"}),
        ("fox of the violin, crimson", {"relations"}),  # a form of nothing
        ("", {"objects", "colours", "relations"}),
    ],
)
def test_one_wrong_fact_is_told_from_the_others(caption, wrong):
    row = {"kind": "left", "concepts": ["fox", "violin"], "colour": "red", "size": None, "number": None}
    said = facts.right(caption, row)
    assert said.keys() == {"objects", "colours", "relations"}
    assert {fact for fact, holds in said.items() if not holds} == wrong


def test_a_hot_dog_is_no_dog():
    row = {"kind": "left", "concepts": ["dog", "violin"], "colour": "red", "size": None, "number": None}
    assert not facts.right("left hot dog right violin, crimson", row)["objects"]


def test_sizes_numbers_and_ways():
    single = {"kind": "single", "concepts": ["fox"], "colour": "red", "size": "big", "number": None}
    assert facts.right("fox, huge, crimson", single) == {"objects": True, "colours": True, "sizes": True}
    assert facts.right("fox, tiny, crimson", single)["sizes"] is False
    count = {"kind": "count", "concepts": ["fox"], "colour": "red", "size": None, "number": 3}
    assert facts.right("fox times three, crimson", count)["numbers"] and not facts.right("fox", count)["numbers"]
    clip = {"kind": "up", "concepts": ["fox"], "colour": "red"}
    assert facts.right("fox glide upward, crimson", clip)["relations"]
    assert not facts.right("fox glide downward, crimson", clip)["relations"]
    swap = {"kind": "replaced", "concepts": ["fox", "owl"], "colour": "red"}
    assert facts.right("owl outgoing, fox incoming, crimson", swap)["relations"]  # no clip runs forwards only


def test_plain_text_is_what_a_tokenizer_leaves():
    assert plain("  A piñata, T-shirt & woman’s hat! ") == "a pinata t shirt woman s hat"
