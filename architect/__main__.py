"""`python -m architect` is the command line."""

from __future__ import annotations

import sys

from architect.cli.main import main

sys.exit(main())
