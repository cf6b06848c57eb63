"""Zero-shot classification: scores of trained models."""
