"""Page template: filled with every dynamic text escaped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

__all__ = ["render"]

_FOLDER = Path(__file__).parent


def render(context: Mapping[str, Any], template: Path) -> str:
    """The whole page as one HTML document.

    Args:
        context: What the template names; a missing name is an error, an empty one leaves its part out.
        template: The page; it shares the style sheet and the macros of this folder.

    Returns:
        HTML without any reference to another file but the link to the data docs.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The style sheet is ours and holds no dynamic text; escaping would break its selectors.
    stylesheet = Markup((_FOLDER / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(template.name).render(context, stylesheet=stylesheet)
