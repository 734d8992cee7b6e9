"""The experiment: configuration, data, optimisation, training, records, statistics, tables and plots."""
