"""Kinds of data dumps: how each is planned and read.

How to add a source:

1. Write one file here, named after the kind, with a ``Source`` (see ``source.py``) as its last statement. A source of
   files that are read row by row, such as ``webdataset.py``, needs three functions: the first rows of a file and a
   choice of columns, both given to ``planning.plan_files``, and a reader of rows wrapped in ``damage.with_lost_rest``.
   A source that is a list of image files, such as ``folder.py``, gives its rows to ``listed.list_parts``.
2. Add a row to ``SOURCES`` in ``kinds.py``. The command line, its help and its flags follow from that.

Columns that are chosen have ``subset`` and ``values`` too, and rows carry those values (``columns.choose_subset``,
``columns.values_to_read``, ``values.kept_values``): that is all that ``--keep``, ``--subset`` and ``--where`` need.

``values.py`` and ``columns.py`` convert values and choose columns, ``images.py`` reads images that rows name by path.
A package that only this source needs is imported inside functions and named in ``Source.package``.
"""
