"""Table of the released models."""
