"""Guess first, then measure: what the reader expected, kept in memory until the measurement stands beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pagedlab.course.display import emit, format_value, plain_value, table, text
from pagedlab.errors import CourseError
from pagedlab.visualize.widgets import has_frontend

Guess = float | str


@dataclass
class Prediction:
    """One question and what the reader answered; guess is None until then."""

    id: str
    question: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    guess: Guess | None = None

    def _ipython_display_(self) -> None:
        """As the last value of a cell it shows nothing more: predict() has shown it."""


PREDICTIONS: dict[str, Prediction] = {}
"""Of this kernel, by id."""


def predict(
    id: str, question: str, guess: Guess | None = None, unit: str = "", choices: Sequence[str] | None = None
) -> Prediction:
    """Ask the reader for a guess before an experiment. Running on without one is fine.

    Args:
        id: "ch01.rows"; reveal() takes the same.
        question: one sentence.
        guess: the reader's number, or one of `choices`; typed here, or into the field that appears where widgets work.
        unit: of the number: "x", "ms", "%".
        choices: the answers to choose from; without them the guess is a number.

    Raises:
        CourseError: choices are not two or more texts.
    """
    if choices is not None and (len(choices) < 2 or not all(isinstance(choice, str) for choice in choices)):
        raise CourseError("choices must be two or more texts, such as choices=['faster', 'slower'].")
    known = PREDICTIONS.get(id)
    prediction = Prediction(id, question, unit, tuple(choices or ()), known.guess if known else None)
    problem = ""
    if guess is not None:
        prediction.guess, problem = read_guess(prediction, guess)
    PREDICTIONS[id] = prediction
    show_question(prediction, problem)
    if has_frontend():
        show_field(prediction)
    return prediction


def read_guess(prediction: Prediction, guess: Any) -> tuple[Guess | None, str]:
    """The guess, or None and the sentence that says what would be one."""
    if prediction.choices:
        matches = [choice for choice in prediction.choices if str(guess).strip().lower() == choice.lower()]
        if matches:
            return matches[0], ""
        return None, f"guess={guess!r} is not among the choices: write guess={prediction.choices[0]!r}, for instance."
    try:
        number = float(plain_value(guess))
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(guess, bool) or not math.isfinite(number):
        return None, f"guess={guess!r} is not a number: write guess=8, for instance."
    return int(number) if number == int(number) else number, ""


def show_question(prediction: Prediction, problem: str) -> None:
    among = f" ({' / '.join(prediction.choices)})" if prediction.choices else ""
    if problem:
        state = problem
    elif prediction.guess is not None:
        state = f"Your guess: {format_value(prediction.guess, prediction.unit)}"
    else:
        unit = f" (in {prediction.unit})" if prediction.unit else ""
        state = f"No guess yet: write guess=...{unit} in this cell and run it again, or just read on."
    emit(
        f"Predict: {prediction.question}{among}\n{state}",
        f"<p><b>Predict.</b> {text(prediction.question + among)}<br><i>{text(state)}</i></p>",
    )


def show_field(prediction: Prediction) -> None:
    """A field or buttons that write into the prediction; nothing where ipywidgets is missing."""
    try:
        import ipywidgets
    except ImportError:
        return
    from IPython.display import display

    style = {"description_width": "initial"}
    if prediction.choices:
        field = ipywidgets.ToggleButtons(
            options=prediction.choices, value=prediction.guess, style={"button_width": "auto"}
        )
    else:
        field = ipywidgets.Text(
            value="" if prediction.guess is None else f"{prediction.guess:g}",
            placeholder="a number",
            description=f"your guess{f' in {prediction.unit}' if prediction.unit else ''}:",
            style=style,
            continuous_update=False,
        )
    note = ipywidgets.Label()

    def keep(change: Any) -> None:
        if change["new"] in (None, ""):
            return
        guess, problem = read_guess(prediction, change["new"])
        prediction.guess = prediction.guess if guess is None else guess
        note.value = "Please enter a number." if problem else f"noted: {format_value(guess, prediction.unit)}"

    field.observe(keep, names="value")
    display(ipywidgets.HBox([field, note]))


def reveal(id: str, measured: Any, note: str = "") -> None:
    """Set the reader's guess beside the measurement. Never fails: a missing or wrong guess is no mistake.

    Args:
        id: as in predict().
        measured: a number in the prediction's unit, or one of its choices.
        note: one sentence that says where the number comes from, or why it is so.
    """
    prediction = PREDICTIONS.get(id, Prediction(id, ""))
    measured = plain_value(measured)
    shown = format_value(measured, prediction.unit)
    guessed = "none" if prediction.guess is None else format_value(prediction.guess, prediction.unit)
    verdict = compare(prediction.guess, measured)
    note = " ".join(part for part in (verdict, note) if part)
    question = f"{prediction.question}\n" if prediction.question else ""
    markup = table(["your guess", "measured", ""], [text(guessed), f"<b>{text(shown)}</b>", text(note)])
    caption = f"<p><i>{text(prediction.question)}</i></p>" if prediction.question else ""
    emit(f"{question}your guess: {guessed} | measured: {shown}{f' | {note}' if note else ''}", caption + markup)


def compare(guess: Guess | None, measured: Any) -> str:
    """How far off a guess was, in words."""
    if guess is None:
        return ""
    if isinstance(guess, str):
        return "As you said." if guess == str(measured) else "Not what you said."
    if isinstance(measured, bool) or not isinstance(measured, (int, float)):
        return ""
    if guess == measured:
        return "Exactly."
    if guess <= 0 or measured <= 0:
        return f"{format_value(abs(guess - measured))} {'too high' if guess > measured else 'too low'}."
    ratio = max(guess / measured, measured / guess)
    if ratio < 1.1:
        return "Within 10 %."
    return f"{format_value(round(ratio, 1))} times too {'high' if guess > measured else 'low'}."
