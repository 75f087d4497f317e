"""The main job: one frozen plan in, one run folder out."""
