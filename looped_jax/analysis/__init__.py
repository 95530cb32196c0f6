"""From finished runs to tables, plots and statements."""
