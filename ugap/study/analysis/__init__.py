"""Studies of rated or sampled texts: quality, diversity, variety."""
