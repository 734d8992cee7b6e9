"""The page of a report, with its templates and scripts."""
