"""While a task runs: its lease (renew.lua), what it says (progress.lua), a server gone silent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine import NOTICE, Engine, Lease, Worker, ids
from servers import Server, wait_until

from conveyor import Conveyor
from conveyor.broker import commands

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Binary


def test_a_renewed_lease_begins_anew(engine: Engine, worker: Worker) -> None:
    engine.put("a", stall_ms=1000)
    (lease,) = worker.claim()
    for _ in range(5):
        engine.advance(0.9)
        assert worker.renew(lease) == [1]
        engine.maintain()
    assert engine.score("l", "a") == engine.now_ms + 1000
    assert engine.task("a").stall_retries == 0
    assert worker.end(lease, "success") == 1


def test_each_lease_is_renewed_by_its_own_timeout(engine: Engine, worker: Worker) -> None:
    engine.put("a", stall_ms=1000)
    engine.put("b", stall_ms=90_000)
    held = worker.claim(2)
    engine.advance(0.5)
    assert worker.renew(*held) == [1, 1]
    assert engine.score("l", "a") == engine.now_ms + 1000
    assert engine.score("l", "b") == engine.now_ms + 90_000


def test_a_lease_that_ran_out_unnoticed_may_still_be_renewed(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", stall_ms=1000)
    (lease,) = worker.claim()
    engine.advance(30)
    assert worker.renew(lease) == [1]
    assert engine.maintain().moved == 0
    assert engine.places("a") == ["l"]


def test_a_lease_that_was_given_notice_may_still_be_renewed(engine: Engine, worker: Worker) -> None:
    """After the server has hung, whoever reaps may come before those that renew."""
    engine.put("a", stall_ms=1000, stall_retry_limit=0)
    (lease,) = worker.claim()
    for _ in range(2):
        engine.advance(30)
        assert engine.maintain().moved == 1
        assert worker.renew(lease) == [1]
        assert engine.score("l", "a") == engine.now_ms + 1000
        engine.advance(NOTICE)
        assert engine.maintain().moved == 0
    engine.run_out(1)
    assert engine.places("a") == ["failed"]


def test_a_renewal_of_a_short_lease_is_not_over_before_its_notice(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", stall_ms=1)
    (lease,) = worker.claim()
    engine.advance(0.001)
    told = engine.maintain().next_due_ms
    assert worker.renew(lease) == [1]
    assert engine.score("l", "a") == told == engine.now_ms + 501


@pytest.mark.parametrize("call", ["maintain", "claim"])
def test_what_runs_out_is_looked_for_when_its_notice_ends(
    engine: Engine, worker: Worker, call: str
) -> None:
    engine.put("a", stall_ms=1000)
    worker.claim()
    engine.advance(1)
    if call == "claim":
        Worker(engine, b"else").claim()
    told = engine.maintain()
    assert (told.next_due_ms, told.more) == (engine.now_ms + 501, False)
    engine.advance(0.5)
    assert engine.maintain().moved == 0
    engine.advance(0.001)
    assert engine.maintain().moved == 1
    assert engine.places("a") == ["r:5"]


def test_each_lease_of_a_renewal_has_its_own_verdict(engine: Engine, worker: Worker) -> None:
    engine.put("ended", "lost", "asked", "gone", "held")
    ended, lost, asked, gone, held = worker.claim(5)
    worker.end(ended, "success")
    worker.end(lost, "release")
    (again,) = worker.claim()
    engine.cancel("asked")
    engine.call("DEL", engine.key("t:gone"))
    assert worker.renew(ended, lost, asked, gone, held, again) == [0, 0, 2, 0, 1, 1]


def test_a_renewal_tells_since_when_the_queue_has_been(app: Conveyor) -> None:
    engine = Engine(app, stopped=False)
    worker = Worker(engine)
    greet(engine)

    def since_ms() -> int:
        return engine.run(commands.renew(engine.keys, [])).since_ms

    first = since_ms()
    engine.put("a")
    (lease,) = worker.claim()
    assert 0 < since_ms() == first <= started_ms(lease)
    wait_until(lambda: server_ms(engine) > started_ms(lease), "the next ms begins")
    while engine.run(commands.destroy(engine.keys)):
        pass
    assert since_ms() > started_ms(lease)


def test_a_lost_lease_is_not_brought_back(engine: Engine, worker: Worker) -> None:
    engine.put("a", stall_ms=1000)
    (lease,) = worker.claim()
    engine.run_out(1)
    assert worker.renew(lease) == [0]
    assert engine.places("a") == ["r:5"]


@pytest.mark.parametrize(("field", "name"), [("p", "progress"), ("d", "data")])
def test_what_a_running_task_says_is_kept(
    engine: Engine, worker: Worker, field: str, name: str
) -> None:
    engine.put("a")
    (lease,) = worker.claim()
    value = engine.app.client.codec.encode({"done": 0.5}, "progress")
    command = commands.progress(engine.keys, "a", lease.token, field, value)
    assert engine.run(command) is True
    assert getattr(engine.task("a"), name) == {"done": 0.5}
    worker.end(lease, "success", b"\x07")
    assert engine.run(command) is False
    assert getattr(engine.task("a"), name) == {"done": 0.5}


@pytest.mark.parametrize("limit", [0, 3])
def test_what_ends_after_it_was_reaped_is_stale_and_not_settled_already(
    engine: Engine, worker: Worker, limit: int
) -> None:
    engine.put("a", stall_retry_limit=limit)
    (lease,) = worker.claim()
    engine.run_out(15)
    assert worker.end(lease, "success", b"\x07") == commands.Verdict.STALE
    assert engine.task("a").worker == worker.name.hex()
    assert engine.places("a") == (["r:5"] if limit else ["failed"])


def test_what_a_run_says_after_it_lost_its_lease_is_refused(engine: Engine, worker: Worker) -> None:
    engine.put("a", stall_ms=1000)
    (lost,) = worker.claim()
    command = commands.progress(engine.keys, "a", lost.token, "p", b"\x07")
    engine.run_out(1)
    assert engine.run(command) is False
    worker.claim()
    assert engine.run(command) is False
    engine.call("DEL", engine.key("t:a"))
    assert engine.run(command) is False
    assert engine.call("HGET", engine.key("x:a"), "p") is None


@pytest.fixture
def durable(binary: Binary) -> Iterator[Server]:
    """A server of the test's own that keeps everything over a restart."""
    with Server(binary, config={"appendfsync": "always"}, appendonly=True) as durable:
        yield durable


class TestSilenceOfTheServer:
    """Leases last renewed before a restart get a whole new one."""

    def test_leases_that_ran_out_while_the_server_was_gone(self, durable: Server) -> None:
        with Conveyor("silence", broker=durable.url) as app:
            engine = Engine(app, stopped=False)
            worker = Worker(engine)
            greet(engine)
            engine.put("a", "b", stall_ms=200, stall_retry_limit=0)
            a, b = worker.claim(2)
            durable.kill()
            durable.restart()
            greet(engine)
            wait_until_expired(engine, "a")

            assert engine.maintain().moved == 2
            assert [engine.places(one) for one in "ab"] == [["l"], ["l"]]
            assert worker.renew(a, b) == [1, 1]
            assert worker.end(a, "success", b"\x07") == 1

            reap(engine, "b")
            assert engine.places("b") == ["failed"]

    def test_leases_renewed_since_the_restart_stall_as_ever(self, durable: Server) -> None:
        with Conveyor("silence", broker=durable.url) as app:
            engine = Engine(app, stopped=False)
            worker = Worker(engine)
            greet(engine)
            engine.put("a", stall_ms=100)
            (lease,) = worker.claim()
            durable.restart()
            greet(engine)
            assert worker.renew(lease) == [1]
            reap(engine, "a")
            assert engine.places("a") == ["r:5"]
            assert engine.task("a").stall_retries == 1

    def test_a_second_greeting_does_not_forgive_again(self, engine: Engine, worker: Worker) -> None:
        greet(engine)
        engine.put("a", stall_ms=1000)
        worker.claim()
        greet(engine)
        engine.advance(1)
        greet(engine)
        engine.run_out(0)
        assert engine.places("a") == ["r:5"]

    def test_another_server_is_noticed(self, engine: Engine, worker: Worker) -> None:
        """As after a failover: the data is the same and the server is not."""
        greet(engine)
        engine.put("a", stall_ms=1000)
        worker.claim()
        engine.call("HSET", engine.keys.memory, "run", "another")
        greet(engine)
        engine.advance(1)
        other = Worker(engine, b"else")
        assert ids(other.claim()) == []
        assert engine.score("l", "a") == engine.now_ms + 1000
        engine.run_out(1)
        assert ids(other.claim()) == ["a"]

    def test_a_restart_while_notice_is_given_is_no_stall(
        self, engine: Engine, worker: Worker
    ) -> None:
        greet(engine)
        engine.put("a", stall_ms=400)
        worker.claim()
        engine.advance(0.4)
        engine.maintain()
        engine.call("HSET", engine.keys.memory, "run", "another")
        greet(engine)
        engine.advance(NOTICE)
        engine.maintain()
        assert engine.score("l", "a") == engine.now_ms + 400
        engine.run_out(0.4)
        assert engine.places("a") == ["r:5"]


def greet(engine: Engine) -> None:
    """What everyone does first on a new connection."""
    engine.run(commands.hello(engine.keys, "", 0, b""))


def reap(engine: Engine, task_id: str) -> None:
    """Waits until a lease has run out, and the notice that it is given then."""
    for _ in range(2):
        wait_until_expired(engine, task_id)
        engine.maintain()


def wait_until_expired(engine: Engine, task_id: str) -> None:
    """Returns when the lease of a task has run out by the server's clock."""
    until = engine.score("l", task_id)
    assert until is not None

    wait_until(lambda: server_ms(engine) >= until, f"the lease of {task_id} has run out")


def server_ms(engine: Engine) -> int:
    """The server's own time."""
    seconds, microseconds = engine.call("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


def started_ms(lease: Lease) -> int:
    """When a run was claimed."""
    return int.from_bytes(lease.record[22:28], "little")
