"""The report of a study, from its rows alone: tables, claims, pictures.

`entries` gathers a method's seeds and measures them, `tables`, `claims` and `costs` put the figures side by side,
`pictures` draws, and `write` puts it all into a folder.
"""

from t3d.study.report.write import write_report

__all__ = ["write_report"]
