"""State, step, loop and metrics of training."""
