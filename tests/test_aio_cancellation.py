"""A cancelled task ends, whatever it was doing with the server at that moment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conveyor import Conveyor


def test_no_cancellation_is_lost(app: Conveyor) -> None:
    @app.task(name="nothing")
    def nothing() -> None: ...

    async def send_and_read_on() -> None:
        result = await nothing.adelay()
        while await result.atask():
            pass

    async def main() -> None:
        for attempt in range(60):
            caller = asyncio.create_task(send_and_read_on())
            await asyncio.sleep(0.001 + attempt * 0.0001)  # each time at another moment
            caller.cancel()
            await asyncio.wait([caller], timeout=5)
            assert caller.cancelled()
            await app.aclose()  # the next one begins with the connection

    asyncio.run(main())
