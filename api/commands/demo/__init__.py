"""The demo that ships with the service: a data set without a download."""
