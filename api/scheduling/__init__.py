"""Which step runs where and when, who holds it, and how it ends."""
