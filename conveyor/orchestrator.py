"""Moves what comes due: the clock of the queues.

Each queue keeps the next moment at which something of it comes due. The orchestrator sleeps until
then; who adds something earlier rings its bell (a marker it blocks on). Any number may run, and
none is needed for correctness: workers move a bounded few themselves whenever they claim.

Who hears it tells one more, lest the moment be forgotten with one that dies. The others learn of it
within `RECHECK` seconds, since so often each of them looks, at the cost of one plain command.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING

from conveyor.broker import commands
from conveyor.broker.keys import check_name
from conveyor.broker.link import Link
from conveyor.errors import ConveyorError
from conveyor.recurring import Declarer, fire_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conveyor.app import Conveyor
    from conveyor.broker.commands import Maintained
    from conveyor.broker.keys import QueueKeys

log = logging.getLogger("conveyor.orchestrator")

#: Seconds between looks at a queue that nothing called for.
RECHECK = 10.0
#: Seconds that a call may block on bells.
BLOCK = 5
#: What an orchestrator that has heard a bell adds for another.
ALSO = "also"
_SOONEST = 0.001


class Clock:
    """When one queue is looked after next; shared by the orchestrator and the worker's loop.

    Args:
        keys: The queue's.
        on_moved: Called when something has been moved: there may be work.
    """

    def __init__(self, keys: QueueKeys, on_moved: Callable[[], None] | None = None) -> None:
        self.keys = keys
        self._on_moved = on_moved
        self._due = 0.0
        self._due_ms: int | None = None
        self._look_at = 0.0
        self._asked = False
        self._rung = False
        self._refused = False
        self._tell = False

    def deadline(self, link: Link) -> float | None:
        """When `run` has something to do next, monotonic."""
        return None if self._asked or not link.connected else min(self._due, self._look_at)

    def hear(self, member: bytes) -> None:
        """Its bell rang."""
        if member == ALSO.encode():
            self._look_at = 0.0
        else:
            self._tell = True
            self.ring()

    def ring(self) -> None:
        """Something earlier was added, perhaps after an answer that is under way was given."""
        self._due = 0.0
        self._rung = True

    def run(self, link: Link, now: float) -> None:
        """Moves what is due, when it is time to; looks now and then whether that has changed."""
        if self._asked or not link.connected or now < min(self._due, self._look_at):
            return
        self._asked = True
        self._look_at = now + RECHECK
        if now >= self._due:
            self._rung = False
            link.send(commands.maintain(self.keys), functools.partial(self._done, link))
            if self._tell:
                self._tell = False
                link.send(commands.ring(self.keys, "o", ALSO), lambda _: None)
        else:
            link.send(("HMGET", self.keys.memory, "due", "kept"), self._seen)

    def _seen(self, moments: list[bytes | None] | None) -> None:
        self._asked = False
        if moments is None or min((int(m) for m in moments if m), default=None) != self._due_ms:
            self.ring()

    def _done(self, link: Link, answer: Maintained | None) -> None:
        self._asked = False
        now = time.monotonic()
        self._due_ms = answer and answer.next_due_ms
        if answer is None or self._refused:
            self._due = now + 1.0
        elif answer.more or self._rung:
            self._due = 0.0
        elif answer.next_due_ms is None:
            self._due = math.inf
        else:
            self._due = now + max((answer.next_due_ms - answer.now_ms) / 1000, 0.0) + _SOONEST
        if answer is not None and answer.moved:
            self._note_moved("moved %d that had come due", answer.moved)
        # What is fired here counts as due still; the next call, sent after it, says what follows.
        if answer is not None and not self._refused:
            for entry in answer.entries:
                link.send(fire_entry(self.keys, entry, answer.now_ms), self._fired)
        self._refused = False

    def _fired(self, added: int | None) -> None:
        self._refused = self._refused or added is None
        if added is not None and added > 0:
            self._note_moved("queued %d that recurred", added)

    def _note_moved(self, what: str, count: int) -> None:
        log.debug("%s: " + what, self.keys.queue, count)
        if self._on_moved is not None:
            self._on_moved()


class Orchestrator:
    """Looks after queues without running tasks.

    Args:
        app: Whose.
        queues: Names, in a list or a text with commas; None is the app's queue and those of its
            tasks.

    Attributes:
        queues: Their names.

    Example:
        >>> Orchestrator(app, ["high", "default"]).run()
    """

    def __init__(self, app: Conveyor, queues: str | Sequence[str] | None = None) -> None:
        broker = app.client.broker
        self._server = broker.server
        given = queues.split(",") if isinstance(queues, str) else queues
        self.queues = [check_name(queue.strip(), "queue") for queue in given or _queues_of(app)]
        self._clocks = [Clock(broker.keys(name)) for name in self.queues]
        self._tasks = app.tasks
        self._stop_read, self._stop_write = socket.socketpair()
        self._began = self._stopped = False
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Blocks until `stop` is called, from a signal's handler or another thread.

        Raises:
            ConveyorError: It runs, or has run, already.
        """
        self._begin()
        self._run()

    def start(self) -> None:
        """Runs on a thread of its own.

        Raises:
            ConveyorError: It runs, or has run, already.
        """
        self._begin()
        thread = threading.Thread(target=self._run, name="conveyor-orchestrator", daemon=True)
        thread.start()
        self._thread = thread

    def stop(self) -> None:
        """Ends `run`, and waits for it if `start` was called."""
        with contextlib.suppress(OSError):  # closed: it has ended
            self._stop_write.send(b"!")
        if self._thread is not None:
            self._thread.join()

    def _begin(self) -> None:
        if self._began:
            raise ConveyorError("an orchestrator works once: make another Orchestrator")
        self._began = True

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._stop_read, self._stop_write:
            selector.register(self._stop_read, selectors.EVENT_READ, self._note_stop)
            links = self._links(selector)
            while not self._stopped:
                now = time.monotonic()
                for link in links:
                    link.tick(now)
                for one, link in self._pairs:
                    one.run(link, now)
                for key, _ in selector.select(self._pause(links)):
                    key.data()
            for link in links:
                link.close()

    def _links(self, selector: selectors.BaseSelector) -> list[Link]:
        """On a cluster each queue has its own node, elsewhere all share one."""
        groups = [[clock] for clock in self._clocks] if self._server.clustered else [self._clocks]
        self._pairs: list[tuple[Clock | Declarer, Link]] = []
        links: list[Link] = []
        for group in groups:
            memory = group[0].keys.memory
            declarers = [Declarer(clock.keys, self._tasks) for clock in group]
            greet = functools.partial(_greet, group, declarers)
            listen = functools.partial(_listen, group)
            link = Link(self._server, memory, selector, greet)
            bell = Link(self._server, memory, selector, listen, blocking=True)
            links += [link, bell]
            # Declared first, lest it be taken for lapsed.
            self._pairs += [(declarer, link) for declarer in declarers]
            self._pairs += [(clock, link) for clock in group]
        return links

    def _pause(self, links: list[Link]) -> float | None:
        moments = [link.deadline() for link in links]
        moments += [one.deadline(link) for one, link in self._pairs]
        nearest = min((moment for moment in moments if moment is not None), default=None)
        return None if nearest is None else max(0.0, nearest - time.monotonic())

    def _note_stop(self) -> None:
        self._stop_read.recv(16)
        self._stopped = True


def _queues_of(app: Conveyor) -> list[str]:
    return sorted({app.queue, *(task.plan().queue for task in app.tasks.values())})


def _greet(clocks: list[Clock], declarers: list[Declarer], link: Link) -> None:
    for declarer in declarers:
        declarer.ring()
    for clock in clocks:
        clock.ring()
        link.send_first(commands.hello(clock.keys, "", 0, b""), lambda _: None)


def _listen(clocks: list[Clock], bell: Link) -> None:
    keys = [clock.keys.marker("o") for clock in clocks]

    def heard(popped: list[bytes] | None) -> None:
        if popped:
            clocks[keys.index(popped[0].decode())].hear(popped[1])
        bell.send(("BZPOPMIN", *keys, BLOCK), heard)

    bell.send_first(("BZPOPMIN", *keys, BLOCK), heard)
