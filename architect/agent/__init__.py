"""The per-host daemon and composition root: supervises VMs, wires ports to adapters."""
