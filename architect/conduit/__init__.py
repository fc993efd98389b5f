"""Connections: BPF programs, loader, edge and host datapath, the switch of a VM's flows."""
