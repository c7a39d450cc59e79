"""The second sample bubble: the flights of New York in 2013, real data, and three business units' CSV files."""
