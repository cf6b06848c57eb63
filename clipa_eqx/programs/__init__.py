"""The commands ``clipa-train``, ``clipa-evaluate`` and ``clipa-show``: each parses its flags, then imports its work."""
