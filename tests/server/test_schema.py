"""Whatever is sent to a route, the answer is in the schema, and none is a failure of the server (schemathesis)."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
KEY = {"Authorization": "Bearer secret"}


@pytest.mark.slow
def test_answers_are_in_the_schema(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=KEY)
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) > 20
    checks = [getattr(schemathesis.checks, name) for name in CHECKS]
    for operation in operations:

        @hypothesis_settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=KEY, timeout=60, checks=checks)

        check()
