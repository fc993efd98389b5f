"""The local provider: three clouds on one machine, with hosts as network namespaces and a spot market (`client` is its front)."""
