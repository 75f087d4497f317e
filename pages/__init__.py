"""The site: `python -m pages` (`make docs`) stages the pages of the repository, writes the reference, builds and checks every link."""
