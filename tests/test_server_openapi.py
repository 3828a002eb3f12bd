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
    response = case.call(timeout=120)
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


def unbounded(schema: dict[str, Any], document: dict[str, Any], path: str, seen: frozenset[str] = frozenset()) -> list:
    """Where a request could be of any size: lists without maxItems, numbers without both ends, open-ended maps."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return [] if name in seen else unbounded(document["components"]["schemas"][name], document, path, seen | {name})
    found = []
    for part in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(part, ()):
            found += unbounded(one, document, path, seen)
    kind = schema.get("type")
    if kind == "array":
        if "maxItems" not in schema:
            found.append(path)
        found += unbounded(schema.get("items", {}), document, f"{path}[]", seen)
    if (
        kind in ("integer", "number")
        and "const" not in schema
        and not ({"minimum", "exclusiveMinimum"} & set(schema) and {"maximum", "exclusiveMaximum"} & set(schema))
    ):
        found.append(path)
    if kind == "object":
        for name, one in schema.get("properties", {}).items():
            found += unbounded(one, document, f"{path}.{name}", seen)
        if isinstance(schema.get("additionalProperties"), dict) and "maxProperties" not in schema:
            found.append(path)
    return found


def test_every_list_and_every_number_of_a_body_is_bounded(server: RunningServer) -> None:
    with server.client() as client:
        document = client.get("/openapi.json").json()
    found, bodies = [], 0
    for path, methods in document["paths"].items():
        for operation in methods.values():
            if "requestBody" in operation:
                bodies += 1
                found += unbounded(operation["requestBody"]["content"]["application/json"]["schema"], document, path)
    assert bodies == 5 and found == []
    control = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer", "minimum": 0}}}}
    assert unbounded(control, document, "x") == ["x.a", "x.a[]"], "the walk itself finds what is unbounded"
