"""Pure decisions: where a VM runs and when it moves. Facts in, plan out."""
