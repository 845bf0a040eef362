"""The report: what a run of everything came to, as one HTML file, as a picture, and as a table in the terminal.

The HTML opens offline: styles, plots and pictures are in it, there is no script, and every text that came with data is
escaped. Whatever a summary lacks is left out. Sentences follow the numbers: a fall is called one when the 95% intervals
before and after lie apart.

`claims` writes another page: every claim of a ppo run's latest answers, and who judged it.

Each module imports only those before it: `results`, `plots`, `page`, `claims`, `terminal`.
"""

from mmrlhf.report.claims import write_claims_page
from mmrlhf.report.page import write_report
from mmrlhf.report.plots import write_overview_image
from mmrlhf.report.terminal import print_results_table

__all__ = ["print_results_table", "write_claims_page", "write_overview_image", "write_report"]
