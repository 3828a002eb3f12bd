"""What the size of a chunk decides: others' gaps, time to first token, throughput, and the memory of a pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from pagedlab.errors import CourseError
from pagedlab.runtime.memory_profile import MemoryProfile
from pagedlab.simulate.chunking import TradeOff, pick
from pagedlab.visualize.style import CYCLE, PALETTE, legend_below, new_figure

MARKERS = "os^D"
SECONDS_TO_MS = 1e3


def trade_off(
    series: Mapping[str, Sequence[TradeOff]] | Sequence[TradeOff],
    objective: float | None = None,
    title: str | None = None,
) -> Figure:
    """Three panels over the chunk size: worst gap of the others, the prompt's time to first token, tokens a second.

    Args:
        series: name -> points; or the points of one series.
        objective: longest gap that is allowed, seconds. Sizes that break it are drawn hollow, and of the first series
            the size that `chunking.pick` takes is ringed.

    Raises:
        CourseError: there are no points.
    """
    named = dict(series) if isinstance(series, Mapping) else {"measured": series}
    if not named or not all(named.values()):
        raise CourseError("A trade-off needs one point or more in each series.")
    figure = new_figure(11, 4.1, title)
    gaps, firsts, rates = figure.subplots(1, 3)
    first = next(iter(named.values()))
    chosen = pick(first, objective) if objective is not None else None
    draw_panel(gaps, named, "worst gap of the others (ms)", lambda p: p.worst_gap * SECONDS_TO_MS, objective, chosen)
    draw_panel(firsts, named, "time to first token (s)", lambda p: p.time_to_first_token, objective, chosen)
    draw_panel(rates, named, "tokens computed a second", lambda p: p.tokens_per_second, objective, chosen)
    gaps.set_yscale("log")
    plain_log_ticks(gaps)
    if objective is not None:
        line = f"objective: {objective * SECONDS_TO_MS:,.0f} ms"
        gaps.axhline(objective * SECONDS_TO_MS, color=PALETTE["black"], linestyle="--", linewidth=1.2, label=line)
    for axes in (firsts, rates):
        axes.set_ylim(0, axes.get_ylim()[1] * 1.06)  # room for the ring round the highest point
        axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.10g}"))
    legend_below(gaps, columns=len(named) + 2)
    return figure


def draw_panel(
    axes: Axes,
    series: Mapping[str, Sequence[TradeOff]],
    title: str,
    value: Callable[[TradeOff], float],
    objective: float | None,
    chosen: TradeOff | None,
) -> None:
    for index, (name, points) in enumerate(series.items()):
        colour = CYCLE[index % len(CYCLE)]
        sizes = [point.chunk_size for point in points]
        axes.plot(sizes, [value(point) for point in points], color=colour, zorder=2)
        fits = [objective is None or point.worst_gap <= objective for point in points]
        axes.scatter(
            sizes,
            [value(point) for point in points],
            marker=MARKERS[index % len(MARKERS)],
            s=42,
            facecolors=[colour if ok else "white" for ok in fits],
            edgecolors=colour,
            label=name,
            zorder=3,
        )
    if chosen is not None:
        axes.scatter(
            [chosen.chunk_size],
            [value(chosen)],
            s=260,
            facecolors="none",
            edgecolors=PALETTE["vermillion"],
            linewidths=2.2,
            label=f"chosen: {chosen.chunk_size:,} tokens",
            zorder=4,
        )
    every = sorted({point.chunk_size for points in series.values() for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [short(size) for size in every], rotation=45 if len(every) > 6 else 0)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("chunk size (tokens)")
    axes.set_title(title, fontsize=11)


def short(size: int) -> str:
    """512, 4k, 100k: a label that fits under a tick."""
    if size < 1024:
        return str(size)
    if size % 1024 == 0:
        return f"{size // 1024}k"
    return f"{size / 1000:.3g}k"


def plain_log_ticks(axes: Axes) -> None:
    """1, 2, 3, 5, 7, 10 ... in place of powers of ten, which are too far apart for one or two decades."""
    low, high = axes.get_ylim()
    ticks = [digit * 10.0**power for power in range(-6, 9) for digit in (1, 2, 3, 5, 7)]
    axes.set_yticks([tick for tick in ticks if low <= tick <= high])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def peak_memory(sizes: Sequence[int], peaks: Mapping[str, Sequence[float]], title: str = "Peak memory") -> Figure:
    """Peak bytes for each chunk size, a line a series, both axes logarithmic.

    Raises:
        CourseError: a series has not one peak for each size.
    """
    if not sizes or not peaks or any(len(values) != len(sizes) for values in peaks.values()):
        raise CourseError("Give one peak for each chunk size in every series, and one series or more.")
    figure = new_figure(8, 4.2)
    axes = figure.subplots()
    for index, (name, values) in enumerate(peaks.items()):
        held = [amount / 1e6 for amount in values]
        axes.plot(sizes, held, marker=MARKERS[index % len(MARKERS)], color=CYCLE[index % len(CYCLE)], label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log")
    plain_log_ticks(axes)
    axes.set(xlabel="chunk size (tokens)", ylabel="peak (MB, 10⁶ bytes)", title=title)
    legend_below(axes, columns=3)
    return figure


def live_memory(profiles: Mapping[str, MemoryProfile], title: str = "Live memory during a pass") -> Figure:
    """Megabytes that tensors hold at each moment, one line a run; the dotted lines are the peaks.

    Runs differ in length: each is stretched over its own 0 to 100 %.

    Raises:
        CourseError: there is nothing to draw.
    """
    if not profiles or not all(profile.live_bytes for profile in profiles.values()):
        raise CourseError("Live memory needs one profile or more, of code that allocates something.")
    figure = new_figure(9.5, 3.9)
    axes = figure.subplots()
    for index, (name, profile) in enumerate(profiles.items()):
        colour = CYCLE[index % len(CYCLE)]
        length = profile.seconds[-1] or 1.0
        peak = profile.peak_bytes / 1e6
        progress = [100 * moment / length for moment in profile.seconds]
        held = [amount / 1e6 for amount in profile.live_bytes]
        axes.plot(progress, held, drawstyle="steps-post", color=colour, linewidth=1.1, label=f"{name}: {peak:,.1f} MB")
        axes.axhline(peak, color=colour, linestyle=":", linewidth=1.2)
    axes.set(xlabel="progress of the run (% of its time)", ylabel="held by tensors (MB, 10⁶ bytes)", title=title)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    legend_below(axes, columns=3, title="peak")
    return figure
