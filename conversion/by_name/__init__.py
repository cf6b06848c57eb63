"""Models by name: their place in the cache, and their conversion into it. ``clipa_eqx.load_model`` uses this."""
