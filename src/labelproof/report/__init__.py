"""The report: one self-contained HTML file for a run, or for several runs of one experiment."""

from labelproof.report.html import write_report
from labelproof.report.record import RunRecord

__all__ = ["RunRecord", "write_report"]
