"""Pictures of benchmark results: pure functions from a result to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {
    "pagedlab": "#0072B2",
    "static": "#E69F00",
    "generate_batch": "#D55E00",
    "vllm": "#CC79A7",
    "floor": "#999999",
}
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""

NAMES = {
    "pagedlab": "pagedlab",
    "static": "transformers\ngenerate (static)",
    "generate_batch": "transformers\ngenerate_batch",
    "vllm": "vLLM",
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


SERVE_NAMES = {
    "offline": "LLM.generate\n(no HTTP)",
    "pagedlab_serve": "pagedlab\nserve",
    "transformers_serve": "transformers\nserve",
}
SERVE_COLOURS = {"offline": "#999999", "pagedlab_serve": "#0072B2", "transformers_serve": "#E69F00"}


def draw_serve(result: dict[str, Any], path: Path) -> Path:
    """Left: output tokens a second, whiskers over the rounds. Right: each latency from p50 (dot) to p99, log axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = result["output_tokens_per_s"]
    order = [name for name in SERVE_NAMES if name in rates]
    medians = [rates[name]["median"] for name in order]
    whiskers = [
        [rates[name]["median"] - rates[name]["min"] for name in order],
        [rates[name]["max"] - rates[name]["median"] for name in order],
    ]
    colours = [SERVE_COLOURS[name] for name in order]
    bars = left.bar([SERVE_NAMES[name] for name in order], medians, yerr=whiskers, capsize=4, color=colours)
    left.bar_label(bars, fmt="{:,.0f}", padding=3)
    left.margins(y=0.15)
    left.set_ylabel("output tokens per second")
    left.set_title(f"{result['num_prompts']} requests, {result['max_concurrency']} at once")
    metrics = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2E"}
    loads = {"burst": ("burst", "#0072B2"), "poisson": ("Poisson", "#009E73")}
    loads |= {"transformers_serve": ("transformers, burst", "#E69F00")}
    shown = [name for name in loads if name in result and "p50_ttft_ms" in result[name]]
    for index, name in enumerate(shown):
        label, colour = loads[name]
        rows = [(row, metric) for row, metric in enumerate(metrics) if f"p50_{metric}_ms" in result[name]]
        height = [row + 0.22 * (index - (len(shown) - 1) / 2) for row, _ in rows]
        low = [result[name][f"p50_{metric}_ms"] for _, metric in rows]
        high = [result[name][f"p99_{metric}_ms"] for _, metric in rows]
        right.hlines(height, low, high, color=colour, linewidth=3)
        right.plot(low, height, "o", color=colour, label=label)
    right.set_xscale("log")
    right.set_yticks(range(len(metrics)), list(metrics.values()))
    right.invert_yaxis()
    right.set_xlabel("milliseconds, median (dot) to p99")
    right.set_title("Latency over HTTP")
    right.grid(axis="x", alpha=0.3)
    if shown:
        right.legend(fontsize=8)
    about = result["environment"]
    figure.suptitle(f"{about['device']}, torch {about['packages']['torch']}, {about['date'][:10]}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
