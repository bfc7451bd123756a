"""Clips of the emoji world: a few frames in which something moves, appears or is replaced, and what they are called.

A `Clip` is a description and nothing else, as an `emoji.Scene` is; `render` draws its frames in one art style and `captions`
says it in one wording. Styles, concepts, colours and the split by a hash of the key are the emoji world's own.

A clip's tokens carry no time: BLIP sees the frames of a clip as a set, and a clip that runs backwards as the same one. Every
event can therefore be told from its frames in any order. A thing that moves starts in the middle, so that one that went
left ends on the left and nowhere else. Only "b in place of a" and "a in place of b" are alike, and have one key, so that
no data set holds both.

Distractors are frames of something else: other things on another colour, as between two cuts of a film. They carry nothing
that a caption speaks of, and weighing the frames by their similarity to the text can spare a model from them.
"""

import io
import random
from dataclasses import dataclass, replace

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.worlds import emoji
from uniadapter_edu.worlds.emoji import CANVAS, COLOURS, PAIR_SIZE

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x grows to the right, y downwards
KINDS = (*DIRECTIONS, "appears", "replaced")
SHOWN = 2  # frames that an event takes at least: one before it and one after it

# Every word stands as a whole in the vocabulary of the shipped backbone, which would spell others letter by letter.
SOURCE_WORDING = {
    "moves": (
        "a {a} sliding {way} on a {colour} background",
        "a {colour} movie of a {a} sliding {way}",
        "there is a {a} on the move {way} in front of {colour}",
        "the {a} is sliding {way} and the background is {colour}",
    ),
    "appears": (
        "a {b} arriving by a {a} on a {colour} background",
        "a {colour} movie of a {a} and then of a {a} with a {b}",
        "there is a {a} and then a {b} with the {a} in front of {colour}",
        "first a {a} then a {b} with the {a} and the background is {colour}",
    ),
    "replaced": (
        "a {b} in place of a {a} on a {colour} background",
        "a {colour} movie of a {a} and then of just a {b}",
        "there is a {a} and then there is just a {b} in front of {colour}",
        "first a {a} then a {b} in place of the {a} and the background is {colour}",
    ),
}
TARGET_WORDING = {
    "moves": (
        "{a} glide {way}, {colour}",
        "{colour} canvas, {way} travel of {a}",
        "just one {a} floating {way} upon {colour}",
    ),
    "appears": (
        "{a} present, {b} incoming, {colour}",
        "{colour} canvas, {a} then {a} with {b}",
        "just one {a} then {b} by {a} upon {colour}",
    ),
    "replaced": (
        "{a} outgoing, {b} incoming, {colour}",
        "{colour} canvas, {a} then {b} without {a}",
        "just one {a} then just one {b} upon {colour}",
    ),
}
NEW_WORDS = emoji.NEW_WORDS | {"up": "upward", "down": "downward"}
WORDINGS = {"source": (SOURCE_WORDING, {}), "target": (TARGET_WORDING, NEW_WORDS)}


@dataclass(frozen=True)
class Clip:
    """One describable event.

    kind      "left", "right", "up" or "down" (where one thing moves, from the middle), "appears" (the second thing joins
              the first), "replaced" (the second thing takes the first one's place)
    concepts  one name, or two for "appears" and "replaced"
    colour    of the background, a key of `emoji.COLOURS`
    """

    kind: str
    concepts: tuple[str, ...]
    colour: str

    @property
    def key(self) -> str:
        """The clip as one string: equal keys show the same, forwards or backwards."""
        concepts = sorted(self.concepts) if self.kind == "replaced" else self.concepts
        return "|".join([self.kind, *concepts, self.colour])

    @property
    def split(self) -> str:
        """The split this clip belongs to, see `emoji.split_of`."""
        return emoji.split_of(self.key)


def captions(clip: Clip, wording: str = "source") -> list[str]:
    """Every way in which `wording` ("source" or "target") describes the clip; each says all there is to say."""
    templates, new_words = WORDINGS[wording]
    words = {slot: new_words.get(word, word) for slot, word in (("colour", clip.colour), ("way", clip.kind))}
    words |= {"a": clip.concepts[0], "b": clip.concepts[-1]}
    return [template.format(**words) for template in templates["moves" if clip.kind in DIRECTIONS else clip.kind]]


# --------------------------------------------------------------------------- which clips


def sample_clip(draw: random.Random, names: tuple[str, ...]) -> Clip:
    """A random clip of the concepts `names`: one in three moves, one in three appears, one in three is replaced."""
    kind = draw.choice(("moves", "appears", "replaced"))
    if kind == "moves":
        return Clip(draw.choice(list(DIRECTIONS)), (draw.choice(names),), draw.choice(list(COLOURS)))
    return Clip(kind, tuple(draw.sample(names, 2)), draw.choice(list(COLOURS)))


def twin(draw: random.Random, clip: Clip) -> Clip:
    """The same things in another event or on another colour: a clip that only this tells apart."""
    if draw.random() < 0.3:
        return replace(clip, colour=draw.choice([colour for colour in COLOURS if colour != clip.colour]))
    if clip.kind in DIRECTIONS:
        return replace(clip, kind=draw.choice([kind for kind in DIRECTIONS if kind != clip.kind]))
    other_way_round = replace(clip, kind="appears", concepts=clip.concepts[::-1])
    return draw.choice([other_way_round, replace(clip, kind="replaced" if clip.kind == "appears" else "appears")])


def sample_clips(n: int, split: str, names: tuple[str, ...], seed: int, twins: float = 0.2) -> list[Clip]:
    """`n` different clips of one split. With probability `twins` a clip is the twin of the one before it."""
    return emoji.sample_distinct(n, split, names, seed, sample_clip, twin, twins)


# --------------------------------------------------------------------------- frames


def render(clip: Clip, style: str, frames: int = 4, seed: int = 0) -> list[PILImage.Image]:
    """Draw the event in one art style: `frames` RGB pictures of 96 x 96, the first before the event, the last after it.

    The same clip, style and seed give the same pixels. Raises `UniAdapterError` for fewer than two frames.
    """
    _check_frames(frames, 0)
    draw = random.Random(f"{clip.key}/{style}/{seed}")
    along, across = draw.randint(-2, 2), draw.randint(-10, 10)  # a little disorder, the same in all frames
    side = draw.choice((-1, 1))  # of the first of two things
    return [
        emoji.paint(clip.colour, _placements(clip, i / (frames - 1), along, across, side), style) for i in range(frames)
    ]


def _placements(clip: Clip, time: float, along: int, across: int, side: int) -> list[tuple[str, int, int, int]]:
    """(concept, size, x, y) of each sprite at a time from 0 to 1, in pixels."""
    middle, quarter, (first, last) = CANVAS // 2, CANVAS // 4, (clip.concepts[0], clip.concepts[-1])
    if clip.kind in DIRECTIONS:
        dx, dy = DIRECTIONS[clip.kind]
        way = along + round(time * quarter)
        return [(first, PAIR_SIZE, middle + dx * way + abs(dy) * across, middle + dy * way + abs(dx) * across)]
    happened = time >= 0.5
    if clip.kind == "replaced":
        return [(last if happened else first, PAIR_SIZE, middle + along, middle + across)]
    both = [(first, middle + side * quarter), (last, middle - side * quarter)]
    return [(concept, PAIR_SIZE, x + along, middle + across) for concept, x in both[: 2 if happened else 1]]


def distractor(draw: random.Random, clip: Clip, style: str, names: tuple[str, ...], seed: int = 0) -> PILImage.Image:
    """A picture that has nothing to do with the clip: a scene of other concepts among `names`, on another colour."""
    others = tuple(name for name in names if name not in clip.concepts and name in emoji.sprites(style))
    colour = draw.choice([colour for colour in COLOURS if colour != clip.colour])
    return emoji.render(replace(emoji.sample_scene(draw, others), colour=colour), style, seed)


def _check_frames(frames: int, distractors: int) -> None:
    if not isinstance(frames, int) or not isinstance(distractors, int) or distractors < 0:
        raise UniAdapterError(
            f"frames is {frames!r} and distractors is {distractors!r}, expected whole numbers, distractors 0 or more.",
            "Give, for example, frames=6, distractors=2.",
        )
    if frames - distractors < SHOWN:
        raise UniAdapterError(
            f"{distractors} distractors among {frames} frames leave {max(frames - distractors, 0)} to show the event, "
            f"expected at least {SHOWN}: one before it and one after it.",
            f"Give at least {distractors + SHOWN} frames, or fewer distractors.",
        )


# --------------------------------------------------------------------------- data sets

FEATURES = Features(
    {
        "frames": List(Image()),
        "captions": List(Value("string")),
        "clip": Value("string"),
        "style": Value("string"),
        "licence": Value("string"),
        "kind": Value("string"),
        "concepts": List(Value("string")),
        "colour": Value("string"),
        "distractors": List(Value("int64")),
    }
)


def load_clips(
    world: str = "target",
    split: str = "train",
    size: int = 500,
    style: str | None = None,
    frames: int = 4,
    distractors: int = 0,
    seed: int = 0,
) -> Dataset:
    """Clips of a split of one of the two worlds: a `datasets.Dataset` with the columns `frames`, a list of pictures, and
    `captions`, as video-text benchmarks have them.

    world        as for `emoji.load_split`: "source" in five styles, or "target" in one (`style`, "twemoji" unless told)
    split        "train", "val" or "test"; no clip is in two of them
    size         clips; seed: which ones
    frames       F, pictures in each clip
    distractors  how many of them show something else; the column `distractors` says which, counted from 0

    The same size and seed give the same clips whatever `frames` and `distractors` are, and the frames between the
    distractors are those of the clip with F - distractors frames. Raises `UniAdapterError` if fewer than two are left.
    """
    _check_frames(frames, distractors)
    styles, names, wording = emoji.choose_world(world, style)
    draw, rows = random.Random(seed), []
    for clip in sample_clips(size, split, names, seed):
        drawn_in = emoji.choose_style(draw, styles, clip.concepts)
        pictures, places = _film(clip, drawn_in, names, frames, distractors, seed)
        rows.append(
            {
                "frames": [_packed(picture) for picture in pictures],
                "captions": captions(clip, wording),
                "clip": clip.key,
                "style": drawn_in,
                "licence": emoji.sprite_table(drawn_in)[0]["licence"],
                "kind": clip.kind,
                "concepts": clip.concepts,
                "colour": clip.colour,
                "distractors": places,
            }
        )
    return Dataset.from_list(rows, features=FEATURES)


def _film(
    clip: Clip, style: str, names: tuple[str, ...], frames: int, distractors: int, seed: int
) -> tuple[list[PILImage.Image], list[int]]:
    """The frames of a clip with distractors among them, and the places of these."""
    draw = random.Random(f"{clip.key}/{style}/{seed}/distractors")
    pictures, places = render(clip, style, frames - distractors, seed), sorted(draw.sample(range(frames), distractors))
    for place in places:
        pictures.insert(place, distractor(draw, clip, style, names, seed))
    return pictures, places


def _packed(picture: PILImage.Image) -> dict:
    """A picture as PNG bytes, a tenth of the memory, so that a data set is never held as pixels while it is made."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)  # the default level takes longer and saves little
    return {"bytes": buffer.getvalue(), "path": None}
