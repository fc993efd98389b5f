"""One VM: QEMU process, QMP, guest kernel and init, guest channel, jail."""
