"""How the page looks, in light and in dark, on wide and on narrow screens, and in print."""

from __future__ import annotations

_LIGHT = ("#1f5fbf", "#b8480b", "#147a3d", "#7a3cc2", "#b0246d", "#0b7373")
_DARK = ("#79b4ff", "#ffa366", "#62d394", "#cba6ff", "#ff93c4", "#5cd5cb")
_DASHES = ("none", "7 4", "2 3", "10 4 2 4", "4 2", "12 3")


def _colours(colours: tuple[str, ...]) -> str:
    return "".join(f"--c{n}:{colour};" for n, colour in enumerate(colours))


_KINDS = "".join(
    f".l{n}{{stroke:var(--c{n});stroke-dasharray:{dashes}}}.b{n}{{fill:var(--c{n})}}.d{n}{{fill:var(--c{n})}}"
    for n, dashes in enumerate(_DASHES)
)
_DARK_VARIABLES = (
    f"--page:#121519;--card:#1b2027;--ink:#e8ebef;--soft:#a9b2bd;--edge:#363e49;--good:#62d394;--bad:#ff8f85;"
    f"{_colours(_DARK)}"
)

STYLE = f"""
:root{{color-scheme:light dark;--page:#f5f6f8;--card:#fff;--ink:#1b2027;--soft:#55606d;--edge:#d8dde3;
--good:#147a3d;--bad:#b3261e;--font:system-ui,-apple-system,"Segoe UI",sans-serif;{_colours(_LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK_VARIABLES}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 var(--font)}}
main{{max-width:72rem;margin:0 auto;padding:1.5rem 1rem 3rem}}
h1{{font-size:1.7rem;line-height:1.2;margin:0;overflow-wrap:anywhere}}
header p{{color:var(--soft);margin:.3rem 0 1rem}}
h2{{font-size:1.25rem;margin:2rem 0 .5rem}}
h3{{font-size:1.05rem;margin:0 0 .3rem}}
p{{margin:.4rem 0;max-width:46rem;overflow-wrap:anywhere}}
figcaption p{{font-size:.93rem}}
.held,.unchecked,.violated{{border-left:4px solid var(--good);background:var(--card);padding:.5rem .9rem;
max-width:none}}
.unchecked{{border-color:var(--soft)}}
.violated{{border-color:var(--bad)}}
.violated h2{{margin-top:0;color:var(--bad)}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(max(9rem,22%),1fr));gap:.6rem;
margin:1rem 0}}
.tiles div{{background:var(--card);border:1px solid var(--edge);border-radius:.5rem;padding:.5rem .8rem}}
.tiles dt{{color:var(--soft);font-size:.85rem}}
.tiles dd{{margin:0;font-size:1.25rem;font-variant-numeric:tabular-nums}}
.cards{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr));gap:1rem}}
figure{{margin:0;background:var(--card);border:1px solid var(--edge);border-radius:.5rem;padding:.9rem;
min-width:0;display:flex;flex-direction:column}}
figure>svg{{margin-top:auto}}
.legend{{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1rem;margin:.4rem 0 .2rem;padding:0;
font-size:.9rem}}
.swatch{{width:28px;height:8px;vertical-align:middle}}
svg{{display:block;width:100%;height:auto}}
.legend svg{{display:inline-block}}
svg text{{fill:var(--soft);font:13px var(--font)}}
svg .label{{fill:var(--ink)}}
svg .marked{{fill:var(--ink);font-weight:600}}
.grid{{stroke:var(--edge)}}
.axis{{stroke:var(--soft)}}
.mark{{stroke:var(--ink);stroke-dasharray:3 3}}
path{{fill:none;stroke-width:2;stroke-linejoin:round}}
[class^=b]{{opacity:.18}}
{_KINDS}
details{{margin-top:.5rem;font-size:.93rem}}
summary{{cursor:pointer;color:var(--soft)}}
.table{{overflow-x:auto;margin:.5rem 0}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.93rem}}
caption{{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}}
th,td{{padding:.25rem .8rem .25rem 0;text-align:right;border-bottom:1px solid var(--edge);vertical-align:top}}
th:first-child{{text-align:left}}
thead th{{color:var(--soft);font-weight:600;white-space:nowrap}}
tbody th{{font-weight:400}}
pre{{background:var(--card);border:1px solid var(--edge);border-radius:.4rem;padding:.6rem;overflow-x:auto;
font-size:.88rem}}
@media (max-width:600px){{svg text{{font-size:17px}}}}
@media print{{body{{background:#fff}}figure{{break-inside:avoid}}}}
"""
