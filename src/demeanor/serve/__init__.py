"""Serving: one model for many callers, each under the controls that its request names."""
