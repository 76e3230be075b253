"""The web example over HTTP: a real uvicorn, a real worker, and what a client gets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from servers import Server, free_port, wait_until
from workers import ROOT, Running, RunningWorker

if TYPE_CHECKING:
    from collections.abc import Iterator

WEB = ROOT / "examples" / "web"


@pytest.fixture(scope="module")
def broker() -> Iterator[dict[str, str]]:
    """Where both processes meet; the example's app has one name, so the server is its own."""
    with Server() as server:
        yield {"CONVEYOR_BROKER": server.url}


@pytest.fixture(scope="module")
def client(broker: dict[str, str]) -> Iterator[httpx.Client]:
    """A client of the running service."""
    port = free_port()
    command = ("-m", "uvicorn", "main:web", "--port", str(port))
    with (
        Running(*command, cwd=WEB, env=broker) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client,
    ):
        service.wait_for("Uvicorn running")
        yield client
        service.stop()
        assert "Application shutdown complete" in service.output
        assert "Traceback" not in service.output


@pytest.fixture
def worker(broker: dict[str, str]) -> Iterator[RunningWorker]:
    with RunningWorker("app", WEB, "-c", "1", env=broker) as worker:
        yield worker


def order(client: httpx.Client, pages: int) -> str:
    """The id of a report that was ordered."""
    answer = client.post("/tasks", json={"title": "May", "pages": pages})
    assert answer.status_code == 202
    assert answer.json()["status"] == "queued"
    return str(answer.json()["id"])


def get(client: httpx.Client, path: str, **query: float) -> dict[str, Any]:
    """What a path answers."""
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.usefixtures("worker")
def test_a_report_is_ordered_waited_for_and_shown(client: httpx.Client) -> None:
    task = order(client, pages=3)
    ended = get(client, f"/tasks/{task}/wait", seconds=20)
    assert ended == {
        "id": task,
        "status": "success",
        "progress": 1.0,
        "result": "May, 3 pages",
        "error": None,
    }
    assert get(client, f"/tasks/{task}") == ended


def test_a_wait_that_is_over_shows_what_there_is(client: httpx.Client) -> None:
    task = order(client, pages=1)
    assert get(client, f"/tasks/{task}/wait", seconds=0.1)["status"] == "queued"


def test_many_clients_wait_at_once(client: httpx.Client, broker: dict[str, str]) -> None:
    tasks = [order(client, pages=2) for _ in range(30)]
    with ThreadPoolExecutor(len(tasks)) as pool:
        waits = [pool.submit(get, client, f"/tasks/{task}/wait", seconds=30) for task in tasks]
        with RunningWorker("app", WEB, "-c", "1", env=broker):
            assert {wait.result()["status"] for wait in waits} == {"success"}


@pytest.mark.usefixtures("worker")
def test_progress_is_shown_while_it_runs(client: httpx.Client) -> None:
    task = order(client, pages=100)
    seen: dict[str, Any] = {}

    def under_way() -> bool:
        seen.update(get(client, f"/tasks/{task}"))
        return bool(seen["progress"])

    wait_until(under_way, "it has said how far it is")
    assert seen["status"] == "processing"
    assert 0 < seen["progress"] < 1


def test_what_is_not_there_is_not_found(client: httpx.Client) -> None:
    assert client.get("/tasks/nothing").status_code == 404
    assert client.get("/tasks/nothing/wait").status_code == 404
    assert client.post("/tasks", json={"title": "May", "pages": 0}).status_code == 422
