"""What Inspect AI finds under the entry point `inspect_ai`: the provider's name. The provider itself is imported when a task uses it."""

from __future__ import annotations

from inspect_ai.model import modelapi


@modelapi(name="demeanor")  # type: ignore[untyped-decorator, unused-ignore]  # not a requirement, so without types where it is not installed
def demeanor() -> type:
    from .inspect_provider import Provider

    return Provider
