"""OCI image to bootable base disk."""
