"""What `fuse` did, module by module."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class FuseReport:
    """Modules by their path in the model.

    converted: what they are now. left: why they, or single candidates, run as before.
    """

    converted: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.converted and not self.left:
            return "converted 0: no mixed operations, cells or blocks in the manner of DARTS found"
        lines = [f"converted {len(self.converted)}, left {len(self.left)} as they are"]
        lines += _table("converted", self.converted)
        lines += _table("left", self.left)
        return "\n".join(lines)


def _table(title: str, findings: dict[str, str]) -> list[str]:
    """A line for each finding: in how many modules, and the first of them."""
    modules: dict[str, list[str]] = {}
    for path, what in findings.items():
        modules.setdefault(what, []).append(path or "the model itself")
    return [
        f"  {title}: {what}: {paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        for what, paths in modules.items()
    ]
