"""How the course's helpers speak: each message as a few plain lines and as HTML, for any page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from IPython.display import display

BADGES = {
    "holds": ("✓", "holds", "#00684A"),
    "corrected": ("✎", "corrected", "#A33B00"),
    "imprecise": ("≈", "imprecise", "#7A5600"),
    "cited": ("❝", "cited", "#00598C"),
    "measured": ("◷", "measured here", "#5B3A75"),
    "needs-gpu": ("▣", "needs a GPU", "#555555"),
    "pass": ("✓", "right", "#00684A"),
    "fail": ("✗", "not yet", "#A33B00"),
}
"""Sign, words and background of each verdict: dark enough for white letters, on a light page and on a dark one."""


def emit(plain: str, markup: str) -> None:
    """Display one message: `plain` where there is only text, `markup` (HTML) elsewhere."""
    display({"text/plain": plain, "text/html": markup}, raw=True)


def badge(verdict: str) -> str:
    """A verdict as a coloured label that also says it in words, for readers who see no colour or no style."""
    sign, words, colour = BADGES[verdict]
    shape = "padding:1px 8px;border-radius:9px;white-space:nowrap;display:inline-block;margin-bottom:3px"
    style = f"background:{colour};color:#fff;{shape}"
    return f'<b style="{style}">{sign} {words}</b>'


def table(header: Sequence[str], *rows: Sequence[str]) -> str:
    """An HTML table; cells are markup already (escape text with `text`)."""
    style = ' style="text-align:left;vertical-align:top"'
    lines = ["<tr>" + "".join(f"<th{style}>{cell}</th>" for cell in header) + "</tr>"] if any(header) else []
    lines += ["<tr>" + "".join(f"<td{style}>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "".join(lines) + "</table>"


def text(value: Any) -> str:
    """Escaped for HTML."""
    return html.escape(str(value))


def plain_value(value: Any) -> Any:
    """Python's own types out of torch's and numpy's: scalars, lists."""
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [plain_value(item) for item in items]
    return value.tolist() if hasattr(value, "tolist") else value


def format_value(value: Any, unit: str = "") -> str:
    """A measurement as people write it: 1,048,576; 0.03125; yes; 3, 4, 5. Nothing within something is none."""
    value = plain_value(value)
    if isinstance(value, bool):
        shown = "yes" if value else "no"
    elif isinstance(value, int):
        shown = f"{value:,}"
    elif isinstance(value, float):
        shown = format_float(value)
    elif isinstance(value, dict):
        shown = ", ".join(f"{key}: {format_value(item) or 'none'}" for key, item in value.items())
    elif isinstance(value, list):
        shown = ", ".join(format_value(item) or "none" for item in value)
    else:
        shown = str(value)
    if not unit:
        return shown
    return shown + ("" if unit in ("x", "×", "%") else " ") + unit


def format_float(value: float) -> str:
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    size = abs(value)
    if size >= 1e15 or size < 1e-4:
        return f"{value:.3e}"
    if size >= 1000:
        return f"{value:,.0f}" if size >= 10000 or value == int(value) else f"{value:,.1f}"
    return f"{value:.4g}"
