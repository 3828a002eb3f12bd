"""/v1/embeddings: one vector for each text, pooled from the last layer's hidden states."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request

from pagedlab.interfaces.openai_server.errors import ApiError
from pagedlab.interfaces.openai_server.protocol import EmbeddingBody
from pagedlab.interfaces.openai_server.responses import Embedding, EmbeddingResponse, now, with_list
from pagedlab.interfaces.openai_server.serving import Serving, usage
from pagedlab.interfaces.outputs import PoolingRequestOutput
from pagedlab.model_authoring.request import PoolingParams

router = APIRouter()


@router.post("/v1/embeddings", response_model=EmbeddingResponse)
async def create_embeddings(body: EmbeddingBody, request: Request) -> Any:
    """The last token's hidden state of each input, at length 1."""
    serving: Serving = request.app.state.serving
    model = serving.model(body.model)
    prompts = await serving.read_prompts(body.input)
    stream = serving.submit(request, "embd", prompts, PoolingParams(), body.cache_salt)
    outputs = await serving.outputs(request, stream)
    total = sum(len(prompt.token_ids) for prompt in prompts)
    head = EmbeddingResponse(
        id=request.state.engine_request_id, created=now(), model=model, data=[], usage=usage(total, 0)
    )
    size = sum(len(one.outputs.data) for one in outputs if isinstance(one, PoolingRequestOutput))
    return await serving.write(lambda: with_list(head, "data", _embeddings(body, outputs)), size)


def _embeddings(body: EmbeddingBody, outputs: Sequence[Any]) -> Iterator[Embedding]:
    for index, output in enumerate(outputs):
        if not isinstance(output, PoolingRequestOutput):
            raise ApiError(500, "The engine failed to compute this request; its log says why.", code="engine_error")
        vector = output.outputs.data.cpu().float()
        if body.dimensions is not None and body.dimensions != len(vector):
            raise ApiError(
                400, f"This model's embeddings have {len(vector)} dimensions: leave it out.", param="dimensions"
            )
        as_bytes = body.encoding_format == "base64"
        value = base64.b64encode(vector.numpy().tobytes()).decode() if as_bytes else vector.tolist()
        yield Embedding(index=index, embedding=value)
