"""Progress on standard error, with the standard library alone: a bar for things that are counted, a clock
for steps that are not. Nothing is drawn for what ends within two seconds; a log (no terminal) gets plain
lines."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
QUIET_S = 2.0
_REDRAW_S = 0.2
_LOG_EVERY_S = 30.0


def _show(text: str, *, final: bool = False) -> None:
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write("\r\x1b[K" + text[:width] + ("\n" if final else ""))
    else:
        sys.stderr.write(text + "\n")
    sys.stderr.flush()


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and draw a bar named `what`."""
    count = total if total is not None else (len(items) if isinstance(items, Sized) else None)
    start = drawn = time.monotonic()
    interval = _REDRAW_S if sys.stderr.isatty() else _LOG_EVERY_S
    done, shown = 0, False
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - start >= QUIET_S and (now - drawn >= interval or not shown) and done != count:
            _show(_bar(what, done, count, now - start))
            drawn, shown = now, True
    if shown:
        _show(_bar(what, done, count, time.monotonic() - start), final=True)


def _bar(what: str, done: int, count: int | None, elapsed_s: float) -> str:
    if not count:
        return f"{what}: {done} ({elapsed_s:.0f} s)"
    filled = 24 * done // count
    left_s = elapsed_s / done * (count - done) if done else 0.0
    rest = f"{left_s:.0f} s left" if done < count else f"{elapsed_s:.0f} s"
    return f"{what}: [{'#' * filled}{'.' * (24 - filled)}] {done}/{count}, {rest}"


@contextmanager
def step(what: str) -> Iterator[None]:
    """Show a running clock while something that cannot be counted goes on."""
    start = time.monotonic()
    ended = threading.Event()
    shown = False

    def tick() -> None:
        nonlocal shown
        interval = _REDRAW_S if sys.stderr.isatty() else _LOG_EVERY_S
        if ended.wait(QUIET_S):
            return
        while True:
            shown = True
            elapsed_s = time.monotonic() - start
            blip = "|/-\\"[int(elapsed_s * 4) % 4] if sys.stderr.isatty() else "..."
            _show(f"{what} {blip} {elapsed_s:.0f} s")
            if ended.wait(interval):
                return

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        ended.set()
        ticker.join()
        if shown:
            _show(f"{what}: {time.monotonic() - start:.0f} s", final=True)
