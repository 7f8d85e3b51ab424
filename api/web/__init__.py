"""Templates of pages; they link to nothing outside themselves."""
