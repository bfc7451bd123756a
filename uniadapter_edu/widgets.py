"""The adapter microscope in a notebook: sliders and switches around the figures of `microscope.figures`, and nothing
else.

    from uniadapter_edu import microscope, widgets

    widgets.activation_map(recording, scenes["image"])

A `View` is controls, a line for what went wrong, and pictures. Each picture names the controls that it depends on, and
only these draw it anew. Widgets are ipywidgets' own, pictures are PNG in `ipywidgets.Image`, so that they work in
JupyterLab, Colab and VS Code alike, also by keyboard.
"""

import gc
import html
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from threading import RLock

import ipywidgets as W
from IPython import get_ipython
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from torch import nn

from uniadapter_edu.config import MODALITIES, SHARE, UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.insertion import adapters_disabled
from uniadapter_edu.microscope import figures
from uniadapter_edu.microscope.activations import Recording
from uniadapter_edu.microscope.costs import BACKBONES, blueprint, costs
from uniadapter_edu.microscope.dials import Dials
from uniadapter_edu.microscope.frames import look_at_frames
from uniadapter_edu.microscope.gallery import FROZEN, TwoModels
from uniadapter_edu.microscope.similarity import Agreement
from uniadapter_edu.worlds import clips

TILE = 96  # pixels of a picture that can be clicked
TEMPERATURES = (4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05)
BOTTLENECKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
FRAMES_OF_EVENT = 4
MOST_DISTRACTORS = 3


class View(W.VBox):
    """One interactive view.

    controls: name -> widget with a ``value``. pictures: name -> (function that returns a figure or a PIL image, names
    of the controls whose values it takes, as keyword arguments). follow: control -> (another control, function from the
    value of the one to that of the other). arrange: the pictures' widgets by name -> the widget that holds them; a
    column unless told.
    """

    def __init__(
        self,
        name: str,
        controls: Mapping[str, W.Widget],
        pictures: Mapping[str, tuple[Callable, Sequence[str]]],
        follow: Mapping[str, tuple[str, Callable]] | None = None,
        arrange: Callable[[dict[str, W.Image]], W.Widget] | None = None,
    ):
        self.name, self.controls, self._draw, self._follow = name, dict(controls), dict(pictures), dict(follow or {})
        self.pictures = {key: W.Image(format="png") for key in pictures}
        for key, image in self.pictures.items():
            image.add_class(page_name(name, key))
        self.message, self._errors, self._following = W.HTML(), {}, False
        row = W.HBox(list(controls.values()), layout=W.Layout(flex_flow="row wrap"))
        column = arrange(self.pictures) if arrange else W.VBox(list(self.pictures.values()))
        super().__init__([row, self.message, column])
        self.add_class(page_name(name))
        self.redraw(set(controls))
        if shell := get_ipython():
            _take_turns_with_cells(shell)
        for key, control in self.controls.items():
            control.observe(lambda change, key=key: self._moved(key), names="value")

    def values(self) -> dict:
        """What the controls are set to."""
        return {key: control.value for key, control in self.controls.items()}

    def redraw(self, moved: set[str]) -> None:
        """Draw the pictures that depend on the controls that moved. What goes wrong is shown, and the picture stays."""
        with _litter_picked_up():
            self._redraw(moved)

    def _redraw(self, moved: set[str]) -> None:
        values = self.values()
        for key, (draw, wanted) in self._draw.items():
            if not moved & set(wanted):
                continue
            try:
                png = _png(draw(**{name: values[name] for name in wanted}))
            except Exception as error:  # noqa: BLE001 (a callback's exception would vanish in the browser's log)
                self._errors[key] = _words(error)
            else:
                self._errors.pop(key, None)
                if bytes(self.pictures[key].value) != png:
                    self.pictures[key].value = png
        self.message.value = _box(dict.fromkeys(self._errors.values()))

    def close(self) -> None:
        """Take the view and all that it is made of off the page."""
        for child in self.children:
            self._close(child)
        super().close()

    @classmethod
    def _close(cls, widget: W.Widget) -> None:
        for child in getattr(widget, "children", ()):
            cls._close(child)
        widget.unobserve_all()
        widget.close()

    def _moved(self, key: str) -> None:
        if self._following:
            return
        moved = {key}
        with _TURN:
            if key in self._follow:
                other, value_of = self._follow[key]
                self._following = True  # both are drawn at once, below
                try:
                    self.controls[other].value = value_of(self.controls[key].value)
                finally:
                    self._following = False
                moved.add(other)
            self.redraw(moved)

    def __repr__(self) -> str:
        return f"{self.name}: an interactive view, where this notebook runs; the figure below shows the same."


_TURN = RLock()  # of a cell, or of a control that was moved


@cache
def _take_turns_with_cells(shell: InteractiveShell) -> None:
    """From now on a control that is moved while a cell runs is answered at its end, and the other way round.

    A view sets the dials of a model that cells may use as well, and newer kernels answer controls in a thread of their
    own, whatever runs.
    """

    def end(result):
        with suppress(RuntimeError):  # the cell that made the first view began without
            _TURN.release()

    shell.events.register("pre_run_cell", lambda info: _TURN.acquire())
    shell.events.register("post_run_cell", end)


@contextmanager
def _litter_picked_up() -> Iterator[None]:
    """What was made inside and is of no more use is gone afterwards. Figures are rings of objects; left to itself, Python
    would now and then go through all objects of the process to find them, for as long as some pictures take."""
    collecting = gc.isenabled()
    gc.disable()  # so that all of it is in the youngest generation
    try:
        yield
    finally:
        gc.collect(0)
        if collecting:
            gc.enable()


def page_name(view: str, picture: str = "") -> str:
    """The CSS class that a view, or one of its pictures, goes by on the page."""
    return f"microscope-{view} {picture}".strip().lower().replace(" ", "-")


def _png(picture) -> bytes:
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi=100)
    else:
        picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, UniAdapterError) else f"{type(error).__name__}: {error}"


def _box(messages) -> str:
    if not messages:
        return ""
    lines = "<br>".join(html.escape(message).replace("\n", "<br>") for message in messages)
    style = "border-left: 4px solid #b3261e; padding: 2px 8px; line-height: 1.4"
    return f'<div role="alert" style="{style}">{lines}<br>The pictures below are those of before.</div>'


# ------------------------------------------------------------------------------------------------------------- controls

WIDE, NARROW = {"width": "420px"}, {"width": "300px"}


def _settings(label: str, width: dict) -> dict:
    return {"description": label, "style": {"description_width": "100px"}, "layout": W.Layout(**width)}


def _slider(label: str, last: int, value: int = 0) -> W.IntSlider:
    """Whole numbers from 0 to ``last``."""
    return W.IntSlider(value, 0, last, continuous_update=False, **_settings(label, NARROW))


def _steps(label: str, options: Sequence, value) -> W.SelectionSlider:
    return W.SelectionSlider(options=options, value=value, continuous_update=False, **_settings(label, NARROW))


def _choice(label: str, options: Sequence) -> W.ToggleButtons:
    """Buttons, which can be seen, tabbed to and clicked; a list would hide what there is to choose."""
    settings = _settings(label, WIDE)
    return W.ToggleButtons(options=options, **settings | {"style": settings["style"] | {"button_width": "auto"}})


def _switch(label: str, value: bool = True) -> W.Checkbox:
    return W.Checkbox(value, description=label, indent=False, layout=W.Layout(width="140px"))


def _line(label: str, value: str) -> W.Text:
    """A line of text, which counts once Enter is pressed or the line is left."""
    return W.Text(value, continuous_update=False, **_settings(label, WIDE))


def _last_layer(recording: Recording) -> int:
    return max(layer for _, layer in recording.readings)


# ---------------------------------------------------------------------------------------------------------------- views


def activation_map(recording: Recording, pictures: Sequence) -> View:
    """What the adapters add to each patch and each token. recording: of `activations.record`; pictures: those
    recorded."""
    controls = {
        "example": _slider("example", len(pictures) - 1),
        "layer": _slider("layer", _last_layer(recording)),
        "branch": _choice("branch", ("all", *MODALITIES)),
    }

    def shares(example, layer, branch):
        return figures.activation_map(recording, example, pictures[example], layer, branch)

    def profile(example, layer):
        return figures.share_profile(recording, example, layer)

    return View(
        "Activation map", controls, {"map": (shares, list(controls)), "profile": (profile, ("example", "layer"))}
    )


def bottleneck_units(recording: Recording, pictures: Sequence) -> View:
    """Which units fire for a picture and its sentence, and what excites one unit most over all that was recorded."""
    r = next(iter(recording.readings.values())).z.shape[-1]
    controls = {
        "example": _slider("example", len(pictures) - 1),
        "layer": _slider("layer", _last_layer(recording)),
        "unit": _slider("unit", r - 1),
    }

    def units(example, layer, unit):
        return figures.unit_map(recording, example, layer, unit)

    def favourites(layer, unit):
        return figures.unit_favourites(recording, pictures, layer, unit)

    return View(
        "Bottleneck units", controls, {"units": (units, list(controls)), "favourites": (favourites, ("layer", "unit"))}
    )


def shared_or_not(agreements: Mapping[tuple[str, str], Mapping[int, Agreement]]) -> View:
    """Whether the units say the same of a picture and its caption. agreements: as for `figures.agreement_chart`."""
    sharings, states = (list(dict.fromkeys(names)) for names in zip(*agreements))
    controls = {
        "sharing": _choice("down-projection", sharings),
        "state": _choice("adapters", states),
        "measure": _choice("measure", ("cosine", "CKA")),
        "layer": _slider("layer", len(next(iter(agreements.values()))) - 1),
    }

    def layers(sharing, state, measure):
        return figures.agreement_chart(agreements, (sharing, state), measure)

    def pairs(sharing, state, layer):
        return figures.pairs_histogram(agreements[sharing, state][layer], f"{sharing}, {state}: layer {layer}")

    pictures = {"layers": (layers, ("sharing", "state", "measure")), "pairs": (pairs, ("sharing", "state", "layer"))}
    return View("Shared or not", controls, pictures)


def console(models: TwoModels) -> View:
    """Turn the scale, switch branches, layers and heads off: the ranking of a typed query and the scores follow."""
    layers = {f"layer {i}": i for i in range(len(models.model.uniadapter.layers))}
    switches = (*MODALITIES, "query residual", "trained heads", *layers)
    controls = {
        "right": _slider("right picture", len(models.images) - 1),
        "query": _line("query", models.captions[0][0]),
        "scale": _steps("scale, times", [round(0.1 * i, 1) for i in range(21)], 1.0),
        **{name: _switch(name) for name in switches},
    }

    def dials(scale, **on) -> Dials:
        branches = tuple(name for name in MODALITIES if on[name])
        speaking = tuple(i for name, i in layers.items() if on[name])
        return Dials(scale, branches, speaking, on["query residual"], on["trained heads"])

    def answers(right, query, on) -> dict:
        return {"frozen": models.ask(query, right, FROZEN), "as dialled": models.ask(query, right, dials(**on))}

    def ranking(right, query, **on):
        return figures.ranking(models, answers(right, query, on), right, query)

    def scores(right, query, **on):
        return figures.right_scores(answers(right, query, on))

    def recalls(**on):
        now = {"frozen": models.recall(FROZEN), "as trained": models.recall(), "as dialled": models.recall(dials(**on))}
        return figures.recall_bars(now)

    pictures = {
        "ranking": (ranking, list(controls)),
        "scores": (scores, list(controls)),
        "recall": (recalls, ("scale", *switches)),
    }
    return View(
        "Console", controls, pictures, {"right": ("query", lambda right: models.captions[right][0])}, _console_page
    )


def _console_page(shown: Mapping[str, W.Image]) -> W.Widget:
    return W.VBox([shown["ranking"], W.HBox([shown["scores"], shown["recall"]], layout=W.Layout(flex_flow="row wrap"))])


def frame_explorer(model: nn.Module, processor, film: Callable | None = None, size: int = 8) -> View:
    """A clip's frames, what an editable sentence gives to each, and what that does to attention and answer.

    model: with adapters. film: number of distractors -> data set of ``size`` clips, the same ones whatever the number;
    by default of the target world, four frames of the event each.
    """
    film = cache(
        film or (lambda n: clips.load_clips("target", "test", size, frames=FRAMES_OF_EVENT + n, distractors=n))
    )
    controls = {
        "clip": _slider("clip", size - 1),
        "sentence": _line("sentence", film(0)[0]["captions"][0]),
        "distractors": _slider("distractors", MOST_DISTRACTORS, 2),
        "model": _choice("model", ("adapted", "frozen")),
        "temperature": _steps("temperature", TEMPERATURES, TEMPERATURES[0]),
    }

    @cache
    def report(clip, sentence, distractors, name, temperature=TEMPERATURES[0]):
        frames = film(distractors)[clip]["frames"]
        if name == "adapted":
            return look_at_frames(model, processor, frames, sentence, temperature)
        with adapters_disabled(model):
            return look_at_frames(model, processor, frames, sentence, temperature)

    def frames(clip, sentence, distractors, model):
        row = film(distractors)[clip]
        return figures.clip_frames(
            row["frames"], report(clip, sentence, distractors, model), row["distractors"], sentence
        )

    def effects(clip, sentence, distractors, model, temperature):
        found = report(clip, sentence, distractors, model, temperature)
        return figures.frame_effects(found, film(distractors)[clip]["distractors"], temperature)

    pictures = {"frames": (frames, ("clip", "sentence", "distractors", "model")), "effects": (effects, list(controls))}
    follow = {"clip": ("sentence", lambda clip: film(0)[clip]["captions"][0])}
    return View("Frame explorer", controls, pictures, follow)


def ledger() -> View:
    """What UniAdapter costs with the chosen bottleneck, sharing, branches and backbone, beside LoRA and full
    fine-tuning."""
    controls = {
        "bottleneck": _steps("bottleneck r", BOTTLENECKS, 32),
        "share": _choice("what is shared", SHARE),
        "backbone": _choice("backbone", BACKBONES),
        **{name: _switch(name) for name in MODALITIES},
    }

    def bars(bottleneck, share, backbone, **on):
        branches = tuple(name for name in MODALITIES if on[name])
        own_ups = share in ("down", "none")  # else there is one, and nothing to be reused
        config = UniAdapterConfig(bottleneck, modalities=branches, share=share, cross_reuses_text_up=own_ups)
        return figures.cost_bars(costs(blueprint(backbone), config), backbone)

    return View("Ledger", controls, {"bars": (bars, list(controls))})


def before_after(models: TwoModels) -> View:
    """Type words and see the first pictures of both models; click a picture and see the captions that they find
    closest."""
    states = {"frozen": FROZEN, "adapted": Dials()}
    controls = {
        "query": _line("query", models.captions[0][0]),
        "picture": _slider("picture", len(models.images) - 1),
    }

    def tile(state, place):
        def draw(query):
            found, _ = models.find(query, states[state])
            return models.images[found[place]].resize((TILE, TILE))

        return draw

    def captions(picture):
        found = {name: models.best_captions(picture, dials=dials) for name, dials in states.items()}
        return figures.caption_columns(models, picture, found)

    def click(state, place):
        found, _ = models.find(controls["query"].value, states[state])
        controls["picture"].value = found[place]

    def page(shown):
        rows = [
            W.HBox([_row_title(state), *(_clickable(shown[name], name, click, state, i) for name, i in own)])
            for state, own in places.items()
        ]
        return W.VBox([*rows, W.HTML("Click a picture to see its captions."), shown["captions"]])

    places = {state: [(f"{state} {i + 1}", i) for i in range(models.top_k)] for state in states}
    pictures = {name: (tile(state, i), ("query",)) for state, own in places.items() for name, i in own}
    return View("Before and after", controls, pictures | {"captions": (captions, ("picture",))}, arrange=page)


def _row_title(state: str) -> W.Label:
    return W.Label(state, layout=W.Layout(width="80px"))


def _clickable(image: W.Image, name: str, click: Callable, state: str, place: int) -> W.Widget:
    """A picture beneath a button that cannot be seen, in one cell of a grid: ipywidgets' pictures hear no clicks."""
    button = W.Button(tooltip=f"captions of {name}", style={"button_color": "transparent"})
    button.on_click(lambda _: click(state, place))
    size = f"{TILE}px"
    for widget in (image, button):
        widget.layout = W.Layout(grid_area="1 / 1", width=size, height=size, margin="0")
    return W.GridBox(
        [image, button], layout=W.Layout(grid_template_columns=size, grid_template_rows=size, margin="2px")
    )
