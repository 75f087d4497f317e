"""How the embedded model is made: its language, its training, and what it must be. Not part of the package."""
