"""Tasks that run later, at a moment or after a while, and one that is called off in time.

It prints:

    now, soon, later
    called off: cancelled
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from conveyor import Conveyor, Worker

app = Conveyor("scheduled")


@app.task
def note(text: str) -> tuple[float, str]:
    return time.time(), text


def main() -> None:
    worker = Worker(app, concurrency=1)
    worker.start()
    results = [
        note.schedule("later", at=datetime.now(UTC) + timedelta(seconds=0.6)),
        note.schedule("soon", after=0.3),
        note.delay("now"),
    ]
    called_off = note.schedule("never", after=timedelta(hours=1))
    assert called_off.cancel()

    notes = sorted(result.wait(timeout=10) for result in results)
    print(", ".join(text for _, text in notes))
    print(f"called off: {called_off.status}")
    worker.shutdown()
    app.close()


if __name__ == "__main__":
    main()
