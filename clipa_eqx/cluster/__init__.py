"""Work over the nodes of a Ray cluster: choice of an engine, comparison of nodes, tasks that are repeated.

Ray is an optional package: only ``connection``, ``nodes``, ``tasks``, ``lasting`` and ``attempts`` import it, inside
functions.
"""
