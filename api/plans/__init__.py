"""What a protection is to be: its configuration, its work, and how long that takes."""
