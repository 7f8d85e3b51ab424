"""The application's second entry point: runs the steps, and alone runs `sep_core`."""
