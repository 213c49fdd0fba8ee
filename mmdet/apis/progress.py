"""A bar with images per second, where somebody watches."""

from __future__ import annotations

from typing import Any


class ImageProgress:
    """A bar on a terminal that rich can draw on; nothing elsewhere.

    Args:
        total: images, None where that is not known.
    """

    def __init__(self, total: int | None, enabled: bool = True) -> None:
        self.bar, self.task = None, None
        if enabled:
            self.bar = _rich_bar()
        if self.bar is not None:
            self.task = self.bar.add_task('images', total=total)

    def __enter__(self) -> ImageProgress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    @property
    def visible(self) -> bool:
        return self.bar is not None

    def advance(self, images: int) -> None:
        if self.bar is not None:
            self.bar.advance(self.task, images)


def _rich_bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    console = Console(stderr=True)  # what is printed goes elsewhere
    if not console.is_terminal:
        return None

    class Rate(TextColumn):
        def __init__(self) -> None:
            super().__init__('')

        def render(self, task: Any) -> Any:
            self.text_format = f'{task.finished_speed or task.speed or 0:.1f} images/s'
            return super().render(task)

    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn()
    return Progress(*columns, console=console)
