"""The application: data sets in, protections asked for and followed, archives out. No PyTorch."""
