"""What rated or sampled texts tell: quality, diversity, variety."""
