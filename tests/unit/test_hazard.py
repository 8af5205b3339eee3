"""The note that one run leaves to the next: when its records are taken to have ended it."""

from pathlib import Path

import pytest

from secondpass.engine import hazard
from secondpass.engine.hazard import RUNNING, Hazard


class Machine:
    """What the kernel says."""

    def __init__(self) -> None:
        self.kills, self.boot = 7, b"a" * 16


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(hazard, "kills_on_machine", lambda: found.kills)
    monkeypatch.setattr(hazard, "boot", lambda: found.boot)
    return found


def killed(directory: Path, first: int = 100, count: int = 50) -> None:
    """A run that ends with these records in hand and leaves nothing but the note."""
    ended = Hazard(directory, first)
    ended.begin(first, count)
    ended.close()


def test_a_run_that_ended_with_nothing_in_hand_is_not_to_blame(tmp_path: Path, machine: Machine) -> None:
    ended = Hazard(tmp_path, 100)
    ended.begin(100, 50)
    ended.end()
    ended.close()
    machine.kills += 1
    assert not Hazard(tmp_path, 100).found


def test_a_kill_without_the_kernels_part_counts_only_the_second_time(
    tmp_path: Path, machine: Machine
) -> None:
    killed(tmp_path)
    first = Hazard(tmp_path, 100)
    assert not first.found
    first.begin(100, 10)
    first.close()
    second = Hazard(tmp_path, 100)
    assert second.found
    assert second.told() == "the last 2 runs were killed while they ran records 100 to 109"


def test_a_kill_while_the_kernel_killed_for_memory_counts_at_once(tmp_path: Path, machine: Machine) -> None:
    killed(tmp_path)
    machine.kills += 1
    found = Hazard(tmp_path, 100)
    assert found.found
    assert (found.first, found.count) == (100, 50)
    assert "want of memory" in found.told()


def test_kills_before_the_run_began_tell_nothing(tmp_path: Path, machine: Machine) -> None:
    Hazard(tmp_path, 100).close()
    machine.kills += 1
    killed(tmp_path)
    assert not Hazard(tmp_path, 100).found


def test_a_count_from_before_the_machine_was_started_again_tells_nothing(
    tmp_path: Path, machine: Machine
) -> None:
    killed(tmp_path)
    machine.kills, machine.boot = 8, b"b" * 16
    assert not Hazard(tmp_path, 100).found
    killed(tmp_path, first=200)
    machine.kills = 0
    assert not Hazard(tmp_path, 100).found


@pytest.mark.parametrize("size", [0, 5, 40])
def test_a_shorter_note_is_read_as_far_as_it_goes(size: int, tmp_path: Path, machine: Machine) -> None:
    killed(tmp_path)
    path = tmp_path / RUNNING
    path.write_bytes(path.read_bytes()[:size])
    machine.kills += 1
    assert not Hazard(tmp_path, 100).found
    killed(tmp_path)
    machine.kills += 1
    assert Hazard(tmp_path, 100).found


def test_records_that_ended_a_run_are_isolated_until_they_are_committed(
    tmp_path: Path, machine: Machine
) -> None:
    killed(tmp_path)
    machine.kills += 1
    for position in (100, 100, 149):  # runs that end without having been that far
        found = Hazard(tmp_path, position)
        assert found.found
        assert found.covers(position)
        found.close()
    assert "records 100 to 149" in found.told()
    over = Hazard(tmp_path, 150)
    assert not over.found
    assert not over.covers(150)


def test_a_command_moves_the_records_that_ended_a_run(tmp_path: Path, machine: Machine) -> None:
    killed(tmp_path)
    machine.kills += 1
    found = Hazard(tmp_path, 100)
    found.command_at(100)
    found.command_at(151)
    found.close()
    found = Hazard(tmp_path, 101)
    assert found.covers(150)
    assert not found.covers(151)


def test_records_that_come_into_hand_later_take_the_place_of_those(tmp_path: Path, machine: Machine) -> None:
    killed(tmp_path)
    machine.kills += 1
    found = Hazard(tmp_path, 100)
    found.begin(150, 10)
    found.end()
    found.close()
    assert not Hazard(tmp_path, 150).found
