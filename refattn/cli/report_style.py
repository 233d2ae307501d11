"""How the page of `refattn report` looks, beside what all pages share."""

STYLE = """
header { border-bottom: 1px solid var(--line); margin-bottom: 1.5rem }
header h1 { font-size: 1.9rem; margin: 0 0 .4rem }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding-bottom: .7rem; font-size: .9rem }
a { color: var(--navy); text-decoration: none } a:hover { text-decoration: underline }
section { margin: 0 0 3rem } h2 { font-size: 1.35rem; margin: 0 0 .7rem }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .3rem }
h3 span { font-weight: normal; color: var(--soft) } p { max-width: 46rem }
thead th { font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--soft) }
th, td { padding: .3rem .9rem } thead th:first-child, tbody th { text-align: left; padding-left: 0 }
dl { margin: .6rem 0 1.2rem } dt { font-weight: 600; color: var(--soft) } dd { overflow-wrap: anywhere }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem }
.verdict { background: var(--panel); border-left: 4px solid var(--red); padding: .9rem 1.2rem; border-radius: 4px }
.verdict p { margin: 0; max-width: none } .verdict .said { font-size: 1.25rem; line-height: 1.4; margin-bottom: .6rem }
.doubt { color: var(--wrong); font-weight: 600; margin: 0 0 .6rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; margin: 1rem 0 }
.cards div { background: var(--panel); border-radius: 4px; padding: .7rem 1rem; font-size: .9rem; color: var(--soft) }
.cards b { display: block; font-size: 1.7rem; line-height: 1.3; font-weight: 600; color: var(--ink) }
.kind { font-size: .72rem; border: 1px solid currentColor; border-radius: 3px; padding: 0 .35em; white-space: nowrap;
  color: var(--soft); vertical-align: .08em }
.kind.measured { color: var(--teal) } .kind.predicted { color: var(--violet) } .kind.bound { color: var(--blue) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: .5rem 2rem }
.figures > * { min-width: 0 }
.masks { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; margin-bottom: 1rem }
.masks figure { margin: 0 } .masks .own svg { outline: 2px solid var(--red); outline-offset: 2px }
.mask .paper { fill: none }
.strip { display: flex; height: 2.1rem; border-radius: 4px; overflow: hidden; margin: .2rem 0 .1rem }
.strip div { min-width: 1px } .strips p { margin: .5rem 0 0; font-size: .9rem }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .9rem; margin: .5rem 0 1rem; padding: 0 }
.legend li { list-style: none } .legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin-right: .4em }
td.bar { min-width: 9rem; padding-right: 0 } td.bar div { height: .9rem; border-radius: 2px }
.options th, .options td { padding: .3rem .5rem; font-size: .9rem } td.span { min-width: 8rem }
td.span div { position: relative; height: 1.1rem }
td.span i { position: absolute; top: .42rem; height: .26rem; background: var(--pale); border-radius: 2px }
td.span b { position: absolute; top: .12rem; width: .26rem; height: .86rem; margin-left: -.13rem;
  background: var(--navy) }
.options tbody th { padding-left: .4rem }
tr.chosen, tr.chosen th { background: var(--panel) } tr.chosen th { font-weight: 600 }
tr.beyond, tr.beyond th { color: var(--soft) }
th small { display: block; color: var(--wrong); font-weight: normal }
code { font: .85rem/1.4 ui-monospace, monospace; overflow-wrap: anywhere }
.again { color: var(--soft); font-size: .85rem; margin: 1rem 0 0; max-width: none }
@media (max-width: 40rem) { th, td { padding: .25rem .5rem; font-size: .9rem }
  tbody th { position: sticky; left: 0; background: var(--paper); white-space: normal; min-width: 6rem }
  body { margin: 1rem auto } header h1 { font-size: 1.5rem }
  .masks { grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)) }
  .cards { grid-template-columns: 1fr 1fr } dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .5rem } }
@media print { nav { display: none } section { margin-bottom: 1.5rem } h3 { break-after: avoid }
  th, td, .options th, .options td { padding: .15rem .4rem; font-size: 8pt } td.span { min-width: 5rem }
  .figures { grid-template-columns: 1fr 1fr } .masks, .cards { grid-template-columns: repeat(4, 1fr) }
  .cards b { font-size: 1.3rem }
  .strip, .strip div, td.bar div, td.span i, td.span b, .verdict, .cards div { print-color-adjust: exact;
  -webkit-print-color-adjust: exact } }
"""
