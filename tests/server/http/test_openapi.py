"""The OpenAPI document is valid, complete and true: schemathesis finds no 500 and no answer that
is not documented, whoever asks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from openapi_spec_validator import validate
from pydantic import TypeAdapter
from schemathesis import GenerationMode, checks

from support.databases import open_quickly
from support.gateway import GatewayWorld
from taciturn.server.http.openapi import example, operations
from taciturn.server.schema import versions
from taciturn.wire.identity import Role

EXAMPLES = (2, pytest.param(25, marks=pytest.mark.slow))
"""Of each operation, for each role. More find more: `make slow`."""

SLOW_DATABASE = pytest.param("postgresql", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["sqlite", SLOW_DATABASE])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayWorld]:
    folder = tmp_path_factory.mktemp("documents")
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_file"), folder / "gateway.db")
        url = f"sqlite:///{folder / 'gateway.db'}"
    else:
        url = request.getfixturevalue("cluster").create("documents")
    engine = open_quickly(url)
    versions.upgrade(engine)
    yield GatewayWorld.open(engine, folder, anonymous_per_minute=10**6)
    engine.dispose()


@pytest.fixture(scope="module")
def document(world: GatewayWorld) -> dict[str, Any]:
    return world.app.openapi()


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def described(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_operation_documents_its_problems(document: dict[str, Any]) -> None:
    for method, path, operation in described(document):
        for status in ("4XX", "5XX"):
            content = operation["responses"][status]["content"]
            reference = content["application/problem+json"]["schema"]["$ref"]
            assert reference.endswith("/Problem"), (method, path)
        if operation["security"]:
            assert {"401", "403"} <= set(operation["responses"]), (method, path)
            assert "/worker/" in path or path == "/metrics" or operation["x-taciturn-roles"]
        assert operation["description"], (method, path)
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_json_body_has_an_example_that_is_valid(
    world: GatewayWorld, document: dict[str, Any]
) -> None:
    for operation in operations(world.app):
        body = operation.route.body_field
        if operation.path not in document["paths"]:
            continue  # a page's form
        found = document["paths"][operation.path][operation.method.lower()].get("requestBody")
        if found is None or body is None or "application/json" not in found["content"]:
            continue
        shown = found["content"]["application/json"]
        assert "example" in shown or "examples" in shown, operation.path
        values = [each["value"] for each in shown.get("examples", {}).values()]
        value = shown.get("example", values[:1])
        TypeAdapter(body.field_info.annotation).validate_python(value)


def test_an_example_is_made_of_what_the_fields_say() -> None:
    schemas: dict[str, Any] = {"Color": {"enum": ["red", "blue"]}}
    shape = {
        "type": "object",
        "required": ["color", "size", "names"],
        "properties": {
            "color": {"$ref": "#/components/schemas/Color"},
            "size": {"type": "number", "minimum": 3},
            "names": {"type": "array", "items": {"type": "string"}},
            "kept_out": {"type": "string"},
        },
    }
    assert example(shape, schemas) == {"color": "red", "size": 3, "names": ["x"]}


CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize(
    ("people", "mode"),
    [
        ([*([role] for role in Role), []], GenerationMode.POSITIVE),
        ([[Role.ADMIN, Role.OWNER, Role.PRACTITIONER]], GenerationMode.NEGATIVE),
    ],
    ids=["right", "wrong"],
)
def test_no_request_makes_it_fail_or_answer_otherwise_than_documented(
    world: GatewayWorld,
    document: dict[str, Any],
    people: list[list[Role]],
    mode: GenerationMode,
    examples: int,
) -> None:
    """A request is made once and everybody asks it: to make one takes longer than to answer it."""
    callers = {"-".join([*roles, mode.value, str(examples)]): roles for roles in people}
    headers = [world.person(name, *roles) if roles else {} for name, roles in callers.items()]
    described_by = schemathesis.openapi.from_dict(document)
    asked: list[int] = []
    for found in described_by.get_all_operations():
        operation = found.ok()
        if operation.path in _LAST or (mode is GenerationMode.NEGATIVE and _bare(operation)):
            continue

        @seed(20261124)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            for who in headers:
                answer = _answer(world, case, who)
                asked.append(answer.status_code)
                case.validate_response(answer, checks=CHECKS)

        ask()
    assert len(asked) > len(headers) * len(document["paths"])


_LAST = ("/v1/logout", "/v1/self/password")
"""They end the token that the others are asked with; tests of their own ask them."""


def _bare(operation: Any) -> bool:
    """Whether it takes nothing that could be wrong."""
    return not (list(operation.iter_parameters()) or list(operation.body))


def _answer(world: GatewayWorld, case: schemathesis.Case, headers: dict[str, str]) -> Any:
    given = case.as_transport_kwargs(base_url="https://testserver")
    world.client.cookies.clear()
    return world.client.request(
        given["method"],
        given["url"],
        params=given.get("params"),
        headers={**(given.get("headers") or {}), **headers},
        json=given.get("json"),
        content=given.get("data"),
        follow_redirects=False,
    )
