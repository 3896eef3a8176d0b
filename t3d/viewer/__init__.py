"""Trajectories as a web page in one file: rows, replay, reveal order, and two files side by side."""

from t3d.viewer.agreement import Agreement, agreement
from t3d.viewer.order import RevealOrder, reveal_order, step_rank
from t3d.viewer.sources import Source, open_sources
from t3d.viewer.texts import TokenTexts, token_texts
from t3d.viewer.writing import ViewSummary, page_data, write_view

__all__ = [
    "Agreement",
    "RevealOrder",
    "Source",
    "TokenTexts",
    "ViewSummary",
    "agreement",
    "open_sources",
    "page_data",
    "reveal_order",
    "step_rank",
    "token_texts",
    "write_view",
]
