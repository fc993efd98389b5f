"""Source and target engines (sans-IO), their ports, the ownership log and the driver of one handover."""
