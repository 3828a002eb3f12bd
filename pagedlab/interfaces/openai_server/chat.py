"""/v1/chat/completions: a conversation in, its next turn out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request

from pagedlab.interfaces.openai_server.answer_size import answer_size
from pagedlab.interfaces.openai_server.logprobs import chat_logprobs
from pagedlab.interfaces.openai_server.protocol import ChatBody
from pagedlab.interfaces.openai_server.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatResponse,
    now,
    with_list,
)
from pagedlab.interfaces.openai_server.serving import Serving, UsageCount, check_completion
from pagedlab.interfaces.outputs import CompletionOutput, RequestOutput
from pagedlab.interfaces.request_stream import RequestStream

router = APIRouter()


@router.post("/v1/chat/completions", response_model=ChatResponse)
async def create_chat_completion(body: ChatBody, request: Request) -> Any:
    """Answer the conversation n times."""
    serving: Serving = request.app.state.serving
    model = serving.model(body.model)
    prompt = await serving.read_chat(
        body.messages,
        body.chat_template_kwargs,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
    )
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    params = body.sampling_params(
        serving.engine.default_sampling,
        max_tokens=asked if asked is not None else serving.default_max_tokens([prompt]),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    stream = serving.submit(request, "chatcmpl", [prompt], params, body.cache_salt, body.priority)
    answer = ChatAnswer(body, stream.request_ids[0], model, len(prompt.token_ids), serving.tokenizer)
    if body.stream:
        return serving.event_stream(stream, answer.chunks(stream))
    outputs = await serving.outputs(request, stream)
    return await serving.write(lambda: answer.whole(outputs), answer_size(outputs))


class ChatAnswer:
    """What becomes of one body."""

    def __init__(self, body: ChatBody, request_id: str, model: str, num_prompt_tokens: int, tokenizer: Any) -> None:
        self.body = body
        self.tokenizer = tokenizer
        self.common: dict[str, Any] = {"id": request_id, "created": now(), "model": model}
        self.counted = UsageCount(num_prompt_tokens)

    def whole(self, outputs: Sequence[Any]) -> str:
        """The answer's JSON."""
        (output,) = outputs
        self.counted.add(output)
        whole = ChatResponse(**self.common, object="chat.completion", choices=[], usage=self.counted.usage())
        return with_list(whole, "choices", self._choices(output))

    def _choices(self, output: RequestOutput) -> Iterator[ChatChoice]:
        """One after the other: with log-probabilities each is megabytes of objects until it is written."""
        for completion in output.outputs:
            check_completion(completion)
            yield ChatChoice(
                index=completion.index,
                message=AssistantMessage(content=completion.text),
                logprobs=self._logprobs(completion),
                finish_reason=completion.finish_reason or "",
                stop_reason=completion.stop_reason,
            )

    async def chunks(self, stream: RequestStream) -> AsyncIterator[ChatChunk]:
        """Each completion's role first; then one chunk for each that a step brought news of."""
        options = self.body.stream_options
        with_usage = options is not None and options.continuous_usage_stats
        ended: set[int] = set()
        for index in range(self.body.n or 1):
            role = ChatDelta(role="assistant", content="")
            yield self._chunk(ChatChunkChoice(index=index, delta=role, finish_reason=None))
        async for _, output in stream:
            assert isinstance(output, RequestOutput)
            self.counted.add(output)
            for completion in output.outputs:
                check_completion(completion)
                if completion.index in ended:
                    continue
                if completion.finish_reason:
                    ended.add(completion.index)
                elif not completion.text and not completion.logprobs:
                    continue
                choice = ChatChunkChoice(
                    index=completion.index,
                    delta=ChatDelta(content=completion.text),
                    logprobs=self._logprobs(completion),
                    finish_reason=completion.finish_reason,
                    stop_reason=completion.stop_reason,
                )
                yield self._chunk(choice, **({"usage": self.counted.usage()} if with_usage else {}))
        if options is not None and options.include_usage:
            yield self._chunk(usage=self.counted.usage())

    def _chunk(self, *choices: ChatChunkChoice, **options: Any) -> ChatChunk:
        return ChatChunk(**self.common, object="chat.completion.chunk", choices=list(choices), **options)

    def _logprobs(self, completion: CompletionOutput) -> ChatLogprobs | None:
        if not self.body.logprobs:
            return None
        return chat_logprobs(completion.logprobs or (), self.body.top_logprobs or 0, self.tokenizer)
