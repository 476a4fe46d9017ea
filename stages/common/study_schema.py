"""The version of ``reports/study/summary.json``, which the analysis writes and the report reads."""

from typing import Final

SUMMARY_SCHEMA: Final = 4
