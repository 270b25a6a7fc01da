"""From sample data to what is known about a model's values: data sources, mergeable statistics, threshold choice."""
