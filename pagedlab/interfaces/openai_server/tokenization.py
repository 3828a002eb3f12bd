"""/tokenize and /detokenize: text to token ids and back, as the engine would."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pagedlab.errors import InvalidRequestError
from pagedlab.interfaces.openai_server.protocol import DetokenizeBody, TokenizeBody
from pagedlab.interfaces.openai_server.responses import DetokenizeResponse, TokenizeResponse
from pagedlab.interfaces.openai_server.serving import Serving

router = APIRouter()


@router.post("/tokenize", response_model=TokenizeResponse)
async def tokenize(body: TokenizeBody, request: Request) -> Response:
    """Token ids of a text or a conversation."""
    serving: Serving = request.app.state.serving
    serving.model(body.model)
    if body.messages is not None:
        tokens = (await serving.read_chat(body.messages, add_generation_prompt=body.add_generation_prompt)).token_ids
    else:
        (tokens,) = await serving.tokenize([body.prompt or ""], body.add_special_tokens)

    def answer() -> str:
        return TokenizeResponse(
            count=len(tokens),
            max_model_len=serving.engine.limits.max_model_len,
            tokens=tokens,
            token_strs=serving.tokenizer.convert_ids_to_tokens(tokens) if body.return_token_strs else None,
        ).model_dump_json()

    return Response(await serving.beside(answer, len(tokens)), media_type="application/json")


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request) -> DetokenizeResponse:
    """The text of token ids, special tokens included."""
    serving: Serving = request.app.state.serving
    serving.model(body.model)
    highest = max(body.tokens, default=0)
    if highest >= serving.engine.limits.vocab_size:
        raise InvalidRequestError(
            f"Token id {highest} is out of vocabulary: the model's ids go from 0 to "
            f"{serving.engine.limits.vocab_size - 1}."
        )
    text = await serving.beside(lambda: serving.tokenizer.decode(body.tokens), len(body.tokens))
    return DetokenizeResponse(prompt=text)
