"""`python -m architect` is the command line."""

from __future__ import annotations

from architect.cli.entry import main

raise SystemExit(main())
