"""The two towers of CLIP as per-example Equinox modules."""
