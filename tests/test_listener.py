"""Listeners: callbacks in order, loops of both kinds, and how they end."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
from typing import Any

import msgpack
import pytest
import redis
import redis.asyncio
from hearing import LIFE, Heard, send, take, task_id_of, types
from playing import SOON, Player, end, no_threads, run
from servers import Server, wait_until

from conveyor import (
    REDACTED,
    ConfigurationError,
    Conveyor,
    ConveyorError,
    Event,
    EventType,
    Listener,
    TaskStatus,
)


def test_a_callback_hears_all_that_happens_once_it_is_there(app: Conveyor) -> None:
    for number in range(20):  # every time, and not because it was quick enough
        heard = Heard()
        send(app)  # to no listener, which the queue remembers
        end(app, "success", number)
        with app.listener() as listener:
            assert listener.on("task_complete", heard) is heard
            task_id = send(app)
            end(app, "success", number)
            event = heard.next()
        assert (event.type, event.queue) == (EventType.TASK_COMPLETE, "default")
        assert task_id_of(event) == task_id
        assert event.task is not None
        assert event.task.status is TaskStatus.SUCCESS
        assert event.created_at == event.task.processing_ended_at
        assert event.worker == event.task.worker


def test_a_callback_hears_all_in_an_event_loop_too(app: Conveyor) -> None:
    async def main() -> None:
        for _ in range(20):
            heard = Heard()
            listener = app.listener()
            listener.on("task_queued", heard)
            assert send(app) == task_id_of(heard.next())
            await listener.aclose()

    run(app, main())


def test_a_decorated_function_stays_itself(app: Conveyor) -> None:
    heard = Heard()
    with app.listener() as listener:

        @listener.on(EventType.TASK_QUEUED)
        def note(event: Event) -> None:
            heard(event)

        assert inspect.isfunction(note)
        assert send(app) == task_id_of(heard.next())


def test_callbacks_run_on_one_thread_in_order(app: Conveyor) -> None:
    calls: list[tuple[str, str]] = []
    threads: set[str] = set()
    done = Heard()
    with app.listener() as listener:
        for name in ("first", "second"):

            def note(event: Event, name: str = name) -> None:
                calls.append((name, event.type.value))
                threads.add(threading.current_thread().name)

            for kind in LIFE:
                listener.on(kind, note)
        listener.on("task_complete", done)
        ids = [send(app) for _ in range(10)]
        for number in range(10):
            end(app, "success", number)
        assert done.ids(10) == ids
    queued = [("first", "task_queued"), ("second", "task_queued")] * 10
    rest = [(name, kind) for kind in LIFE[1:] for name in ("first", "second")] * 10
    assert calls == queued + rest
    assert threads == {"conveyor-listener"}


def test_a_callback_that_raises_is_logged_and_ends_nothing(
    app: Conveyor, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()

    def fail(event: Event) -> None:
        raise ValueError(f"not this one: {task_id_of(event)}")

    with app.listener() as listener:
        listener.on("task_queued", fail)
        listener.on("task_queued", heard)
        ids = [send(app), send(app)]
        assert heard.ids(2) == ids
    errors = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert [str(one.exc_info[1]) for one in errors if one.exc_info] == [
        f"not this one: {task_id}" for task_id in ids
    ]
    assert {one.getMessage() for one in errors} == {
        "a callback failed at task_queued; the listener goes on"
    }


def test_a_loop_gives_every_event(app: Conveyor) -> None:
    with app.listener() as listener:
        task_id = send(app)  # before the loop begins
        end(app, "success", 1)
        events = take(iter(listener), 4)
    assert types(events) == LIFE
    assert {task_id_of(event) for event in events} == {task_id}


def test_a_loop_ends_when_the_listener_is_closed(app: Conveyor) -> None:
    listener = app.listener()
    seen: list[Event] = []

    def follow() -> None:
        for event in listener:
            seen.append(event)
            started.set()

    started = threading.Event()
    thread = threading.Thread(target=follow)
    thread.start()
    send(app)
    assert started.wait(SOON)
    listener.close()
    thread.join(SOON)
    assert not thread.is_alive()
    assert types(seen) == ["task_queued"]


def test_a_loop_can_be_left_and_taken_up_again(app: Conveyor) -> None:
    with app.listener() as listener:
        send(app)
        send(app)
        for event in listener:
            first = event
            break
        second = next(iter(listener))
    assert task_id_of(first) != task_id_of(second)


def test_callbacks_and_a_loop_both_hear(app: Conveyor) -> None:
    heard = Heard()
    with app.listener() as listener:
        listener.on("task_queued", heard)
        events = iter(listener)
        task_id = send(app)
        assert task_id_of(next(events)) == task_id
        listener.on("task_processing", heard)
        end(app, "success", 1)
        assert next(events).type == "task_processing"
        assert heard.ids(2) == [task_id] * 2


async def _async_loop(app: Conveyor) -> tuple[list[str], int]:
    """Events of a task that is sent while the loop waits, and the turns the event loop took."""
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def play() -> None:
        await asyncio.sleep(0.05)
        await asyncio.to_thread(send, app)
        await asyncio.to_thread(end, app, "success", 1)

    seen: list[str] = []
    async with app.listener() as listener:
        ticking, playing = asyncio.create_task(tick()), asyncio.create_task(play())
        async for event in listener:
            seen.append(event.type)
            if event.type == "task_complete":
                break
        ticking.cancel()
        await playing
    return seen, turns


def test_an_async_loop_gives_every_event_and_blocks_nothing(app: Conveyor) -> None:
    seen, turns = run(app, _async_loop(app))
    assert seen == LIFE
    assert turns > 100


def test_an_async_loop_without_a_block_hears_from_its_first_step(app: Conveyor) -> None:
    async def main() -> list[str]:
        listener = app.listener()
        events = aiter(listener)
        first = asyncio.create_task(anext(events))
        await asyncio.to_thread(listener._hears.wait, SOON)
        await asyncio.to_thread(send, app)
        seen = [(await first).type.value]
        await asyncio.to_thread(end, app, "success", 1)
        seen += [(await anext(events)).type.value for _ in range(3)]
        waiting = asyncio.create_task(anext(events, None))
        await asyncio.sleep(0.01)
        await listener.aclose()
        assert await waiting is None
        return seen

    assert run(app, main()) == LIFE


def test_a_cancelled_async_loop_leaves_the_events(app: Conveyor) -> None:
    async def main() -> str:
        async with app.listener() as listener:
            events = aiter(listener)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(events), 0.05)
            await asyncio.to_thread(send, app)
            return (await anext(aiter(listener))).type

    assert run(app, main()) == "task_queued"


def test_arguments_and_results_are_redacted(app: Conveyor) -> None:
    with app.listener() as listener:
        send(app, "secret", word="secret")
        end(app, "success", "secret")
        events = take(iter(listener), 4)
    for event in events:
        assert event.task is not None
        assert (event.task.args, event.task.kwargs) == (REDACTED, REDACTED)
        assert "secret" not in repr(event)
    assert [event.task and event.task.result for event in events] == [None, None] + [REDACTED] * 2
    assert repr(REDACTED) == "<redacted>"


def test_arguments_and_results_are_shown_if_the_app_says_so(server: Server) -> None:
    with Conveyor("shown", broker=server.url, log_arguments=True) as app:
        with app.listener() as listener:
            send(app, 1, word="two")
            end(app, "success", 3)
            tasks = [event.task for event in take(iter(listener), 4)]
        for task in tasks:
            assert task is not None
            assert (task.args, task.kwargs) == ((1,), {"word": "two"})
        assert [task and task.result for task in tasks] == [None, None, 3, 3]


def test_each_queue_has_its_events(app: Conveyor) -> None:
    with app.listener("a", "b", "a") as both, app.listener() as default:
        for name in ("a", "b", "c", "default"):
            send(app, queue=name)
        heard = take(iter(both), 2)
        assert {event.queue for event in heard} == {"a", "b"}
        assert next(iter(default)).queue == "default"
        end(app, "success", 1, queue="b")
        assert {event.queue for event in take(iter(both), 3)} == {"b"}


def test_one_connection_carries_all_queues(app: Conveyor, server: Server) -> None:
    def subscribers() -> int:
        return len(server.call("CLIENT", "LIST", "TYPE", "pubsub").splitlines())

    before = subscribers()
    with app.listener("a", "b", "c"):
        assert subscribers() == before + 1
    wait_until(lambda: subscribers() == before, "unsubscribed")


@pytest.mark.parametrize("kind", [redis.Redis, redis.asyncio.Redis])
@pytest.mark.parametrize("decode", [False, True])
def test_a_shared_client_listens_too(server: Server, kind: Any, decode: bool) -> None:
    client = kind.from_url(server.url, decode_responses=decode)
    with Conveyor("shared", broker=client) as app, app.listener() as listener:
        with Conveyor("shared", broker=server.url) as other:
            task_id = send(other)
            end(other, "success", 1)
        events = take(iter(listener), 4)
        assert {task_id_of(event) for event in events} == {task_id}
        assert types(events) == LIFE


def test_the_end_of_a_task_is_told_once(app: Conveyor) -> None:
    heard = Heard()

    @app.task(name="odd")
    def odd(x: int) -> int:
        if x % 2:
            raise ValueError(x)
        return x

    with app.listener() as listener, Player(app):
        listener.on("task_complete", heard)
        sent = [result.id for result in odd.map([(number,) for number in range(200)])]
        assert sorted(heard.ids(200)) == sorted(sent)
        listener.on("task_queued", heard)
        last = odd.delay(0)
        assert heard.ids(2) == [last.id] * 2  # nothing more had come in before


def test_what_is_no_event_is_left_out(app: Conveyor, caplog: pytest.LogCaptureFixture) -> None:
    channel = app.client.broker.keys("default").events
    newer = ["task_dreamt", 1, False, False, [], False, False, "more"]
    with app.listener() as listener:
        for junk in (b"\xc1", msgpack.packb(7), msgpack.packb(newer), msgpack.packb([])):
            app.client.broker.execute(("SPUBLISH", channel, junk))
        task_id = send(app)
        assert task_id_of(next(iter(listener))) == task_id
    assert "'task_dreamt' is not a valid EventType" in caplog.text
    assert len([one for one in caplog.records if "cannot be told" in one.getMessage()]) == 4


class Later:
    async def __call__(self, event: Event) -> None: ...


def test_mistakes_are_named(app: Conveyor) -> None:
    async def later(event: Event) -> None: ...

    with app.listener() as listener:
        with pytest.raises(ConfigurationError, match="did you mean 'task_complete'"):
            listener.on("task_completed", print)
        with pytest.raises(TypeError, match="later is an async def"):
            listener.on("task_complete", later)
        with pytest.raises(TypeError, match=r"Later object .* is an async def"):
            listener.on("task_complete", Later())
        with pytest.raises(TypeError, match=r"partial\(.*is an async def"):
            listener.on("task_complete", functools.partial(later))
        with pytest.raises(TypeError, match="5 cannot be called: give a function"):
            listener.on("task_complete", 5)  # type: ignore[type-var]
        assert not listener._callbacks
    with pytest.raises(ConfigurationError, match="queue 'a b' is not valid"):
        app.listener("a b")


def test_a_thread_that_cannot_start_leaves_no_harm(
    app: Conveyor, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, unheard = Heard(), Heard()
    with no_threads(monkeypatch), pytest.raises(RuntimeError, match="can't start new thread"):
        app.listener()
    with app.listener() as listener:
        with no_threads(monkeypatch), pytest.raises(RuntimeError, match="can't start new thread"):
            listener.on("task_queued", unheard)
        listener.on("task_queued", heard)
        assert send(app) == task_id_of(heard.next())
        assert unheard.events.empty()


def test_a_closed_listener_says_so(app: Conveyor) -> None:
    listener = app.listener()
    listener.close()
    listener.close()
    with pytest.raises(ConveyorError, match="was closed"):
        listener.on("task_complete", print)
    with pytest.raises(ConveyorError, match="was closed"):
        iter(listener)


def test_a_callback_may_close_its_listener(app: Conveyor) -> None:
    closed = threading.Event()
    listener = app.listener()

    @listener.on("task_queued")
    def stop(_event: Event) -> None:
        listener.close()
        closed.set()

    send(app)
    assert closed.wait(SOON)
    wait_until(lambda: not threads_of(listener), "its threads are gone")


def test_closing_the_app_closes_its_listeners(server: Server) -> None:
    app = Conveyor("closing", broker=server.url)
    listener = app.listener()
    listener.on("task_complete", print)
    app.close()
    assert not threads_of(listener)

    async def main() -> Listener:
        async with Conveyor("closing", broker=server.url) as app:
            listener = app.listener()
        return listener

    assert not threads_of(asyncio.run(main()))


def threads_of(listener: Listener) -> list[threading.Thread]:
    threads = [*(ear._thread for ear in listener._ears), listener._thread]
    return [thread for thread in threads if thread is not None and thread.is_alive()]
