"""Auditing: what was done to a model, read from its files and those of the model that it was made of."""

from .audited import Audit, audit

__all__ = ["Audit", "audit"]
