"""How pictures reach the reader: `show` with its text alternative, `explore` with sliders. No picture is drawn here."""

from __future__ import annotations

import base64
import html
import io
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

from pagedlab.errors import CourseError

DPI = 120
"""Pixels an inch: sharp at notebook width on a dense screen, and a picture of 8 by 4 inches stays near 40 kB."""
CSS_PIXELS_PER_INCH = 96
MINIMUM_ALT = 20
"""Characters: a text alternative says what the picture shows; a file name or one word does not."""


def has_frontend() -> bool:
    """Is somebody looking: does this cell run in JupyterLab or the like, where widgets are alive?

    A front end with a reader can answer input(), and says so with each cell that it runs. Executors with nobody in
    front (nbclient, nbconvert, nbval), a terminal and plain Python do not.
    """
    shell: Any = get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return False
    return bool(shell.get_parent().get("content", {}).get("allow_stdin", False))


def show(figure: Figure, alt: str) -> None:
    """Display a figure as a PNG that says in words what it shows.

    The words go where tools look for them: `alt` in the output's metadata (nbconvert, Sphinx, VS Code), the plain-text
    form of the output, and, with a reader in front, an <img alt> of its own, since JupyterLab ignores the metadata.

    Args:
        figure: from new_figure or any other matplotlib figure.
        alt: a sentence or two with the message of the picture, for readers who cannot see it.

    Raises:
        CourseError: figure is no figure, or alt is missing or too short to say anything.
    """
    if not isinstance(figure, Figure):
        raise CourseError(f"show() displays a matplotlib figure, got {type(figure).__name__}: pass the figure itself.")
    if not isinstance(alt, str) or len(alt.strip()) < MINIMUM_ALT:
        raise CourseError(f"Say in `alt` what the picture shows, in a sentence of {MINIMUM_ALT} characters or more.")
    display_picture(figure, " ".join(alt.split()), has_frontend())


def display_picture(figure: Figure, alt: str, for_reader: bool) -> None:
    """`show` without its questions: for_reader adds the form in which JupyterLab has the words, too."""
    png = png_bytes(figure)
    width = round(struct.unpack(">I", png[16:20])[0] * CSS_PIXELS_PER_INCH / DPI)
    encoded = base64.b64encode(png).decode()
    data = {"image/png": encoded, "text/plain": f"[picture] {alt}"}
    metadata = {"image/png": {"alt": alt, "width": width}}
    if for_reader:
        style = f"width:{width}px;max-width:100%;background:white"
        data["text/html"] = f'<img alt="{html.escape(alt)}" style="{style}" src="data:image/png;base64,{encoded}">'
    display(data, metadata=metadata, raw=True)


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG, the same bytes for the same drawing: no date, no program name."""
    buffer = io.BytesIO()
    options = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.12, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def explore(figure_function: Callable[..., Figure], /, **controls: Any) -> None:
    """Controls that redraw a picture: figure_function(**values), once at the start and after each change.

    Without a front end (nbclient, a terminal) it draws once with the starting values, so that a mistake shows, and
    prints one sentence in place of the widgets.

    Args:
        figure_function: from keyword values to a figure; pure, so that it can be called at any time.
        controls: one for each argument.
            (low, high) or (low, high, step): a slider; integers give an integer slider.
            a list: a menu, or a slider over the values if all are numbers.
            a dictionary: a menu of its keys. True or False: a check box. Text: a text field.
            Each starts at the function's own default if that is among the choices, else in the middle or first.

    Raises:
        CourseError: a control is none of these.
    """
    starts = {name: starting_value(figure_function, name, control) for name, control in controls.items()}
    try:
        import ipywidgets
    except ImportError:
        ipywidgets = None  # type: ignore[assignment]
    if ipywidgets is None or not has_frontend():
        figure_function(**starts)
        print(f"Here JupyterLab shows controls that redraw the picture: {describe(controls)}.")
        return
    boxes = {name: make_widget(ipywidgets, name, control, starts[name]) for name, control in controls.items()}

    def draw(**values: Any) -> None:
        shown = ", ".join(f"{name} = {value}" for name, value in values.items())
        # The message that moves a control says nothing of a reader; but only a reader moves one.
        display_picture(figure_function(**values), f"The picture above, redrawn with {shown}.", for_reader=True)

    panel = ipywidgets.HBox(list(boxes.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
    display(ipywidgets.VBox([panel, ipywidgets.interactive_output(draw, boxes)]))


def starting_value(function: Callable[..., Any], name: str, control: Any) -> Any:
    """Where a control starts; raises CourseError if it is not a control."""
    import inspect

    parameter = inspect.signature(function).parameters.get(name)
    default = parameter.default if parameter is not None else inspect.Parameter.empty
    if isinstance(control, (bool, str)):
        return control
    if isinstance(control, Mapping) and control:
        return default if default in control.values() else next(iter(control.values()))
    if isinstance(control, tuple) and is_range(control):
        low, high = control[:2]
        if isinstance(default, (int, float)) and low <= default <= high:
            return default
        if is_integral(control):
            step = control[2] if len(control) == 3 else 1
            return low + (high - low) // (2 * step) * step
        return (low + high) / 2
    if isinstance(control, list) and control:
        return default if default in control else control[0]
    raise CourseError(f"{name}={control!r} is no control: give (low, high), a list, a dictionary, text, True or False.")


def is_range(control: tuple) -> bool:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in control)
    return len(control) in (2, 3) and numbers and control[0] < control[1] and (len(control) == 2 or control[2] > 0)


def is_integral(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) for value in values)


def make_widget(ipywidgets: Any, name: str, control: Any, start: Any) -> Any:
    options = {"description": name.replace("_", " "), "style": {"description_width": "initial"}}
    if isinstance(control, bool):
        return ipywidgets.Checkbox(value=start, indent=False, **options)
    if isinstance(control, str):
        return ipywidgets.Text(value=start, continuous_update=False, **options)
    if isinstance(control, Mapping):
        return ipywidgets.Dropdown(options=list(control.items()), value=start, **options)
    if isinstance(control, tuple):
        low, high = control[:2]
        step = control[2] if len(control) == 3 else 1 if is_integral(control) else (high - low) / 100
        slider = ipywidgets.IntSlider if is_integral(control) else ipywidgets.FloatSlider
        return slider(value=start, min=low, max=high, step=step, continuous_update=False, **options)
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in control):
        return ipywidgets.SelectionSlider(options=control, value=start, continuous_update=False, **options)
    return ipywidgets.Dropdown(options=control, value=start, **options)


def describe(controls: Mapping[str, Any]) -> str:
    """The controls in words: 'n (2 to 64), kind (a, b)'."""
    parts = []
    for name, control in controls.items():
        label = name.replace("_", " ")
        if isinstance(control, bool):
            parts.append(f"{label} (on or off)")
        elif isinstance(control, tuple):
            parts.append(f"{label} ({control[0]} to {control[1]})")
        elif isinstance(control, (list, Mapping)):
            parts.append(f"{label} ({', '.join(map(str, control))})")
        else:
            parts.append(label)
    return ", ".join(parts)
