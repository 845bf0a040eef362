"""Reports of a run: an HTML page, an overview image, and tables in the terminal.

The HTML opens offline: styles, plots and images are embedded, there is no script, and all text from
data is escaped. Anything that a summary lacks is left out. The headline reports a change only if
the 95% intervals before and after do not overlap.

`claims` writes another page: every claim in the latest answers of a PPO run, with its verdicts.

Each module imports only those before it: `progress`, `results`, `plots`, `page`, `claims`,
`terminal`. Nothing is imported here, since `plots` takes half a second to import.
"""
