"""Programs that run a worker in code: each scenario is a process of its own.

    python worker_in_code.py pause_hands_back_what_has_not_begun

`test_worker_in_code.py` runs each of them, with a server in CONVEYOR_BROKER, a namespace of its own
in TEST_NAMESPACE and an empty current directory; a scenario that fails ends with a traceback. Their
app and its tasks are in `in_code_app.py`.
"""

from __future__ import annotations

import sys

import in_code_callbacks
import in_code_control
from in_code_app import app

SCENARIOS = [*in_code_callbacks.SCENARIOS, *in_code_control.SCENARIOS]

if __name__ == "__main__":
    with app:
        next(each for each in SCENARIOS if each.__name__ == sys.argv[1])()
