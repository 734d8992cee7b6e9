"""From results to tables, figures and statistics."""
