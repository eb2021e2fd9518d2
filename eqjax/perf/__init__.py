"""Performance: chips, operation counts, and what a step costs on machines that are not here."""
