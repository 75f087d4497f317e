"""What pages and tables share: how scores are written, and the form of an HTML page."""
