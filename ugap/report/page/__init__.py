"""The HTML report: one page that opens from disk, made of one or more folders of studies."""

from ugap.report.page.page import write_page
from ugap.report.page.runs import Run, read_run

__all__ = ["Run", "read_run", "write_page"]
