"""One app in many places at once: event loops, threads, and processes that fork."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from engine import Engine
from playing import SOON, Player, end, run, works
from redis.asyncio.connection import Connection
from servers import wait_until
from sharing import PROMPT, add, forks, ids

from conveyor import Conveyor, Task
from conveyor.broker import commands
from conveyor.broker.outcomes import Outcomes
from conveyor.errors import BrokerUnavailable, SerializationError
from conveyor.packing import pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from servers import Server


# Records


@pytest.mark.parametrize("garbage", [[b"e", b"\x01"], [b"n", b"many"], [b"n", 1, b"a0", b"x"]])
def test_a_claimed_task_is_read_whatever_lies_beside_it(server: Server, garbage: Any) -> None:
    with Conveyor("garbage", broker=server.url) as app:
        record = app.task(add).call(1, 2).pack().task.record
        task = app.client.decode_claimed("default", "some", record + pack(garbage))
    assert (task.args, task.error, task.attempts) == ((1, 2), None, ())


# Event loops


def test_async_calls_never_block_the_loop(own_server: Server) -> None:
    with Conveyor("beating", broker=own_server.url) as app:
        run(app, _beat_while_paused(app, own_server))


async def _beat_while_paused(app: Conveyor, server: Server) -> None:
    task = app.task(add)
    result = await task.adelay(1)
    ended = await task.adelay(2)
    await asyncio.to_thread(end, app, "success", 1)
    server.pause()
    calls = [
        asyncio.ensure_future(call)
        for call in (
            task.adelay(1), task.aschedule(1, after=60), task.amap([(1,)]), result.astatus(),
            result.atask(), ended.acancel(), app.amap([task.call(1)]), result._await_end(),
            task.call(1).adelay(), task.call(1).aschedule(after=60),
        )
    ]  # fmt: skip
    for _ in range(50):
        await asyncio.sleep(0.01)
    assert not any(call.done() for call in calls)
    server.resume()
    await asyncio.wait_for(asyncio.gather(*calls), SOON)


def test_many_calls_at_once_use_few_connections(own_server: Server) -> None:
    async def use() -> None:
        results = await asyncio.gather(*(app.task(add).adelay(n) for n in range(2000)))
        assert len({result.id for result in results}) == 2000
        assert own_server.call("INFO", "clients")["connected_clients"] < 30

    with Conveyor("many", broker=own_server.url) as app:
        run(app, use())
        assert Engine(app, stopped=False).counts() == {"queued": 2000}


def test_of_many_calls_at_once_each_hears_in_time_of_a_hanging_server(own_server: Server) -> None:
    async def use() -> None:
        await app.task(add).adelay(0)
        own_server.pause()
        calls = (app.task(add).adelay(n) for n in range(500))
        began = time.monotonic()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < 2 * PROMPT
        assert {type(error) for error in errors} == {BrokerUnavailable}

    with Conveyor("many-hanging", broker=own_server.url) as app:
        run(app, use())


def test_every_loop_has_its_own_connections(server: Server) -> None:
    with Conveyor("loops", broker=server.url) as app:
        task = app.task(add)
        for n in range(3):
            assert run(app, task.adelay(n)).created
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda n: run(app, task.adelay(n)), range(20)))
        assert all(result.created for result in results)


def test_a_loop_may_begin_while_another_forgets_those_that_were_closed(server: Server) -> None:
    class Closed(asyncio.SelectorEventLoop):
        """In the moment in which it is looked at, another thread's loop makes its first call."""

        def is_closed(self) -> bool:
            if others:
                call = others.pop()
                threads.submit(run, app, call).result(SOON)
            return super().is_closed()

    with Conveyor("meddling", broker=server.url) as app, ThreadPoolExecutor(1) as threads:
        task = app.task(add)
        others: list[Any] = []
        loop = Closed()
        loop.run_until_complete(task.adelay(1))
        loop.run_until_complete(app.client.abroker.aclose())
        loop.close()
        others.append(task.adelay(2))
        assert run(app, task.adelay(3)).created
        assert not others
        assert Engine(app, stopped=False).counts() == {"queued": 3}


# Mistakes


def test_an_argument_that_cannot_be_sent_is_no_refusal_of_the_server(app: Conveyor) -> None:
    command: Any = commands.read(app.client.broker.keys("default"), [object()])  # type: ignore[list-item]
    for ask in (
        lambda: app.client.broker.run(command),
        lambda: run(app, app.client.abroker.run(command)),
    ):
        with pytest.raises(SerializationError, match=r"^a value cannot be sent: "):
            ask()


def test_an_app_closes_its_connections_whatever_fails_meanwhile(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Outcomes) -> None:
        raise OSError("no")

    app = Conveyor("closing-badly", broker=own_server.url)
    app.task(add).delay(1)
    assert app.client.outcomes.name
    assert ids(own_server)
    monkeypatch.setattr(Outcomes, "close", fail)
    with pytest.raises(OSError, match="no"):
        app.close()
    wait_until(lambda: not ids(own_server), "all connections closed")


# Threads and forks


def test_sixteen_threads_share_an_app(server: Server) -> None:
    with Conveyor("threads", broker=server.url) as app, ThreadPoolExecutor(16) as pool, Player(app):
        assert list(pool.map(lambda n: each_reply_is_its_own(app, n), range(16))) == [True] * 16


def each_reply_is_its_own(app: Conveyor, number: int) -> bool:
    """Whether what comes back belongs to what was sent, for calls of all kinds."""
    task: Task[..., int] = app.task(add)
    for turn in range(5):
        mine = number * 1000 + turn
        result = task.options(id=f"{os.getpid()}-{mine}").delay(mine, 1)
        record = result.task()
        many = task.map([(mine, n) for n in range(3)])
        if record is None or record.args != (mine, 1) or result.wait(SOON) != mine + 1:
            return False
        if [one.wait(SOON) for one in many] != [mine, mine + 1, mine + 2]:
            return False
    return True


def in_children(count: int, work: Callable[[], bool]) -> list[int]:
    """The exit codes of forks that each do this: 0 for True."""
    children = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            code = 2
            try:
                code = 0 if work() else 1
            finally:
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


@forks
def test_an_app_used_before_a_fork_works_on_both_sides(server: Server) -> None:
    def child() -> bool:
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda n: each_reply_is_its_own(app, n), range(4)))
        app.close()
        return all(done)

    with Conveyor("forks", broker=server.url) as app:
        assert works(app, app.task(add))
        waiting = app.task(add).options(queue="later").delay(1, 1)
        with ThreadPoolExecutor(17) as pool, Player(app):
            ours = [pool.submit(each_reply_is_its_own, app, n) for n in range(16)]
            theirs = pool.submit(waiting.wait, SOON)
            assert in_children(4, child) == [0] * 4
            assert all(done.result(SOON) for done in ours)
            end(app, "success", 2, queue="later")
            assert theirs.result(SOON) == 2


@forks
def test_a_fork_may_happen_while_others_connect(server: Server) -> None:
    """Whatever lock another thread holds in that moment, the child must not wait for it."""
    with ThreadPoolExecutor(8) as pool:
        for turn in range(10):
            with Conveyor(f"forked-{turn}", broker=server.url) as app:
                task = app.task(add)
                connecting = [pool.submit(task.delay, n) for n in range(8)]
                assert in_children(1, lambda: works_alone(app)) == [0]
                assert all(one.result(SOON).created for one in connecting)


def works_alone(app: Conveyor) -> bool:
    result = app.task(add).options(queue="child").delay(1, 2)
    end(app, "success", 3, queue="child")
    return result.wait(SOON) == 3


@forks
def test_an_event_loop_of_a_child_is_its_own(server: Server) -> None:
    def child() -> bool:
        async def use() -> bool:
            result = await app.task(add).adelay(1, 2)
            await asyncio.to_thread(end, app, "success", 3)
            return await result == 3

        return run(app, use())

    async def parent() -> None:
        result = await app.task(add).options(queue="parent").adelay(1, 2)
        waiting = asyncio.ensure_future(result._await_end())
        assert await asyncio.to_thread(in_children, 2, child) == [0, 0]
        await asyncio.to_thread(end, app, "success", 3, queue="parent")
        assert await waiting == 3

    with Conveyor("forked-loops", broker=server.url) as app:
        run(app, parent())


def test_closing_an_app_leaves_no_connection_of_calls_under_way(
    server: Server, recwarn: pytest.WarningsRecorder
) -> None:
    async def use(app: Conveyor, pause: float) -> None:
        calls = [asyncio.create_task(app.result(f"task-{n}").atask()) for n in range(40)]
        await asyncio.sleep(pause)
        await asyncio.gather(app.aclose(), app.aclose())
        assert await asyncio.gather(*calls) == [None] * 40

    for attempt in range(8):
        asyncio.run(use(Conveyor("closing", broker=server.url), attempt * 0.001))
    gc.collect()
    assert not [str(each.message) for each in recwarn]


def test_a_call_outlives_that_its_connection_is_closed_beneath_it(
    app: Conveyor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by redis-py's cluster client, in the moment in which the call takes a free one."""
    closed: list[Any] = []
    send = Connection._send_packed_command

    async def close_first(connection: Connection, command: Any) -> None:
        if not closed:
            closed.append(connection)
            await connection.disconnect(nowait=True)
        await send(connection, command)

    monkeypatch.setattr(Connection, "_send_packed_command", close_first)
    assert run(app, app.result("nothing").atask()) is None
    assert closed
