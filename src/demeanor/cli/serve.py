"""`demeanor serve`: a model for other programs, under controls that every request names."""

from __future__ import annotations

from ..serve.plan import ServeLoading, ServePlan
from ..serve.serving import check_extras
from ..serve.serving import serve as serve_until_told
from .from_model import from_plans
from .sessions import behaviour_named, opened


@from_plans
def serve(plan: ServePlan, loading: ServeLoading) -> None:
    """A server with OpenAI's and Ollama's API, and a page for people. Each request names its own controls; moderation is on unless told."""
    check_extras()
    named = None if plan.behaviour is None else behaviour_named(plan.behaviour)
    plan.named_controls()
    serve_until_told(plan, opened(plan.model, loading), named)
