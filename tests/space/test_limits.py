"""Requests that are too large for the server, and files that have been there too long."""

import os
import time

import httpx
import pytest

from space.files import keep_swept, sweep

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


def write(path, seconds_ago):
    path.parent.mkdir(exist_ok=True)
    path.write_text("ACGT")
    os.utime(path, (time.time() - seconds_ago,) * 2)


def test_old_files_and_empty_folders_are_swept_and_no_others(tmp_path):
    write(tmp_path / "a" / "old.tsv", 3700)
    write(tmp_path / "a" / "new.tsv", 3500)
    write(tmp_path / "b" / "old.tsv", 3700)
    write(tmp_path / "old.fa", 3700)
    for name in ("a", "empty", "fresh"):
        (tmp_path / name).mkdir(exist_ok=True)
    for place in (tmp_path / "a", tmp_path / "empty", tmp_path):
        os.utime(place, (time.time() - 3700,) * 2)
    sweep(tmp_path, 3600)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "a", "a/new.tsv", "b", "fresh",
    ]  # fmt: skip
    os.utime(tmp_path / "b", (time.time() - 3700,) * 2)  # empty for that long now
    sweep(tmp_path, 3600)
    assert not (tmp_path / "b").exists() and tmp_path.exists()


def test_of_too_many_bytes_the_oldest_go_first(tmp_path):
    for name, age in (("b", 300), ("a/c", 200), ("d", 100), ("now", 0)):
        write(tmp_path / name, age)
    size = (tmp_path / "b").stat().st_size
    for most, left in ((4 * size, "abcdnow"), (3 * size, "acdnow"), (2 * size - 1, "anow"), (0, "anow")):
        sweep(tmp_path, 3600, most)
        assert "".join(sorted(path.name for path in tmp_path.rglob("*"))) == left


def test_the_folder_is_swept_again_and_again(tmp_path):
    keep_swept(tmp_path, 0.2, 3600)
    for name in ("one.tsv", "two.tsv"):
        write(tmp_path / name, 3700)
        until = time.monotonic() + 20
        while (tmp_path / name).exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert not (tmp_path / name).exists()
