"""What clients may send: OpenAI's request bodies with vLLM's additions. Every list and every number has a bound.

Nothing is looked at beyond its first mistake. A body of 3 MB has room for a million of them, and to describe each one
would keep the event loop, and so every other client, waiting for half a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from pagedlab.sampling_params import MAX_LOGPROBS, MAX_SEED, RequestOutputKind, SamplingParams

MAX_PROMPTS = 256
MAX_TOKEN_IDS = 262_144
MAX_MESSAGES = 1024
MAX_N = 128
MAX_STOPS = 16
MAX_BIASES = 1024
MAX_BAD_WORDS = 64
MAX_TEMPLATE_OPTIONS = 16
MAX_TOKENS = 1 << 24


def _is_unicode(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no text: no tokenizer takes it, no answer can carry it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text has half of a surrogate pair in it, which is no character") from None
    return text


def _printable(name: Any) -> str:
    """The name of an option that a client made up, to be told back to it."""
    return str(name)[:100].encode("utf-8", "replace").decode()


def _at_most(count: int) -> BeforeValidator:
    """For dictionaries, whose entries pydantic reads before it counts them."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > count:
            raise ValueError(f"there may be at most {count} entries, and {len(value)} came")
        return value

    return BeforeValidator(check)


Text = Annotated[str, AfterValidator(_is_unicode)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)]
Name = Annotated[Text, Field(max_length=256)]
StopString = Annotated[Text, Field(min_length=1, max_length=256)]
Prompts = (
    Text
    | TokenIds
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
)


TemplateOptions = Annotated[
    dict[Name, Name | int | float | bool | None],
    Field(max_length=MAX_TEMPLATE_OPTIONS),
    _at_most(MAX_TEMPLATE_OPTIONS),
]


class Body(BaseModel):
    """Strict: "5" is no number. Unknown options are refused: an option that is silently ignored misleads."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _knows_every_option(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name in data:
                if name not in cls.model_fields:
                    raise PydanticCustomError("no_such_option", "There is no option {name}", {"name": _printable(name)})
        return data


PASSED_ON = (
    "frequency_penalty",
    "n",
    "presence_penalty",
    "seed",
    "stop",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "bad_words",
    "allowed_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
)
"""Options that have the same name and meaning in SamplingParams."""


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class SamplingBody(Body):
    """Options that completions and chat completions share. vLLM's additions stand below OpenAI's."""

    model: Name | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, float], Field(max_length=MAX_BIASES), _at_most(MAX_BIASES)] | None = None
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    n: int | None = Field(None, ge=1, le=MAX_N)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-MAX_SEED, le=MAX_SEED)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    user: Name | None = None

    top_k: int | None = Field(None, ge=-1, le=1 << 31)
    min_p: float | None = Field(None, ge=0, le=1)
    # Logits are divided by it: much below this they are no float32 any more, and the answer is the server's error.
    repetition_penalty: float | None = Field(None, ge=1e-6, le=100)
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256, fail_fast=True)] | None = None
    bad_words: Annotated[list[StopString], Field(max_length=MAX_BAD_WORDS, fail_fast=True)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_BIASES, fail_fast=True)] | None = (
        None
    )
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    priority: int = Field(0, ge=-(1 << 31), lt=1 << 31)
    cache_salt: Annotated[Text, Field(min_length=1, max_length=256)] | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for streams: set stream to true, or leave them out")
        return self

    @model_validator(mode="after")
    def _biases_name_tokens(self) -> Self:
        for token in self.logit_bias or ():
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise ValueError(f"logit_bias must map token ids to numbers, got {token[:20]!r}")
        return self

    def sampling_params(self, defaults: Mapping[str, Any], **options: Any) -> SamplingParams:
        """The engine's options.

        Args:
            defaults: what the model's authors advise, for what the body leaves out; beyond that OpenAI's defaults hold.
            options: set by the route.

        Raises:
            InvalidRequestError: options contradict each other.
        """
        given = {name: getattr(self, name) for name in PASSED_ON if getattr(self, name) is not None}
        return SamplingParams(
            **{
                **defaults,
                **given,
                "logit_bias": {int(token): value for token, value in (self.logit_bias or {}).items()} or None,
                "output_kind": RequestOutputKind.DELTA if self.stream else RequestOutputKind.FINAL_ONLY,
                **options,
            }
        )


class CompletionBody(SamplingBody):
    prompt: Prompts
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool = True
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @model_validator(mode="after")
    def _zero_tokens_are_for_echo(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens must be at least 1; 0 is for echo alone")
        return self


class TextPart(Body):
    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _is_of_text(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("type") != "text":
            raise ValueError("this model reads text: parts of another type must be left out")
        return data


class Message(BaseModel):
    """One turn. More fields are let pass: clients send answers back as they got them."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    name: Name | None = None
    # A template that leaves them out would show the model another conversation than the client's.
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None

    def as_turn(self) -> dict[str, str]:
        """What a chat template reads. Templates know no developer, which is the newer name of system."""
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class TextFormat(Body):
    type: Literal["text"]


class ChatBody(SamplingBody):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: TemplateOptions | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none"] | None = None
    # Accepted, for clients send them unasked; they change nothing here.
    metadata: Annotated[dict[Name, Text], Field(max_length=16), _at_most(16)] | None = None
    store: bool | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: set it to true")
        return self

    @model_validator(mode="after")
    def _goes_on_or_begins_anew(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message needs add_generation_prompt to be false")
        return self


class EmbeddingBody(Body):
    model: Name | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=1 << 20)
    user: Name | None = None
    cache_salt: Annotated[Text, Field(min_length=1, max_length=256)] | None = None


class TokenizeBody(Body):
    """A text, or a conversation as the chat template writes it."""

    model: Name | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeBody(Body):
    model: Name | None = None
    tokens: TokenIds
