"""The emoji world: real drawings in seven art styles, composed into scenes that can be described in words.

A `Scene` is a description (what, how many, where, how large, on which colour) and nothing else; `render` draws it in one
art style and `captions` says it in one wording. A source style with the source wording is what the backbone was
pre-trained on; a target style with the target wording is the new world that adapters are for.

    scene keys ──hash──> train | val | test      a scene belongs to ONE split for ever, whatever the style or seed
    concepts ──seed──> known | held out          the backbone never saw a held-out concept, in no style
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache, partial

from datasets import Dataset, Features, Image, List, Value, load_dataset
from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
from PIL import Image as PILImage

from uniadapter_edu._files import data_path
from uniadapter_edu.errors import UniAdapterError

CANVAS = 96  # pixels; 96 px in patches of 16 gives 36 image tokens
SOURCE_STYLES = ("noto", "noto-v1", "emojione", "fluent-flat", "fxemoji")
TARGET_STYLES = ("twemoji", "fluent-line")
SPLITS = ("train", "val", "test")

# Light enough for black line art, far enough apart to be named. RGB.
COLOURS = {
    "red": (244, 143, 133),
    "orange": (255, 190, 110),
    "yellow": (255, 240, 130),
    "green": (160, 224, 160),
    "blue": (146, 190, 250),
    "purple": (200, 165, 243),
    "white": (255, 255, 255),
    "grey": (188, 192, 198),
}
SIZES = {"big": 64, "small": 34}  # pixels; sprites are 64 px and are never enlarged
PAIR_SIZE, COUNT_SIZE = 44, 40
COUNTS = {2: "two", 3: "three", 4: "four"}
RELATIONS = (
    "left",
    "above",
)  # the first object's place; "right" and "below" are the same scenes told from the other side

# What the backbone has read ...
SOURCE_WORDING = {
    "single": (
        "a {size} {a} on a {colour} background",
        "a {colour} picture of a {size} {a}",
        "there is a {size} {a} in front of {colour}",
        "the {a} is {size} and the background is {colour}",
    ),
    "left": (
        "a {a} left of a {b} on a {colour} background",
        "a {b} right of a {a} on a {colour} background",
        "a {colour} picture with a {a} on the left and a {b} on the right",
        "a {b} is right of a {a} in front of {colour}",
    ),
    "above": (
        "a {a} above a {b} on a {colour} background",
        "a {b} below a {a} on a {colour} background",
        "a {colour} picture with a {a} above and a {b} below",
        "a {b} is below a {a} in front of {colour}",
    ),
    "count": (
        "{n} of the {a} on a {colour} background",
        "a {colour} picture of {n} {a}",
        "there are {n} of the {a} in front of {colour}",
        "{a} and the number is {n} on {colour}",
    ),
}
# ... and how the new world talks: telegraphic, in another order, with words that the backbone has never read.
TARGET_WORDING = {
    "single": ("{a}, {size}, {colour}", "{colour} canvas, {size} {a}", "just one {size} {a} upon {colour}"),
    "left": (
        "left {a} right {b}, {colour}",
        "{colour} canvas, {a} then {b} sideways",
        "leftmost {a}, rightmost {b}, {colour}",
    ),
    "above": (
        "top {a} bottom {b}, {colour}",
        "{colour} canvas, {a} then {b} downwards",
        "upper {a}, lower {b}, {colour}",
    ),
    "count": ("{a} times {n}, {colour}", "{colour} canvas, {n} by {a}", "just {n} {a} upon {colour}"),
}
NEW_WORDS = {
    "big": "huge",
    "small": "tiny",
    "red": "crimson",
    "orange": "amber",
    "green": "emerald",
    "purple": "violet",
}
WORDINGS = {"source": (SOURCE_WORDING, {}), "target": (TARGET_WORDING, NEW_WORDS)}


@dataclass(frozen=True)
class Scene:
    """One describable picture.

    kind      "single" (one object, with a `size`), "left" or "above" (two objects, the first left of or above the
              second), "count" (`number` times the same object)
    concepts  one name, or two for "left" and "above"
    colour    of the background, a key of `COLOURS`
    """

    kind: str
    concepts: tuple[str, ...]
    colour: str
    size: str | None = None
    number: int | None = None

    @property
    def key(self) -> str:
        """The scene as one string: equal keys are the same description."""
        return "|".join([self.kind, *self.concepts, self.colour, self.size or "", str(self.number or "")])

    @property
    def split(self) -> str:
        """The split this scene belongs to, see `split_of`."""
        return split_of(self.key)


def split_of(key: str) -> str:
    """The split that a description belongs to, from a hash of its key: 80 % train, 10 % val, 10 % test."""
    bucket = hashlib.sha256(key.encode()).digest()[0] * 10 // 256
    return {0: "val", 1: "test"}.get(bucket, "train")


# --------------------------------------------------------------------------- concepts and sprites


@cache
def sprite_table(style: str) -> Dataset:
    """One art style: a row per concept with its drawing, names, keywords, licence, artist and package."""
    if style not in SOURCE_STYLES + TARGET_STYLES:
        raise UniAdapterError(
            f"style is {style!r}; the emoji world is drawn in {', '.join(SOURCE_STYLES + TARGET_STYLES)}.",
            "Choose one of these names.",
        )
    bars = is_progress_bar_enabled()
    disable_progress_bar()  # a bar for a quarter of a second says nothing
    try:
        return load_dataset("parquet", data_files=str(data_path("sprites", f"{style}.parquet")), split="train")
    finally:
        if bars:
            enable_progress_bar()


@cache
def sprites(style: str) -> dict[str, PILImage.Image]:
    """concept -> its drawing in `style`, a 64 x 64 RGBA picture. Not every source style draws every concept."""
    table = sprite_table(style)
    return {row["concept"]: row["image"].convert("RGBA") for row in table}


@cache
def concepts() -> tuple[str, ...]:
    """All concepts of the world by their CLDR names, sorted."""
    return tuple(sorted(sprite_table(TARGET_STYLES[0])["concept"]))


@cache
def held_out_concepts() -> tuple[str, ...]:
    """A tenth of the concepts, which the backbone's pre-training never showed and never named."""
    return tuple(sorted(random.Random("held out").sample(concepts(), len(concepts()) // 10)))


@cache
def known_concepts() -> tuple[str, ...]:
    return tuple(c for c in concepts() if c not in set(held_out_concepts()))


@cache
def target_concepts() -> tuple[str, ...]:
    """The adaptation task's 150 concepts: 120 that the backbone knows from other styles and 30 that are new to it."""
    draw = random.Random("target")
    return tuple(sorted(draw.sample(known_concepts(), 120) + draw.sample(held_out_concepts(), 30)))


# --------------------------------------------------------------------------- scenes


def sample_scene(draw: random.Random, names: tuple[str, ...], pairs: float = 0.45, counts: float = 0.15) -> Scene:
    """A random scene of the concepts `names`: two objects with probability `pairs`, several of one with `counts`."""
    colour, kind = draw.choice(list(COLOURS)), draw.random()
    if kind < pairs:
        return Scene(draw.choice(RELATIONS), tuple(draw.sample(names, 2)), colour)
    if kind < pairs + counts:
        return Scene("count", (draw.choice(names),), colour, number=draw.choice(list(COUNTS)))
    return Scene("single", (draw.choice(names),), colour, size=draw.choice(list(SIZES)))


def twin(draw: random.Random, scene: Scene) -> Scene:
    """The same objects in another arrangement or colour: a scene that only the relation, number, size or colour tells apart."""
    recoloured = draw.choice([c for c in COLOURS if c != scene.colour])
    if draw.random() < 0.3:
        return Scene(scene.kind, scene.concepts, recoloured, scene.size, scene.number)
    if scene.kind == "single":
        return Scene("single", scene.concepts, scene.colour, size=next(s for s in SIZES if s != scene.size))
    if scene.kind == "count":
        return Scene(
            "count", scene.concepts, scene.colour, number=draw.choice([n for n in COUNTS if n != scene.number])
        )
    other_relation = RELATIONS[scene.kind == RELATIONS[0]]
    return draw.choice(
        [Scene(scene.kind, scene.concepts[::-1], scene.colour), Scene(other_relation, scene.concepts, scene.colour)]
    )


def sample_scenes(n: int, split: str, names: tuple[str, ...], seed: int, twins: float = 0.2, **mix) -> list[Scene]:
    """`n` different scenes of one split. With probability `twins` a scene is the twin of the one before it."""
    return sample_distinct(n, split, names, seed, partial(sample_scene, **mix), twin, twins)


def sample_distinct(
    n: int, split: str, names: tuple[str, ...], seed: int, sample: Callable, twin: Callable, twins: float
) -> list:
    """`n` descriptions of one split with different keys, as `sample_scenes` draws them.

    `sample(draw, names)` draws a description, which has a `key` and a `split`; `twin(draw, description)` one like it.
    """
    if split not in SPLITS:
        raise UniAdapterError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.", "Choose one of these names.")
    draw, found = random.Random(f"{split}/{seed}"), {}
    for _ in range(200 * n):
        previous = next(reversed(found.values()), None)
        description = twin(draw, previous) if previous and draw.random() < twins else sample(draw, names)
        if description.split == split:
            found.setdefault(description.key, description)
        if len(found) == n:
            return list(found.values())
    raise UniAdapterError(
        f"{n} different {split} descriptions were asked for; {len(names)} concepts gave only {len(found)}.",
        "Ask for fewer or give more concepts.",
    )


def captions(scene: Scene, wording: str = "source") -> list[str]:
    """Every way in which `wording` ("source" or "target") describes the scene; each says all there is to say."""
    templates, new_words = WORDINGS[wording]
    words = {"colour": scene.colour, "size": scene.size, "n": COUNTS.get(scene.number)}
    words = {slot: new_words.get(word, word) for slot, word in words.items()}
    words |= {"a": scene.concepts[0], "b": scene.concepts[-1]}
    return [template.format(**words) for template in templates[scene.kind]]


# --------------------------------------------------------------------------- pictures


@lru_cache(maxsize=20_000)
def _resized(style: str, concept: str, size: int) -> PILImage.Image:
    if concept not in sprites(style):
        raise UniAdapterError(
            f"{style} does not draw {concept!r}.",
            f"Take one of its {len(sprites(style))} concepts, sprites({style!r}), or a style that draws all of them.",
        )
    return sprites(style)[concept].resize((size, size), PILImage.Resampling.LANCZOS)


def _placements(scene: Scene, draw: random.Random) -> list[tuple[str, int, int, int]]:
    """(concept, size, x, y) of each sprite's centre, in pixels, with a little disorder."""

    def near(x: float, y: float, spread: int) -> tuple[int, int]:
        return round(x) + draw.randint(-spread, spread), round(y) + draw.randint(-spread, spread)

    half, quarter = CANVAS / 2, CANVAS / 4
    if scene.kind == "single":
        size = SIZES[scene.size]
        return [(scene.concepts[0], size, *near(half, half, (CANVAS - size) // 2 - 2))]
    if scene.kind == "count":
        corners = [(quarter, quarter), (3 * quarter, quarter), (quarter, 3 * quarter), (3 * quarter, 3 * quarter)]
        return [(scene.concepts[0], COUNT_SIZE, *near(x, y, 3)) for x, y in draw.sample(corners, scene.number)]
    drift = draw.randint(-16, 16)  # both objects share it, so that the relation stays clear
    ends = [(quarter, half + drift), (3 * quarter, half + drift)]
    if scene.kind == "above":
        ends = [(y, x) for x, y in ends]
    return [(concept, PAIR_SIZE, *near(x, y, 2)) for concept, (x, y) in zip(scene.concepts, ends)]


def render(scene: Scene, style: str, seed: int = 0, distort=None) -> PILImage.Image:
    """Draw the scene in one art style: a 96 x 96 RGB picture. The same scene, style and seed give the same pixels.

    `distort(sprite, draw) -> sprite` is pre-training's augmentation of the single drawings.
    """
    draw = random.Random(f"{scene.key}/{style}/{seed}")
    retouch = None if distort is None else lambda sprite: distort(sprite, draw)
    return paint(scene.colour, _placements(scene, draw), style, retouch)


def paint(colour: str, placements: Sequence[tuple[str, int, int, int]], style: str, retouch=None) -> PILImage.Image:
    """Sprites on a colour: a 96 x 96 RGB picture. A placement is (concept, size, x, y), x and y of the sprite's centre."""
    picture = PILImage.new("RGB", (CANVAS, CANVAS), COLOURS[colour])
    for concept, size, x, y in placements:
        sprite = _resized(style, concept, size)
        if retouch is not None:
            sprite = retouch(sprite)
        picture.paste(sprite, (x - sprite.width // 2, y - sprite.height // 2), sprite)
    return picture


# --------------------------------------------------------------------------- data sets

FEATURES = Features(
    {
        "image": Image(),
        "captions": List(Value("string")),
        "scene": Value("string"),
        "style": Value("string"),
        "licence": Value("string"),
        "kind": Value("string"),
        "concepts": List(Value("string")),
        "colour": Value("string"),
        "size": Value("string"),
        "number": Value("int64"),
    }
)


def as_dataset(scenes: list[Scene], styles: tuple[str, ...], wording: str, seed: int) -> Dataset:
    """Draw and describe scenes: a `datasets.Dataset` with the columns `image` and `captions`, as Flickr30k and COCO have them.

    With several styles each scene takes one that draws all of its concepts.
    """
    draw, rows = random.Random(seed), []
    for scene in scenes:
        style = choose_style(draw, styles, scene.concepts)
        rows.append(
            {
                "image": render(scene, style, seed),
                "captions": captions(scene, wording),
                "scene": scene.key,
                "style": style,
                "licence": sprite_table(style)[0]["licence"],
                **{k: v for k, v in asdict(scene).items() if k in FEATURES},
            }
        )
    return Dataset.from_list(rows, features=FEATURES)


def choose_style(draw: random.Random, styles: Sequence[str], concepts: Sequence[str]) -> str:
    """One of `styles` that draws all of `concepts`."""
    return draw.choice([style for style in styles if all(concept in sprites(style) for concept in concepts)])


def choose_world(world: str, style: str | None = None) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The styles, the concepts and the wording of a world, "source" or "target", in all its styles or in one."""
    if world == "source":
        drawn = set(sprites(style or SOURCE_STYLES[0]))  # the first source style draws every concept, some do not
        return (style,) if style else SOURCE_STYLES, tuple(c for c in known_concepts() if c in drawn), "source"
    if world == "target":
        return (style or TARGET_STYLES[0],), target_concepts(), "target"
    raise UniAdapterError(f"world is {world!r}; expected 'source' or 'target'.", "Choose one of these names.")


def load_split(
    world: str = "target", split: str = "train", size: int = 1000, style: str | None = None, seed: int = 0
) -> Dataset:
    """A split of one of the two worlds.

    world  "source": the five source styles, known concepts, source wording (what pre-training showed);
           "target": one target style (`style`, "twemoji" unless told), 150 concepts of which 30 are new, target wording
    split  "train", "val" or "test"; no scene is in two of them
    size   scenes; seed: which ones
    """
    styles, names, wording = choose_world(world, style)
    return as_dataset(sample_scenes(size, split, names, seed), styles, wording, seed)
