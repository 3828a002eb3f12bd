"""Beam search on copy-on-write forks: the beams are requests, and choosing among them is forking and ending them.

Each beam's step brings its best next tokens; once every live beam has them, the best `beam_width` continuations live
on. A beam with several continuations forks, and its blocks are shared; a beam with none gives its blocks back (Kwon et
al. 2023, section 4.4). Scores and ends follow vLLM's `LLM.beam_search`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pagedlab.model_authoring.request import Request
from pagedlab.model_authoring.scheduler import Scheduler
from pagedlab.sampling_params import BeamSearchParams


@dataclass(slots=True)
class Hypothesis:
    """A sequence that the search keeps: generated tokens, their summed log-probability, and why it ended."""

    token_ids: list[int]
    cum_logprob: float
    finish_reason: str


@dataclass(slots=True)
class Beam:
    request: Request
    cum_logprob: float = 0.0


@dataclass(slots=True)
class BeamSearch:
    """The search for one prompt. Starts with one beam, the prompt itself.

    Attributes:
        params: width, length and penalties
        eos_token_ids: end a hypothesis unless params.ignore_eos
        beams: live hypotheses
        finished: hypotheses that ended
    """

    params: BeamSearchParams
    eos_token_ids: frozenset[int]
    beams: list[Beam]
    finished: list[Hypothesis] = field(default_factory=list)
    num_requests: int = 1

    @property
    def is_ready(self) -> bool:
        """Every live beam knows its candidates (a preempted one may lag)."""
        return all(beam.request.candidates is not None for beam in self.beams)

    def advance(self, scheduler: Scheduler) -> bool:
        """Choose the next generation of beams; True when the search is over."""
        chosen = self._choose()
        kept = {parent.request for _, parent, _ in chosen}
        for beam in self.beams:
            if beam.request not in kept:
                scheduler.finish(beam.request, "abort")  # before the forks, which take its seat and its blocks
        parents = [beam for beam in self.beams if beam.request in kept]
        self.beams = []
        heirs: dict[Request, tuple[int, float]] = {}
        for cum_logprob, parent, token_id in chosen:
            if parent.request not in heirs:
                heirs[parent.request] = (token_id, cum_logprob)
            else:
                self.beams.append(Beam(self._fork(scheduler, parent.request, token_id), cum_logprob))
        for parent in parents:
            request = parent.request
            request.candidates = None
            request.num_reserved_seats = 0
            token_id, parent.cum_logprob = heirs[request]
            request.token_ids.append(token_id)
            self.beams.append(parent)
        if not self.beams or self.beams[0].request.num_output_tokens >= self.params.max_tokens:
            self._end(scheduler)
            return True
        return False

    def best(self) -> list[Hypothesis]:
        """The ended hypotheses, best first, `beam_width` of them."""
        return sorted(self.finished, key=self._score, reverse=True)[: self.params.beam_width]

    def _score(self, hypothesis: Hypothesis) -> float:
        return hypothesis.cum_logprob / max(1, len(hypothesis.token_ids)) ** self.params.length_penalty

    def _choose(self) -> list[tuple[float, Beam, int]]:
        """The best continuations, as (summed log-probability, parent, token); those that end are put aside."""
        options: list[tuple[float, Beam, int]] = []
        for beam in self.beams:
            candidates = beam.request.candidates
            assert candidates is not None
            # Entry 0 is the sampled token, which stands among the best again.
            for token_id, logprob in zip(candidates.token_ids[1:], candidates.logprobs[1:], strict=True):
                total = beam.cum_logprob + logprob
                if token_id in self.eos_token_ids and not self.params.ignore_eos:
                    self.finished.append(Hypothesis([*beam.request.output_token_ids, token_id], total, "stop"))
                else:
                    options.append((total, beam, token_id))
        options.sort(key=lambda option: option[0], reverse=True)
        return options[: self.params.beam_width]

    def _fork(self, scheduler: Scheduler, parent: Request, token_id: int) -> Request:
        child = Request(
            request_id=f"{parent.group_id}/beam{self.num_requests}",
            prompt_token_ids=parent.prompt_token_ids,
            params=parent.params,
            seed=parent.seed,
            arrival=parent.arrival,
            priority=parent.priority,
            cache_salt=parent.cache_salt,
            num_candidates=parent.num_candidates,
            group_id=parent.group_id,
            index=self.num_requests,
        )
        self.num_requests += 1
        child.token_ids = [*parent.token_ids, token_id]
        child.block_hashes = parent.block_hashes[:]
        scheduler.fork(parent, child)
        return child

    def _end(self, scheduler: Scheduler) -> None:
        for beam in self.beams:
            self.finished.append(Hypothesis(beam.request.output_token_ids, beam.cum_logprob, "length"))
            scheduler.finish(beam.request, "length")
        self.beams = []
