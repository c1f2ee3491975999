"""The style sheet of the report page: light, dark, phone and paper."""

from __future__ import annotations

from .charts import heat_colours

_LIGHT = """
  color-scheme: light;
  --paper: #ffffff; --ink: #16202b; --soft: #5b6876; --line: #dfe4ea; --edge: #aab4bf;
  --one: #1f6cb0; --two: #b8500f; --three: #66788a;
  --bad: #b3261e; --good: #1a7a4c; --tint: #f4f6f9;
"""
_DARK = """
  color-scheme: dark;
  --paper: #10161d; --ink: #e8edf3; --soft: #9aa8b6; --line: #2a3541; --edge: #55636f;
  --one: #6cb2ea; --two: #f0a05a; --three: #8499ad;
  --bad: #ff8a80; --good: #5fd09a; --tint: #18212b;
"""

_RULES = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 808px; margin: 0 auto; padding: 56px 24px 40px; }
.run { margin: 0; color: var(--soft); font-size: 15px; overflow-wrap: anywhere; }
.run b { color: var(--ink); font-weight: 600; }
.state { white-space: nowrap; font-weight: 600; color: var(--good); }
.state.open { color: var(--two); }
h1 { margin: 14px 0 30px; font-size: 30px; line-height: 1.26; font-weight: 650;
  letter-spacing: -0.012em; text-wrap: balance; overflow-wrap: anywhere; }
.notes { margin: -10px 0 30px; padding: 12px 18px 12px 34px; list-style: disc;
  background: var(--tint); border-left: 3px solid var(--two); font-size: 15px; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); margin: 0 0 56px;
  border-top: 1px solid var(--line); }
.tile { padding: 16px 12px 14px 0; border-bottom: 1px solid var(--line); }
.tile dt { font-size: 13px; color: var(--soft); }
.tile dd { margin: 0; font-size: 13px; color: var(--soft); }
.tile dd.value { font-size: 25px; line-height: 1.35; font-weight: 600; color: var(--ink);
  white-space: nowrap; font-variant-numeric: tabular-nums; letter-spacing: -0.01em; }
figure { margin: 0 0 60px; break-inside: avoid; }
h2 { margin: 0 0 4px; font-size: 19px; font-weight: 650; line-height: 1.3; }
h3 { margin: 14px 0 2px; font-size: 14px; font-weight: 600; }
figcaption p { margin: 0 0 18px; color: var(--soft); font-size: 15px; max-width: 66ch; }
.after { margin: 10px 0 0; color: var(--soft); font-size: 14px; }
.scroll { overflow-x: auto; }
.narrow { display: none; }
.fit svg { max-width: 100%; height: auto; }
svg { display: block; font-family: inherit; font-variant-numeric: tabular-nums; }
svg text { font-size: 12px; fill: var(--ink); }
svg .soft { fill: var(--soft); }
svg .strong { font-weight: 650; }
svg .warn, svg .ink-bad { fill: var(--bad); }
svg .ink-one { fill: var(--one); } svg .ink-two { fill: var(--two); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .edge { stroke: var(--edge); stroke-width: 1; stroke-dasharray: 2 3; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .line.one { stroke: var(--one); } svg .line.two { stroke: var(--two); }
svg .line.three { stroke: var(--three); stroke-dasharray: 5 4; }
svg .ink-three { fill: var(--three); } svg .dot.three { fill: var(--three); }
svg .dot { stroke: var(--paper); stroke-width: 1.5; } svg .dot.bare { stroke: none; }
svg .dot.one, svg .bar.one { fill: var(--one); }
svg .dot.two, svg .bar.two { fill: var(--two); }
svg .bar.three { fill: var(--three); }
svg .bar.bad { fill: var(--bad); }
svg .touch { fill: transparent; }
svg .none { fill: var(--tint); }
svg .new { stroke: var(--ink); stroke-width: 1.5; }
details { border-top: 1px solid var(--line); padding: 12px 0; }
details:last-of-type { border-bottom: 1px solid var(--line); }
figure details, figure details:last-of-type {
  margin-top: 14px; border: 0; padding: 0; font-size: 14px; }
summary { cursor: pointer; font-weight: 600; }
figure summary { font-weight: 400; color: var(--soft); }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 4px 18px 4px 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: 400; color: var(--soft); min-width: 9em; }
.columns th { min-width: 0; }
.columns th, .columns td { overflow-wrap: break-word; }
.columns th[scope="row"] { min-width: 6em; }
.columns td:last-child { min-width: 7em; }
.columns.dense td { white-space: nowrap; padding-right: 12px; min-width: 0; }
.columns:not(.words) td:not(:last-child) { white-space: nowrap; }
figure > .notes { margin: 14px 0 18px; }
.matrix th { min-width: 0; overflow-wrap: normal; }
.matrix td { text-align: right; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 0.93em; }
footer { margin-top: 36px; color: var(--soft); font-size: 13px; }
@media (max-width: 700px) {
  main { padding: 28px 18px 28px; }
  h1 { font-size: 24px; margin-bottom: 24px; }
  .tiles { grid-template-columns: repeat(2, 1fr); margin-bottom: 44px; }
  .tile dd.value { font-size: 22px; }
  figure { margin-bottom: 48px; }
  .wide { display: none; } .narrow { display: block; }
}
@media print {
  main { padding: 0; max-width: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h1 { font-size: 25px; } figure { margin-bottom: 34px; } .tiles { margin-bottom: 34px; }
  .wide { display: block; } .narrow { display: none; } .scroll { overflow: visible; }
  svg { max-width: 100%; height: auto; }
}
"""


def style_sheet() -> str:
    """All the page's CSS; paper is always light."""
    dark = f":root {{{_DARK}}}\n{_heat(dark=True)}"
    light = f":root {{{_LIGHT}}}\n{_heat(dark=False)}"
    return f"{light}{_RULES}@media screen and (prefers-color-scheme: dark) {{\n{dark}}}\n"


def _heat(dark: bool) -> str:
    rules = (
        f"svg .h{i} {{ fill: {fill}; }} svg .ink-h{i} {{ fill: {ink}; }}"
        for i, (fill, ink) in enumerate(heat_colours(dark))
    )
    return "\n".join(rules) + "\n"
