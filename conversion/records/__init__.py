"""Any dump of images and texts into folders of records, with every row accounted for."""
