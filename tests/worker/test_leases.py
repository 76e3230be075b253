"""Which leases are renewed, and when."""

from __future__ import annotations

from conveyor.broker.commands import GONE_MAIL
from conveyor.options import make_plan
from conveyor.records import Template
from conveyor.settings import Settings
from conveyor.worker.job import Job
from conveyor.worker.leases import Leases


def job(sequence: int, *, interval: float = 5.0, queue: int = 0, started_ms: int = 0) -> Job:
    options = {"acknowledgement_interval": interval}
    plan = make_plan(options, Settings(), queue="q", is_async=False, timezone=None)
    record = Template("a.task", plan.limits, b"").record(b"")
    record = record[:22] + started_ms.to_bytes(6, "little") + record[28:]
    return Job(sequence, queue, b"id-%d" % sequence, record, 0.0)


def test_a_job_reads_its_lease_from_the_record() -> None:
    one = job(7, interval=2.5)
    assert (one.name, one.acknowledge_ms, one.token, one.suspect) == (
        b"a.task",
        2500,
        bytes(12),
        False,
    )


def test_leases_come_due_in_the_order_they_were_taken() -> None:
    leases = Leases()
    for number, moment in ((1, 0.0), (2, 1.0), (3, 2.0)):
        leases.add(job(number), moment)
    assert leases.next_due() == 5.0
    assert [one.sequence for one in leases.take_due(6.0, 100)] == [1, 2]
    assert leases.next_due() == 7.0


def test_a_renewed_lease_is_due_an_interval_later() -> None:
    leases = Leases()
    leases.add(job(1), 0.0)
    leases.take_due(5.0, 100)
    assert leases.take_due(9.9, 100) == []
    assert [one.sequence for one in leases.take_due(10.0, 100)] == [1]


def test_each_interval_is_its_own_line() -> None:
    leases = Leases()
    leases.add(job(1, interval=10), 0.0)
    leases.add(job(2, interval=1), 0.0)
    assert [one.sequence for one in leases.take_due(1.0, 100)] == [2]
    assert leases.next_due() == 2.0


def test_one_call_renews_leases_of_one_queue_and_no_more_than_the_limit() -> None:
    leases = Leases()
    for number in range(1, 6):
        leases.add(job(number, queue=number // 4), 0.0)
    assert [one.sequence for one in leases.take_due(5.0, 2)] == [1, 2]
    assert [one.sequence for one in leases.take_due(5.0, 100)] == [3]
    assert [one.sequence for one in leases.take_due(5.0, 100)] == [4, 5]


def test_one_call_renews_all_that_are_due_in_its_queue() -> None:
    leases = Leases()
    for number in range(1, 6):
        leases.add(job(number, queue=number % 2), 0.0)
    # So that a child may take a renewal of its queue for all that lies before it.
    assert [one.sequence for one in leases.take_due(5.0, 100)] == [1, 3, 5]
    assert [one.sequence for one in leases.take_due(5.0, 100)] == [2, 4]


def test_a_dropped_lease_is_gone_and_dropping_it_again_says_so() -> None:
    leases = Leases()
    one = job(1)
    leases.add(one, 0.0)
    assert leases.drop(one)
    assert not leases.drop(one)
    assert (len(leases), leases.next_due()) == (0, None)
    assert leases.to_stop(0, one.token + b"id-1") == []


def test_a_message_names_the_run_to_stop() -> None:
    leases = Leases()
    one = job(1)
    for each in (one, job(2)):
        leases.add(each, 0.0)
    assert leases.to_stop(0, one.token + b"id-1") == [one]
    assert leases.to_stop(0, b"another one.id-1") == leases.to_stop(1, one.token + b"id-1") == []


def test_a_message_ends_all_runs_of_its_queue_that_began_before_it() -> None:
    leases = Leases()
    early, late, elsewhere = job(1, started_ms=7), job(2, started_ms=8), job(3, queue=1)
    for each in (early, late, elsewhere):
        leases.add(each, 0.0)
    assert leases.to_stop(0, GONE_MAIL + (8).to_bytes(6, "little")) == [early]
    assert leases.to_stop(0, GONE_MAIL + (9).to_bytes(6, "little")) == [early, late]


def test_all_are_due_once_the_server_is_back() -> None:
    leases = Leases()
    leases.add(job(1), 0.0)
    leases.add(job(2, interval=10), 0.0)
    leases.make_all_due(3.0)
    assert {one.sequence for one in leases.take_due(3.0, 100)} == {1, 2}
