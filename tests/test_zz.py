"""A cancelled task ends, whatever it was doing with the server at that moment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conveyor import Conveyor


def test_no_cancellation_is_lost(app: Conveyor) -> None:
    @app.task(name="nothing")
    def nothing() -> None: ...

    async def read_on() -> None:
        result = await nothing.adelay()
        while await result.atask():
            await asyncio.sleep(0)

    async def main() -> None:
        for attempt in range(60):
            reader = asyncio.create_task(read_on())
            await asyncio.sleep(0.001 + attempt * 0.0001)  # each time at another moment
            reader.cancel()
            await asyncio.wait([reader], timeout=5)
            assert reader.cancelled(), attempt
            await app.aclose()
        await app.aclose()

    asyncio.run(main())
