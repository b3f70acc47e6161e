"""HTML pages, pictures and charts, as the night's report and the annotation pages share them."""
