"""Arguments that harm who reads them: a run begins before they are read, so it answers for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from workers import Project

from conveyor import Conveyor, TaskFailed, TaskResult

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

SOON = 30.0

SOURCE = """
import dataclasses, os, sys, time
from conveyor import Conveyor

app = Conveyor("NAME")

@dataclasses.dataclass(frozen=True)
class Key:
    way: str

    def __hash__(self) -> int:
        if os.path.exists("armed") and self.way == "exit":
            sys.exit("no hash")
        if os.path.exists("armed") and self.way == "die":
            os._exit(3)
        if os.path.exists("armed"):
            time.sleep(60)
        return 1

@app.task(stall_retry_limit=1)
DEF read(keys: dict[Key, int]) -> None: ...

@app.task
DEF send(way: str) -> str:
    timeout = {"execution_timeout": 0.2} if way == "hang" else {}
    os.path.exists("armed") and os.remove("armed")
    keys = {Key(way): 1}
    open("armed", "w").close()
    return read.options(**timeout).delay(keys).id
"""


@pytest.mark.parametrize(
    ("way", "error"),
    [
        ("exit", "SerializationError: .*no hash"),
        ("die", "TaskStalled: .*exited with code 3"),
        ("hang", "TaskTimeout: the run took longer than its execution_timeout of 0.2 s"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("def", ()), ("def", ("--threads", "2")), ("async def", ())],
    ids=["sync", "threads", "async"],
)
def test_arguments_are_charged_with_what_reading_them_does(
    server: Server, tmp_path: Path, kind: str, arguments: tuple[str, ...], way: str, error: str
) -> None:
    project = Project(tmp_path, server.url, SOURCE.replace("DEF", kind))
    with Conveyor(project.name, broker=server.url) as app:

        @app.task(name="myapp.send")
        def send(way: str) -> str: ...

        with project.worker("-c", "1", *arguments) as worker:
            task_id = send.delay(way).wait(SOON)
            result: TaskResult[None] = app.result(task_id)
            with pytest.raises(TaskFailed, match=error):
                result.wait(SOON)
            assert isinstance(send.delay("exit").wait(SOON), str)
            assert worker.stop() == 0
