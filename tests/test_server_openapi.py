"""Schemathesis over the server's own OpenAPI document: no 5xx, and every error in the stated shape."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance
from server_tools import RunningServer, make_tiny_chat_model, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    model = make_tiny_chat_model(tmp_path_factory.mktemp("model"), max_position_embeddings=64)
    with running(model, num_blocks=256) as server:
        yield server
        server.wait_idle()


def check(case: Any) -> None:
    response = case.call(timeout=30)
    case.validate_response(response, checks=[not_a_server_error, status_code_conformance, content_type_conformance])
    assert response.headers.get("x-request-id")
    if response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_whatever_comes_there_is_no_5xx_and_errors_have_the_shape(server: RunningServer, mode: GenerationMode) -> None:
    """Bodies that fit the document, and bodies that do not."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried: Counter[str] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=20,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            tried[case.path] += 1
            check(case)

        with contextlib.suppress(Unsatisfiable):  # a route without parameters cannot be asked wrongly
            run()
    assert {"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"} <= set(tried)
