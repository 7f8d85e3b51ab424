"""What a protection has come to: figures, verdict, report. Pure, but for kept baselines."""
