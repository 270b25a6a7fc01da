"""Moving a scale per channel from one operator to the next: what ``equalize`` and ``smooth`` share."""
