"""Pictures of benchmark results: pure functions from a result to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"pagedlab": "#0072B2", "static": "#E69F00", "generate_batch": "#D55E00", "floor": "#999999"}
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""

NAMES = {
    "pagedlab": "pagedlab",
    "static": "transformers\ngenerate (static)",
    "generate_batch": "transformers\ngenerate_batch",
    "floor": "matrix products\nalone",
}


def draw_offline(result: dict[str, Any], path: Path) -> Path:
    """Bars of output tokens a second for each engine, one panel a number type; whiskers span the rounds."""
    from matplotlib.figure import Figure

    runs = result["runs"]
    figure = Figure(figsize=(5.2 * len(runs), 4.2), layout="constrained")
    for axes, (dtype, run) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
        rates = run["output_tokens_per_s"]
        order = [name for name in NAMES if name in rates]
        medians = [rates[name]["median"] for name in order]
        whiskers = [
            [rates[name]["median"] - rates[name]["min"] for name in order],
            [rates[name]["max"] - rates[name]["median"] for name in order],
        ]
        bars = axes.bar([NAMES[n] for n in order], medians, yerr=whiskers, capsize=4, color=[COLOURS[n] for n in order])
        axes.bar_label(bars, fmt="{:,.0f}", padding=3)
        axes.margins(y=0.15)
        axes.set_ylabel("output tokens per second")
        axes.set_title(f"{dtype}: {run['num_prompts']} requests, {run['num_output_tokens']:,} tokens out")
        axes.tick_params(axis="x", labelsize=8)
    about = result["environment"]
    figure.suptitle(f"{about['device']}, torch {about['packages']['torch']}, {about['date'][:10]}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
