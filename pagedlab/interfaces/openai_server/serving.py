"""Serving: what all routes share: from a body's text to a submitted request, and from its outputs to an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from pagedlab.errors import InvalidRequestError
from pagedlab.interfaces.async_engine import AsyncLLMEngine
from pagedlab.interfaces.openai_server.answer_size import check_answer_size
from pagedlab.interfaces.openai_server.errors import ApiError
from pagedlab.interfaces.openai_server.prompt_length import most_characters
from pagedlab.interfaces.openai_server.protocol import Message
from pagedlab.interfaces.openai_server.responses import CachedTokens, Usage
from pagedlab.interfaces.openai_server.settings import ServerSettings
from pagedlab.interfaces.openai_server.shares import Shares
from pagedlab.interfaces.openai_server.sse import EventStream, until_disconnect
from pagedlab.interfaces.outputs import CompletionOutput, RequestOutput
from pagedlab.interfaces.request_stream import Output, RequestStream
from pagedlab.interfaces.sampling_options import room_behind
from pagedlab.model_authoring.request import PoolingParams
from pagedlab.sampling_params import SamplingParams

Result = TypeVar("Result")

SHORT_TEXT = 2048
"""Characters that the event loop tokenizes by itself (well under a millisecond); longer texts go to a thread."""

MAX_WAITING_TEXT = 8 << 20
"""Characters that may wait for that thread: a few seconds of its time."""

SHORT_ANSWER = 256
"""Choices, numbers and log-probabilities that the event loop writes by itself, in a millisecond or two."""

TRACE_HEADERS = ("traceparent", "tracestate")
"""W3C trace context: the client's span becomes the parent of the request's."""


@dataclass(frozen=True)
class PromptTokens:
    """A prompt, read: its text if it came as text, and its token ids."""

    text: str | None
    token_ids: list[int]

    def for_engine(self) -> dict[str, Any]:
        return {"prompt": self.text, "prompt_token_ids": self.token_ids}


class Serving:
    """One model, served.

    Args:
        settings: limits and names.
        engine: not started yet, perhaps.
        tokenizer: of its own: the engine's thread uses another, for a tokenizer is not made for two threads.
        default_name: what the model is called if settings name nothing.
        has_priorities: the scheduler looks at a request's priority.
    """

    def __init__(
        self,
        settings: ServerSettings,
        engine: AsyncLLMEngine,
        tokenizer: Any,
        default_name: str,
        has_priorities: bool = False,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.tokenizer = tokenizer
        self.names = settings.served_model_name or [default_name]
        self.created = int(time.time())
        self.has_priorities = has_priorities
        self.is_draining = False
        self._shares = Shares(settings.max_pending_per_key)
        self._size_waiting = 0
        self._tokenizing = ThreadPoolExecutor(1, "pagedlab-tokenizer")
        self._answering = ThreadPoolExecutor(1, "pagedlab-answers")

    def close(self) -> None:
        self._answering.shutdown(wait=False, cancel_futures=True)
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    # ---- what a request asks for --------------------------------------------------------------------------------

    def model(self, name: str | None) -> str:
        """The name that the answer carries.

        Raises:
            ApiError: 404, this server has no such model.
        """
        if name is not None and name not in self.names:
            raise ApiError(
                404,
                f"There is no model {name[:100]!r} here: use {self.names[0]!r}.",
                param="model",
                code="model_not_found",
            )
        return name or self.names[0]

    async def beside(self, work: Callable[[], Result], size: int) -> Result:
        """Run work of the tokenizer's: here if it is short, otherwise on its thread, so that it delays no step.

        Args:
            work: takes well under a millisecond for SHORT_TEXT; the tokenizer lets go of the GIL.
            size: of its text, in characters, or in tokens.

        Raises:
            ApiError: 503, so much waits for the thread that this would not be reached soon.
        """
        if size <= SHORT_TEXT:
            return work()
        if self._size_waiting and self._size_waiting + size > MAX_WAITING_TEXT:
            raise ApiError(503, "Too much text waits to be tokenized: try again.", code="overloaded", retry_after=1)
        self._size_waiting += size
        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work)
        finally:
            self._size_waiting -= size

    async def tokenize(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text."""

        def encode_all() -> list[list[int]]:
            options = {"add_special_tokens": add_special_tokens, "verbose": False}
            return [self.tokenizer.encode(text, **options) for text in texts]

        return await self.beside(encode_all, sum(map(len, texts)))

    async def read_prompts(
        self, prompt: str | list[int] | list[str] | list[list[int]], add_special_tokens: bool = True
    ) -> list[PromptTokens]:
        """The prompts of a completion or embedding body."""
        if isinstance(prompt, str):
            prompt = [prompt]
        if not prompt or isinstance(prompt[0], int):
            return [PromptTokens(None, prompt)]  # type: ignore[arg-type]
        if isinstance(prompt[0], list):
            return [PromptTokens(None, one) for one in prompt]  # type: ignore[arg-type]
        texts: list[str] = prompt  # type: ignore[assignment]
        self._check_characters(texts)
        return [PromptTokens(*pair) for pair in zip(texts, await self.tokenize(texts, add_special_tokens), strict=True)]

    async def read_chat(
        self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None, **options: bool
    ) -> PromptTokens:
        """A conversation, written with the model's own chat template, in transformers' sandbox.

        Args:
            messages: the turns.
            variables: of the client, for the template to read. They cannot set how it is run, nor be another template.
            options: of transformers' apply_chat_template.

        Raises:
            InvalidRequestError: there is no template, or it refuses the messages.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise InvalidRequestError("The model has no chat template (a base model?): use /v1/completions.")
        taken = sorted({*(variables or {})} & {*signature(self.tokenizer.apply_chat_template).parameters})
        if taken:
            raise InvalidRequestError(
                f"chat_template_kwargs are what the template reads, not {taken[0]}: leave it out."
            )
        turns = [message.as_turn() for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, **(variables or {}), **options)
        except Exception as error:  # a template is the model's own code and may raise anything
            raise InvalidRequestError(f"The chat template refused the messages: {str(error)[:200]}.") from error
        self._check_characters([text])
        # The template has written every special token itself.
        (token_ids,) = await self.tokenize([text], add_special_tokens=False)
        return PromptTokens(text, token_ids)

    @cached_property
    def _most_characters(self) -> int | None:
        return most_characters(self.tokenizer)

    def _check_characters(self, texts: Sequence[str]) -> None:
        """Refuse texts that are too long however they are tokenized, before anybody waits for that.

        Raises:
            InvalidRequestError: one of them is.
        """
        limit, longest = self.engine.limits.max_model_len, max(map(len, texts))
        if longest > limit and (most := self._most_characters) and longest > limit * most:
            raise InvalidRequestError(
                f"This model's maximum context length is {limit} tokens. However, the prompt has {longest} characters, "
                f"which are at least {-(-longest // most)} tokens: shorten the prompt."
            )

    def room(self, prompts: Sequence[PromptTokens]) -> int:
        """Most tokens that every one of the prompts could be continued by."""
        return room_behind(max(len(prompt.token_ids) for prompt in prompts), self.engine.limits)

    def default_max_tokens(self, prompts: Sequence[PromptTokens], otherwise: int | None = None) -> int:
        """For a body that names none: what the model's generation_config.json says, or `otherwise`, or all the room."""
        room = self.room(prompts)
        return min(room, self.engine.default_sampling.get("max_tokens") or otherwise or room)

    # ---- running it ---------------------------------------------------------------------------------------------

    def submit(
        self,
        request: Request,
        kind: str,
        prompts: Sequence[PromptTokens],
        params: SamplingParams | PoolingParams,
        cache_salt: str | None = None,
        priority: int = 0,
    ) -> RequestStream:
        """Queue the prompts of one call, in the name of whoever sent it."""
        if self.is_draining:
            raise ApiError(503, "The server is shutting down: ask another.", code="draining", retry_after=10)
        if priority and not self.has_priorities:
            raise ApiError(
                400, "priority is read under --scheduling-policy priority alone: leave it out.", param="priority"
            )
        if isinstance(params, SamplingParams):
            check_answer_size([len(prompt.token_ids) for prompt in prompts], params, self.engine.limits)
        tenant_salt = request.state.tenant.cache_salt
        salt = ":".join(part for part in (tenant_salt, cache_salt) if part) or None
        request_id = f"{kind}-{request.state.request_id}"
        request.state.engine_request_id = request_id
        num_completions = len(prompts) * (params.n if isinstance(params, SamplingParams) else 1)
        give_back = self._shares.take(request.state.tenant.name, num_completions)
        try:
            stream = self.engine.submit(
                request_id,
                [prompt.for_engine() for prompt in prompts],
                params,
                priority=priority,
                cache_salt=salt,
                trace_headers={name: request.headers[name] for name in TRACE_HEADERS if name in request.headers},
            )
        except BaseException:
            give_back()
            raise
        stream.on_close = give_back
        if self.engine.is_tracing:
            request.app.state.observer.accepted(stream.request_ids, request.state.arrived, request.state.admitted)
        return stream

    async def outputs(self, request: Request, stream: RequestStream) -> list[Output]:
        """The final output of each of the call's requests, in order.

        Raises:
            ApiError: one of them failed.
            TimeoutError: they took too long.
            ClientGone: nobody waits any more.
        """

        async def collect() -> list[Output]:
            found = {index: output async for index, output in stream if output.finished}
            return [found[index] for index in range(len(stream.request_ids))]

        try:
            async with asyncio.timeout(self.settings.request_timeout):
                return await until_disconnect(request.receive, collect())
        finally:
            stream.close()

    async def write(self, answer: Callable[[], str], size: int) -> Response:
        """A whole answer as JSON: written here if it is short, otherwise on a thread, for it may have megabytes.

        Args:
            answer: writes it, in pieces, between which others get the GIL.
            size: of its parts: choices, vectors' numbers, log-probabilities.

        Raises:
            ApiError: what the answer was to be about has failed.
        """
        if size <= SHORT_ANSWER:
            text = answer()
        else:
            text = await asyncio.get_running_loop().run_in_executor(self._answering, answer)
        return Response(text, media_type="application/json")

    def event_stream(self, stream: RequestStream, chunks: AsyncIterator[BaseModel]) -> EventStream:
        deadline = asyncio.get_running_loop().time() + self.settings.request_timeout
        return EventStream(chunks, stream.close, deadline)


def check_completion(completion: CompletionOutput) -> None:
    """Raise what a completion that did not end by itself means for the client."""
    if completion.finish_reason == "error":
        raise ApiError(500, "The engine failed to compute this request; its log says why.", code="engine_error")
    if completion.finish_reason == "abort":
        raise ApiError(503, "The request was aborted by the server.", code="aborted", retry_after=1)


def usage(num_prompt_tokens: int, num_completion_tokens: int, num_cached_tokens: int = 0) -> Usage:
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_completion_tokens,
        total_tokens=num_prompt_tokens + num_completion_tokens,
        prompt_tokens_details=CachedTokens(cached_tokens=num_cached_tokens),
    )


class UsageCount:
    """Tokens of one call so far, counted from its outputs."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self.num_prompt_tokens = num_prompt_tokens
        self.num_completion_tokens = 0
        self._num_cached_tokens: dict[str, int] = {}

    def add(self, output: RequestOutput) -> None:
        self.num_completion_tokens += sum(len(completion.token_ids) for completion in output.outputs)
        self._num_cached_tokens[output.request_id] = output.num_cached_tokens

    def usage(self) -> Usage:
        return usage(self.num_prompt_tokens, self.num_completion_tokens, sum(self._num_cached_tokens.values()))
