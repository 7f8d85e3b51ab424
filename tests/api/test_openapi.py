"""The API describes itself: what comes, what may go wrong, and as which kind of document."""

import json
import re
from typing import Any

import httpx2

from api.main import build
from api.routes.problems import MEDIA_TYPE
from sep_core.cells import Evaluation
from sep_core.config import COUNTERMEASURES, SEPConfig
from tests.api.test_routes_datasets import problem

SCHEMA: dict[str, Any] = build().openapi()
OPERATIONS = {
    f"{method} {path}": operation
    for path, operations in SCHEMA["paths"].items()
    for method, operation in operations.items()
}


def errors(name: str) -> set[int]:
    return {int(status) for status in OPERATIONS[name]["responses"] if int(status) >= 400}


def test_every_operation_says_what_it_does() -> None:
    for name, operation in OPERATIONS.items():
        assert len(operation["description"]) > 10, name
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)


def test_every_field_of_every_document_says_what_it_is() -> None:
    for name, schema in SCHEMA["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            assert described.get("description"), (name, field)


def test_every_error_is_described_as_the_problem_it_is() -> None:
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for name, operation in OPERATIONS.items():
        if "/v1/" in name:
            assert errors(name) >= {401, 422, 503}, name
        if "{" in name:
            assert 404 in errors(name), name
        for status in errors(name):
            assert operation["responses"][str(status)]["content"] == problem, (name, status)
    assert set(SCHEMA["components"]["schemas"]["Problem"]["required"]) == {
        *("title", "status", "code", "detail")
    }
    assert "HTTPValidationError" not in SCHEMA["components"]["schemas"]


def test_errors_of_each() -> None:
    assert errors("post /v1/datasets") >= {400, 413, 507}
    assert errors("post /v1/protections") >= {400, 404, 409, 413}
    assert errors("get /v1/protections/{protection_id}/archive") >= {409, 412, 416}
    assert errors("delete /v1/datasets/{dataset_id}") >= {409}
    assert errors("get /readyz") == {503}


def test_an_upload_is_a_raw_body() -> None:
    body = OPERATIONS["post /v1/datasets"]["requestBody"]
    assert body["required"] is True
    assert body["content"] == {
        "application/zip": {"schema": {"type": "string", "format": "binary"}}
    }


def test_a_configuration_lists_its_fields_and_no_others() -> None:
    config = SCHEMA["components"]["schemas"]["ConfigIn"]
    assert set(config["properties"]) == {*SEPConfig.__dataclass_fields__, "preset"}
    assert config["additionalProperties"] is False
    for name in ("protected_classes", "protected_fraction"):
        assert "clean copies" in config["properties"][name]["description"]
    levels, _ = config["properties"]["epsilon_levels"]["anyOf"]
    assert (levels["minimum"], levels["maximum"]) == (1, 64)
    assert config["properties"]["preset"]["enum"] == [
        "auto",
        "quick",
        "fast",
        "hardened",
        "paper",
    ]
    assert SCHEMA["components"]["schemas"]["ProtectionIn"]["additionalProperties"] is False


def test_an_evaluation_lists_its_fields_and_names() -> None:
    evaluation = SCHEMA["components"]["schemas"]["EvaluationIn"]
    assert set(evaluation["properties"]) == {*Evaluation.__dataclass_fields__} - {"weights"}
    assert evaluation["additionalProperties"] is False
    assert all(f'"{name}"' in json.dumps(evaluation) for name in COUNTERMEASURES)
    for code in ("PRETRAINED_UNAVAILABLE", "PRETRAINED_UNFIT"):
        assert code in evaluation["properties"]["countermeasures"]["description"]


def test_a_request_that_is_only_validated_is_answered_by_a_plan() -> None:
    answers = OPERATIONS["post /v1/protections"]["responses"]
    for status, name in (("200", "PlanOut"), ("202", "ProtectionDetail")):
        schema = answers[status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{name}"}


def test_every_route_wants_a_key() -> None:
    for name, operation in OPERATIONS.items():
        assert ("security" in operation) is ("/v1/" in name), name
    assert (
        "sepgate keys create"
        in SCHEMA["components"]["securitySchemes"]["HTTPBearer"]["description"]
    )


def test_the_page_loads_nothing_from_elsewhere(anonymous: httpx2.Client) -> None:
    found = re.findall(r'(?:src|href)="([^"]+)"', anonymous.get("/docs").text)
    assert len(found) >= 2
    for address in found:
        assert address.startswith("/")
        assert anonymous.get(address).status_code == 200
    problem(anonymous.get("/redoc"), 404, "NOT_FOUND")  # it asks another host for a logo
    problem(anonymous.get("/static-offline-docs/nothing.js"), 404, "NOT_FOUND")


def test_the_address_alone_leads_there(anonymous: httpx2.Client) -> None:
    answer = anonymous.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "docs")
