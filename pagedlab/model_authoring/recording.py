"""EngineRecording: what a scheduler decided step by step and whose every block was, as plain data that goes to JSON.

Made by pagedlab.model_authoring.recorder, drawn by pagedlab.visualize.engine_view.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pagedlab.errors import PagedlabError

FORMAT = "pagedlab engine recording 1"


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """What never changes of a sequence.

    Attributes:
        request_id: its name
        num_prompt_tokens: length of the prompt
        max_tokens: longest output
        priority: smaller first, under the priority policy
        prompt: text of the prompt; empty if the recorder was given no way to decode
    """

    request_id: str
    num_prompt_tokens: int
    max_tokens: int
    priority: int = 0
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class RequestState:
    """A sequence when a step was decided, and before it was computed.

    Attributes:
        request_id: its name
        status: running, waiting, or swapped (waiting, with its KV in host memory)
        num_tokens: tokens known, prompt and output
        num_computed: leading tokens whose KV is in the cache
        block_ids: its block table, this step's new blocks included
    """

    request_id: str
    status: str
    num_tokens: int
    num_computed: int
    block_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Computed:
    """Tokens `start .. end - 1` of a sequence are computed in the step."""

    request_id: str
    start: int
    end: int

    @property
    def num_tokens(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Sampled:
    """A sequence got a token; `text` is that token alone, decoded, where the recorder could."""

    request_id: str
    token_id: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Admission:
    """A waiting sequence began to run.

    Attributes:
        request_id: its name
        num_hit_tokens: tokens that it found in the prefix cache
        num_swapped_tokens: tokens that came back from host memory
    """

    request_id: str
    num_hit_tokens: int = 0
    num_swapped_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Preemption:
    """A running sequence lost its blocks and waits again.

    Attributes:
        request_id: its name
        mode: recompute (its KV is dropped) or swap (it went to host memory)
        num_computed: tokens that were computed
        block_ids: the blocks that it gave back
    """

    request_id: str
    mode: str
    num_computed: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy-on-write: `request_id` wrote first into the shared block `source` and got `target` instead."""

    request_id: str
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A sequence ended: reason stop, length, abort or error."""

    request_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step: how things stood when it was decided, what it computed, and what came of it.

    Attributes:
        number: steps before it
        requests: every sequence in the scheduler, those that run first, then the queue in its order
        cached_block_ids: blocks whose content can be hit, in use or free
        computed, admitted, preempted, copies: the decision
        sampled: tokens that came out of it
        ended: sequences that ended between this step's decision and the next one's, aborted ones included
        start: seconds on the recorder's clock when the step was decided
        seconds: from there until its tokens were booked; 0 if it never came to that
    """

    number: int
    requests: tuple[RequestState, ...]
    cached_block_ids: tuple[int, ...] = ()
    computed: tuple[Computed, ...] = ()
    admitted: tuple[Admission, ...] = ()
    preempted: tuple[Preemption, ...] = ()
    copies: tuple[Copy, ...] = ()
    sampled: tuple[Sampled, ...] = ()
    ended: tuple[Ended, ...] = ()
    start: float = 0.0
    seconds: float = 0.0

    @property
    def num_tokens(self) -> int:
        """Tokens computed, of all sequences: what the budget limits."""
        return sum(one.num_tokens for one in self.computed)

    @property
    def used_block_ids(self) -> frozenset[int]:
        return frozenset(block_id for request in self.requests for block_id in request.block_ids)


@dataclass(frozen=True, slots=True)
class EngineRecording:
    """A run of an engine.

    Attributes:
        block_size: tokens in a block
        num_blocks: blocks of the pool, those that are never handed out (block 0) included
        num_usable_blocks: blocks that can be handed out
        token_budget: most tokens of a step
        max_num_seqs: most sequences that run at once
        policy: fcfs, priority, sjf, or the name of the scheduler's class if it is none of the engine's own
        requests: every sequence that was seen, in order of appearance
        steps: in order
        after: how things stand after the last step; nothing is computed in it
    """

    block_size: int
    num_blocks: int
    num_usable_blocks: int
    token_budget: int
    max_num_seqs: int
    policy: str
    requests: tuple[RequestInfo, ...]
    steps: tuple[StepRecord, ...]
    after: StepRecord

    def __len__(self) -> int:
        return len(self.steps)

    def steps_of(self, request_id: str) -> dict[int, int]:
        """Step -> tokens that the sequence computed in it."""
        return {
            step.number: one.num_tokens for step in self.steps for one in step.computed if one.request_id == request_id
        }

    def timed(self, starts: list[float], seconds: list[float]) -> EngineRecording:
        """The same run on another clock, such as a simulation's: `run.steps.starts` and `run.steps.seconds`.

        Raises:
            PagedlabError: there is not one start and one duration for each step.
        """
        if not len(starts) == len(seconds) == len(self.steps):
            raise PagedlabError(f"Give {len(self.steps)} starts and durations, got {len(starts)} and {len(seconds)}.")
        pairs = zip(self.steps, starts, seconds, strict=True)
        return replace(self, steps=tuple(replace(step, start=s, seconds=d) for step, s, d in pairs))

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> EngineRecording:
        """The inverse of `to_json`.

        Raises:
            PagedlabError: the text is something else, or of another version.
        """
        try:
            data = json.loads(text)
            if data.pop("format") != FORMAT:
                raise ValueError("another format")
            return _build(cls, data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PagedlabError(f"This is no {FORMAT} ({error}): make one with EngineRecording.to_json.") from None

    def save(self, path: str | Path) -> Path:
        """Write `to_json()` to a file and return its path."""
        path = Path(path)
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> EngineRecording:
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def _build(kind: Any, data: Any) -> Any:
    """Data from JSON as the type that a field is declared to have; ValueError if it is something else."""
    if is_dataclass(kind):
        hints, names = get_type_hints(kind), {field.name for field in fields(kind)}
        if not isinstance(data, dict) or set(data) != names:
            raise ValueError(f"{getattr(kind, '__name__', kind)} has the fields {', '.join(sorted(names))}")
        return kind(**{name: _build(hints[name], value) for name, value in data.items()})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        if not isinstance(data, list):
            raise ValueError(f"a list was expected, not {data!r}")
        return tuple(_build(get_args(kind)[0], value) for value in data)
    if kind is float and type(data) is int:
        return float(data)
    if type(data) is not kind:
        raise ValueError(f"{data!r} is no {kind.__name__}")
    return data
