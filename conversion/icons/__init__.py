"""Icon fonts as images with names: the data of the quickstart."""
