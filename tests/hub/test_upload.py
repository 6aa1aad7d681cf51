"""Uploading: one commit or nothing, and an error that says what to do; the real client against a Hub on loopback."""

import hashlib

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from hub_configs.publish import PublishError, upload

from .local_hub import File, Refusal, Repository

NAME = "genomes/tiny"


@pytest.fixture
def folder(tmp_path):
    """A folder with a small file, one in a subfolder, and a large one that goes up in three parts."""
    folder = tmp_path / "published"
    (folder / "onnx").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n")
    (folder / "config.json").write_text("{}")
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    return folder


@pytest.fixture
def hub(local_hub, monkeypatch):
    local_hub.part_size = 10_000
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its attempts
    return local_hub


def api(hub, token="hf_write"):
    return HfApi(endpoint=hub.url, token=token)


def files_of(hub, revision="main"):
    return set(hub.repositories[NAME].at(revision).files) - {".gitattributes"}


def everything(hub):
    """What a reader could see: commits and tags of every repository."""
    return {name: (len(r.commits), dict(r.branches), dict(r.tags)) for name, r in hub.repositories.items()}


def test_a_folder_becomes_one_commit_with_a_tag(hub, folder):
    commit = upload(folder, NAME, "v1.0.0", api(hub))
    repository = hub.repositories[NAME]
    assert len(repository.commits) == 2  # the Hub's own first one, and ours
    assert repository.branches["main"] == repository.tags["v1.0.0"] == commit
    assert files_of(hub) == {"README.md", "config.json", "model.safetensors", "onnx/model.onnx"}
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert repository.at("main").files["model.safetensors"].sha256 == sha256
    assert f"PUT /storage/{sha256}/3" in hub.requests


def test_an_existing_repository_is_left_alone_without_update(hub, folder):
    upload(folder, NAME, "v1.0.0", api(hub))
    before = everything(hub)
    with pytest.raises(PublishError, match="exists and holds 5 files; pass --overwrite --update"):
        upload(folder, NAME, "v1.1.0", api(hub))
    assert everything(hub) == before


def test_update_makes_it_hold_exactly_the_folder_and_keeps_the_old_revision(hub, folder):
    upload(folder, NAME, "v1.0.0", api(hub))
    (folder / "onnx" / "model.onnx").unlink()
    (folder / "config.json").write_text('{"new": 1}')
    upload(folder, NAME, "v1.1.0", api(hub), update=True)
    assert files_of(hub) == {"README.md", "config.json", "model.safetensors"}
    assert "onnx/model.onnx" in files_of(hub, "v1.0.0")
    assert hub.repositories[NAME].at("v1.0.0").files["config.json"].content == b"{}"


def test_a_tag_that_exists_is_refused_before_anything_is_sent(hub, folder):
    upload(folder, NAME, "v1.0.0", api(hub))
    before, sent = everything(hub), len(hub.requests)
    with pytest.raises(PublishError, match="already has the tag v1.0.0; raise `version` .* --overwrite --update"):
        upload(folder, NAME, "v1.0.0", api(hub), update=True)
    assert everything(hub) == before
    assert not [request for request in hub.requests[sent:] if not request.startswith("GET")]


@pytest.mark.parametrize("token", ["hf_wrong", False])
def test_a_wrong_token_and_none_say_so(hub, folder, token):
    with pytest.raises(PublishError, match="does not accept the token: .*; run `hf auth login`"):
        upload(folder, NAME, "v1.0.0", api(hub, token))
    assert everything(hub) == {}


def test_a_namespace_of_someone_else_is_named(hub, folder):
    with pytest.raises(PublishError, match="nothing was published in others/tiny .*may not write there"):
        upload(folder, "others/tiny", "v1.0.0", api(hub))
    assert everything(hub) == {}


def test_a_commit_made_meanwhile_is_not_overwritten(hub, folder):
    upload(folder, NAME, "v1.0.0", api(hub))

    def someone_else(method, path):
        if path.endswith("/commit/main"):
            repository = hub.repositories[NAME]
            repository.add("a colleague's", {**repository.at("main").files, "notes.txt": File(b"mine")})
            hub.before = lambda method, path: None

    hub.before = someone_else
    (folder / "config.json").write_text('{"new": 1}')
    with pytest.raises(PublishError, match="someone else has changed it meanwhile.* --overwrite --update"):
        upload(folder, NAME, "v1.1.0", api(hub), update=True)
    head = hub.repositories[NAME].at("main")
    assert head.title == "a colleague's" and "notes.txt" in head.files and "v1.1.0" not in hub.repositories[NAME].tags


@pytest.mark.parametrize("place", ["/storage/", "/commit/", "/preupload/", "/info/lfs/"])
@pytest.mark.parametrize("failure", [ConnectionError(), Refusal(503, "busy"), Refusal(400, "rejected")])
def test_an_interrupted_upload_publishes_nothing_and_goes_on_later(hub, folder, place, failure):
    def fail(method, path):
        if place in path and method in ("PUT", "POST"):
            raise failure

    hub.before = fail
    with pytest.raises(PublishError, match="nothing was published in genomes/tiny .*run the same command again"):
        upload(folder, NAME, "v1.0.0", api(hub))
    assert files_of(hub) == set() and not hub.repositories[NAME].tags
    hub.before, sent = lambda method, path: None, len(hub.requests)
    upload(folder, NAME, "v1.0.0", api(hub))
    assert files_of(hub) == {"README.md", "config.json", "model.safetensors", "onnx/model.onnx"}
    again = [request for request in hub.requests[sent:] if request.startswith("PUT")]
    assert bool(again) == (place != "/commit/")  # what has arrived is not sent twice


def test_a_space_of_an_interrupted_upload_is_filled_by_the_same_command(hub, folder):
    def fail(method, path):
        if "/commit/" in path:
            raise Refusal(400, "rejected")

    hub.before = fail
    with pytest.raises(PublishError, match="run the same command again"):
        upload(folder, NAME, "v1.0.0", api(hub), kind="space")
    assert files_of(hub) == {"README.md"}  # the Hub's own
    hub.before = lambda method, path: None
    upload(folder, NAME, "v1.0.0", api(hub), kind="space")
    assert files_of(hub) == {"README.md", "config.json", "model.safetensors", "onnx/model.onnx"}
    assert hub.repositories[NAME].at("main").files["README.md"].content == (folder / "README.md").read_bytes()


def test_a_card_that_someone_wrote_into_a_space_is_not_replaced(hub, folder):
    api(hub).create_repo(NAME, repo_type="space", space_sdk="gradio")
    mine = b"---\nlicense: mit\n---\n# mine\n"
    api(hub).upload_file(path_or_fileobj=mine, path_in_repo="README.md", repo_id=NAME, repo_type="space")
    with pytest.raises(PublishError, match="exists and holds 2 files; pass --overwrite --update"):
        upload(folder, NAME, "v1.0.0", api(hub), kind="space")
    assert hub.repositories[NAME].at("main").files["README.md"].content == mine


def test_an_answer_that_is_lost_after_the_commit_is_said_and_update_sets_the_tag(hub, folder, monkeypatch):
    original = Repository.add

    def add(repository, title, files):
        commit = original(repository, title, files)
        if title.startswith("Publish"):
            raise ConnectionError
        return commit

    with monkeypatch.context() as patch:
        patch.setattr(Repository, "add", add)
        with pytest.raises(PublishError, match="--update"):
            upload(folder, NAME, "v1.0.0", api(hub))
    assert "config.json" in files_of(hub) and not hub.repositories[NAME].tags
    commits = len(hub.repositories[NAME].commits)
    commit = upload(folder, NAME, "v1.0.0", api(hub), update=True)
    assert hub.repositories[NAME].tags["v1.0.0"] == commit and len(hub.repositories[NAME].commits) == commits


def test_a_hub_that_is_busy_is_not_taken_for_a_wrong_token(hub, folder):
    def fail(method, path):
        if "whoami" in path:
            raise Refusal(503, "busy")

    hub.before = fail
    with pytest.raises(PublishError, match="cannot be reached"):
        upload(folder, NAME, "v1.0.0", api(hub))


def test_a_tag_that_fails_says_that_the_commit_is_there(hub, folder):
    def fail(method, path):
        if "/tag/" in path:
            raise Refusal(500, "busy")

    hub.before = fail
    with pytest.raises(PublishError, match="is published, but the tag v1.0.0 could not be set"):
        upload(folder, NAME, "v1.0.0", api(hub))
    assert "config.json" in files_of(hub)


def test_a_hub_that_stores_something_else_is_noticed(hub, folder, monkeypatch):
    original = hub.apply

    def damage(key, value, files):
        original(key, value, files)
        if value["path"] == "config.json":
            files["config.json"] = File(b"[]")  # of the same size

    monkeypatch.setattr(hub, "apply", damage)
    with pytest.raises(PublishError, match="differs from the folder: config.json"):
        upload(folder, NAME, "v1.0.0", api(hub))


def test_a_hub_that_cannot_be_reached_is_named(folder, hub):
    with pytest.raises(PublishError, match="http://127.0.0.1:9 cannot be reached"):
        upload(folder, NAME, "v1.0.0", HfApi(endpoint="http://127.0.0.1:9", token="hf_write"))


def test_offline_says_so(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="offline mode is enabled"):
        upload(folder, NAME, "v1.0.0", api(hub))
