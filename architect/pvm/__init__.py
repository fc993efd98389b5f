"""Accelerators: which hypervisor this host can use, decided by running code in it."""

from architect.pvm.accelerator import Accelerator, AcceleratorKind, detect_accelerator
from architect.pvm.tsc import measure_tsc_khz

__all__ = ["Accelerator", "AcceleratorKind", "detect_accelerator", "measure_tsc_khz"]
