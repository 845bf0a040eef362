"""Reports of a run: an HTML page, an overview image, and tables in the terminal.

The HTML opens offline: styles, plots and images are embedded, there is no script, and all text from
data is escaped. Anything that a summary lacks is left out. The headline follows the numbers: it
reports a change only if the 95% intervals before and after do not overlap.

`claims` writes another page: every claim in the latest answers of a PPO run, with its verdicts.

Each module imports only those before it: `progress`, `results`, `plots`, `page`, `claims`,
`terminal`.
"""

from mmrlhf.report.claims import write_claims_page
from mmrlhf.report.page import write_report
from mmrlhf.report.plots import write_overview_image
from mmrlhf.report.results import format_duration
from mmrlhf.report.terminal import print_results_table, print_stage_times

__all__ = [
    "format_duration",
    "print_results_table",
    "print_stage_times",
    "write_claims_page",
    "write_overview_image",
    "write_report",
]
