"""What a rewriting did to a model, layer by layer, kept on the model itself."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """One layer.

    Args:
        path: Where it is in the model.
        what: What was done, or why it was left alone.
    """

    path: str
    what: str


@dataclass
class Report:
    """What was done and what was left, in the model's order."""

    done: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)

    def merge(self, other: Report) -> None:
        """Take over what another report says, of layers that this one has no better word on."""
        done = {entry.path for entry in self.done}
        self.done += [entry for entry in other.done if entry.path not in done]
        done |= {entry.path for entry in other.done}
        news = {entry.path: entry for entry in other.left if entry.path not in done}
        self.left = [news.pop(e.path, e) for e in self.left if e.path not in done]
        self.left += news.values()

    def __str__(self) -> str:
        """Return a line for each layer."""
        lines = [f"done  {e.path}: {e.what}" for e in self.done]
        return "\n".join(lines + [f"left  {e.path}: {e.what}" for e in self.left])
