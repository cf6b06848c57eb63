"""Reports of runs as curves and pages: what is drawn, and the HTML that draws it."""
