"""`secondpass check`: what it finds, and where."""

import pytest

from secondpass.cli.shapes import CheckReport


def check(project, command, body: str, app: str = "", *cids: int):
    project.write("app.py", body, app)
    project.seen(*(cids or range(1, 31)))
    return command("check", "app.py", "--json")


def app(tasks: str) -> str:
    return f'\n\napp = App("checked", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[{tasks}])\n'


def difference(done) -> object:
    report = done.document(CheckReport)
    assert done.code == 1, report
    assert not report.same
    assert report.difference is not None
    assert report.ways[-1].name == report.difference.way
    return report.difference


def test_an_app_that_keeps_the_rules_is_the_same_in_every_way(first, command) -> None:
    done = command("check", "first.py")
    assert done.code == 0
    assert "the same in all" in done.out
    assert "3 outputs" in done.out
    for way in ("plain loop", "epochs of 1", "all at once", "hash seed 0", "hash seed random"):
        assert way in done.err


def test_nothing_is_stored_or_put_out(first, command) -> None:
    command("check", "first.py", "--quiet")
    assert not (first.folder / ".secondpass").exists()
    assert not (first.folder / "out.jsonl").exists()


def test_a_key_that_keys_does_not_declare_is_found_at_its_event(project, command) -> None:
    found = difference(
        check(
            project,
            command,
            """
            class Sloppy(Task[Seen]):
                known = table(int, bool)

                def keys(self, event: Seen) -> tuple[int]:
                    return (event.cid,)

                def handle(self, event: Seen) -> Seen:
                    if event.cid == 7:
                        self.known[8] = True
                    return event
            """,
            app("Sloppy()"),
        )
    )
    assert found.position == 6
    assert '"cid":7' in found.event
    assert "keys() must return every key" in found.hint


def test_the_order_of_a_sets_elements_is_found_by_hash_seeds(project, command) -> None:
    found = difference(
        check(
            project,
            command,
            """
            class Named(Event):
                name: str


            class AnyOne(Task[Seen]):
                def handle(self, event: Seen) -> Named:
                    return Named(name=" ".join({f"{event.cid} {n}" for n in range(30)}))
            """,
            app("AnyOne()"),
        )
    )
    assert "hash seed" in found.way
    assert found.position == 0
    assert found.what == "output 0 of main"
    assert found.expected != found.found
    assert "Sort" in found.hint


def test_a_set_that_is_not_the_same_after_it_was_stored_is_found(project, command) -> None:
    found = difference(
        check(
            project,
            command,
            """
            class Oldest(Task[Seen]):
                known = table(int, set[int], factory=set)

                def handle(self, event: Seen) -> Seen:
                    known = self.known[0]
                    known.add(event.cid * 8)
                    known.discard((event.cid - 3) * 8)
                    return event.replace(cid=next(iter(known)))
            """,
            app("Oldest()"),
            *range(1, 200),
        )
    )
    assert found.what.startswith("output ")
    assert "where an epoch ends" in found.hint


def test_memory_outside_tables_is_found_and_told_from_a_bug_of_ours(project, command) -> None:
    found = difference(
        check(
            project,
            command,
            """
            SEEN: dict[int, int] = {}


            class Forgets(Task[Seen]):
                def handle(self, event: Seen) -> Seen:
                    SEEN[event.cid] = SEEN.get(event.cid, 0) + 1
                    return event.replace(cid=SEEN[event.cid])
            """,
            app("Forgets()"),
        )
    )
    assert found.position == 0
    assert "table() and value()" in found.hint


def test_a_state_that_differs_without_any_output_is_found_by_its_cell(project, command) -> None:
    found = difference(
        check(
            project,
            command,
            """
            CALLS = [0]


            class Hidden(Task[Seen]):
                calls = table(int, int)

                def handle(self, event: Seen) -> None:
                    CALLS[0] += 1
                    if event.cid == 4:
                        self.calls[event.cid] = CALLS[0]
            """,
            app("Hidden()"),
        )
    )
    assert found.what == "final state, Hidden.calls[4]"


def test_a_dead_letter_that_differs_is_found(project, command) -> None:
    found = difference(
        check(
            project,
            command,
            """
            CALLS = [0]


            class Fails(Task[Seen]):
                def handle(self, event: Seen) -> Seen:
                    CALLS[0] += 1
                    if event.cid == 4:
                        raise ValueError(f"call {CALLS[0]}")
                    return event
            """,
            app("Fails()"),
        )
    )
    assert found.what == "dead letter 0"
    assert found.position == 3
    assert "call 4" in found.expected


def test_an_input_that_is_another_when_read_again_is_found(project, command) -> None:
    found = difference(
        check(
            project,
            command,
            """
            import itertools
            import os

            def numbers():
                for n in range(10):
                    yield {"n": n, "salt": os.getpid() if n == 6 else 0}


            app = App("moving", source=numbers, tasks=[])
            """,
        )
    )
    assert (found.what, found.position) == ("the input itself", 6)
    assert "same items every time" in found.hint


def test_a_stop_that_is_the_same_in_every_way_is_no_difference(project, command) -> None:
    project.write(
        "app.py",
        """
        class Strict(Task[Seen]):
            def handle(self, event: Seen) -> Seen:
                if event.cid == 4:
                    raise ValueError("no fours")
                return event
        """,
        app('Strict().options(on_error="stop")'),
    )
    project.seen(*range(1, 9))
    done = command("check", "app.py")
    assert done.code == 0
    assert "all of them stop at position 3" in done.out
    assert "no fours" in done.out


def test_events_without_a_time_and_refused_lines_are_the_same_in_every_way(project, command) -> None:
    project.write(
        "app.py",
        """
        class Timeless(Event):
            cid: int


        class Once(Task[Timeless]):
            known = table(int, bool, ttl_s=3600.0)

            def handle(self, event: Timeless) -> Timeless | None:
                if event.cid in self.known:
                    return None
                self.known[event.cid] = True
                return event


        app = App("timeless", source=JsonLines(HERE / "in.jsonl", Timeless), tasks=[Once()])
        """,
    )
    project.events([{"cid": 1}, {"cid": 1}, {"dic": 1}, {"cid": 2}])
    done = command("check", "app.py")
    assert done.code == 0, done.out
    assert "4 events, 2 outputs, 1 dead letter, 2 cells" in done.out


def test_only_the_first_events_are_taken(first, command) -> None:
    assert command("check", "first.py", "--limit", "2", "--json").document(CheckReport).events == 2


def test_what_tasks_print_does_not_get_between(project, command) -> None:
    project.write(
        "app.py",
        """
        class Loud(Task[Seen]):
            def handle(self, event: Seen) -> Seen:
                print("LOUD")
                self.log.warning("LOUD")
                return event
        """,
        app("Loud()"),
    )
    project.seen(1, 2)
    done = command("check", "app.py")
    assert done.code == 0
    assert "LOUD" not in done.out + done.err


def test_a_difference_is_shown_side_by_side(project, command) -> None:
    project.write(
        "app.py",
        """
        CALLS = [0]


        class Counts(Task[Seen]):
            def handle(self, event: Seen) -> Seen:
                CALLS[0] += 1
                return event.replace(cid=CALLS[0])
        """,
        app("Counts()"),
    )
    project.seen(1, 2)
    done = command("check", "app.py")
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[0] == "different: output 0 of main at position 0"
    assert lines[1].split() == ["event", "Seen", '{"cid":1,"time":0.0}']
    assert lines[2].startswith("  plain loop")
    assert lines[3].startswith("  engine, epochs of 1")
    assert lines[5].startswith("why: ")


@pytest.mark.parametrize("limit", ["0", "many"])
def test_a_limit_is_a_positive_number(first, command, limit: str) -> None:
    assert command("check", "first.py", "--limit", limit).code == 2


def test_standard_input_cannot_be_checked_and_the_way_out_is_told(project, command) -> None:
    project.write("app.py", 'app = App("piped", source=JsonLines("-"), tasks=[])\n')
    done = command("check", "app.py")
    assert done.code == 2
    assert "give a file" in done.err


def test_a_file_of_the_apps_folder_does_not_stand_in_for_pythons_own(first, command) -> None:
    first.folder.joinpath("tempfile.py").write_text("raise SystemExit('the wrong module')\n")
    assert command("check", "first.py").code == 0
