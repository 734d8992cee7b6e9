"""Figures of a report, one module each, with what they share: style, legend, label placement."""
