"""Checkpoints by their Hub name: the data files of a repository, never its code."""

import contextlib
import re
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .checkpoint import ConversionError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
DATA_FILES = ["*.json", "*.safetensors", "*.bin"]
FOLDERS, PICKLES = ["*/*"], ["*.bin", "*.bin.index.json"]


def local_folder(source: str | Path, revision: str | None = None, api: HfApi | None = None) -> Path:
    """
    `source` itself when it is a folder; when it is a Hub name ("org/name"), the folder its data files are cached in.

    Code of the repository is not downloaded. .bin files are left out where there are safetensors. A branch or tag is
    resolved to a commit once, so that what is downloaded is what was listed.

    Raises:
        ConversionError: neither a folder nor a repository that can be read, a revision of a folder, or a repository
            whose listing names files outside of it.
    """
    if Path(source).is_dir():
        if revision:
            raise ConversionError(f"--revision {revision} is for a Hub name; {source} is a folder, so leave it out")
        return Path(source).resolve()
    if not HUB_NAME.fullmatch(str(source)):
        raise ConversionError(f"{source} is not a folder (or, to download it, a Hub name like org/name)")
    api, name = api or HfApi(), str(source)
    place = {"endpoint": api.endpoint, "token": api.token}
    try:
        commit = api.repo_info(name, revision=revision).sha
        files = [file.path for file in api.list_repo_tree(name, recursive=True, revision=commit)]
        check_listing(name, files)
        safetensors = any(path.endswith(".safetensors") and "/" not in path for path in files)
        patterns = {"allow_patterns": DATA_FILES, "ignore_patterns": FOLDERS + (PICKLES if safetensors else [])}
        folder = Path(snapshot_download(name, revision=commit, **patterns, **place))
        remember(folder, revision or "main", commit)
        return folder
    except OfflineModeIsEnabled:
        return cached_folder(name, revision)
    except GatedRepoError:
        raise ConversionError(f"{name} is gated: accept its terms on the Hub, then run `hf auth login`") from None
    except RevisionNotFoundError:
        raise ConversionError(f"{name} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise ConversionError(
            f"{name} is neither a folder nor a repository at {api.endpoint} that this token may read; check the name, "
            "or run `hf auth login` if it is private"
        ) from None
    except ConversionError:
        raise
    except Exception as error:  # network: each client version has its own types
        raise ConversionError(f"{name} could not be downloaded from {api.endpoint}: {error}") from None


def remember(folder: Path, revision: str, commit: str) -> None:
    """Note in the Hub cache which commit a branch or tag was, as its own downloads do, so that it is found offline."""
    note = folder.parents[1] / "refs" / revision
    with contextlib.suppress(OSError):  # a cache that cannot be written to
        if revision != commit:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(commit)


def cached_folder(name: str, revision: str | None) -> Path:
    """The folder of an earlier download. Raises ConversionError when there is none."""
    try:
        patterns = {"allow_patterns": DATA_FILES, "ignore_patterns": FOLDERS + PICKLES}  # a .bin may be there or not
        return Path(snapshot_download(name, revision=revision, local_files_only=True, **patterns))
    except (LocalEntryNotFoundError, OSError):
        raise ConversionError(
            f"{name} is not a folder, and not in the Hub cache either; HF_HUB_OFFLINE=1 forbids downloading it"
        ) from None


def check_listing(name: str, files: list[str]) -> None:
    """Raise ConversionError when a repository's listing names a file that would be written outside its folder."""
    for path in files:
        parts = PurePosixPath(path.replace("\\", "/")).parts
        if not parts or ".." in parts or parts[0] == "/" or ":" in parts[0]:
            raise ConversionError(f"{name} is refused: its listing names {path!r}, a path outside the repository")
