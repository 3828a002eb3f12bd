"""Frames: what a recording of the engine says about each step, put in the form that every engine view draws.

The figures (engine_view.py) and the page (engine_view_html.py) show frames and compute nothing themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pagedlab.errors import CourseError
from pagedlab.model_authoring.recording import EngineRecording, StepRecord
from pagedlab.visualize.block_map import BlockView

EVENT_KINDS = {
    "admit": "comes in",
    "hit": "prefix-cache hit",
    "copy": "copy-on-write",
    "preempt": "preemption",
    "end": "end",
}
"""Kind -> its name in a legend."""


@dataclass(frozen=True)
class Event:
    """Something worth a sentence. `kind` is a key of EVENT_KINDS."""

    kind: str
    request_id: str
    text: str


@dataclass(frozen=True)
class RequestRow:
    """One sequence in one step. Numbers are tokens, counted from the start of its prompt.

    Attributes:
        request_id: its name
        status: to come, running, waiting, swapped, or ended
        reason: why it ended; empty before
        num_tokens: known; 0 before it came
        start, end: computed in this step: tokens start .. end - 1; equal if none
        num_cached: leading tokens that it took from the prefix cache when it last came in
        num_prompt_tokens: length of its prompt
        block_ids: its block table
        text: its output so far, this step's token included
    """

    request_id: str
    status: str
    reason: str = ""
    num_tokens: int = 0
    start: int = 0
    end: int = 0
    num_cached: int = 0
    num_prompt_tokens: int = 0
    block_ids: tuple[int, ...] = ()
    text: str = ""

    @property
    def kind(self) -> str:
        """What the step did for it: prompt (a chunk or all of it), decode, or nothing."""
        if self.end == self.start:
            return ""
        return "decode" if self.end - self.start == 1 and self.start >= self.num_prompt_tokens else "prompt"


@dataclass(frozen=True)
class Frame:
    """One step, ready to be drawn.

    Attributes:
        record: of the step
        is_after: the last frame: how things stand when all is done
        rows: every sequence of the recording, in order of appearance
        blocks: every block of the pool
        written: block -> (first slot, last slot + 1) that this step writes
        events: in the order in which they happen
    """

    record: StepRecord
    is_after: bool
    rows: tuple[RequestRow, ...]
    blocks: tuple[BlockView, ...]
    written: dict[int, tuple[int, int]] = field(default_factory=dict)
    events: tuple[Event, ...] = ()

    @property
    def num_free(self) -> int:
        return sum(not block.owners and not block.is_null for block in self.blocks)


def make_frames(recording: EngineRecording) -> list[Frame]:
    """One frame a step, and one for what is left after the last."""
    ended: dict[str, str] = {}
    cached: dict[str, int] = {}
    texts: dict[str, str] = {}
    seen: set[str] = set()
    frames = []
    for record in [*recording.steps, recording.after]:
        cached |= {one.request_id: one.num_hit_tokens for one in record.admitted}
        for token in record.sampled:
            texts[token.request_id] = texts.get(token.request_id, "") + token.text
        rows = _rows(recording, record, ended, cached, texts)
        blocks, written = _blocks(recording, record)
        events = tuple(_events(record, recording.block_size, seen))
        frames.append(Frame(record, record is recording.after, rows, blocks, written, events))
        ended |= {one.request_id: one.reason for one in record.ended}
    return frames


def shown_blocks(frames: Sequence[Frame], most: int) -> list[int]:
    """The blocks to draw: all, or in a pool of more than `most` those that the run used.

    Raises:
        CourseError: it used more than `most`.
    """
    everything = [block.block_id for block in frames[0].blocks]
    if len(everything) <= most:
        return everything
    used = {block.block_id for frame in frames for block in frame.blocks if block.owners or block.is_cached}
    if len(used) > most:
        raise CourseError(f"The run used {len(used)} blocks, more than {most} can be seen: record with a smaller pool.")
    return sorted(used)


def _rows(
    recording: EngineRecording,
    record: StepRecord,
    ended: dict[str, str],
    cached: dict[str, int],
    texts: dict[str, str],
) -> tuple[RequestRow, ...]:
    states = {state.request_id: state for state in record.requests}
    computed = {one.request_id: one for one in record.computed}
    rows = []
    for info in recording.requests:
        name, state = info.request_id, states.get(info.request_id)
        text = texts.get(name, "")
        if state is None:
            status = "ended" if name in ended else "to come"
            rows.append(RequestRow(name, status, ended.get(name, ""), text=text))
            continue
        span = computed.get(name)
        rows.append(
            RequestRow(
                request_id=name,
                status=state.status,
                num_tokens=state.num_tokens,
                start=span.start if span else state.num_computed,
                end=span.end if span else state.num_computed,
                num_cached=cached.get(name, 0) if state.status == "running" else 0,
                num_prompt_tokens=info.num_prompt_tokens,
                block_ids=state.block_ids,
                text=text,
            )
        )
    return tuple(rows)


def _blocks(recording: EngineRecording, record: StepRecord) -> tuple[tuple[BlockView, ...], dict[int, tuple[int, int]]]:
    """Every block once this step's tokens are written, and where they are written."""
    size = recording.block_size
    owners: dict[int, list[str]] = {}
    filled: dict[int, int] = {}
    written: dict[int, tuple[int, int]] = {}
    computed = {one.request_id: one for one in record.computed}
    for state in record.requests:
        span = computed.get(state.request_id)
        end = span.end if span else state.num_computed
        for index, block_id in enumerate(state.block_ids):
            owners.setdefault(block_id, []).append(state.request_id)
            filled[block_id] = max(filled.get(block_id, 0), min(max(end - index * size, 0), size))
            if span:
                first, last = max(span.start - index * size, 0), min(span.end - index * size, size)
                if first < last:
                    written[block_id] = (first, last)
    cached = set(record.cached_block_ids)
    num_null = recording.num_blocks - recording.num_usable_blocks
    blocks = tuple(
        BlockView(
            block_id=block_id,
            owners=tuple(owners.get(block_id, ())),
            num_filled=filled.get(block_id, size if block_id in cached else 0),
            is_cached=block_id in cached,
            is_null=block_id < num_null,
        )
        for block_id in range(recording.num_blocks)
    )
    return blocks, written


def _events(record: StepRecord, block_size: int, seen: set[str]) -> list[Event]:
    """Sentences; `seen` are the sequences that came in before, and is brought up to date."""
    tables = {state.request_id: state for state in record.requests}
    events = []
    for preemption in record.preempted:
        fate = "go to host memory" if preemption.mode == "swap" else "must be computed again, or be hit"
        text = (
            f"is preempted and gives {len(preemption.block_ids)} blocks back: {preemption.num_computed} tokens {fate}."
        )
        events.append(Event("preempt", preemption.request_id, text))
    for one in record.admitted:
        verb = "comes back" if one.request_id in seen else "comes in"
        seen.add(one.request_id)
        state = tables[one.request_id]
        if one.num_hit_tokens:
            hit = state.block_ids[: one.num_hit_tokens // block_size]
            blocks = f"block{'s' * (len(hit) > 1)} {', '.join(map(str, hit))}"
            text = f"{verb}: {one.num_hit_tokens} of {state.num_tokens} tokens hit the prefix cache ({blocks})."
            events.append(Event("hit", one.request_id, text))
        elif one.num_swapped_tokens:
            text = f"{verb}: the keys and values of {one.num_swapped_tokens} tokens return from host memory."
            events.append(Event("admit", one.request_id, text))
        else:
            events.append(Event("admit", one.request_id, f"{verb} with {state.num_tokens} tokens to compute."))
    for copy in record.copies:
        text = f"writes into shared block {copy.source}: it is copied to block {copy.target} first (copy-on-write)."
        events.append(Event("copy", copy.request_id, text))
    events += [Event("end", one.request_id, f"ends ({one.reason}).") for one in record.ended]
    return events
