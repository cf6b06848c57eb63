"""Weights and data in and out of clipa_eqx; the only code that may import tensorflow or torch."""
