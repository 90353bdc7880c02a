"""The HTTP routes against requests drawn from their description: none breaks the server."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from livereel.engine.serve.fake import FakeEngine
from livereel.engine.serve.limits import Limits
from livereel.engine.serve.schema import openapi

from .conftest import Live, MakeLive

SKIPPED = {"/metrics"}  # plain text


def check(live: Live, examples: int) -> int:
    """Try all operations; gives how many there are."""
    schema: Any = schemathesis.openapi.from_dict(openapi())
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in SKIPPED:
            continue
        tried += 1

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def attack(case: Any) -> None:
            answer = case.call(base_url=live.url, timeout=20)
            assert answer.status_code < 500 or answer.status_code == 503, answer.text
            case.validate_response(answer, checks=[schemathesis.checks.not_a_server_error])
            assert answer.status_code != 400 or answer.json()["error"]["message"]

        attack()
    return tried


@pytest.mark.parametrize(
    "examples", [6, pytest.param(400, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_no_request_breaks_the_server(make_live: MakeLive, examples: int) -> None:
    live = make_live(engine=FakeEngine(hurry=True), limits=Limits(clip_s=1.0))
    assert check(live, examples) >= 9
    assert live.http.get("/readyz").status_code == 200


def test_what_is_described_is_what_is_answered(live: Live) -> None:
    assert live.http.get("/openapi.json").json() == openapi()
