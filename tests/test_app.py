"""The app: its names, its settings, its tasks, and that it opens nothing before it is used."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import runpy
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from playing import end
from servers import Server
from workers import environment

from conveyor import Conveyor
from conveyor.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

#: Nothing listens there: whoever connects fails.
NOWHERE = "redis://127.0.0.1:1/0"
BAD_NAMES = ("", "a b", "a{b", "a}b", "a:b", "a/b", "..\n", "é", "*", "x" * 65, 5, None)


def add(x: int, y: int = 0) -> int:
    return x + y


def load(path: Path, text: str) -> ModuleType:
    """A module of its own file."""
    path.write_text(textwrap.dedent(text))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(*arguments: str, cwd: Path) -> str:
    """What a Python process prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVEYOR_BROKER", raising=False)


# Names


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_cannot_be_one_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Conveyor(name, broker=NOWHERE)
    assert str(caught.value) == (
        f"app name {name!r} is not valid: use 1 to 64 letters, digits, '_', '.' or '-'"
    )


@pytest.mark.parametrize("name", BAD_NAMES[:-1])
def test_so_is_a_queue_or_namespace(name: Any) -> None:
    app = Conveyor("app", broker=NOWHERE)
    with pytest.raises(ConfigurationError, match=r"^namespace .* is not valid"):
        Conveyor("app", broker=NOWHERE, namespace=name)
    with pytest.raises(ConfigurationError, match=r"^queue .* is not valid"):
        Conveyor("app", broker=NOWHERE, queue=name)
    with pytest.raises(ConfigurationError, match=r"^queue .* is not valid"):
        app.task(queue=name)(add)
    with pytest.raises(ConfigurationError, match=r"^queue .* is not valid"):
        app.task(add).options(queue=name)
    with pytest.raises(ConfigurationError, match=r"^queue .* is not valid"):
        app.result("id", queue=name)


def test_the_longest_and_strangest_names_are_fine() -> None:
    app = Conveyor("x" * 64, broker=NOWHERE, queue="A_z.0-9", namespace="-")
    assert (app.namespace, app.queue) == ("-", "A_z.0-9")
    assert repr(app) == f"<Conveyor {'x' * 64}>"


def test_apps_meet_in_a_namespace_only(server: Server) -> None:
    with (
        Conveyor("meeting", broker=server.url) as one,
        Conveyor("another", broker=server.url, namespace="meeting") as same,
        Conveyor("another", broker=server.url) as other,
    ):
        task_id = one.task(add).delay(1).id
        assert same.result(task_id).task() is not None
        assert other.result(task_id).task() is None
        assert (same.queues(), other.queues()) == (["default"], [])


def test_two_queues_of_an_app_do_not_share_tasks(app: Conveyor) -> None:
    task = app.task(add)
    result = task.options(queue="side").delay(1)
    task.delay(1)
    assert result.queue == "side"
    assert app.result(result.id).task() is None
    assert app.result(result.id, "side").task() == result.task()
    assert task.options(queue="side").result(result.id) == result
    assert app.queues() == ["default", "side"]


# Settings


def test_an_unknown_argument_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Conveyor("app", broker=NOWHERE, retry_limt=3)
    assert str(caught.value) == (
        "there is no setting 'retry_limt' (argument): did you mean 'retry_limit'?"
    )


def test_a_wrong_value_says_what_is_allowed() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^priority cannot be 10 \(argument\): use a whole"
    ):
        Conveyor("app", broker=NOWHERE, priority=10)


def test_an_unknown_variable_is_only_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVEYOR_GRASE", "1")
    with pytest.warns(UserWarning, match="did you mean CONVEYOR_GRACE") as caught:
        Conveyor("app", broker=NOWHERE)
    assert caught[0].filename == __file__


def test_argument_beats_environment_beats_pyproject_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.conveyor]\npriority = 1\nstall_timeout = 1\ngrace = 1\n"
    )
    monkeypatch.setenv("CONVEYOR_PRIORITY", "2")
    monkeypatch.setenv("CONVEYOR_STALL_TIMEOUT", "2")
    app = load(
        tmp_path / "mine.py",
        f"from conveyor import Conveyor\napp = Conveyor('app', broker={NOWHERE!r}, priority=3)",
    ).app
    settings, origins = app.settings, app.origins
    assert (settings.priority, origins["priority"]) == (3, "argument")
    assert (settings.stall_timeout, origins["stall_timeout"]) == (2, "CONVEYOR_STALL_TIMEOUT")
    assert (settings.grace, origins["grace"]) == (1, "pyproject.toml")
    assert (settings.threads, origins["threads"]) == (1, "default")


def test_the_broker_is_the_argument_or_the_variable_or_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def address(app: Conveyor) -> str:
        return app.client.broker.server.address

    module = "from conveyor import Conveyor\napp = Conveyor('app')"
    assert address(load(tmp_path / "a.py", module).app) == f"embedded://{tmp_path}/.conveyor"
    monkeypatch.setenv("CONVEYOR_BROKER", "redis://from-environment:1/0")
    assert address(load(tmp_path / "b.py", module).app) == "redis://from-environment:1/0"
    assert address(Conveyor("app", broker="redis://argument:1/0")) == "redis://argument:1/0"
    assert list(tmp_path.glob(".*")) == []


def test_settings_are_the_defaults_of_tasks(app: Conveyor, server: Server) -> None:
    with Conveyor(app.name, broker=server.url, priority=8, retain_success=60, queue="other") as one:
        result = one.task(add).delay(1)
        record = result.task()
    assert result.queue == "other"
    assert record is not None
    assert record.priority == 8


# Time zones and types


def test_naive_times_are_meant_in_the_timezone(server: Server) -> None:
    zones: list[Any] = ["America/Lima", ZoneInfo("America/Lima")]
    for number, zone in enumerate(zones):
        with Conveyor(f"zone-{number}", broker=server.url, timezone=zone) as app:
            record = app.task(add).schedule(1, at=datetime(2100, 1, 1)).task()
        assert record is not None
        assert record.enqueue_after == datetime(2100, 1, 1, 5, tzinfo=UTC)


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "", "/etc", "../UTC", 5])
def test_a_timezone_that_does_not_exist_is_refused(zone: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^timezone .* is not known: use a name such as"):
        Conveyor("app", broker=NOWHERE, timezone=zone)


@dataclass(frozen=True)
class Point:
    x: int


class Kind(Enum):
    ONE = 1


def place(point: object) -> None: ...


def test_types_that_annotations_do_not_name_are_given_to_the_app(server: Server) -> None:
    with Conveyor("types", broker=server.url, types=[Point]) as app:
        record = app.task(place).delay(Point(3)).task()
    assert record is not None
    assert record.args == (Point(3),)


def test_only_dataclasses_and_enums_can_be_given() -> None:
    with pytest.raises(ConfigurationError, match=r"Path.* take it out of types="):
        Conveyor("app", broker=NOWHERE, types=[Path])
    for wrong in (Point, Kind, 5, None):
        with pytest.raises(ConfigurationError, match=r"^types= cannot be .*: use a list of data"):
            Conveyor("app", broker=NOWHERE, types=wrong)  # type: ignore[arg-type]


# Tasks


def test_a_task_is_named_by_module_and_qualname() -> None:
    app = Conveyor("app", broker=NOWHERE)
    task = app.task(add)
    assert task.name == "test_app.add"
    assert app.task(name="other.name")(place).name == "other.name"
    assert set(app.tasks) == {"test_app.add", "other.name"}


@pytest.mark.parametrize("name", ["", 5, "two\nlines", "x" * 501, b"add"])
def test_a_task_name_that_cannot_be_one_is_refused(name: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^task name .* is not valid: use 1 to 500 printable"
    ):
        Conveyor("app", broker=NOWHERE).task(name=name)(add)


def test_what_is_no_function_cannot_be_a_task() -> None:
    app = Conveyor("app", broker=NOWHERE)
    things: list[Any] = [Point, functools.partial(add, 1), Point(1), "add", None, app.task(add)]
    for thing in things:
        with pytest.raises(ConfigurationError, match="cannot be a task: decorate a function"):
            app.task()(thing)
    assert set(app.tasks) == {"test_app.add"}


def test_two_tasks_cannot_have_one_name() -> None:
    app = Conveyor("app", broker=NOWHERE)
    app.task(name="one")(add)
    app.task(name="one")(add)  # the same again: its module was loaded twice
    with pytest.raises(ConfigurationError) as caught:
        app.task(name="one")(place)
    assert str(caught.value).startswith(
        "there are two tasks named 'one': give one of them another name="
    )
    assert f"{__file__}:add" in str(caught.value)
    assert f"{__file__}:place" in str(caught.value)


def test_a_script_is_named_by_its_file(tmp_path: Path) -> None:
    text = f"""
        from conveyor import Conveyor
        app = Conveyor("app", broker={NOWHERE!r})
        @app.task
        def add(x): return x
        print(add.name)
    """
    package = tmp_path / "shop"
    package.mkdir()
    for name in ("orders", "__main__", "__init__"):
        (package / f"{name}.py").write_text(textwrap.dedent(text) if name != "__init__" else "")
    assert python("shop/orders.py", cwd=tmp_path) == "orders.add\n"
    assert python("-m", "shop.orders", cwd=tmp_path) == "shop.orders.add\n"
    assert python("-m", "shop", cwd=tmp_path) == "shop.__main__.add\n"  # as a worker imports it
    assert python("-c", textwrap.dedent(text), cwd=tmp_path) == "__main__.add\n"


def test_a_script_that_is_imported_as_well_declares_its_tasks_once(tmp_path: Path) -> None:
    (tmp_path / "apps.py").write_text(
        f"from conveyor import Conveyor\napp = Conveyor('app', broker={NOWHERE!r})\n"
    )
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
            import runpy
            from apps import app
            @app.task
            def add(x): return x
            if __name__ == "__main__":
                import script
                print(list(app.tasks))
        """)
    )
    assert python("script.py", cwd=tmp_path) == "['script.add']\n"


def test_a_process_that_multiprocessing_spawns_knows_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        textwrap.dedent(f"""
            import multiprocessing
            from dataclasses import dataclass
            from conveyor import Conveyor
            from conveyor.forms import wire_name
            app = Conveyor("app", broker={NOWHERE!r})
            @dataclass
            class Order: number: int
            @app.task
            def add(x): return x
            def show(): print(add.name, wire_name(Order), flush=True)
            if __name__ == "__main__":
                process = multiprocessing.get_context("spawn").Process(target=show)
                process.start()
                process.join()
        """)
    )
    assert python("script.py", cwd=tmp_path) == "script.add script:Order\n"


def test_map_takes_calls_of_this_app_only(app: Conveyor) -> None:
    task = app.task(add)
    with pytest.raises(TypeError, match=r"^app\.map\(\): \(1, 2\) is not a Call: make one with"):
        app.map([task.call(1), (1, 2)])  # type: ignore[arg-type]
    stranger = Conveyor("stranger", broker=NOWHERE).task(add)
    for send in (app.map, task.map):
        with pytest.raises(ConfigurationError, match=r"^test_app\.add belongs to another app"):
            send([task.call(1), stranger.call(1)])
    assert app.queues() == []


# Opening and closing


def test_nothing_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    events = python(
        "-c",
        textwrap.dedent(f"""
            import sys
            from conveyor import Conveyor, exponential
            seen = []
            watched = ("socket.", "subprocess.", "os.posix_spawn", "os.fork", "os.exec", "os.mkdir")
            sys.addaudithook(lambda name, _: name.startswith(watched) and seen.append(name))
            for broker in ({NOWHERE!r}, "embedded://own", None, "unix:///nowhere",
                           "redis+sentinel://nowhere/x", "redis+cluster://nowhere"):
                app = Conveyor("app", broker=broker)
                @app.task(retry_limit=3, backoff=exponential(1))
                def add(x: int, y: int) -> int:
                    return x + y
                @app.task(bind=True)
                async def visit(context, url): ...
                add.options(queue="q").call(1, 2), app.result("id"), add.result("id"), repr(app)
                add(1, 2)
                app.close()
                with app: pass
            print(seen)
        """),
        cwd=tmp_path,
    )
    assert events == "[]\n"
    assert list(tmp_path.iterdir()) == []


def test_importing_a_module_of_tasks_opens_nothing() -> None:
    text = f"""
        import sys
        seen = []
        sys.addaudithook(lambda name, _: seen.append(name) if name.startswith("socket.") else None)
        import conveyor
        conveyor.Conveyor("app", broker={NOWHERE!r}).task(lambda x: x)
        print(seen)
    """
    assert python("-c", textwrap.dedent(text), cwd=Path.cwd()) == "[]\n"


@pytest.fixture(scope="module")
def quiet_server() -> Iterator[Server]:
    """A server with no other clients than a test's."""
    with Server() as server:
        yield server


def connections(server: Server) -> int:
    """How many clients it has beside the one that asks."""
    return int(server.call("INFO", "clients")["connected_clients"]) - 1


def test_with_closes_all_connections(quiet_server: Server) -> None:
    with Conveyor("closing", broker=quiet_server.url) as app:
        result = app.task(add).delay(1, 2)
        end(app, "success", 3)
        assert result.wait(10) == 3
        assert connections(quiet_server) == 2
    assert connections(quiet_server) == 0


def test_async_with_closes_all_connections(quiet_server: Server) -> None:
    async def use() -> None:
        async with Conveyor("closing", broker=quiet_server.url) as app:
            result = await app.task(add).adelay(1, 2)
            await asyncio.to_thread(end, app, "success", 3)
            assert await result == 3
            assert connections(quiet_server) == 3
        assert connections(quiet_server) == 0

    asyncio.run(use())


def test_a_closed_app_opens_again_when_it_is_used(quiet_server: Server) -> None:
    app = Conveyor("reopened", broker=quiet_server.url)
    result = app.task(add).delay(1, 2)
    app.close()
    app.close()
    assert result.status == "queued"
    app.close()
    assert connections(quiet_server) == 0


def test_a_module_run_by_runpy_is_no_script(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        f"from conveyor import Conveyor\napp = Conveyor('app', broker={NOWHERE!r})\n"
        "@app.task\ndef add(x): return x\n"
    )
    assert runpy.run_path(str(path), run_name="elsewhere")["add"].name == "elsewhere.add"
