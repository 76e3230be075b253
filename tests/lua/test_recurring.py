"""Recurring entries: declare.lua, maintain.lua that names the due ones, fire.lua, forget.lua."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from engine import ERROR, Engine, Worker, ids

from conveyor import ConfigurationError, QueueFull, TaskStatus, recurrence
from conveyor.broker import recurring as commands
from conveyor.moments import from_ms
from conveyor.recurrence import Entry, Recurrence, moment_text
from conveyor.recurring import LAPSE_MS, POSTPONED_MS

from .entries import EVERY, beat, declare, fire, firing, listed, packed

if TYPE_CHECKING:
    from datetime import tzinfo

    from servers import Server


@pytest.fixture(autouse=True)
def _on_the_full_ten_seconds(engine: Engine) -> None:
    engine.call("HSET", engine.keys.memory, "seen", -(-engine.now_ms // EVERY) * EVERY)


def test_an_entry_fires_when_it_is_due_and_not_before(engine: Engine, worker: Worker) -> None:
    declare(engine, packed(engine, 1, 2))
    assert engine.maintain().next_due_ms == engine.now_ms + EVERY
    engine.advance(9.999)
    assert beat(engine) == []
    engine.advance(0.001)
    assert beat(engine) == [1]
    assert ids(worker.claim(9)) == [firing(engine)]
    task = engine.task(firing(engine))
    assert (task.name, task.args) == ("app.add", (1, 2))
    assert task.queued_at == task.enqueue_after == task.created_at == engine.now
    told = engine.maintain()
    assert (told.next_due_ms, told.entries) == (engine.now_ms + EVERY, [])


def test_a_new_entry_wakes_an_orchestrator_and_a_firing_wakes_a_worker(engine: Engine) -> None:
    engine.put("later", due="+60000")
    engine.take_markers()
    declare(engine, packed(engine))
    assert engine.markers() == {"o"}
    engine.take_markers()
    engine.advance(10)
    beat(engine)
    assert "r" in engine.markers()


def test_what_is_due_is_seen_until_somebody_fires_it(engine: Engine) -> None:
    declare(engine, packed(engine))
    engine.advance(10)
    told = [engine.maintain() for _ in range(2)]
    assert [one.more for one in told] == [True, True]
    assert told[0].entries == told[1].entries
    assert engine.ready() == []


def test_any_number_of_orchestrators_fire_once(engine: Engine) -> None:
    """And so does one that asks again since no reply came."""
    declare(engine, packed(engine))
    engine.advance(10)
    seen = [due for _ in range(3) for due in engine.maintain().entries]
    assert [fire(engine, due) for due in seen] == [1, -1, -1]
    assert engine.ready() == [firing(engine)]
    (entry,) = listed(engine)
    assert entry.due_ms == engine.now_ms + EVERY
    assert entry.last == f"{engine.now_ms} {firing(engine)}".encode()


def test_an_orchestrator_that_was_stopped_meanwhile_fires_nothing(engine: Engine) -> None:
    declare(engine, packed(engine))
    engine.advance(10)
    (late,) = engine.maintain().entries
    beat(engine)
    engine.advance(10)
    beat(engine)
    assert fire(engine, late) == -1
    assert engine.ready() == [firing(engine, -10), firing(engine)]


def test_a_changed_entry_is_followed_at_once(engine: Engine) -> None:
    declare(engine, packed(engine, 1))
    engine.advance(10)
    (seen,) = engine.maintain().entries
    declare(engine, packed(engine, 2))
    assert fire(engine, seen) == -1
    assert beat(engine) == [1]
    assert engine.task(firing(engine)).args == (2,)


def test_a_removed_entry_is_gone(engine: Engine) -> None:
    declare(engine, packed(engine), lapse_ms=LAPSE_MS)
    engine.advance(10)
    beat(engine)
    engine.advance(10)
    (seen,) = engine.maintain().entries
    assert engine.run(commands.forget(engine.keys, "tick")) is True
    assert engine.run(commands.forget(engine.keys, "tick")) is False
    assert fire(engine, seen) == -1
    assert engine.maintain().entries == []
    assert listed(engine) == []
    assert kept(engine) == []


def kept(engine: Engine) -> list[bytes]:
    """The keys of recurring entries that there are."""
    return list(engine.call("KEYS", engine.key("recurring*")))


def test_a_destroyed_queue_keeps_none(engine: Engine) -> None:
    declare(engine, packed(engine), lapse_ms=LAPSE_MS)
    engine.advance(10)
    beat(engine)
    assert len(kept(engine)) == 4
    engine.app.manager().destroy_queue()
    assert engine.call("KEYS", engine.key("*")) == []


def test_the_same_entry_again_changes_nothing(engine: Engine) -> None:
    first = declare(engine, packed(engine))
    assert first == (engine.now_ms, True)
    before = listed(engine)
    engine.advance(5)
    declare(engine, packed(engine))
    assert listed(engine) == before


def test_another_rhythm_starts_anew_and_other_changes_do_not(engine: Engine) -> None:
    declare(engine, packed(engine))
    due = engine.now_ms + EVERY
    engine.advance(5)
    declare(engine, packed(engine, 7, catch_up="all"))
    assert [entry.due_ms for entry in listed(engine)] == [due]
    declare(engine, packed(engine, every_ms=60_000), after=60_000)
    assert [entry.due_ms for entry in listed(engine)] == [engine.now_ms + 60_000]


def test_the_next_moment_is_asked_for_only_where_it_is_needed(engine: Engine) -> None:
    ask = commands.declare(engine.keys, "tick", packed(engine))
    assert engine.run(ask) == (engine.now_ms, False)
    assert listed(engine) == []
    declare(engine, packed(engine))
    assert engine.run(ask) == (engine.now_ms, True)


def test_a_declared_entry_lapses_an_hour_after_the_last_declaration(engine: Engine) -> None:
    declare(engine, packed(engine), lapse_ms=LAPSE_MS)
    engine.advance(1800)
    declare(engine, packed(engine), lapse_ms=LAPSE_MS, replace=False)
    engine.advance(3599)
    assert beat(engine) == [1]
    engine.advance(1)
    assert engine.maintain().moved == 1
    assert listed(engine) == []
    engine.advance(10)
    assert beat(engine) == []


def test_an_orchestrator_is_told_when_an_entry_lapses(engine: Engine) -> None:
    declare(engine, packed(engine, every_ms=10**9), after=10**9, lapse_ms=LAPSE_MS)
    assert engine.maintain().next_due_ms == engine.now_ms + LAPSE_MS


def test_an_added_entry_never_lapses(engine: Engine) -> None:
    declare(engine, packed(engine), lapse_ms=LAPSE_MS)
    declare(engine, packed(engine))
    # A process that declares it lives on, and does not make it lapse.
    declare(engine, packed(engine), lapse_ms=LAPSE_MS, replace=False)
    engine.advance(7200)
    engine.maintain()
    assert [entry.declared for entry in listed(engine)] == [0]


def test_an_old_process_keeps_alive_what_a_new_one_declares(engine: Engine) -> None:
    declare(engine, packed(engine, "new"), lapse_ms=LAPSE_MS)
    declare(engine, packed(engine, "old", every_ms=1), lapse_ms=LAPSE_MS, replace=False)
    (entry,) = listed(engine)
    assert entry.definition == packed(engine, "new")
    assert entry.declared == 1


def test_a_declaration_restores_what_the_server_has_lost(engine: Engine) -> None:
    declare(engine, packed(engine), lapse_ms=LAPSE_MS, replace=False)
    assert [entry.name for entry in listed(engine)] == [b"tick"]


def test_a_firing_is_left_out_while_the_one_before_has_not_ended(
    engine: Engine, worker: Worker
) -> None:
    retried = Entry(
        Recurrence(every_ms=EVERY, overlap="skip"), "", engine.new("", error_retry_limit=1).record
    )
    declare(engine, retried.pack())
    engine.advance(10)
    assert beat(engine) == [1]
    engine.advance(10)
    assert beat(engine) == [0], "it is queued"
    (lease,) = worker.claim()
    engine.advance(10)
    assert beat(engine) == [0], "it runs"
    worker.end(lease, "error", ERROR, delay_ms=11_000)
    engine.advance(10)
    assert beat(engine) == [0], "it waits for its retry"
    engine.advance(1)
    engine.maintain()
    worker.run(lease.id, "success")
    engine.advance(9)
    assert beat(engine) == [1]
    assert engine.ready() == [firing(engine)]


def test_a_cancelled_task_is_an_ended_one(engine: Engine) -> None:
    declare(engine, packed(engine, overlap="skip"))
    engine.advance(10)
    beat(engine)
    engine.cancel(firing(engine))
    engine.advance(10)
    assert beat(engine) == [1]


def test_a_removed_record_is_an_ended_one(engine: Engine) -> None:
    declare(engine, packed(engine, overlap="skip"))
    engine.advance(10)
    beat(engine)
    engine.call("DEL", engine.key("t:" + firing(engine)))
    engine.advance(10)
    assert beat(engine) == [1]


def test_by_default_firings_do_not_wait_for_each_other(engine: Engine) -> None:
    declare(engine, packed(engine))
    for _ in range(3):
        engine.advance(10)
        assert beat(engine) == [1]
    assert len(engine.ready()) == 3


def test_an_id_that_exists_is_not_enqueued_twice(engine: Engine) -> None:
    engine.put(firing(engine, 10), args=("mine",))
    declare(engine, packed(engine))
    engine.advance(10)
    assert beat(engine) == [0]
    assert engine.task(firing(engine)).args == ("mine",)
    assert engine.maintain().next_due_ms == engine.now_ms + EVERY


def test_a_firing_expires_from_its_moment(engine: Engine) -> None:
    declare(engine, packed(engine, expires="+1000"))
    engine.advance(10)
    beat(engine)
    assert engine.task(firing(engine)).expires_at == engine.in_(1)
    engine.advance(1)
    engine.maintain()
    assert engine.task(firing(engine, -1)).status is TaskStatus.FAILED


def test_an_entry_that_cannot_be_read_is_left_alone_for_a_while(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    declare(engine, b"\x02\x00\x00\x00no")
    declare(engine, packed(engine), "good")
    engine.advance(10)
    assert sorted(beat(engine)) == [0, 1]
    assert "recurring 'tick' on default cannot be fired" in caplog.text
    assert not engine.maintain().more
    bad = next(entry for entry in listed(engine) if entry.name == b"tick")
    assert bad.due_ms == engine.now_ms + POSTPONED_MS
    assert [record.name for record in engine.app.recurring()] == ["good"]


def no_zone(name: str) -> tzinfo:
    raise ConfigurationError(f"timezone {name!r} is not known")


def test_a_moment_that_one_orchestrator_cannot_read_is_fired_by_another(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    daily: dict[str, Any] = {"cron": "0 2 * * *", "every_ms": None, "timezone": "Europe/Berlin"}
    moment = Recurrence(**daily).next_after(engine.now_ms)
    declare(engine, packed(engine, **daily), after=moment - engine.now_ms)
    engine.advance((moment - engine.now_ms) / 1000)
    (seen,) = engine.maintain().entries
    with monkeypatch.context() as patch:
        patch.setattr(recurrence, "_zone", no_zone)
        for _ in range(2):
            assert beat(engine) == [0]
            assert beat(engine) == []
            engine.advance(POSTPONED_MS / 1000)
    assert engine.maintain().entries == [seen]
    assert beat(engine) == [1]
    assert engine.exists(f"tick@{moment_text(moment)}")
    assert fire(engine, seen) == -1
    assert [one.due_ms for one in listed(engine)] == [Recurrence(**daily).next_after(moment)]


def test_another_rhythm_does_not_fire_what_was_put_off(engine: Engine) -> None:
    declare(engine, b"\x02\x00\x00\x00no")
    engine.advance(10)
    assert beat(engine) == [0]
    declare(engine, packed(engine, catch_up="all"))
    engine.advance(10)
    assert beat(engine) == [1]
    assert beat(engine) == []


def test_a_name_without_a_definition_is_set_aside(engine: Engine) -> None:
    declare(engine, packed(engine))
    engine.call("DEL", engine.key("recurring"))
    engine.advance(10)
    assert engine.maintain().entries == []
    assert engine.broken() == {"tick": "listed as recurring but has no definition"}
    assert engine.maintain().next_due_ms is None


def test_a_definition_without_a_moment_is_given_one(engine: Engine) -> None:
    declare(engine, packed(engine))
    engine.call("DEL", engine.key("recurring:due"))
    declare(engine, packed(engine), replace=False)
    assert [entry.due_ms for entry in listed(engine)] == [engine.now_ms + EVERY]


def test_a_claim_fires_nothing(engine: Engine, worker: Worker) -> None:
    declare(engine, packed(engine))
    engine.advance(10)
    assert worker.claim(10) == []
    assert beat(engine) == [1]


def test_entries_are_listed_however_many_there_are(engine: Engine) -> None:
    for number in range(120):
        declare(engine, packed(engine), f"e{number:03}", after=EVERY + number)
    records = engine.app.recurring()
    assert [record.name for record in records] == [f"e{number:03}" for number in range(120)]
    assert records[7].next_due_at == from_ms(engine.now_ms + EVERY + 7)
    assert {record.task for record in records} == {"app.add"}


def test_a_full_server_fires_later(engine: Engine, server: Server) -> None:
    declare(engine, packed(engine))
    engine.advance(10)
    (seen,) = engine.maintain().entries
    server.call("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(QueueFull):
            fire(engine, seen)
        assert engine.maintain().more
    finally:
        server.call("CONFIG", "SET", "maxmemory", "0")
    assert beat(engine) == [1]


def test_the_last_moment_is_shown(engine: Engine) -> None:
    declare(engine, packed(engine))
    (record,) = engine.app.recurring()
    assert record.last_due_at is None
    engine.advance(10)
    beat(engine)
    (record,) = engine.app.recurring()
    assert record.last_due_at == engine.now
    assert record.every == EVERY / 1000 < math.inf
