"""A report's page: one file that needs nothing but itself."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge.folders import write_atomically
from targets.report.text import STAND_IN, number, where

FOLDER = Path(__file__).parent


def write_page(path: Path, template: str, written: datetime | None, **facts: Any) -> None:
    """Fill in `template`, a file of this folder, and write it. Every text from outside is escaped.

    Args:
        written: the date on the page; now when None.
        facts: the template's names, beside `written`, `stand_in` and `css`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, where=where, score=lambda value: number(value, "+.2f"))
    html = environment.get_template(template).render(
        **facts,
        stand_in=STAND_IN,
        written=(written or datetime.now(timezone.utc)).strftime("%Y-%m-%d %H:%M UTC"),
        css=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
    )
    write_atomically(path, html.encode("utf-8", "replace"))
