"""Kinds of data dumps: how each is planned and read."""
