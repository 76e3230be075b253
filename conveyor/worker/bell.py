"""How an idle worker hears of work: it blocks on markers, so nothing is polled.

A worker that has just run something and holds nothing has a claim stand behind its bell: the server
does it as soon as the bell rings, which spares a round trip. If the worker dies before, so does the
claim, with its connection. It stands for a moment only, since where nothing rings it is done all
the same, and a worker that was stopped or cut off would claim by it what it cannot run.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from conveyor.orchestrator import BLOCK
from conveyor.worker.job import ASYNC, SYNC

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conveyor.broker.commands import Command
    from conveyor.broker.link import Link
    from conveyor.worker.queue import WorkerQueue

#: Seconds that a bell is left alone while the worker is claiming anyway.
QUIET: Final = 0.05
#: Seconds after a ring in which a claim may stand behind the bell, which blocks no longer then.
STAND: Final = 0.1
#: Calls in a row that find a bell not blocked, after which it is on the wrong server.
MOST_CALLS: Final = 20


class Bell:
    """Blocks until there is work, something comes due, or a run is to be stopped.

    It blocks on the markers of lanes that want work and are known to be empty. One of several
    queues it hears all the same, for the next claim may be due to it and not to the others. While
    the worker is claiming anyway it stays quiet, and when a lane comes to want work it is called
    back to listen to that as well. A worker that holds nothing listens for all that it wants: what
    has woken it is mostly all there is, and then this call is not in the way once the task runs.

    Args:
        queues: Those it can hear: all of them, or one on a cluster.
        several: Whether the worker has more than one.
        beat: Whether to hear what comes due.
        heard: Called with the queue and "r" or "a" (work), or "stop" and the message.
    """

    def __init__(
        self,
        queues: Sequence[WorkerQueue],
        *,
        several: bool,
        beat: bool,
        heard: Callable[[WorkerQueue, str, bytes], None],
    ) -> None:
        self._queues = queues
        self._several = several
        self._beat = beat
        self._heard = heard
        self._client_id: int | None = None
        self._blocks: deque[tuple[str, ...]] = deque()
        self._called_back = False
        self._futile_calls = 0
        self._quiet_since = 0.0
        self._brief_until = 0.0
        self._standing: tuple[Command[Any], Callable[[Any], None]] | None = None
        self._meaning: dict[str, tuple[WorkerQueue, str]] = {}
        for queue in queues:
            self._meaning[queue.mailbox] = (queue, "stop")
            for lane in (SYNC, ASYNC):
                self._meaning[queue.keys.marker(lane)] = (queue, lane)
            self._meaning[queue.keys.marker("o")] = (queue, "due")
        self.link: Link

    def greet(self, link: Link) -> None:
        """Learns the name of a new connection, by which it can be called back.

        The one before may have died with what it had popped: a marker, or word of a parked task.
        """
        for queue in self._queues:
            queue.expect_work()
            queue.look_for_parked()
            queue.clock.ring()
        self._client_id = None
        self._blocks.clear()
        self._called_back, self._futile_calls = False, 0
        link.send_first(("CLIENT", "ID"), self._learn)

    def listen(self, wanted: dict[str, bool], now: float, *, holds_nothing: bool) -> None:
        """Listens for what is wanted now: lanes that have room."""
        keys = [queue.mailbox for queue in self._queues]
        if self._beat:
            keys += [queue.keys.marker("o") for queue in self._queues]
        claiming: list[str] = []
        for lane, want in wanted.items():
            for queue in self._queues:
                if not queue.has_work[lane]:
                    keys += [queue.keys.marker(lane)] if want or self._several else []
                elif want:
                    claiming.append(queue.keys.marker(lane))
        if self._standing is not None and not self.link.connected:
            self._hand_over()
        if self._blocks:
            if not set(keys) <= set(self._blocks[0]):
                self.call_back()
        elif self._may_block(bool(claiming) and not holds_nothing, now):
            keys += claiming if holds_nothing else []
            self._block(tuple(keys), STAND if now < self._brief_until else BLOCK)

    @property
    def stands(self) -> bool:
        """Whether a claim stands behind it."""
        return self._standing is not None

    def may_stand(self, now: float) -> bool:
        """Whether it will ring, or end, so soon that a claim may stand behind it."""
        blocked = self.link.connected and bool(self._blocks) and not self._called_back
        return blocked and now < self._brief_until and self._standing is None

    def stand(self, command: Command[Any], callback: Callable[[Any], None]) -> None:
        """Has a claim from its queue done once it rings, and then blocks anew.

        The callback gets the claim's answer.
        """
        self._standing = (command, callback)
        self.link.send(command, self._claimed)
        self._block(self._blocks[0], STAND)

    def _hand_over(self) -> None:
        """It may have been done when the connection was lost: then it is repeated on the other."""
        standing, self._standing = self._standing, None
        if standing is not None:
            self._queues[0].link.send(*standing)

    def _claimed(self, answer: Any) -> None:
        standing, self._standing = self._standing, None
        if standing is not None:
            standing[1](answer)

    def _may_block(self, claiming: bool, now: float) -> bool:
        quiet = claiming and now < self._quiet_since + QUIET
        return self._client_id is not None and self._standing is None and not quiet

    def _block(self, keys: tuple[str, ...], seconds: float) -> None:
        self._blocks.append(keys)
        self.link.send(("BZPOPMIN", *keys, seconds), self._woken)

    def call_back(self) -> None:
        """Has it stop blocking, to listen to something else or to nothing."""
        if not self._called_back:
            self._called_back = True
            self._queues[0].link.send(("CLIENT", "UNBLOCK", self._client_id), self._was_called)

    def _was_called(self, unblocked: int | None) -> None:
        """The call may overtake the one it is to end, on the other connection: then once more.

        If that does not help, the bell hangs on a server that is gone or no longer the primary.
        """
        if unblocked == 0:
            self._futile_calls += 1
            self._called_back = self._futile_calls >= MOST_CALLS
            if self._called_back:
                self.link.renew()

    def _woken(self, popped: list[Any] | None) -> None:
        self._blocks.popleft()
        self._quiet_since = time.monotonic()
        called, self._called_back, self._futile_calls = self._called_back, False, 0
        if popped:
            self._ring(*self._meaning[popped[0].decode()], popped[1])
        elif not (self._beat or called or self._standing):
            self._look_for_work()

    def _ring(self, queue: WorkerQueue, meaning: str, member: bytes) -> None:
        if meaning == "due":
            queue.clock.hear(member)
        elif meaning == "stop":
            self._heard(queue, meaning, member)
        else:
            self._brief_until = self._quiet_since + STAND
            if self._standing is None:  # else its answer says all
                self._heard(queue, meaning, member)

    def _look_for_work(self) -> None:
        """Where there may be no orchestrator, only a claim moves what has come due."""
        for queue in self._queues:
            queue.expect_work()

    def _learn(self, client_id: int | None) -> None:
        self._client_id = client_id
