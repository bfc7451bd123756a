"""All views of the microscope on the shipped adapters, and what has to change in them, for tests with a browser or not."""

import statistics
import time
from types import SimpleNamespace

import uniadapter_edu as ua
from uniadapter_edu import microscope, widgets
from uniadapter_edu.microscope.specimens import SPECIMENS

TYPED = "left tent right pie, amber"
TILES = {f"{state} {i}" for state in ("frozen", "adapted") for i in range(1, 7)}


def build() -> SimpleNamespace:
    """``views``: name -> view; ``model``: the one they look at."""
    processor, scenes = ua.load_processor(), ua.emoji.load_split("target", "test", 40)
    pictures, texts = list(scenes["image"]), [captions[0] for captions in scenes["captions"]]
    model = microscope.load_specimen()
    recording = microscope.record(model, processor, pictures, texts)
    agreements = {
        (name, state): microscope.agreement(
            microscope.record(microscope.load_specimen(name, state == "trained"), processor, pictures, texts)
        )
        for name in SPECIMENS
        for state in ("trained", "untrained")
    }
    models = microscope.TwoModels(model, processor, scenes)
    views = (
        widgets.activation_map(recording, pictures[:12]),
        widgets.bottleneck_units(recording, pictures),
        widgets.shared_or_not(agreements),
        widgets.console(models),
        widgets.frame_explorer(model, processor),
        widgets.ledger(),
        widgets.before_after(models),
    )
    return SimpleNamespace(model=model, views={view.name: view for view in views})


def _console() -> dict:
    both, recall = {"ranking", "scores"}, {"recall"}
    looking = dict.fromkeys(("right", "query", "cross", "query residual"), (both, set()))  # not what contrast compares
    others = ("scale", "vision", "text", "trained heads", "layer 0", "layer 1", "layer 2", "layer 3")
    return looking | dict.fromkeys(others, (both, recall))


# view -> control -> (the pictures that must change when it moves, those that may). No other picture may, in no view.
MOVES = {
    "Activation map": {
        "example": ({"map", "profile"}, set()),
        "layer": ({"map", "profile"}, set()),
        "branch": ({"map"}, set()),
    },
    "Bottleneck units": {
        "example": ({"units"}, set()),
        "layer": ({"units", "favourites"}, set()),
        "unit": ({"units", "favourites"}, set()),
    },
    "Shared or not": {
        "sharing": ({"layers", "pairs"}, set()),
        "state": ({"layers", "pairs"}, set()),
        "measure": ({"layers"}, set()),
        "layer": ({"pairs"}, set()),
    },
    "Console": _console(),
    "Frame explorer": {
        **dict.fromkeys(("clip", "sentence", "distractors", "model"), ({"frames", "effects"}, set())),
        "temperature": ({"effects"}, set()),
    },
    "Ledger": dict.fromkeys(("bottleneck", "share", "backbone", "vision", "text", "cross"), ({"bars"}, set())),
    "Before and after": {"query": ({"adapted 1"}, TILES), "picture": ({"captions"}, set())},
}


def another_value(control):
    """A value that a control could be moved to: the next one, another truth, another text."""
    if hasattr(control, "options"):
        options = list(control.options)
        return options[(options.index(control.value) + 1) % len(options)]
    if isinstance(control.value, bool):
        return not control.value
    return TYPED if isinstance(control.value, str) else control.value + 1


def kernel_milliseconds(views: dict) -> list[tuple[str, float]]:
    """(view, milliseconds) of every control moved on and back, in this process."""
    found = []
    for name, view in views.items():
        for control in view.controls.values():
            before = control.value
            for value in (another_value(control), before):
                start = time.perf_counter()
                control.value = value
                found.append((name, 1000 * (time.perf_counter() - start)))
    return found


def latency_table(kernel: list, browser: list) -> str:
    """Median and worst of both, view by view and over all."""
    lines = [f"{'milliseconds':18} {'kernel median':>14} {'worst':>6} {'browser median':>15} {'worst':>6}"]
    for name in (*MOVES, "all"):
        cells = []
        for measured in (kernel, browser):
            own = [ms for view, ms in measured if name in ("all", view)]
            cells += [statistics.median(own), max(own)] if own else [float("nan")] * 2
        lines.append(f"{name:18} {cells[0]:14.0f} {cells[1]:6.0f} {cells[2]:15.0f} {cells[3]:6.0f}")
    return "\n".join(lines)
