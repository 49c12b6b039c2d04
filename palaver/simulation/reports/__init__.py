"""What simulated runs show, for a terminal, for programs and as a page."""

from __future__ import annotations

from palaver.simulation.reports.page import report_html
from palaver.simulation.reports.records import report_json
from palaver.simulation.reports.text import report_text

__all__ = ["report_html", "report_json", "report_text"]
