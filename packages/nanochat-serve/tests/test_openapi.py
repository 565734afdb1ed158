"""The published schema: a valid OpenAPI document of just what is there, whose bodies are taken and whose answers come."""

import json
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from nanochat_serve import InvalidRequestError, ServerSettings
from nanochat_serve.app import PAGE_FILES
from nanochat_serve.openapi import openapi_schema
from nanochat_serve.shapes import check
from openapi_spec_validator import OpenAPIV31SpecValidator

PATHS = openapi_schema(ServerSettings())["paths"]
POSTS = [path for path, methods in PATHS.items() if "post" in methods]
BEYOND_SCHEMA = (
    *("the user begins", "in all of the user's", "half a character", "characters", "answers, limit", "must be n"),
    *("or else give messages", "one too many beside", "choose by itself", "not among the tools", "the text of one"),
)
"""Complaints about what JSON Schema cannot say: order of turns, sums over fields, one of two fields, lone surrogates."""


def body_schema(path: str) -> dict:
    return PATHS[path]["post"]["requestBody"]["content"]["application/json"]["schema"]


@cache
def answer_schema(path: str, method: str, status: int = 200) -> Draft202012Validator:
    return Draft202012Validator(PATHS[path][method]["responses"][str(status)]["content"]["application/json"]["schema"])


@pytest.mark.parametrize("chosen", [ServerSettings(), ServerSettings(api_keys=("secret",), max_samples=2)])
def test_the_document_is_valid_and_says_whether_a_key_is_needed(chosen):
    document = openapi_schema(chosen)
    OpenAPIV31SpecValidator(document).validate()
    assert ("security" in document["paths"]["/v1/chat/completions"]["post"]) == bool(chosen.api_keys)
    assert "security" not in document["paths"]["/health"]["get"]


def test_it_lists_just_the_routes_that_there_are(served):
    routes = {
        (route.resource.canonical, route.method.lower())
        for route in served.app.router.routes()
        if route.method != "HEAD" and route.resource.canonical not in PAGE_FILES
    }
    assert {(path, method) for path, methods in PATHS.items() for method in methods} == routes
    status, answer = served.get("/openapi.json")
    assert status == 200
    assert json.loads(answer) == openapi_schema(ServerSettings())


@pytest.mark.parametrize("path", ["/health", "/ready", "/stats", "/v1/models", "/v1/models/{name}"])
def test_what_is_asked_for_comes_as_described(served, path):
    status, answer = served.get(path.replace("{name}", "nanochat"))
    assert status == 200
    answer_schema(path, "get").validate(json.loads(answer))


def answered_as_described(served, path: str, body: dict) -> int:
    status, answer = served.post(path, json.dumps(body).encode())
    if status == 400:
        error = json.loads(answer)
        answer_schema(path, "post", 400).validate(error)
        assert any(words in error["error"]["message"] for words in BEYOND_SCHEMA), error
    else:
        assert status == 200
        if not body.get("stream") and path != "/chat/completions":
            answer_schema(path, "post").validate(json.loads(answer))
    return status


def from_schema(schema: dict) -> st.SearchStrategy:
    """Values that a schema of the kinds used here admits."""
    if "anyOf" in schema:
        return st.one_of(*(from_schema(choice) for choice in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if isinstance(schema["type"], list):
        return st.one_of(*(from_schema(schema | {"type": kind}) for kind in schema["type"]))
    match schema["type"]:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum"))
        case "number":
            low, high = schema.get("minimum"), schema.get("maximum")
            floats = st.floats(low, high, allow_nan=False, allow_infinity=False)
            return floats if low is not None else floats | st.integers(-(2**70), 2**70)
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        case "string":
            return st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 30), 30))
        case "array":
            most = min(schema.get("maxItems", 5), 5)
            return st.lists(from_schema(schema["items"]), min_size=schema.get("minItems", 0), max_size=most)
    if "patternProperties" in schema:
        [(pattern, value)] = schema["patternProperties"].items()
        return st.dictionaries(st.from_regex(pattern, fullmatch=True), from_schema(value), max_size=3)
    fields = {name: from_schema(value) for name, value in schema.get("properties", {}).items()}
    needed = {name: fields.pop(name) for name in schema.get("required", [])}
    return st.fixed_dictionaries(needed, optional=fields)


ONE_TURN = st.builds(lambda text: [{"role": "user", "content": text}], st.text("abc é🙂", min_size=1, max_size=40))


BODIES = {path: from_schema(body_schema(path)) for path in POSTS}


@st.composite
def described(draw) -> tuple[str, dict]:
    """A request as the schema has it; in every other one the conversation is one that is in order."""
    path = draw(st.sampled_from(POSTS))
    body = draw(BODIES[path])
    for name in {"messages", "input"} & set(body):
        if draw(st.booleans()):
            body[name] = draw(ONE_TURN)
    return path, body


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(described())
def test_what_the_schema_admits_is_answered(served, request_):
    answered_as_described(served, *request_)


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(described())
def test_ten_thousand_times_what_the_schema_admits(served, request_):
    answered_as_described(served, *request_)


FRACTIONS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: not value.is_integer())
SCALARS = st.none() | st.booleans() | st.integers(-3, 70) | FRACTIONS | st.text("ab1", max_size=3)
KEYS = st.sampled_from(["type", "role", "content", "function", "name", "text", "schema", "json_schema", "7", "x"])
ANY_JSON = st.recursive(
    SCALARS, lambda of: st.lists(of, max_size=3) | st.dictionaries(KEYS, of, max_size=3), max_leaves=6
)


def changed(value: object, draw: st.DrawFn) -> object:
    """The same with something else at some place within it."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
        copy = value.copy()
        copy[key] = changed(value[key], draw)
        return copy
    return draw(ANY_JSON)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_requests_are_checked_as_json_schema_has_it(data):
    """Of whatever is nearly a request; whole numbers with a point, which are taken for none, are left out."""
    path = data.draw(st.sampled_from(POSTS))
    body = changed(data.draw(BODIES[path]), data.draw)
    try:
        check(body, body_schema(path), "body")
    except InvalidRequestError as error:
        if error.complaint.startswith("holds half a character"):
            return
        found = error
    else:
        found = None
    assert (found is None) == Draft202012Validator(body_schema(path)).is_valid(body), found


EXCLUDED = [
    ("/chat/completions", "messages", []),
    ("/chat/completions", "messages", [{"role": "function", "content": "x"}]),
    ("/chat/completions", "messages", [{"role": "user", "content": [{"type": "python", "text": "1"}]}]),
    ("/chat/completions", "temperature", "warm"),
    ("/chat/completions", "logit_bias", {"x": 1}),
    ("/chat/completions", "logit_bias", {str(i): 1 for i in range(10_001)}),
    ("/chat/completions", "stop_token_ids", [-1]),
    ("/v1/chat/completions", "stop", ["a"] * 65),
    ("/v1/chat/completions", "n", 9),
    ("/v1/chat/completions", "tools", [{}]),
    ("/v1/chat/completions", "tools", [{"type": "function", "function": {"name": "with blanks"}}]),
    ("/v1/chat/completions", "tool_choice", "any"),
    ("/v1/chat/completions", "response_format", {"type": "xml"}),
    ("/v1/chat/completions", "guided_choice", []),
    ("/v1/completions", "prompt", []),
    ("/v1/completions", "stream", 1),
    ("/v1/responses", "input", []),
    ("/v1/responses", "previous_response_id", "resp_1"),
    ("/detokenize", "tokens", ["a"]),
]


def test_what_the_schema_excludes_is_refused(served):
    for path, field, value in EXCLUDED:
        good = {"prompt": "x", "input": "x", "tokens": [1], "messages": [{"role": "user", "content": "x"}]}
        validator = Draft202012Validator(body_schema(path))
        assert validator.is_valid(good)
        assert not validator.is_valid(good | {field: value}), (path, field, value)
        status, answer = served.post(path, json.dumps(good | {field: value}).encode())
        assert status == 400, (path, field, value)
        assert json.loads(answer)["error"]["param"].startswith(field)
