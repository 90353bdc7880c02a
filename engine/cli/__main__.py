"""`python -m livereel.engine.cli` is `livereel`."""

from __future__ import annotations

import sys

from . import main

sys.exit(main())
