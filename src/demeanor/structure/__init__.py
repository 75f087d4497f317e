"""What a model is: its layout, the proof of it, and the names of its tensors in files."""
