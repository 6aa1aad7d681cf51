"""Requests that are too large for the server."""

import httpx
import pytest

MEGABYTE = b"0" * 1_000_000


@pytest.mark.parametrize("path", ["gradio_api/queue/join", "gradio_api/call/tokens", "gradio_api/upload"])
def test_a_body_beyond_the_limit_is_refused_with_a_sentence(server, path):
    answer = httpx.post(server + path, content=MEGABYTE * 10 + b"0", timeout=60)
    assert answer.status_code == 413
    assert "larger than 10 MB" in answer.json()["detail"]


def test_a_body_that_does_not_state_its_length_is_counted(server):
    pieces = (MEGABYTE for _ in range(11))
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server}gradio_api/queue/join", content=pieces, headers=headers, timeout=60)
    assert answer.status_code == 413
    assert "larger than 10 MB" in answer.json()["detail"]


def test_a_body_within_the_limit_is_read(server):
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server}gradio_api/queue/join", content=MEGABYTE * 9, headers=headers, timeout=60)
    assert answer.status_code == 422  # as no JSON
