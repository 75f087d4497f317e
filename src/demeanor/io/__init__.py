"""Files: written beside their target and renamed, checkpoints, tables of rows."""
