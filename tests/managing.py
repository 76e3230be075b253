"""An async manager for the tests of both kinds of managers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conveyor import Conveyor


class Driven:
    """An `AsyncManager` whose methods are called like those of a `Manager`."""

    def __init__(self, app: Conveyor, queue: str | None) -> None:
        self._app = app
        self._manager = app.amanager(queue)

    def __getattr__(self, name: str) -> Any:
        async def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return await getattr(self._manager, name)(*args, **kwargs)
            finally:
                await self._app.client.abroker.aclose()

        def call(*args: Any, **kwargs: Any) -> Any:
            return asyncio.run(run(*args, **kwargs))

        attribute = getattr(self._manager, name)
        return call if callable(attribute) else attribute
