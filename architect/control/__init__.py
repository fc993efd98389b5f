"""The control plane: desired state, placement, handovers as persisted state machines."""
