"""Every causal type of transformers as a tiny random model: which are proven, baked exactly, or refused, and why. Not part of the package."""
