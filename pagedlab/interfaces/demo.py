"""`pagedlab demo`: eight questions share one engine, seen live: tokens, blocks, each step's budget, prefix hits."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pagedlab.interfaces.llm import LLM
from pagedlab.interfaces.outputs import RequestOutput
from pagedlab.model_authoring.request import Request
from pagedlab.sampling_params import SamplingParams

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Why is the sky blue? Explain it to a child who has never heard of light waves.",
    "Write a haiku about memory.",
    "What is 7 times 6?",
    "Give me a short recipe for pancakes, with the amounts in grams, and say how long it takes to make them.",
    "Who wrote Romeo and Juliet?",
    "List the planets of the solar system in order from the Sun, and say in a few words what each is known for.",
)
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""

STEPS_BETWEEN_ARRIVALS = 2
NUM_BLOCKS = 97
TOKEN_BUDGET = 64


@dataclass
class Progress:
    """What the picture shows of the run."""

    texts: dict[str, str] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    cached: dict[str, int] = field(default_factory=dict)
    step_tokens: list[int] = field(default_factory=list)
    num_generated: int = 0
    seconds: float = 0.0


def run_demo(arguments: argparse.Namespace) -> int:
    """Run the demonstration; a plain list of answers where the output is no terminal."""
    console = Console()
    llm = LLM(
        arguments.model,
        dtype=arguments.dtype,
        device=arguments.device,
        attention_backend=arguments.attention_backend,
        num_blocks=NUM_BLOCKS,
        max_num_seqs=len(QUESTIONS),
        max_num_batched_tokens=TOKEN_BUDGET,
    )
    max_tokens = 24 if arguments.short else 80
    progress = Progress()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=12, vertical_overflow="crop") as live:
            for _ in steps(llm, max_tokens, progress):
                live.update(picture(llm, progress, console.width))
    else:
        for _ in steps(llm, max_tokens, progress):
            pass
        for index, question in enumerate(QUESTIONS):
            print(f"{question}\n  {beginning(progress.texts[str(index)], 110)}")
    console.print(summary(llm, progress), soft_wrap=True)
    return 0


def steps(llm: LLM, max_tokens: int, progress: Progress) -> Iterator[None]:
    """Let the questions arrive one after another, and yield after each step."""
    engine = llm.llm_engine
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    waiting = list(enumerate(QUESTIONS))
    start = time.perf_counter()
    number = 0
    while waiting or engine.has_unfinished_requests():
        if waiting and number % STEPS_BETWEEN_ARRIVALS == 0:
            index, question = waiting.pop(0)
            prompt = llm.apply_chat_template([{"role": "user", "content": question}])
            engine.add_request(str(index), prompt, params, add_special_tokens=False)
        before = engine.stats()
        for output in engine.step():
            if isinstance(output, RequestOutput):
                take(progress, output)
        after = engine.stats()
        progress.step_tokens.append(after.num_computed_tokens - before.num_computed_tokens)
        progress.num_generated = after.num_generated_tokens
        progress.seconds = time.perf_counter() - start
        number += 1
        yield


def take(progress: Progress, output: RequestOutput) -> None:
    progress.texts[output.request_id] = output.outputs[0].text
    progress.cached[output.request_id] = output.num_cached_tokens
    if output.finished:
        progress.finished.add(output.request_id)


def picture(llm: LLM, progress: Progress, width: int) -> Group:
    """The live view: one row a question, the block map, and the budget of the last step."""
    return Group(
        answers_table(llm, progress, width),
        Panel(block_map(llm), title="KV blocks (16 tokens each)", title_align="left"),
        budget_line(progress),
    )


def answers_table(llm: LLM, progress: Progress, width: int) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    fixed = {"#": 2, "question": 30, "state": 9, "tokens": 7, "cached": 6}
    for header, column in fixed.items():
        table.add_column(header, width=column, no_wrap=True)
    room = max(20, width - sum(fixed.values()) - 2 * len(fixed))
    table.add_column("answer", ratio=1, no_wrap=True)
    unfinished = {request.group_id: request for request in llm.llm_engine.scheduler.unfinished()}
    for index, question in enumerate(QUESTIONS):
        name = str(index)
        request = unfinished.get(name)
        state = "done" if name in progress.finished else request.status.value if request else ""
        table.add_row(
            Text("■", style=COLOURS[index]),
            beginning(question, 30),
            state,
            tokens_of(request),
            str(progress.cached.get(name, "")),
            Text(newest(progress.texts.get(name, ""), room)),
        )
    return table


def tokens_of(request: Request | None) -> str:
    return f"{request.num_computed_tokens}/{request.num_tokens}" if request else ""


def block_map(llm: LLM) -> Text:
    """One cell a block: coloured by owner, ▓ if several share it, ░ if it is free but still holds a cached prefix."""
    manager = llm.llm_engine.block_manager
    owners: dict[int, int] = {}
    for request, table in manager.tables.items():
        for block_id in table.ids:
            owners[block_id] = int(request.group_id)
    text = Text()
    for block in manager.pool.blocks[1:]:
        if block.ref_count == 0:
            text.append("░" if block.block_hash else "·", style="dim")
        else:
            text.append("▓" if block.ref_count > 1 else "█", style=COLOURS[owners[block.block_id]])
    text.append("\n█ owned  ▓ shared  ░ free, prefix kept  · free", style="dim")
    return text


def budget_line(progress: Progress) -> Text:
    used = progress.step_tokens[-1] if progress.step_tokens else 0
    bar = "█" * round(32 * used / TOKEN_BUDGET)
    rate = progress.num_generated / max(progress.seconds, 1e-9)
    return Text(
        f"step {len(progress.step_tokens):4d}  budget {bar:<32} {used:3d}/{TOKEN_BUDGET} tokens  {rate:6.1f} tokens/s"
    )


def summary(llm: LLM, progress: Progress) -> str:
    stats = llm.stats()
    return (
        f"{progress.num_generated} tokens for {len(QUESTIONS)} requests in {progress.seconds:.1f} s: "
        f"{progress.num_generated / progress.seconds:.1f} tokens/s, {stats.num_steps} steps, "
        f"{stats.prefix_cache_hits} prompt tokens came from the prefix cache."
    )


def beginning(text: str, width: int) -> str:
    """One line with the first words."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def newest(text: str, width: int) -> str:
    """One line that ends with the newest words."""
    line = " ".join(text.split())
    return line if len(line) <= width else "…" + line[-(width - 1) :]
