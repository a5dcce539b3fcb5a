"""The look of what a notebook shows: policy badges and the colours around them, light and dark.

Fragments carry their style with them and load nothing.
"""

from __future__ import annotations

from html import escape

LONGEST_CELL = 300
"""Characters of a cell; longer ones are cut."""

_LIGHT = """--t-paper: #fff; --t-ink: #1a1e22; --t-muted: #56606a; --t-line: #dedbd2;
  --t-track: #edebe4; --t-dp: #0b6f67; --t-dp-soft: #dff0ed; --t-open: #b6471b;
  --t-open-soft: #fbd9c6; --t-mock: #6b5510; --t-mock-soft: #f6ecc8; --t-public: #3c4a58;
  --t-public-soft: #e6eaee;"""
_DARK = """--t-paper: #1b2024; --t-ink: #e7eaec; --t-muted: #a4aeb7; --t-line: #3d464e;
  --t-track: #333b42; --t-dp: #4cc0b2; --t-dp-soft: #17352f; --t-open: #ef8f63;
  --t-open-soft: #52270d; --t-mock: #e3c766; --t-mock-soft: #3d3311; --t-public: #b9c4ce;
  --t-public-soft: #2b333a;"""

STYLE = f"""<style>
.taciturn {{ {_LIGHT} color: var(--t-ink); font-size: 14px; line-height: 1.5; }}
@media (prefers-color-scheme: dark) {{ .taciturn {{ {_DARK} }} }}
[data-jp-theme-light="true"] .taciturn {{ {_LIGHT} }}
[data-jp-theme-light="false"] .taciturn {{ {_DARK} }}
"""
STYLE += """.taciturn p { margin: 0 0 6px; }
.taciturn .t-card { background: var(--t-paper); color: var(--t-ink); border: 1px solid
  var(--t-line); border-radius: 10px; padding: 14px 16px; max-width: 60em; overflow-x: auto; }
.taciturn .t-title { font-size: 16px; font-weight: 650; margin-right: 10px; }
.taciturn .t-badge { display: inline-block; border-radius: 999px; padding: 1px 10px;
  font-size: 13px; font-weight: 550; color: var(--t-public); background: var(--t-public-soft); }
.taciturn .t-badge.t-dp { color: var(--t-dp); background: var(--t-dp-soft); }
.taciturn .t-badge.t-none { color: var(--t-open); background: var(--t-open-soft); }
.taciturn .t-badge.t-mock { color: var(--t-mock); background: var(--t-mock-soft); }
.taciturn .t-muted { color: var(--t-muted); }
.taciturn .t-bar { display: flex; height: 10px; border-radius: 5px; overflow: hidden;
  background: var(--t-track); max-width: 32em; margin: 4px 0; }
.taciturn .t-bar span { display: block; height: 100%; }
.taciturn .t-bar .t-full { background: var(--t-dp); }
.taciturn .t-bar .t-open { background: var(--t-open); }
.taciturn .t-bar .t-held { background: repeating-linear-gradient(45deg, var(--t-dp) 0 3px,
  var(--t-track) 3px 6px); }
.taciturn table.t-table { border-collapse: collapse; margin: 8px 0 2px; font-size: 13px;
  color: var(--t-ink); background: transparent; }
.taciturn .t-table th, .taciturn .t-table td { text-align: left; vertical-align: top;
  padding: 4px 14px 4px 0; border: 0; border-top: 1px solid var(--t-line); background: transparent;
  color: var(--t-ink); max-width: 42em; overflow-wrap: break-word; }
.taciturn .t-table tr { background: transparent !important; }
.taciturn .t-table thead th { white-space: nowrap; border-top: 0; color: var(--t-muted);
  font-weight: 500; }
.taciturn .t-table tbody th { color: var(--t-muted); font-weight: 500; white-space: nowrap; }
.taciturn-table table.dataframe th, .taciturn-table table.dataframe td { text-align: left;
  vertical-align: top; white-space: normal; max-width: 42em; }
</style>"""

_CLASSES = (("DP", "t-dp"), ("no guarantee", "t-none"), ("mock", "t-mock"))


def badge(policy: str) -> str:
    """The policy line as a pill, in the colour of its kind."""
    kind = next((name for start, name in _CLASSES if policy.startswith(start)), "t-public")
    return f'<span class="t-badge {kind}">{escape(policy)}</span>'
