"""What a caption says of a scene or a clip: reads captions back, and says which of their facts are right.

    read("left fox right violin, crimson", "target") -> {"kind": "left", "a": "fox", "b": "violin", "colour": "red"}

A decoder's words come apart at hyphens and lose accents and capitals; `metrics.plain` does the same to both sides.
"""

import re
from collections.abc import Iterator
from functools import cache

from uniadapter_edu.metrics import plain
from uniadapter_edu.worlds import clips, emoji


def read(caption: str, wording: str = "target") -> dict[str, str] | None:
    """The facts that a caption states, in the source world's words: kind, a, b where there are two things, colour, and
    size, n or way where it speaks of them. None if it has no form in which this wording describes anything."""
    for kind, pattern, words in _patterns(wording):
        if match := pattern.fullmatch(plain(caption)):
            return {"kind": kind} | {gap: words.get(word, word) for gap, word in match.groupdict().items()}
    return None


def right(caption: str, row: dict, wording: str = "target") -> dict[str, bool]:
    """Which facts of a row of `emoji.load_split` or `clips.load_clips` the caption has right, of those that it has.

    objects    all things of the row are named, and no other
    colours    the background's colour is named, and no other
    sizes, numbers    of a single thing, of several
    relations  how two things stand to each other, or what happens: the form is one for that, and no thing that is named
               stands in the other's place. Wrong things can still stand right.
    """
    said, named = read(caption, wording) or {}, _named(caption)
    facts = {
        "objects": set(named) == {plain(name) for name in row["concepts"]},
        "colours": _colours(caption, wording) == {row["colour"]},
    }
    if row.get("size"):
        facts["sizes"] = said.get("size") == row["size"]
    if row.get("number"):
        facts["numbers"] = said.get("n") == emoji.COUNTS[row["number"]]
    if row["kind"] not in ("single", "count"):
        facts["relations"] = _relation(said) == row["kind"] and not _misplaced(said, row)
    return facts


def _relation(said: dict[str, str]) -> str | None:
    return said.get("way", said.get("kind"))


def _misplaced(said: dict[str, str], row: dict) -> bool:
    """Whether a thing is said to be where the other one is. A replacement has no order (see `clips`)."""
    stated = [said.get("a"), said.get("b")]
    told = [plain(name) for name in row["concepts"]]
    ordered = row["kind"] != "replaced" and len(told) == 2
    return ordered and (stated[0] == told[1] or stated[1] == told[0])


def _named(caption: str) -> list[str]:
    """The concepts that a caption names, the longest that fit: a "cat face" is not a "cat"."""
    return _names().findall(plain(caption))


def _colours(caption: str, wording: str) -> set[str]:
    """The background colours that a caption names, where it names no things: names may hold such words."""
    rest = _names().sub(" ", plain(caption)).split()
    new_words = emoji.WORDINGS[wording][1]
    return {colour for colour in emoji.COLOURS if new_words.get(colour, colour) in rest}


@cache
def _names() -> re.Pattern:
    longest_first = sorted(map(plain, emoji.concepts()), key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b")


@cache
def _patterns(wording: str) -> list[tuple[str, re.Pattern, dict[str, str]]]:
    """(kind, pattern, its words -> the source's) of every form of a caption."""
    return [(kind, pattern, words) for world in (emoji, clips) for kind, pattern, words in _patterns_of(world, wording)]


def _patterns_of(world, wording: str) -> Iterator[tuple[str, re.Pattern, dict[str, str]]]:
    templates, new_words = world.WORDINGS[wording]
    groups = {
        "colour": emoji.COLOURS,
        "size": emoji.SIZES,
        "n": emoji.COUNTS.values(),
        "way": clips.DIRECTIONS,
    }
    choices = {gap: "|".join(new_words.get(word, word) for word in words) for gap, words in groups.items()}
    for kind, forms in templates.items():
        for form in forms:
            yield kind, re.compile(_pattern(form, choices)), {new: old for old, new in new_words.items()}


def _pattern(template: str, choices: dict[str, str]) -> str:
    """A template as a pattern over plain words; a gap that comes again must be filled with the same words again."""
    parts, seen = [], set()
    for literal, gap in re.findall(r"([^{}]*)(?:{(\w+)})?", template):
        parts += plain(literal).split()
        if gap:
            parts.append(f"(?P={gap})" if gap in seen else f"(?P<{gap}>{choices.get(gap, '.+')})")
            seen.add(gap)
    return " ".join(parts)
