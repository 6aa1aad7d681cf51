"""How much memory is free: the smallest limit of the control groups that a process is in counts."""

import pytest
import torch

from modeling import memory


def write_group(folder, names, limit, usage, statistics):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, usage), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(statistics)


VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
VERSION_2 = ("memory.max", "memory.current")


@pytest.mark.parametrize(
    "limits, expected",
    [
        ({"job": 1000, "job/step": "max"}, [710]),
        ({"job": 1000, "job/step": 500}, [210, 710]),
        ({".": 400}, [110]),  # a container whose own group is the root, though /proc names the path outside
        ({}, []),
    ],
)
def test_groups_of_version_2_and_those_above_count(tmp_path, limits, expected):
    (tmp_path / "own").write_text("0::/job/step\n")
    for path, limit in limits.items():
        write_group(tmp_path / "groups" / path, VERSION_2, limit, 300, "anon 290\ninactive_file 10\n")
    assert sorted(memory._left_in_control_groups(tmp_path / "own", tmp_path / "groups")) == expected


def test_groups_of_version_1_count(tmp_path):
    (tmp_path / "own").write_text("12:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n1:name=systemd:/x\n0::/x\n")
    statistics = "inactive_file 1\ntotal_inactive_file 20\n"
    write_group(tmp_path / "groups" / "memory", VERSION_1, 9223372036854771712, 500, statistics)
    write_group(tmp_path / "groups" / "memory" / "docker" / "abc", VERSION_1, 2000, 300, statistics)
    found = memory._left_in_control_groups(tmp_path / "own", tmp_path / "groups")
    assert found == [9223372036854771712 - 480, 1720]


def test_a_system_without_control_groups_has_no_such_limit(tmp_path):
    assert memory._left_in_control_groups(tmp_path / "none", tmp_path) == []


def test_the_smallest_limit_is_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "_left_in_control_groups", lambda: [5000, 1000])
    assert memory.free_memory(torch.device("cpu")) == 1000
