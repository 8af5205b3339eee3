"""The tests of the rules have teeth: with a rule taken out of the engine, the test named after it fails.

A mutation changes one expression of one function of the engine and nothing of the reference, unless both
stand on the same code: then the test must know by itself what is meant.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import test_rules as rules

from secondpass import event, state, step
from secondpass.engine import agenda, chain, epoch, intake, overlay, stage, timed
from secondpass.engine import loop as loop_module

Mutation = Callable[[pytest.MonkeyPatch], None]


def changed(owner: Any, name: str, old: str, new: str) -> Mutation:
    """A function with a piece of its text replaced, where its class or module has it."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        function = inspect.unwrap(inspect.getattr_static(owner, name))
        text = textwrap.dedent(inspect.getsource(function))
        assert old in text, f"{name} no longer says {old!r}: mend this mutation"
        scope: dict[str, Any] = {}
        exec(text.replace(old, new), function.__globals__, scope)
        patch.setattr(owner, name, scope[name])

    return apply


def replaced(owner: Any, name: str, new: Any) -> Mutation:
    """Something of the engine replaced as a whole."""
    return lambda patch: patch.setattr(owner, name, new)


def both(*mutations: Mutation) -> Mutation:
    def apply(patch: pytest.MonkeyPatch) -> None:
        for mutation in mutations:
            mutation(patch)

    return apply


no_copy = changed(overlay.ObjectOverlay, "__setitem__", "self.spec.wake(self.spec.rest(key, value))", "value")
no_undo = both(
    replaced(state.Table, "undo", lambda self: None), replaced(state.CallValues, "undo", lambda self: None)
)

MUTATIONS: list[tuple[str, Any, Mutation]] = [
    ("1: assigning does not copy", rules.test_rule_1_one_list_put_in_two_tables_is_two_values, no_copy),
    (
        "1: events are not frozen",
        rules.test_rule_1_events_share_nothing_with_the_cells_they_were_made_of,
        replaced(event, "freeze", lambda found: found),
    ),
    (
        "1: a read-only view is taken for a value",
        rules.test_rule_1_a_read_only_view_of_a_cell_is_no_way_around_it,
        changed(event, "freeze", "or not (flags.owndata or type(value.base) in _SEALED)", ""),
    ),
    (
        "1: every cell that was touched is written",
        rules.test_rule_1_a_cell_that_is_only_read_is_not_in_the_delta,
        changed(overlay.ObjectOverlay, "_changed", "if base.get(key) != rest:", "if True:"),
    ),
    (
        "2: types of scalars are not checked at the end of an epoch",
        rules.test_rule_2_an_int_in_a_float_table_is_a_fault_that_says_what_to_write,
        replaced(overlay.Cells, "_check_all", lambda self: True),
    ),
    (
        "2: types of objects are not checked at the end of an epoch",
        lambda agree: rules.test_rule_2_what_is_inside_a_cell_is_exact_too(agree, 0),
        changed(overlay.ObjectOverlay, "_changed", "if not exact(live):", "if False:"),
    ),
    (
        "2: keys are not checked",
        lambda agree: rules.test_rule_2_a_key_that_would_not_be_found_again_is_a_fault(agree, "nan"),
        replaced(overlay.Cells, "_check_keys", lambda self: True),
    ),
    (
        "2: floats inside keys are not checked",
        lambda agree: rules.test_rule_2_a_key_that_would_not_be_found_again_is_a_fault(
            agree, "deep negative zero"
        ),
        both(
            replaced(overlay, "has_odd_float", lambda key: False),
            replaced(state, "has_odd_float", lambda key: False),
        ),
    ),
    (
        "2: an equal key leaves a second cell",
        rules.test_rule_2_an_equal_key_of_another_type_finds_the_cell_and_leaves_no_second_one,
        replaced(state.TableSpec, "own_key", lambda self, key, cells: key),
    ),
    (
        "2: equal instants count as the same",
        rules.test_rule_2_a_datetime_that_would_come_back_with_another_hour_is_a_fault,
        changed(rules.engine_runs.codec, "same", "and a.utcoffset() == b.utcoffset()", ""),
    ),
    (
        "2: new events keep what they were given",
        lambda agree: rules.test_rule_2_a_new_event_takes_its_declared_types(agree, 0, 0.0),
        replaced(state, "owned", lambda found: found),
    ),
    (
        "3: named outputs are in the order of the chain",
        rules.test_rule_3_outputs_that_several_tasks_write_keep_the_order_of_the_plain_loop,
        replaced(chain, "_plain_order", lambda found: 0),
    ),
    (
        "3: dead letters are in the order of the chain",
        rules.test_rule_3_dead_letters_keep_the_order_of_the_plain_loop,
        changed(chain.Chain, "_put_out", "key=lambda found: found[:2]", "key=lambda found: 0"),
    ),
    (
        "3: the first task that stops is reported",
        rules.test_rule_3_the_reason_of_a_stop_is_the_plain_loops_too,
        changed(chain.Chain, "_in_turn", "stop, end = cut, cut.passed", "raise"),
    ),
    (
        "4: an error undoes nothing, carefully",
        lambda agree: rules.test_rule_4_an_error_undoes_its_call_and_nothing_else(agree, (2.0, 3.0)),
        no_undo,
    ),
    (
        "4: an error undoes nothing, in the fast run",
        lambda agree: rules.test_rule_4_an_error_undoes_its_call_and_nothing_else(agree, (2.0, 3.0)),
        changed(stage.Stage, "_go_carefully", "self._rollback()", "pass"),
    ),
    (
        "4: counters of undone calls count",
        lambda agree: rules.test_rule_4_an_error_undoes_its_call_and_nothing_else(agree, (2.0, 3.0)),
        changed(
            state.Moment,
            "begin",
            "self.counts, self.emitted, self.logged, self.drawing = {}, [], [], None",
            "pass",
        ),
    ),
    (
        "5: a verdict counts for events only",
        rules.test_rule_5_a_timer_that_a_verdict_is_about_is_not_called_and_is_gone,
        changed(stage.Stage, "fire", "self.obey_verdict(event, position, path[1:])", "pass"),
    ),
    (
        "5: a fast run asks for no verdict on a timer",
        rules.test_rule_5_a_timer_that_a_verdict_is_about_is_not_called_and_is_gone,
        changed(stage.Stage, "fire", "self._condemned(epoch)", "False"),
    ),
    (
        "4: a streak ends with its epoch",
        rules.test_rule_4_error_streaks_are_counted_per_task_and_kept,
        changed(
            loop_module, "merge_tally", "total.error_streak + part.errors if all_failed", "0 if all_failed"
        ),
    ),
    (
        "4: log lines are formatted at the commit",
        lambda agree, caplog: rules.test_rule_4_a_log_line_says_what_was_so_when_it_was_written(caplog),
        changed(
            stage.FastMoment,
            "log",
            "self.logged.append(record)",
            "self.logged.append(record) or self.logged.append(record)",
        ),
    ),
    (
        "4: what cannot be kept is found too late",
        rules.test_rule_4_an_error_found_at_the_end_of_a_call_undoes_all_of_it,
        changed(step.Step, "_kept_whole", "table.check()", "(table.check(), table.keep())"),
    ),
    (
        "4: a stop commits nothing",
        rules.test_rule_4_a_stop_commits_what_precedes_and_names_event_task_and_reason,
        changed(loop_module.Hub, "_stop", "if cut.index > 0:", "if False:"),
    ),
    (
        "4: a batch fails as a whole",
        rules.test_rule_4_an_error_in_a_batch_isolates_one_event,
        changed(stage.Stage, "_run_fast", "return moment.index() if not self._batch else 0", "return None"),
    ),
    (
        "6: a cell lives on at equality",
        rules.test_rule_6_time_to_live_ends_at_equality,
        changed(overlay.TtlOverlay, "get", ">= self.ttl_s", "> self.ttl_s"),
    ),
    (
        "6: objects live on at equality",
        lambda agree: rules.test_rule_6_a_cell_expires_exactly_when_its_time_has_come(agree, 0.0),
        changed(overlay.ObjectTtlOverlay, "_live", ">= self.ttl_s", "> self.ttl_s + 0.01"),
    ),
    (
        "6: expiry is computed the other way round",
        lambda agree: rules.test_rule_6_a_cell_expires_exactly_when_its_time_has_come(agree, 1632192265.17),
        changed(
            overlay.TtlOverlay,
            "get",
            "self.clock.now - entry[1] >= self.ttl_s",
            "self.clock.now >= entry[1] + self.ttl_s",
        ),
    ),
    (
        "6: now is the event's own time",
        rules.test_rule_6_now_is_the_largest_time_so_far_whatever_was_dropped,
        changed(epoch.Epoch, "nows", "accumulate(at, max, initial=self.now)", "[0, *at]"),
    ),
    (
        "6: an epoch forgets the time before it",
        rules.test_rule_6_now_is_the_largest_time_so_far_whatever_was_dropped,
        changed(epoch.Epoch, "nows", "times[0] >= self.now and ", ""),
    ),
    (
        "6: times are not looked at",
        lambda agree: rules.test_rule_6_a_time_that_cannot_be_is_a_dead_letter_before_time_moves(
            agree, float("inf")
        ),
        changed(intake.Intake, "_refuse_times", "reason = refuse_time(at)", "reason, at = None, 0.0"),
    ),
    (
        "7: timers fire after the event that moved time",
        rules.test_rule_7_due_timers_fire_before_the_event_that_moved_time,
        changed(timed.Timed, "run", "self._fire_due(nows[index], index)", "pass"),
    ),
    (
        "7: the task's place does not count",
        rules.test_rule_7_timers_fire_by_time_then_task_then_name_then_key,
        changed(timed.Timed, "_fire_due", "due.time < first[0].time", "due.time <= first[0].time"),
    ),
    (
        "7: names do not count",
        rules.test_rule_7_timers_fire_by_time_then_task_then_name_then_key,
        changed(agenda.Agenda, "first", "entry[0] < found.time", "entry[0] <= found.time"),
    ),
    (
        "7: keys come as they were set",
        rules.test_rule_7_keys_that_do_not_compare_fire_in_the_order_of_their_encoding,
        changed(agenda._Heap, "note", "self._order(key)", "len(self._heap)"),
    ),
    (
        "7: all that is due fires before any of it flows on",
        rules.test_rule_7_what_a_timer_puts_out_flows_on_before_the_next_one_fires,
        changed(
            timed.Timed,
            "_fire_due",
            "self._now = self._always.now = max(self._now, due.time) + 0.0",
            "self._now = self._always.now = until",
        ),
    ),
    (
        "7: time goes back for what is set in the past",
        lambda agree: rules.test_rule_7_a_timer_that_a_timer_sets_takes_its_place_among_them(
            agree, -50.0, "WRWR"
        ),
        changed(timed.Timed, "_fire_due", "max(self._now, due.time) + 0.0", "due.time"),
    ),
    (
        "7: what is set in the past waits for the next record",
        rules.test_rule_7_one_set_in_the_past_fires_at_now_when_its_record_is_through,
        changed(timed.Timed, "run", "self._fire_due(self._now, end - 1)", "pass"),
    ),
    (
        "7: a timer that is moved fires as it was set first",
        rules.test_rule_7_setting_a_timer_moves_it_and_a_call_that_fails_sets_none,
        changed(agenda._Heap, "first", "if time == entry[0]:", "if time is not None:"),
    ),
    (
        "7: a timer that is set for earlier fires late",
        rules.test_rule_7_setting_a_timer_moves_it_and_a_call_that_fails_sets_none,
        changed(agenda._Heap, "note", "if before is None or time < before:", "if before is None:"),
    ),
    (
        "7: a timer that fails fires again",
        rules.test_rule_7_an_error_in_a_timer_undoes_that_call_and_the_timer_is_gone,
        changed(
            stage.Stage,
            "fire",
            "self.failed(epoch",
            "self._pending[due.name].__setitem__(due.key, due.time + 3.0) or self.failed(epoch",
        ),
    ),
    (
        "7: something flows on from a timer that fails and passes",
        rules.test_rule_7_nothing_flows_on_from_a_timer_that_fails_and_passes,
        changed(stage.Stage, "failed", "if event.__class__ is Firing:", "if False:"),
    ),
    (
        "7: what is set among records that run at once fires behind them",
        rules.test_rule_7_a_timer_may_become_due_among_the_records_behind_the_one_that_sets_it,
        changed(timed.Timed, "_look_ahead", "if earliest <= self._nows[end - 1]:", "if False:"),
    ),
    (
        "7: what is pending fires behind records that run at once",
        rules.test_rule_7_a_timer_may_become_due_among_the_records_behind_the_one_that_sets_it,
        changed(timed.Timed, "_end_of_stretch", "due is not None and due.time < until", "False"),
    ),
    (
        "7: timers share their random numbers with the event",
        rules.test_rule_7_a_timer_has_its_time_the_records_position_and_its_own_random_numbers,
        changed(timed.Timed, "_fire_due", "(index, -1 - next(self._numbers))", "(index, 0)"),
    ),
    (
        "7: what flows on has the time of the event that moved it",
        rules.test_rule_7_a_timer_has_its_time_the_records_position_and_its_own_random_numbers,
        changed(
            timed.Timed,
            "_fire_due",
            "self._flow(passed, due.depth + 1, self._firing, parts)",
            "self._flow(passed, due.depth + 1, self._epoch, parts)",
        ),
    ),
    (
        "7: a schedule begins with the stream",
        rules.test_rule_7_a_schedule_counts_from_the_first_time_and_makes_up_for_what_was_missed,
        changed(agenda.Agenda, "begin", "spec.after(now)", "spec.after(0.0)"),
    ),
    (
        "7: a schedule leaves out what was missed",
        rules.test_rule_7_a_schedule_counts_from_the_first_time_and_makes_up_for_what_was_missed,
        changed(agenda.Agenda, "take", "spec.after(due.time)", "spec.after(due.time + 60.0)"),
    ),
    (
        "7: a tick fires nothing",
        rules.test_rule_7_a_tick_moves_time_and_fires_timers,
        changed(timed.Timed, "_moves_time", "return ", "return self._epoch.tick is None and "),
    ),
    (
        "7: an epoch that is run again has lost what had fired in it",
        rules.test_rule_7_an_error_in_a_timer_undoes_that_call_and_the_timer_is_gone,
        changed(stage.Stage, "discard", "self._agenda.restore()", "pass"),
    ),
    (
        "8: tables iterate as they come",
        rules.test_rule_8_a_table_iterates_in_key_order_after_recovery_as_before,
        replaced(overlay, "ordered", list),
    ),
    (
        "9: sources are read one after the other",
        rules.test_rule_9_finite_sources_merge_by_time_then_source_then_offset,
        changed(intake.Intake, "_merged", "or at < best_time", ""),
    ),
    (
        "9: a pausing source is left out of the merge",
        rules.test_rule_9_finite_sources_merge_by_time_then_source_then_offset,
        changed(intake._Feed, "refill", "if self.following:", "if batch is not None:"),
    ),
    (
        "9: a cut leaves the sources where the epoch ended",
        lambda folder: rules.test_rule_9_a_fault_inside_a_merged_epoch_leaves_every_source_at_its_place(
            folder
        ),
        changed(loop_module.Hub, "_stop", "self.intake.places_at(epoch.behind + cut.index)", "epoch.offsets"),
    ),
    (
        "9: what live sources gave is forgotten where an epoch is cut",
        rules.test_rule_9_what_live_sources_gave_is_recorded_in_its_order_also_where_an_epoch_is_cut,
        replaced(epoch, "_first", lambda taken, count: []),
    ),
    (
        "10: a retry runs through the whole chain",
        lambda folder: rules.test_rule_10_a_retry_enters_at_the_task_that_failed_and_time_does_not_move(
            folder
        ),
        changed(chain.Chain, "run", ".index(epoch.retry.task)", ".index(epoch.retry.task) * 0"),
    ),
]


@pytest.mark.parametrize(
    ("claim", "mutation"), [(c, m) for _, c, m in MUTATIONS], ids=[name for name, _, _ in MUTATIONS]
)
def test_with_a_rule_taken_out_its_test_fails(claim, mutation, request, monkeypatch) -> None:
    wanted = {name: request.getfixturevalue(name) for name in inspect.signature(claim).parameters}
    mutation(monkeypatch)
    failed = False
    try:
        claim(**wanted)
    except (AssertionError, pytest.fail.Exception):
        failed = True
    assert failed, "this mutation of the engine goes unnoticed"
