"""Results for people: tables for the terminal, Markdown and CSV, and the plot of accuracy against parallelism.

`comparison` reads results and refuses those that are not of the same thing; `measurements` is what the rest is made
from. `tables` and `parallelism` make the paper's tables and AUP, `sharpness` what several samples tell, `paired` two
models problem by problem, `overview` the table of one benchmark's settings, all out of `cells` and `notes`; `layout`
prints tables, `plot` draws, and `paper` names the tables and writes their folder.
"""

from t3d.evaluation.report.comparison import comparable, read_results
from t3d.evaluation.report.layout import ResultTable
from t3d.evaluation.report.measurements import Measurement, measurements_of
from t3d.evaluation.report.overview import result_markdown, result_table
from t3d.evaluation.report.paired import paired_table
from t3d.evaluation.report.paper import TABLES, paper_tables, require_table, write_comparison
from t3d.evaluation.report.plot import accuracy_figure, plot_accuracy
from t3d.evaluation.report.sharpness import sharpness_table

__all__ = [
    "TABLES",
    "Measurement",
    "ResultTable",
    "accuracy_figure",
    "comparable",
    "measurements_of",
    "paired_table",
    "paper_tables",
    "plot_accuracy",
    "read_results",
    "require_table",
    "result_markdown",
    "result_table",
    "sharpness_table",
    "write_comparison",
]
