"""Weights of open_clip, in and out."""
