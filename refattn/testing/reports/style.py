"""The style sheet of the page: light or dark as the reader's system asks."""

LIGHT = """
--page:#f6f7f9; --card:#fff; --ink:#1b1f24; --soft:#59636e; --line:#d9dee4; --faint:#eef0f3; --link:#0550ae;
--pass:#1a7f37; --fail:#c21a2c; --suspect:#8a5a00; --undeclared:#7440c4; --idle:#59636e; --waived:#0f6a75;
--seen:#8da2bb; --partly:#ccd6e2; --leaked:#d8480b; --missing:#0a6fc2; --zero:#f3f5f8; --mark:#fff;
--h1:#fde7d2; --h2:#fbcfa6; --h3:#f7b079; --h4:#ef8b4b; --h5:#dd6423; --h6:#b84410; --h7:#7e2a08; --odd:#5b2a86;
"""
DARK = """
--page:#0f1318; --card:#181d24; --ink:#e4e9ef; --soft:#9aa6b2; --line:#303843; --faint:#222932; --link:#79b8ff;
--pass:#4ac26b; --fail:#ff7b72; --suspect:#e3b341; --undeclared:#c297ff; --idle:#9aa6b2; --waived:#56c8d3;
--seen:#5f7791; --partly:#36444f; --leaked:#ff8a4c; --missing:#58a9f5; --zero:#212831; --mark:#14181d;
--h1:#402713; --h2:#5f3616; --h3:#86481a; --h4:#b35c1e; --h5:#dd7a33; --h6:#f7a366; --h7:#ffd7b0; --odd:#b98cf0;
"""

STYLE = (
    f":root{{color-scheme:light dark;{LIGHT}}}\n@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}\n"
    + """
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);background:var(--page);
 margin:0 auto;max-width:68rem;padding:1.75rem 1.25rem 4rem}
h1{font-size:1.55rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1.12rem;margin:2.2rem 0 .7rem}
a{color:var(--link)} p{margin:.4rem 0} ul,ol{margin:.4rem 0}
code,pre,.id{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.875em;overflow-wrap:anywhere}
pre{white-space:pre-wrap;background:var(--faint);border-radius:6px;padding:.6rem .8rem;margin:.6rem 0}
header,.card{background:var(--card);border:1px solid var(--line);border-radius:10px}
header{border-left:6px solid var(--tone);padding:1.2rem 1.4rem}
.top{display:flex;gap:.9rem;align-items:center;flex-wrap:wrap}
.chips{display:flex;flex-wrap:wrap;gap:.4rem;margin:.7rem 0 0;padding:0;list-style:none}
.chips li{background:var(--faint);border-radius:999px;padding:.1rem .7rem;font-size:.87rem}
.chips span{color:var(--soft)}
.tiles{display:flex;flex-wrap:wrap;gap:.5rem 2.2rem;margin:1.1rem 0 0}
.tiles div{display:flex;flex-direction:column-reverse} .tiles dt{font-size:.84rem;color:var(--soft)}
.tiles dd{margin:0;font-size:1.5rem;line-height:1.2;font-weight:600;color:var(--tone);font-variant-numeric:tabular-nums}
.badge{display:inline-block;white-space:nowrap;font-weight:600;font-size:.78rem;line-height:1.5;letter-spacing:.02em;
 color:var(--tone);border:1.5px solid currentColor;border-radius:6px;padding:0 .5rem}
.badge.big{font-size:1.05rem;padding:.12rem .8rem;background:var(--tone);color:var(--card);border-color:var(--tone)}
.PASS{--tone:var(--pass)} .FAIL{--tone:var(--fail)} .SUSPECT{--tone:var(--suspect)}
.UNDECLARED{--tone:var(--undeclared)}
.NOT-RUN{--tone:var(--idle)} .WAIVED{--tone:var(--waived)} .plain{--tone:var(--ink)}
.card{margin:.7rem 0;padding:.75rem 1.1rem}
details.card>summary{cursor:pointer;list-style-position:outside;margin-left:.9rem;padding-left:.2rem}
details.card>summary .id{font-weight:600;margin-left:.45rem}
details.card[open]>summary{margin-bottom:.4rem}
.message{margin:.3rem 0 .5rem;white-space:pre-wrap;overflow-wrap:anywhere}
.figures{display:flex;flex-wrap:wrap;gap:.3rem 1.6rem;margin:.5rem 0}
.figures div{display:flex;gap:.45rem} .figures dt{color:var(--soft)} .figures dd{margin:0;font-weight:600}
.figures dd,td.number{font-variant-numeric:tabular-nums}
.note,.again{color:var(--soft);font-size:.86rem}
.causes{padding:.3rem 1.1rem;list-style:none} .causes li{padding:.5rem 0;border-bottom:1px solid var(--line)}
.causes li:last-child{border:0} .causes li:first-child strong{font-size:1.1rem}
.share{display:flex;align-items:center;gap:.7rem;color:var(--soft);font-size:.88rem}
.share i{flex:0 0 9rem;height:.5rem;border-radius:99px;background:var(--faint);overflow:hidden}
.share b{display:block;height:100%;background:var(--fail);border-radius:99px}
.pictures{display:flex;flex-wrap:wrap;gap:1rem 1.6rem;margin-top:.6rem} .pictures:empty{display:none}
figure{margin:0;width:27rem;max-width:100%} figcaption{font-weight:600;font-size:.9rem;margin-bottom:.3rem}
.picture{max-width:100%;height:auto;display:block;shape-rendering:crispEdges}
.picture text{font:11px system-ui,sans-serif;fill:var(--soft)}
.frame{fill:none;stroke:var(--soft)} .lines{fill:none;stroke:var(--card);stroke-width:1}
.zero{fill:var(--zero)} .seen{fill:var(--seen)} .partly{fill:var(--partly)} .leaked{fill:var(--leaked)}
.missing{fill:var(--missing)} .odd{fill:var(--odd)} .ink{fill:var(--mark)}
"""
    + " ".join(f".h{level}{{fill:var(--h{level})}}" for level in range(1, 8))
    + """
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;padding:0;margin:.45rem 0 0;font-size:.86rem}
.swatch{width:12px;height:12px;vertical-align:-1px;outline:1px solid var(--line)}
.ramp{white-space:nowrap} .ramp .swatch{outline:0;margin-right:-4px} .ramp .swatch:last-of-type{margin-right:0}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:.9rem}
caption{text-align:left;padding:.6rem .9rem 0;color:var(--soft)}
th,td{text-align:left;vertical-align:top;padding:.38rem .9rem;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:600;white-space:nowrap} tbody th{font-weight:400;white-space:nowrap}
tbody tr:last-child>*{border-bottom:0} td.number,th.number{text-align:right;white-space:nowrap}
td.why{color:var(--soft);overflow-wrap:anywhere}
.facts{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.15rem 1.4rem;margin:.5rem 0}
.facts dt{color:var(--soft)} .facts dd{margin:0;overflow-wrap:anywhere}
@media print{body{background:none;max-width:none} header,.card,.scroll{break-inside:avoid}}
"""
)
