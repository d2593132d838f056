"""Jinja templates of the report and the model card."""

from collections.abc import Mapping
from typing import Any


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fill a template of this folder; values are escaped in HTML, and a missing one is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nas_llm.reporting", "templates"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(context)
