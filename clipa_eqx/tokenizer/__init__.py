"""BERT WordPiece tokenization as CLIPA does it, and the four ways to shorten a caption."""
