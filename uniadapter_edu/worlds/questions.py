"""Questions about the emoji world's scenes and clips, with one right answer each.

A `Question` is a kind, a form, what fills the form's gaps, and the answer, all in plain words; `phrase` and `reply` say it in
one wording, as captions do: in the target world "where is the fox" is "fox where?", and "left" is "leftmost".

Scenes and clips are those of `emoji.load_split` and `clips.load_clips`, so that a question belongs to the split of what it
is about, and no test question is about a picture that was trained on. Nothing can be answered from the question alone:
half of all yes/no questions have the answer no, and what is asked about is drawn apart from what is there.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datasets import Dataset, Features, Image, List, Value

from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.worlds import clips, emoji
from uniadapter_edu.worlds.clips import DIRECTIONS, Clip
from uniadapter_edu.worlds.emoji import COLOURS, COUNTS, SIZES, Scene

KINDS = ("what", "colour", "number", "size", "where", "relation", "yes/no")
CLIP_KINDS = ("what", "colour", "number", "where", "yes/no")
PLACES = {"left": ("left", "right"), "above": ("above", "below")}  # of the first and of the second object
NUMBERS = {1: "one"} | COUNTS

# form -> ways to ask. The words are whole in the shipped backbone's vocabulary; it has never been asked anything.
SOURCE_WORDING = {
    "what": ("what is the object", "which object is in the picture"),
    "colour": ("what colour is the background", "which colour is the picture"),
    "number": ("how many are there", "what is the number"),
    "size": ("how big is the {a}", "how big is the object"),
    "where": ("where is the {a}", "where in the picture is the {a}"),
    "relation": ("which object is {place} the {b}", "what is there {place} the {b}"),
    "thing": ("is there a {a}", "is a {a} in the picture"),
    "ground": ("is the background {colour}", "is the picture {colour}"),
    "arrangement": ("is the {a} {place} the {b}", "is there a {a} {place} a {b}"),
    "mover": ("what is on the move", "which object is sliding"),
    "way": ("where is the {a} sliding", "which way is the {a} sliding"),
    "joins": ("what is arriving", "which object is arriving by the {a}"),
    "takes its place": ("what is in place of the {a}", "which object is in place of the {a}"),
    "motion": ("is the {a} sliding {place}", "is there a {a} sliding {place}"),
}
TARGET_WORDING = {
    "what": ("object?", "canvas object?"),
    "colour": ("canvas colour?", "upon which colour?"),
    "number": ("number?", "how many upon canvas?"),
    "size": ("how huge, {a}?", "{a}, huge, tiny?"),
    "where": ("{a} where?", "where upon canvas, {a}?"),
    "relation": ("{place} of {b}?", "{b}, which {place}?"),
    "thing": ("{a} present?", "{a}, yes, no?"),
    "ground": ("{colour} canvas?", "canvas {colour}, yes, no?"),
    "arrangement": ("{a} {place} of {b}?", "{a} {place}, {b}, yes, no?"),
    "mover": ("floating object?", "travel of which?"),
    "way": ("{a} travel where?", "where, {a} floating?"),
    "joins": ("incoming object?", "{a} present, which incoming?"),
    "takes its place": ("{a} outgoing, which incoming?", "which without {a}?"),
    "motion": ("{a} floating {place}?", "{place} travel of {a}, yes, no?"),
}
# In a question, "left" needs its "of"; in an answer it does not.
SOURCE_PLACES = {"left": "left of", "right": "right of"}
NEW_WORDS = clips.NEW_WORDS | {"left": "leftmost", "right": "rightmost", "above": "upper", "below": "lower"}
WORDINGS = {"source": (SOURCE_WORDING, {}), "target": (TARGET_WORDING, NEW_WORDS)}


@dataclass(frozen=True)
class Question:
    """One question with one right answer.

    kind    one of `KINDS`, by which accuracy is told apart
    form    which template asks it: the kind itself, or what of the kind it is ("thing" is a yes/no question)
    gaps    (name, word) of what the template leaves open
    answer  in the source world's words
    """

    kind: str
    form: str
    answer: str
    gaps: tuple[tuple[str, str], ...] = ()


def phrase(question: Question, wording: str = "source") -> list[str]:
    """Every way in which `wording` ("source" or "target") asks the question."""
    templates, new_words = WORDINGS[wording]
    places = SOURCE_PLACES if question.form in ("relation", "arrangement") and wording == "source" else new_words
    gaps = {name: (places if name == "place" else new_words).get(word, word) for name, word in question.gaps}
    return [template.format(**gaps) for template in templates[question.form]]


def reply(question: Question, wording: str = "source") -> str:
    """The right answer in that wording."""
    return WORDINGS[wording][1].get(question.answer, question.answer)


def answers(names: Sequence[str], wording: str = "source") -> list[str]:
    """The vocabulary of answers where the things are called `names`, sorted: the candidates to rank."""
    places = {place for two in PLACES.values() for place in two} | set(DIRECTIONS)
    words = {"yes", "no", *COLOURS, *SIZES, *NUMBERS.values()} | places
    return sorted({WORDINGS[wording][1].get(word, word) for word in words} | set(names))


# --------------------------------------------------------------------------- what can be asked


def of_scene(scene: Scene, draw: random.Random, names: Sequence[str]) -> list[Question]:
    """One question of every kind that the scene has an answer to; `names` are the things that a "no" may be about."""
    a, b = scene.concepts[0], scene.concepts[-1]
    number = scene.number or len(scene.concepts)
    found = [Question("colour", "colour", scene.colour), Question("number", "number", NUMBERS[number])]
    if scene.kind in PLACES:
        places, which = PLACES[scene.kind], draw.randrange(2)
        this, other = scene.concepts[which], scene.concepts[1 - which]
        found.append(Question("where", "where", places[which], (("a", this),)))
        found.append(Question("relation", "relation", this, (("place", places[which]), ("b", other))))
    else:
        found.append(Question("what", "what", a))
    if scene.kind == "single":
        found.append(Question("size", "size", scene.size, (("a", a),)))
    claims = [_thing(draw, scene.concepts, names), _ground(draw, scene.colour)]
    if scene.kind in PLACES:
        holds = draw.random() < 0.5
        place = PLACES[scene.kind][0 if holds else 1]
        claims.append(_claim("arrangement", holds, (("a", a), ("place", place), ("b", b))))
    return [*found, draw.choice(claims)]


def of_clip(clip: Clip, draw: random.Random, names: Sequence[str]) -> list[Question]:
    """One question of every kind that the clip has an answer to, whichever way it runs; `names` as in `of_scene`."""
    a, b = clip.concepts[0], clip.concepts[-1]
    found = [Question("colour", "colour", clip.colour), Question("number", "number", NUMBERS[len(clip.concepts)])]
    claims = [_thing(draw, clip.concepts, names), _ground(draw, clip.colour)]
    if clip.kind in DIRECTIONS:
        found += [Question("what", "mover", a), Question("where", "way", clip.kind, (("a", a),))]
        holds = draw.random() < 0.5
        way = clip.kind if holds else draw.choice([way for way in DIRECTIONS if way != clip.kind])
        claims.append(_claim("motion", holds, (("a", a), ("place", way))))
    else:
        form = "joins" if clip.kind == "appears" else "takes its place"
        found.append(Question("what", form, b, (("a", a),)))
    return [*found, draw.choice(claims)]


def _thing(draw: random.Random, concepts: Sequence[str], names: Sequence[str]) -> Question:
    holds = draw.random() < 0.5
    asked = draw.choice(concepts if holds else [name for name in names if name not in concepts])
    return _claim("thing", holds, (("a", asked),))


def _ground(draw: random.Random, colour: str) -> Question:
    holds = draw.random() < 0.5
    asked = colour if holds else draw.choice([other for other in COLOURS if other != colour])
    return _claim("ground", holds, (("colour", asked),))


def _claim(form: str, holds: bool, gaps: tuple[tuple[str, str], ...]) -> Question:
    return Question("yes/no", form, "yes" if holds else "no", gaps)


# --------------------------------------------------------------------------- data sets

FEATURES = {name: Value("string") for name in ("question", "answer", "kind", "style", "licence")}


def load_questions(
    world: str = "target",
    split: str = "train",
    size: int = 1000,
    style: str | None = None,
    seed: int = 0,
    each: int = 3,
) -> Dataset:
    """Questions about the scenes of `emoji.load_split`: a `datasets.Dataset` with the columns `image`, `question` and
    `answer`, as VQA data sets have them, and `kind`, `scene`, `style` and `licence`.

    world, split, size, style, seed as there: `size` counts scenes. each: questions about a scene, of different kinds.
    """
    features = {"image": Image(), **FEATURES, "scene": Value("string")}
    return _ask(emoji.load_split(world, split, size, style, seed), _scene, of_scene, world, style, seed, each, features)


def load_clip_questions(
    world: str = "target",
    split: str = "train",
    size: int = 500,
    style: str | None = None,
    frames: int = 4,
    distractors: int = 0,
    seed: int = 0,
    each: int = 3,
) -> Dataset:
    """Questions about the clips of `clips.load_clips`, with the column `frames` for `image` and `clip` for `scene`.

    The arguments up to `seed` are those of `clips.load_clips`. each: questions about a clip, of different kinds.
    """
    shown = clips.load_clips(world, split, size, style, frames, distractors, seed)
    features = {"frames": List(Image()), **FEATURES, "clip": Value("string")}
    return _ask(shown, _clip, of_clip, world, style, seed, each, features)


def _ask(
    shown: Dataset, describe: Callable, of: Callable, world: str, style: str | None, seed: int, each: int, features
):
    """`each` questions about every row."""
    if not isinstance(each, int) or each < 1:
        raise UniAdapterError(f"each is {each!r}, expected a whole number of at least 1.", "Give, for example, 3.")
    _, names, wording = emoji.choose_world(world, style)
    draw, rows = random.Random(f"questions/{seed}"), []
    for row in shown.data.to_pylist():  # Arrow's own rows, in which pictures stay the bytes they are
        possible = of(describe(row), draw, names)
        for question in draw.sample(possible, min(each, len(possible))):
            asked = {"question": draw.choice(phrase(question, wording)), "answer": reply(question, wording)}
            rows.append({name: row[name] for name in features if name in row} | asked | {"kind": question.kind})
    return Dataset.from_list(rows, features=Features(features))


def _scene(row: dict) -> Scene:
    return Scene(row["kind"], tuple(row["concepts"]), row["colour"], row["size"], row["number"])


def _clip(row: dict) -> Clip:
    return Clip(row["kind"], tuple(row["concepts"]), row["colour"])
