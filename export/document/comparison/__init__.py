"""What a comparison leaves for people: a report, a table, plots of the frontier, and front matter for cards."""
