"""The demo: a VM that fuzzes and serves moves over five hops, and nothing that it does is lost (`make demo`)."""
