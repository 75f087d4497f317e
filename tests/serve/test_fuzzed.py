"""Requests made up from the OpenAPI document: none may end in an error of the server's own."""

from __future__ import annotations

from typing import Any

import pytest

from serve.conftest import Served


@pytest.mark.slow
def test_no_request_that_the_document_allows_is_an_error_of_the_servers(served: Served) -> None:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis comes with the extra dev")  # takes a second
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 15
    seen: dict[str, set[int]] = {}
    for operation in operations:

        @settings(max_examples=12, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(st.one_of(operation.as_strategy(), operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)))
        def check(case: Any) -> None:
            response = case.call(base_url=served.url, timeout=60)
            seen.setdefault(case.operation.label, set()).add(response.status_code)
            assert response.status_code < 500, (case, response.text)

        check()
    assert any(200 in statuses for statuses in seen.values())
    assert any(400 in statuses for statuses in seen.values())
