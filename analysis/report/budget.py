"""How much of a report one file can hold: beyond it, pages of models lead to figures instead of holding them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from analysis.report.page import Item, ModelPage, Page, Picture, Text

HELD_BYTES = 15_000_000
"""Bytes of all images in the page. As text they take a third more; the rest of the 30 MB is for tables."""


def within_budget(page: Page, most_bytes: int = HELD_BYTES) -> Page:
    """The page with as many images as it can hold.

    The chapters hold all of theirs. What is left is for the models, the same for each; what one of them does not need,
    the next ones have. In a page of a model, the first figures come first.

    Args:
        page: the whole report.
        most_bytes: of all its images.
    """
    chapters = [item for section in page.sections for item in section.items]
    left = most_bytes - sum(_size(item) for item in [*page.key_items, *chapters])
    spent, pages = 0, []
    for number, one in enumerate(page.model_pages, start=1):
        allowed = max(left, 0) * number // len(page.model_pages)
        items = list(_held(one.items, allowed - spent))
        spent += sum(_size(item) for item in items)
        pages.append(_explained(replace(one, items=items), one.items))
    return replace(page, model_pages=tuple(pages))


def _size(item: Item) -> int:
    return len(item.plate.image) if isinstance(item, Picture) and item.held else 0


def _held(items: Sequence[Item], most_bytes: int) -> Iterator[Item]:
    """The items, the pictures that do not fit without their image."""
    for item in items:
        if isinstance(item, Picture) and _size(item) > most_bytes:
            yield replace(item, held=False)
        else:
            most_bytes -= _size(item)
            yield item


def _explained(page: ModelPage, before: Sequence[Item]) -> ModelPage:
    num_out = sum(isinstance(item, Picture) and not item.held for item in page.items)
    if not num_out:
        return page
    num_all = sum(isinstance(item, Picture) for item in before)
    words = (
        f"{num_out} of the {num_all} figures of this model are not in this file, which would become too large to be "
        "opened or sent: the links lead to the folder figures/ beside it."
    )
    return replace(page, items=[Text(words), *page.items])
