"""`python -m demeanor`."""

from .cli import main

main()
