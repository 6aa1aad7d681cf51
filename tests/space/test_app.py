"""`python -m space.app`: what it leaves when it is stopped, and what it says when it cannot start."""

import os
import signal
import subprocess
import sys
import threading

import httpx
import pytest

from ..conftest import ROOT

pytest.importorskip("gradio", reason="the demo needs gradio: pip install '.[space]'")


@pytest.fixture
def main(monkeypatch, tmp_path):
    """The command, which leaves environment and signals of the tests as they are."""
    from space import app

    for name in (
        "STRANDBERT_DEMO_MODEL",
        "STRANDBERT_DEMO_CLASSIFIER",
        "GRADIO_SHARE",
        "GRADIO_RUN_HISTORY",
        "SPACE_ID",
    ):
        monkeypatch.setenv(name, "")  # undone after the test, with what the command has put there
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    return app.main


def test_a_port_in_use_is_said(main, server, models, tmp_path):
    port = httpx.URL(server).port
    small = models.sources["language"]["small"]
    with pytest.raises(SystemExit, match=f"^error: Cannot find empty port in range: {port}-{port}$"):
        main(["--model", small, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_model_that_is_mistyped_is_said(main, tmp_path):
    with pytest.raises(SystemExit, match="^error: no_such_model cannot be loaded: "):
        main(["--model", "no_such_model", "--host", "127.0.0.1", "--device", "cpu"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("wanted, local", [("", True), ("True", False)])
def test_a_public_address_only_when_asked_for(main, models, monkeypatch, wanted, local):
    from gradio import networking

    from space import app

    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")  # where gradio would share by itself
    monkeypatch.setenv("GRADIO_SHARE", wanted)
    monkeypatch.setattr(networking, "setup_tunnel", lambda **options: "https://example.org")
    launch, build, seen = app.launch, app.build, []

    def briefly(demo, *arguments, **options):
        launch(demo, *arguments, prevent_thread_lock=True, quiet=True, **options)
        seen.append((demo.share, demo.local))
        demo.close()

    def noting(models):
        demo = build(models)
        demo.local = models.local
        return demo

    monkeypatch.setattr(app, "launch", briefly)
    monkeypatch.setattr(app, "build", noting)
    main(["--model", models.sources["language"]["small"], "--host", "127.0.0.1", "--device", "cpu"])
    assert seen == [(not local, local)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process there at once")
def test_what_users_left_is_deleted_at_sigterm(models, tmp_path):
    command = [
        sys.executable,
        "-u",
        "-m",
        "space.app",
        "--model",
        models.sources["language"]["small"],
        "--device",
        "cpu",
    ]
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("GRADIO_", "STRANDBERT_DEMO_", "SPACE_"))
    }
    process = subprocess.Popen(
        command, cwd=ROOT, env=kept | {"GRADIO_TEMP_DIR": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    watch = threading.Timer(120, process.kill)
    watch.start()
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if "Running on local URL" in line:
                break
        assert said and "http://" in said[-1], "".join(said)
        url = "http://" + said[-1].partition("http://")[2].strip().rstrip("/")
        answer = httpx.post(f"{url}/gradio_api/upload", files={"files": ("mine.fa", b">a\nACGT\n")}, timeout=30)
        assert answer.status_code == 200
        assert len(list(tmp_path.rglob("mine.fa"))) == 1
        process.terminate()
        process.wait(30)
    finally:
        watch.cancel()
        process.kill()
        process.stdout.close()
        process.wait()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
