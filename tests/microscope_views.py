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
    switches = ("vision", "text", "trained heads", "layer 0", "layer 1", "layer 2", "layer 3")
    return {
        **dict.fromkeys(("cross", "query residual"), (both, set())),  # not what contrast compares
        **dict.fromkeys(switches, (both, recall)),
        "scale": (both, recall),
        **dict.fromkeys(("right", "query"), (both, set())),
    }


# view -> control -> (the pictures that must change when it moves, those that may). No other picture may, in no view.
# A control may be left where it was moved to, so those come last where the others would show little: a layer without
# the branch, a scale near zero, a query for another picture.
MOVES = {
    "Activation map": {
        "example": ({"map", "profile"}, set()),
        "branch": ({"map"}, set()),
        "layer": ({"map", "profile"}, set()),
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


def kernel_milliseconds(views: dict) -> list[tuple[str, float, float]]:
    """(view, milliseconds, those of them that a CPU worked) of every control moved on and back, in this process."""
    found = []
    for name, view in views.items():
        for control in view.controls.values():
            before = control.value
            for value in (another_value(control), before):
                start, worked = time.perf_counter(), time.process_time()
                control.value = value
                took = time.perf_counter() - start, time.process_time() - worked
                found.append((name, *(1000 * seconds for seconds in took)))
    return found


def latency_table(kernel: list, browser: list) -> str:
    """Median and worst, view by view and over all: in the browser, in the kernel, and of the kernel's CPU alone, which is
    what counts where others use the machine, too. kernel: of `kernel_milliseconds`; browser: (view, milliseconds)."""
    columns = {"in the browser": browser, "in the kernel": [row[:2] for row in kernel]}
    columns |= {"the kernel's CPU": [(view, worked) for view, _, worked in kernel]}
    lines = [f"{'median, worst; ms':18}" + "".join(f"{name:>18}" for name in columns)]
    for name in (*MOVES, "all"):
        own = [[ms for view, ms in rows if name in ("all", view)] for rows in columns.values()]
        cells = [f"{statistics.median(ms):.0f}, {max(ms):.0f}" if ms else "" for ms in own]
        lines.append(f"{name:18}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)
