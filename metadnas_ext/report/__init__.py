"""What a finished run shows: tables, curves, cell graphs and one Markdown report.

Import from the modules (`report.build`, `report.tables`, ...): only `report.plots`, `report.cells`
and `report.build` need matplotlib, so the engine can use `report.result` without loading it.
"""
