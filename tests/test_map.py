"""Many calls at once, through a server that goes away amid them: what is pending is sent again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from engine import Engine
from playing import SOON, Player, end
from servers import Proxy, wait_until

from conveyor import BrokerUnavailable, Call, Conveyor, PartialEnqueue, SerializationError
from conveyor.broker.commands import BATCH

if TYPE_CHECKING:
    from servers import Server


def keep(*args: object) -> None: ...


def counts(app: Conveyor, queue: str = "default") -> dict[str, int]:
    return Engine(app, queue, stopped=False).counts()


def fail_at(proxy: Proxy, text: bytes) -> None:
    """Has the server go away once it has run the request that contains `text`."""
    proxy.refuse(True)
    proxy.drop_reply(text)


def test_map_can_be_completed_after_the_server_went_away(server: Server) -> None:
    items = [(number, f"item-{number:04}") for number in range(10 * BATCH)]
    with Proxy(server.port) as proxy, Conveyor("half-way", broker=proxy.url) as app:
        task = app.task(keep).options(on_existing="error")  # of ids that it was not given
        task.delay(0, "first")
        fail_at(proxy, b"item-0350")
        with pytest.raises(PartialEnqueue) as caught:
            task.map(items)
        _check_partial(caught.value, app, server)
        proxy.refuse(False)
        rest = app.map(caught.value.pending)
        assert all(result.created for result in rest)  # by this very call, now or before
        assert app.map(caught.value.pending) == rest
        records = [result.task() for result in caught.value.results + rest]
        assert [record.args for record in records] == items
        assert counts(app) == {"queued": 1001}


def test_amap_never_blocks_the_loop_however_many_there_are(server: Server) -> None:
    async def use() -> None:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turning = asyncio.create_task(turn())
        async with Conveyor("turns", broker=server.url) as app:
            task, manager = app.task(keep), app.amanager()
            many = [(number,) for number in range(10 * BATCH)]
            for refused, error in (
                (task.amap([*many, 5]), TypeError),  # type: ignore[list-item]
                (task.amap([*many, (object(),)]), SerializationError),
                (manager.enqueue_tasks([*({"task": task} for _ in many), {}]), TypeError),
            ):
                turns = 0
                with pytest.raises(error):
                    await refused
                assert turns >= 9
            assert counts(app) == {}
        turning.cancel()

    asyncio.run(use())


def test_so_can_amap(server: Server) -> None:
    items = [(number, f"item-{number:04}") for number in range(10 * BATCH)]

    async def use() -> None:
        with Proxy(server.port) as proxy:
            async with Conveyor("half-way-async", broker=proxy.url) as app:
                task = app.task(keep)
                await task.adelay(0, "first")
                fail_at(proxy, b"item-0350")
                with pytest.raises(PartialEnqueue) as caught:
                    await task.amap(items)
                _check_partial(caught.value, app, server)
                proxy.refuse(False)
                rest = await app.amap(caught.value.pending)
                assert all(result.created for result in rest)
                assert (await asyncio.to_thread(counts, app)) == {"queued": 1001}

    asyncio.run(use())


@pytest.mark.parametrize("options", [{}, {"id": "once", "on_existing": "replace_ended"}])
def test_what_is_pending_runs_once_although_its_first_run_left_no_record(
    server: Server, options: Any
) -> None:
    runs: list[str] = []
    with (
        Proxy(server.port) as proxy,
        Conveyor("half-way-once", broker=proxy.url) as app,
        Conveyor("half-way-once", broker=server.url) as direct,
    ):
        direct.task(name="note")(runs.append)
        task = app.task(name="note")(keep).options(remove_on_success=True, **options)
        task.options(id="first").delay("first")
        fail_at(proxy, b"item")
        with pytest.raises(PartialEnqueue) as caught:
            task.map([("item",)])
        proxy.refuse(False)
        with Player(direct):
            wait_until(lambda: runs == ["first", "item"], "both have run", seconds=SOON)
            assert app.map(caught.value.pending)[0].created
            last = direct.tasks["note"].delay("last")
            last.wait(SOON)
    assert runs == ["first", "item", "last"]


def _check_partial(error: PartialEnqueue, app: Conveyor, server: Server) -> None:
    assert len(error.results) == 300
    assert all(result.created for result in error.results)
    assert len(error.pending) == 700
    assert all(isinstance(call, Call) and call.id for call in error.pending)
    assert isinstance(error.__cause__, BrokerUnavailable)
    assert str(error) == (
        f"300 of 1,000 tasks were sent, then: {error.__cause__};"
        " app.map(error.pending) sends the rest, none of them twice"
    )
    with Conveyor(app.namespace, broker=server.url) as direct:
        assert counts(direct) == {"queued": 401}


@pytest.mark.parametrize("options", [{}, {"id": "mine"}, {"id": "mine", "on_existing": "error"}])
def test_a_lost_reply_enqueues_nothing_twice(server: Server, options: Any) -> None:
    with Proxy(server.port) as proxy, Conveyor("lost-reply", broker=proxy.url) as app:
        task = app.task(keep).options(**options)
        lost = proxy.drop_reply(b"this-one")
        result = task.delay("this-one")
        assert lost.is_set()
        assert result.created
        assert counts(app) == {"queued": 1}
        server.call("FLUSHALL")


def test_a_lost_reply_replaces_nothing_twice(server: Server) -> None:
    with Proxy(server.port) as proxy, Conveyor("replaced", broker=proxy.url) as app:
        task = app.task(keep)
        task = task.options(id="mine", on_existing="replace_ended")
        task.delay("former").cancel()
        proxy.drop_reply(b"this-one")
        assert task.delay("this-one").created
        end(app, "success", None)
        assert counts(app) == {"success": 1}
