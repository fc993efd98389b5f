"""Accelerators: which hypervisor this host can use."""
