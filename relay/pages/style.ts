/** The one style sheet of the relay's pages, served by the relay itself: pages load nothing else. */

export const STYLE_PATH = '/style.css'

export const STYLE =
  `:root { color-scheme: light dark; --line: #8884; --soft: #8881; --link: #2563c9 }
@media (prefers-color-scheme: dark) { :root { --link: #8ab4f8 } }
* { box-sizing: border-box }
body { max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem;
  font: 1rem/1.6 system-ui, sans-serif }
h1 { margin: 0 0 .25rem; font-size: 1.6rem; letter-spacing: -.01em }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem }
h3 { margin: 1.75rem 0 .5rem; font-size: 1rem }
p { margin: .5rem 0 }
a { color: var(--link) }
code, pre { font: .9em/1.5 ui-monospace, monospace; overflow-wrap: anywhere }
pre { padding: .75rem 1rem; border-radius: .5rem; background: var(--soft); overflow-x: auto }
table { width: 100%; border-collapse: collapse; font-size: .92rem }
th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top }
th { font-weight: 600; white-space: nowrap }
td code { white-space: nowrap }
@media (max-width: 32rem) {
  th, td { display: block; white-space: normal; padding-right: 0 }
  th { padding-bottom: 0; border: 0; overflow-wrap: anywhere }
  pre { white-space: pre-wrap }
  td code { white-space: normal }
}
section.operation { margin: 1rem 0; padding: .9rem 1.1rem; border: 1px solid var(--line);
  border-radius: .5rem }
section.operation h3 { margin: 0 }
.method { display: inline-block; min-width: 4.2rem; font-weight: 700 }
.quiet { opacity: .7 }
label { display: block; margin: .9rem 0 .25rem }
input:not([type=hidden]) { width: 100%; padding: .55rem .7rem; border: 1px solid var(--line);
  border-radius: .5rem; background: var(--soft); color: inherit; font: inherit }
.code { font-family: ui-monospace, monospace; letter-spacing: .08em; text-transform: uppercase }
button { padding: .55rem 1.1rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--link); color: Canvas; font: inherit; cursor: pointer }
.alert { padding: .75rem 1rem; border-left: 3px solid #c0392b; background: var(--soft) }
`
