"""training.storage: errors of writing become one line that names the folder; other errors stay what they are."""

import pytest
from safetensors import SafetensorError

from training.storage import StorageError, alone_in, check_writable, writing_into


def failing(error: Exception, folder):
    with writing_into(folder, lambda: "make room"):
        raise error


def test_a_folder_that_does_not_exist_yet_is_writable_and_not_made(tmp_path):
    check_writable(tmp_path / "a" / "b", "--output_dir")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_no_file_can_be_made_is_named():
    with pytest.raises(StorageError, match=r"--output_dir /proc/run: cannot write to /proc"):
        check_writable("/proc/run", "--output_dir")


# The messages as safetensors, numpy and torch gave them on a file system that was really full.
@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("1000000 requested and 25584 written"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
)
def test_a_full_disk_is_recognised_from_every_library_that_writes(tmp_path, error):
    with pytest.raises(StorageError, match=f"cannot write to {tmp_path}: the disk is full.*; make room"):
        failing(error, tmp_path)


def test_an_error_of_reading_a_file_elsewhere_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"genome\.fa"):
        with writing_into(tmp_path / "cache", lambda: "make room"):
            open(tmp_path / "genome.fa")


def test_an_error_of_computing_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        failing(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), tmp_path)


def test_one_run_at_a_time_has_a_folder(tmp_path):
    with alone_in(tmp_path / "run"):
        with pytest.raises(StorageError, match=f"{tmp_path}/run: another run writes into this folder; wait until"):
            with alone_in(tmp_path / "run"):
                pass
        with alone_in(tmp_path / "run", process_index=1):  # another process of the run
            (tmp_path / "run" / "weights").touch()
    with alone_in(tmp_path / "run"):
        assert (tmp_path / "run" / "weights").exists()


def test_a_folder_that_nothing_was_written_into_is_not_left_behind(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        with pytest.raises(ValueError):
            with alone_in(tmp_path / name):
                raise ValueError
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
