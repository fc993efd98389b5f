"""Architect: a failure-proof compute fabric. An OCI image runs as a VM that moves live between hosts."""
