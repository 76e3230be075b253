"""`python -m conveyor` is the command `conveyor`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # -m puts the current directory first; as for the command, it comes after what is installed.
        sys.path.append(sys.path.pop(0))

    from conveyor.cli import main

    sys.exit(main())
