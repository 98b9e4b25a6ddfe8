"""What a server's refusal means, and the patch from one status to the next."""

from __future__ import annotations

import json
from typing import Any

import pytest

from itrain_operator.kubeapi import (
    JOBS,
    PODS,
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ExpiredError,
    NotFoundError,
    RefusedError,
    ThrottledError,
    UnavailableError,
    api_error,
    merge_diff,
)
from itrain_operator.ratelimit import TokenBucket
from itrain_testing.fakecluster import merge


def status(**fields: Any) -> str:
    return json.dumps({"kind": "Status", "apiVersion": "v1", "status": "Failure", **fields})


@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [
        (404, status(reason="NotFound", message='jobs.batch "x" not found'), NotFoundError),
        (409, status(reason="Conflict", message="the object has been modified"), ConflictError),
        (409, status(reason="AlreadyExists", message='jobs.batch "x" already exists'), AlreadyExistsError),
        (410, status(reason="Expired"), ExpiredError),
        (422, status(reason="Invalid", message="spec.template: Required value"), RefusedError),
        (403, status(reason="Forbidden", message="is forbidden"), RefusedError),
        (429, status(reason="TooManyRequests"), ThrottledError),
        (401, status(reason="Unauthorized"), UnavailableError),
        (500, status(reason="InternalError"), UnavailableError),
        (504, "<html>gateway time-out</html>", UnavailableError),
    ],
)
def test_an_answer_becomes_a_typed_error_with_the_servers_words(code: int, body: str, kind: type[ApiError]) -> None:
    error = api_error(code, body, {})
    assert type(error) is kind
    message = json.loads(body).get("message") if body.startswith("{") else body
    assert not message or str(error) == message


def test_a_quota_and_a_namespace_on_its_way_out_are_told_apart_from_a_missing_right() -> None:
    quota = api_error(
        403, status(message='jobs "x" is forbidden: exceeded quota: q, requested: count/jobs.batch=1'), {}
    )
    gone = api_error(403, status(message="x", details={"causes": [{"reason": "NamespaceTerminating"}]}), {})
    right = api_error(403, status(message='User "x" cannot create resource "jobs"'), {})
    for error, expected in ((quota, (True, False)), (gone, (False, True)), (right, (False, False))):
        assert isinstance(error, RefusedError)
        assert (error.quota, error.terminating, error.forbidden) == (*expected, True)


@pytest.mark.parametrize(
    ("headers", "details", "seconds"),
    [
        ({"Retry-After": "7"}, {}, 7.0),
        ({}, {"retryAfterSeconds": 3}, 3.0),
        ({}, {}, 1.0),
        ({"Retry-After": "x"}, {}, 1.0),
    ],
)
def test_a_throttled_request_says_when_to_come_back(
    headers: dict[str, str], details: dict[str, Any], seconds: float
) -> None:
    error = api_error(429, status(details=details), headers)
    assert isinstance(error, ThrottledError)
    assert error.retry_after_s == seconds


def test_paths_of_core_and_other_groups() -> None:
    assert PODS.path("team", "p", "log") == "/api/v1/namespaces/team/pods/p/log"
    assert JOBS.path("") == "/apis/batch/v1/jobs"


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1, "b": 2}, {"a": 1}, {"b": None}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, {"a": {"c": 3}}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": None}}),
        ({"a": [1, 2]}, {"a": [2]}, {"a": [2]}),
        ({}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": {"b": 1}}, {"a": 3}, {"a": 3}),
    ],
)
def test_a_merge_patch_makes_the_new_of_the_old_and_says_no_more(old: Any, new: Any, patch: Any) -> None:
    assert merge_diff(old, new) == patch
    merge(old, patch)
    assert old == new


def test_a_token_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    bucket = TokenBucket(rate=2.0, burst=3)
    assert [bucket.reserve(0.0) for _ in range(5)] == [0.0, 0.0, 0.0, 0.5, 1.0]
    assert bucket.reserve(10.0) == 0.0
    assert bucket.reserve(5.0) == 0.0, "a clock that jumps back gives nothing away and takes nothing"


def test_a_token_that_is_not_there_is_not_lent() -> None:
    bucket = TokenBucket(rate=1.0, burst=1)
    assert [bucket.take(0.0), bucket.take(0.5), bucket.take(1.0)] == [True, False, True]
    with pytest.raises(ValueError, match="burst at least 1"):
        TokenBucket(rate=1.0, burst=0)
