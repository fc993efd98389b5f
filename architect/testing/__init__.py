"""Shipped fakes, conformance suites and the simulator; imported by tests only."""
